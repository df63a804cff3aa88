//! What every request goes through before it reaches the domain: all violations
//! of all fields are collected and answered at once as
//! `google.rpc.BadRequest` (<https://google.aip.dev/193>).

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};
use uuid::Uuid;

use crate::{Caller, Currency, Money, RequestKey, Role, Timestamp, config::Reported};

/// How many violations are told in one answer: all of them, if it is a person who made
/// them, and few enough that they fit the metadata of any client.
const MOST_VIOLATIONS: usize = 16;

/// Reads the fields of one request and remembers what is wrong with them.
#[derive(Debug, Default)]
pub struct Fields(Vec<FieldViolation>);

impl Fields {
    /// The request, if none of its fields was refused.
    pub fn accept<T>(self, request: impl FnOnce() -> Result<T, Reported>) -> Result<T, Status> {
        match request() {
            Ok(request) if self.0.is_empty() => Ok(request),
            _ => Err(self.into_status()),
        }
    }

    /// What is wrong, a sentence for each field; empty if nothing is.
    pub fn violations(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|violation| format!("{}: {}", violation.field, violation.description))
    }

    fn into_status(mut self) -> Status {
        let untold = self.0.len().checked_sub(MOST_VIOLATIONS).filter(|untold| *untold > 0);
        let untold = untold.map(|untold| format!("and {untold} more"));
        let told = self.violations().take(MOST_VIOLATIONS);
        let message = told.chain(untold).collect::<Vec<_>>().join("; ");
        self.0.truncate(MOST_VIOLATIONS);
        let details = ErrorDetails::with_bad_request(self.0);
        Status::with_error_details(Code::InvalidArgument, message, details)
    }

    /// Refuses a field. `problem` says what to send instead.
    pub fn refuse(&mut self, field: &str, problem: impl Display) -> Reported {
        self.0.push(FieldViolation::new(field, problem.to_string()));
        Reported
    }

    /// A value that may have been refused elsewhere.
    pub fn check<T>(&mut self, field: &str, value: Result<T, impl Display>) -> Result<T, Reported> {
        value.map_err(|problem| self.refuse(field, problem))
    }

    /// A message that must be there.
    pub fn present<T>(&mut self, field: &str, value: Option<T>) -> Result<T, Reported> {
        value.ok_or_else(|| self.refuse(field, "is missing; set it"))
    }

    /// A UUID in its usual form of 36 characters.
    pub fn uuid(&mut self, field: &str, text: &str) -> Result<Uuid, Reported> {
        const FORM: &str = "send a UUID, for example \"01890a5d-ac96-774b-bcce-b302099a8057\"";
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == 36 => Ok(uuid),
            _ if text.is_empty() => Err(self.refuse(field, format!("is missing; {FORM}"))),
            _ => Err(self.refuse(field, format!("is not a UUID; {FORM}"))),
        }
    }

    /// The key of a request that carries a `request_id`. `parameters` are what was
    /// read from its other fields.
    pub fn request_key(
        &mut self,
        caller: &Caller,
        rpc: &str,
        request_id: &str,
        parameters: &Result<impl Serialize, Reported>,
    ) -> Result<RequestKey, Reported> {
        let request_id = self.uuid("request_id", request_id)?;
        let parameters = parameters.as_ref().map_err(|reported| *reported)?;
        Ok(RequestKey::new(caller, request_id, rpc, parameters))
    }

    /// Text of so many characters, none of them a control character but line
    /// breaks and tabs.
    pub fn text(
        &mut self,
        field: &str,
        text: String,
        characters: RangeInclusive<usize>,
    ) -> Result<String, Reported> {
        let count = text.chars().count();
        if !characters.contains(&count) {
            let (least, most) = (characters.start(), characters.end());
            return Err(
                self.refuse(field, format!("has {count} characters; send {least} to {most}"))
            );
        }
        if *characters.start() > 0 && text.chars().all(is_blank) {
            return Err(self.refuse(field, "is blank; send something to read"));
        }
        if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
            return Err(self.refuse(field, "holds control characters; leave them out"));
        }
        if has_direction_marks(&text) {
            return Err(self.refuse(field, "holds invisible marks of direction; leave them out"));
        }
        Ok(text)
    }

    /// An etag that the resource must still have, if one is given.
    pub fn etag(&mut self, field: &str, etag: String) -> Result<Option<String>, Reported> {
        const LONGEST: usize = 64;
        let etag = self.text(field, etag, 0..=LONGEST)?;
        Ok(Some(etag).filter(|etag| !etag.is_empty()))
    }

    /// Which of the `known` fields of a resource a request changes
    /// (<https://google.aip.dev/134>): those that the mask names, all of them for
    /// `*`, or without a mask those that are `set`.
    pub fn update_mask(
        &mut self,
        mask: Option<prost_types::FieldMask>,
        known: &[&'static str],
        set: impl Fn(&str) -> bool,
    ) -> Result<Vec<&'static str>, Reported> {
        let paths = mask.map(|mask| mask.paths).unwrap_or_default();
        if paths.is_empty() {
            return Ok(known.iter().copied().filter(|name| set(name)).collect());
        }
        if paths == ["*"] {
            return Ok(known.to_vec());
        }
        let stray = paths.iter().find(|path| !known.contains(&path.as_str()));
        if let Some(path) = stray {
            let path: String = path.chars().take(40).collect();
            let known = known.join(", ");
            let problem =
                format!("names {path:?}, which cannot be changed; send {known}, or * alone");
            return Err(self.refuse("update_mask", problem));
        }
        Ok(known.iter().copied().filter(|name| paths.iter().any(|path| path == name)).collect())
    }

    /// A whole number within a range.
    pub fn integer<T: PartialOrd + Display + Copy>(
        &mut self,
        field: &str,
        value: T,
        range: RangeInclusive<T>,
    ) -> Result<T, Reported> {
        if range.contains(&value) {
            return Ok(value);
        }
        let (least, most) = (range.start(), range.end());
        Err(self.refuse(field, format!("is {value}; send {least} to {most}")))
    }

    /// The code of a currency.
    pub fn currency(&mut self, field: &str, code: &str) -> Result<Currency, Reported> {
        self.check(field, code.parse::<Currency>())
    }

    /// An amount within a range of minor units.
    pub fn money(
        &mut self,
        field: &str,
        money: Option<proto::r#type::v1::Money>,
        minor_units: RangeInclusive<i64>,
    ) -> Result<Money, Reported> {
        let money = self.present(field, money)?;
        let currency = self.currency(&format!("{field}.currency_code"), &money.currency_code);
        let minor_units =
            self.integer(&format!("{field}.minor_units"), money.minor_units, minor_units);
        Ok(Money { currency: currency?, minor_units: minor_units? })
    }

    /// A point in time, cut to microseconds.
    pub fn timestamp(
        &mut self,
        field: &str,
        time: Option<prost_types::Timestamp>,
    ) -> Result<Timestamp, Reported> {
        // What google.protobuf.Timestamp admits: the years 1 to 9999.
        const SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
        let time = self.present(field, time)?;
        let seconds = self.integer(&format!("{field}.seconds"), time.seconds, SECONDS);
        let nanos = self.integer(&format!("{field}.nanos"), time.nanos, 0..=999_999_999);
        Ok(Timestamp::from_micros(seconds? * 1_000_000 + i64::from(nanos? / 1_000)))
    }

    /// What a user may do.
    pub fn role(&mut self, field: &str, role: i32) -> Result<Role, Reported> {
        match proto::Role::try_from(role) {
            Ok(proto::Role::Customer) => Ok(Role::Customer),
            Ok(proto::Role::Staff) => Ok(Role::Staff),
            Ok(proto::Role::Unspecified) | Err(_) => {
                Err(self.refuse(field, "is no role; send ROLE_CUSTOMER or ROLE_STAFF"))
            }
        }
    }

    /// How many results a page holds, `default` if zero, and never more than 1000
    /// (<https://google.aip.dev/158>).
    pub fn page_size(&mut self, value: i32, default: u32) -> Result<u32, Reported> {
        match u32::try_from(value) {
            Ok(0) => Ok(default),
            Ok(size) => Ok(size.min(1000)),
            Err(_) => Err(self.refuse("page_size", "is negative; send zero or more")),
        }
    }
}

/// White space, and what takes no space at all: soft hyphens, joiners, byte order marks
/// and tags.
fn is_blank(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

/// Whether text holds invisible marks of direction, which show it in another order than it
/// has (CVE-2021-42574).
pub fn has_direction_marks(text: &str) -> bool {
    text.contains(|c| {
        matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    })
}

/// A point in time as the contract has it.
pub fn to_proto_timestamp(time: Timestamp) -> prost_types::Timestamp {
    let micros = time.as_micros();
    let nanos = Duration::from_micros(micros.rem_euclid(1_000_000).unsigned_abs()).subsec_nanos();
    prost_types::Timestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos: i32::try_from(nanos).unwrap_or_default(),
    }
}

/// A role as the contract has it.
pub fn to_proto_role(role: Role) -> proto::Role {
    match role {
        Role::Customer => proto::Role::Customer,
        Role::Staff => proto::Role::Staff,
    }
}

/// An amount as the contract has it.
pub fn to_proto_money(money: Money) -> proto::r#type::v1::Money {
    proto::r#type::v1::Money {
        currency_code: money.currency.as_str().to_owned(),
        minor_units: money.minor_units,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_violations_are_answered_at_once_by_field() {
        let mut fields = Fields::default();
        let id = fields.uuid("id", "7");
        let quantity = fields.integer("items[0].quantity", 0, 1..=10);
        let price = fields.money("price", None, 0..=10);
        let status = fields.accept(|| Ok((id?, quantity?, price?))).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let named: Vec<_> = status
            .get_details_bad_request()
            .unwrap()
            .field_violations
            .into_iter()
            .map(|violation| violation.field)
            .collect();
        assert_eq!(named, ["id", "items[0].quantity", "price"]);
    }

    #[test]
    fn of_many_violations_as_many_are_told_as_any_client_can_read() {
        let mut fields = Fields::default();
        for line in 0..100 {
            let _ = fields.uuid(&format!("items[{line}].product_id"), "nonsense");
        }
        let status = fields.accept(|| Err::<(), _>(Reported)).unwrap_err();
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        assert!(headers.values().map(http::HeaderValue::len).sum::<usize>() < 8 << 10);
        assert!(status.message().ends_with("; and 84 more"), "{status:?}");
    }

    #[test]
    fn text_has_no_marks_that_change_its_order() {
        for mark in ['\u{61c}', '\u{200e}', '\u{200f}', '\u{202e}', '\u{2066}'] {
            let mut fields = Fields::default();
            let text = fields.text("name", format!("Ada{mark}"), 1..=10);
            assert_eq!(text, Err(Reported), "{mark:?}");
        }
        let text = "שלום, 船具商 ✓".to_owned();
        assert_eq!(Fields::default().text("name", text.clone(), 1..=20), Ok(text));
    }

    #[test]
    fn a_time_before_the_epoch_survives_the_conversion() {
        let time = Timestamp::from_micros(-1);
        let converted = to_proto_timestamp(time);
        assert_eq!((converted.seconds, converted.nanos), (-1, 999_999_000));
        assert_eq!(Fields::default().timestamp("time", Some(converted)), Ok(time));
    }

    proptest! {
        #[test]
        fn a_uuid_is_written_as_it_was_read(
            id: u128,
            text in r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}|[0-9a-f{}-]{30,40}|\PC*",
        ) {
            let mut fields = Fields::default();
            let id = Uuid::from_u128(id);
            prop_assert_eq!(fields.uuid("id", &id.to_string()), Ok(id));
            if let Ok(id) = fields.uuid("id", &text) {
                prop_assert_eq!(id.to_string(), text.to_lowercase());
            }
        }

        #[test]
        fn a_time_is_written_as_it_was_read_but_for_what_is_less_than_a_microsecond(
            seconds in prop_oneof![any::<i64>(), -62_135_596_801..=253_402_300_800_i64],
            nanos in prop_oneof![any::<i32>(), -1..=1_000_000_000],
        ) {
            let sent = prost_types::Timestamp { seconds, nanos };
            if let Ok(time) = Fields::default().timestamp("time", Some(sent)) {
                let written = to_proto_timestamp(time);
                prop_assert_eq!(written.seconds, seconds);
                prop_assert_eq!(written.nanos, nanos / 1_000 * 1_000);
            }
        }
    }

    #[test]
    fn text_that_shows_nothing_is_blank() {
        for blank in [" \t", "\u{200b}", "\u{feff}\u{ad}", "\u{e0001}"] {
            let mut fields = Fields::default();
            assert_eq!(fields.text("name", blank.to_owned(), 1..=9), Err(Reported), "{blank:?}");
        }
        let joined = "\u{1f468}\u{200d}\u{1f373}".to_owned();
        assert_eq!(Fields::default().text("name", joined.clone(), 1..=9), Ok(joined));
    }
}
