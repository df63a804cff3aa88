//! Pages of a list (<https://google.aip.dev/158>): a token is the key of the last
//! row, bound to the request that it continues.

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use uuid::Uuid;

use crate::{Fields, config::Reported};

/// Which rows of a list are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub size: u32,
    /// Those after this key; none for the first ones.
    pub after: Option<Uuid>,
}

impl Page {
    /// The key of the row before the page as databases store it; empty before the
    /// first row, which sorts before every key.
    pub fn after_bytes(&self) -> Vec<u8> {
        self.after.map(|after| after.as_bytes().to_vec()).unwrap_or_default()
    }
}

/// The rows of a page, and whether there are more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paged<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// The key after which the next page begins; none on the last.
    pub next: Option<Uuid>,
}

impl<T> Paged<T> {
    /// A page from one row more than it holds, the way to learn whether there are
    /// more without counting.
    pub fn from_surplus(mut rows: Vec<T>, size: u32, key: impl Fn(&T) -> Uuid) -> Self {
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        let more = rows.len() > size;
        rows.truncate(size);
        let next = rows.last().filter(|_| more).map(key);
        Self { rows, next }
    }
}

/// Makes and reads the tokens of one list, so that a token cannot continue another.
#[derive(Debug)]
pub struct PageTokens<'a>([&'a str; 2]);

impl<'a> PageTokens<'a> {
    /// The tokens of a list: its RPC, and the parameter that chooses its rows.
    pub const fn new(list: [&'a str; 2]) -> Self {
        Self(list)
    }

    /// Reads the page that a request asks for.
    pub fn page(
        &self,
        fields: &mut Fields,
        page_size: i32,
        default_size: u32,
        page_token: &str,
    ) -> Result<Page, Reported> {
        let size = fields.page_size(page_size, default_size);
        let after = match self.decode(page_token) {
            _ if page_token.is_empty() => Ok(None),
            Some(after) => Ok(Some(after)),
            None => Err(fields.refuse(
                "page_token",
                "does not continue this request; send the next_page_token of the page before \
                 with the same parameters, or nothing for the first page",
            )),
        };
        Ok(Page { size: size?, after: after? })
    }

    /// The token of the page after `next`; empty if there is none.
    pub fn token(&self, next: Option<Uuid>) -> String {
        let Some(next) = next else {
            return String::new();
        };
        BASE64_URL_SAFE_NO_PAD.encode([&self.binding(), next.as_bytes().as_slice()].concat())
    }

    fn decode(&self, token: &str) -> Option<Uuid> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).ok()?;
        let key = bytes.strip_prefix(self.binding().as_slice())?;
        Uuid::from_slice(key).ok()
    }

    fn binding(&self) -> [u8; 8] {
        let digest = digest(&SHA256, self.0.join("\0").as_bytes());
        let mut binding = [0; 8];
        binding.copy_from_slice(&digest.as_ref()[..8]);
        binding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_continues_its_own_request_and_no_other() {
        let mine = PageTokens::new(["ListPurchases", "mine"]);
        let yours = PageTokens::new(["ListPurchases", "yours"]);
        let last = Uuid::from_u128(7);
        let token = mine.token(Some(last));
        let mut fields = Fields::default();
        assert_eq!(
            mine.page(&mut fields, 10, 50, &token),
            Ok(Page { size: 10, after: Some(last) })
        );
        assert_eq!(yours.page(&mut fields, 10, 50, &token), Err(Reported));
        assert_eq!(mine.page(&mut fields, 10, 50, "nonsense"), Err(Reported));
        assert_eq!(fields.violations().count(), 2);
    }
}
