//! From the contract to the domain, where every field is checked, and back.

use std::collections::HashSet;

use proto::purchase::v1 as pb;
use service_runtime::{
    Caller, Currency, Fields, Money, Page, PageTokens, Reported, RequestKey, to_proto_money,
    to_proto_timestamp,
};
use tonic::Status;
use uuid::Uuid;

use crate::{
    purchase::{Event, FailureReason, MOST_ITEMS, Order, Ordered, Purchase, State},
    store::Audited,
};

/// The most pieces of a product in one purchase.
pub(super) const MOST_BOUGHT: i32 = 1_000_000;

pub(super) fn create_purchase(
    caller: &Caller,
    request: &pb::CreatePurchaseRequest,
) -> Result<(RequestKey, Order), Status> {
    let mut fields = Fields::default();
    let order = order(&mut fields, request.purchase.as_ref());
    let key = fields.request_key(caller, "CreatePurchase", &request.request_id, &order);
    fields.accept(|| Ok((key?, order?)))
}

fn order(fields: &mut Fields, purchase: Option<&pb::Purchase>) -> Result<Order, Reported> {
    let purchase = fields.present("purchase", purchase)?;
    let user_id = fields.uuid("purchase.user_id", &purchase.user_id);
    let currency = fields.currency("purchase.currency_code", &purchase.currency_code);
    let items = items(fields, &purchase.items);
    Ok(Order { user_id: user_id?, items: items?, currency: currency? })
}

fn items(fields: &mut Fields, items: &[pb::purchase::Item]) -> Result<Vec<Ordered>, Reported> {
    if !(1..=MOST_ITEMS).contains(&items.len()) {
        let problem = format!("has {} products; send 1 to {MOST_ITEMS}", items.len());
        return Err(fields.refuse("purchase.items", problem));
    }
    let mut seen = HashSet::new();
    let ordered: Vec<_> = items
        .iter()
        .enumerate()
        .map(|(line, item)| {
            let field = format!("purchase.items[{line}].product_id");
            let product_id = fields.uuid(&field, &item.product_id);
            if product_id.is_ok_and(|id| !seen.insert(id)) {
                fields.refuse(&field, "is named twice; add the quantities up");
            }
            let field = format!("purchase.items[{line}].quantity");
            let quantity = fields.integer(&field, item.quantity, 1..=MOST_BOUGHT);
            Ok(Ordered { product_id: product_id?, quantity: quantity?.unsigned_abs() })
        })
        .collect();
    ordered.into_iter().collect()
}

pub(super) fn get_purchase(request: &pb::GetPurchaseRequest) -> Result<Uuid, Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", &request.id);
    fields.accept(|| id)
}

/// The pages of one user's purchases.
pub(super) fn purchases_of(user_id: &str) -> PageTokens<'_> {
    PageTokens::new(["ListPurchases", user_id])
}

pub(super) fn list_purchases(request: &pb::ListPurchasesRequest) -> Result<(Uuid, Page), Status> {
    let mut fields = Fields::default();
    let user_id = fields.uuid("user_id", &request.user_id);
    let tokens = purchases_of(&request.user_id);
    let page = tokens.page(&mut fields, request.page_size, 50, &request.page_token);
    fields.accept(|| Ok((user_id?, page?)))
}

pub(super) fn cancel_purchase(
    request: pb::CancelPurchaseRequest,
) -> Result<(Uuid, Option<String>), Status> {
    decided(&request.id, request.etag)
}

pub(super) fn refund_purchase(
    request: pb::RefundPurchaseRequest,
) -> Result<(Uuid, Option<String>), Status> {
    decided(&request.id, request.etag)
}

fn decided(id: &str, etag: String) -> Result<(Uuid, Option<String>), Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", id);
    let etag = fields.etag("etag", etag);
    fields.accept(|| Ok((id?, etag?)))
}

pub(super) fn watch_purchase(request: &pb::WatchPurchaseRequest) -> Result<(Uuid, i64), Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", &request.id);
    let after_version = fields.integer("after_version", request.after_version, 0..=i64::MAX);
    fields.accept(|| Ok((id?, after_version?)))
}

pub(super) fn audit_purchases(
    tokens: &PageTokens<'_>,
    request: &pb::AuditPurchasesRequest,
) -> Result<Page, Status> {
    let mut fields = Fields::default();
    let page = tokens.page(&mut fields, request.page_size, 1000, &request.page_token);
    fields.accept(|| page)
}

pub(super) fn purchase_event(id: Uuid, currency: Currency, event: Event) -> pb::PurchaseEvent {
    let Event { version, state, failure_reason, total, time } = event;
    pb::PurchaseEvent {
        purchase_id: id.to_string(),
        version,
        state: pb::PurchaseState::from(state).into(),
        failure_reason: failure_reason.map(pb::FailureReason::from).unwrap_or_default().into(),
        total: total.map(|minor_units| to_proto_money(Money { currency, minor_units })),
        event_time: Some(to_proto_timestamp(time)),
    }
}

impl From<State> for pb::PurchaseState {
    fn from(state: State) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::Confirmed => Self::Confirmed,
            State::Failing => Self::Failing,
            State::Failed => Self::Failed,
            State::Cancelling => Self::Cancelling,
            State::Cancelled => Self::Cancelled,
            State::Refunding => Self::Refunding,
            State::Refunded => Self::Refunded,
        }
    }
}

impl From<FailureReason> for pb::FailureReason {
    fn from(reason: FailureReason) -> Self {
        match reason {
            FailureReason::OutOfStock => Self::OutOfStock,
            FailureReason::ProductNotFound => Self::ProductNotFound,
            FailureReason::CurrencyMismatch => Self::CurrencyMismatch,
            FailureReason::InsufficientCredit => Self::InsufficientCredit,
            FailureReason::UserNotFound => Self::UserNotFound,
            FailureReason::TimedOut => Self::TimedOut,
            FailureReason::TotalTooLarge => Self::TotalTooLarge,
        }
    }
}

impl From<Purchase> for pb::Purchase {
    fn from(purchase: Purchase) -> Self {
        let etag = purchase.etag();
        let Purchase { id, order, unit_prices, not_after: _, create_time, last } = purchase;
        let Order { user_id, items, currency } = order;
        let Event { version: _, state, failure_reason, total, time } = last;
        let money = |minor_units| to_proto_money(Money { currency, minor_units });
        let mut unit_prices = unit_prices.into_iter();
        let items = items.into_iter().map(|item| pb::purchase::Item {
            product_id: item.product_id.to_string(),
            // A quantity came in as a positive i32.
            quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
            unit_price: unit_prices.next().map(money),
        });
        Self {
            id: id.to_string(),
            user_id: user_id.to_string(),
            items: items.collect(),
            currency_code: currency.as_str().to_owned(),
            state: pb::PurchaseState::from(state).into(),
            failure_reason: failure_reason.map(pb::FailureReason::from).unwrap_or_default().into(),
            total: total.map(money),
            etag,
            create_time: Some(to_proto_timestamp(create_time)),
            update_time: Some(to_proto_timestamp(time)),
        }
    }
}

impl From<Audited> for pb::audit_purchases_response::AuditedPurchase {
    fn from(audited: Audited) -> Self {
        let Audited { purchase, principal, request_id, events_sound } = audited;
        let currency = purchase.order.currency;
        let total = purchase.last.total;
        Self {
            id: purchase.id.to_string(),
            principal,
            request_id: request_id.to_string(),
            state: pb::PurchaseState::from(purchase.last.state).into(),
            total: total.map(|minor_units| to_proto_money(Money { currency, minor_units })),
            not_after: Some(to_proto_timestamp(purchase.not_after)),
            update_time: Some(to_proto_timestamp(purchase.last.time)),
            events_sound,
        }
    }
}
