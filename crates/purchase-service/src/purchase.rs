//! What a purchase is, where it stands, and what may be decided about it.

use serde::Serialize;
use service_runtime::{Actor, Currency, Timestamp};
use uuid::Uuid;

/// The most products in one purchase.
pub const MOST_ITEMS: usize = 100;

/// What a user wants to buy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Order {
    /// Who buys.
    pub user_id: Uuid,
    /// The goods, each product once.
    pub items: Vec<Ordered>,
    /// The one currency of the purchase.
    pub currency: Currency,
}

/// One product of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ordered {
    /// The product.
    pub product_id: Uuid,
    /// How many pieces.
    pub quantity: u32,
}

/// A purchase as it is on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    /// Its identifier.
    pub id: Uuid,
    /// What was ordered.
    pub order: Order,
    /// The price of one piece of each product, in minor units and the order of the
    /// items. Empty until the goods are reserved.
    pub unit_prices: Vec<i64>,
    /// From when on it fails if it is still pending.
    pub not_after: Timestamp,
    /// When it was created.
    pub create_time: Timestamp,
    /// What it has come to.
    pub last: Event,
}

/// One change of a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The number of the change, from 1 and without gaps.
    pub version: i64,
    /// Where the purchase stands since.
    pub state: State,
    /// Why it failed, if it did.
    pub failure_reason: Option<FailureReason>,
    /// The price of the goods in minor units, once they are reserved.
    pub total: Option<i64>,
    /// When it changed.
    pub time: Timestamp,
}

impl Purchase {
    /// Whether the purchase is there for an actor, to see and to change.
    pub fn is_visible_to(&self, actor: Actor) -> bool {
        actor.admit(self.order.user_id).is_ok()
    }

    /// What a writer must have seen to decide about it
    /// (<https://google.aip.dev/154>).
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.last.version)
    }

    /// The purchase as it was after one of its changes. Goods and prices are locked
    /// before any change that answers a request, so that only the event differs.
    #[must_use]
    pub fn as_of(self, event: Event) -> Self {
        let unit_prices = if event.total.is_some() { self.unit_prices } else { Vec::new() };
        Self { last: event, unit_prices, ..self }
    }
}

/// Where a purchase stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Under way, and nothing decided.
    Pending,
    /// The goods are sold and paid. May still be refunded.
    Confirmed,
    /// Decided to fail; whatever was taken is being given back.
    Failing,
    /// Failed, and nothing was taken. Final.
    Failed,
    /// Cancelled before it was confirmed; whatever was taken is being given back.
    Cancelling,
    /// Cancelled, and nothing was taken. Final.
    Cancelled,
    /// Refunded after it was confirmed; goods and money are being given back.
    Refunding,
    /// Refunded. Final.
    Refunded,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Confirmed,
        Self::Failing,
        Self::Failed,
        Self::Cancelling,
        Self::Cancelled,
        Self::Refunding,
        Self::Refunded,
    ];

    /// Its name, in messages and in databases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Confirmed => "CONFIRMED",
            Self::Failing => "FAILING",
            Self::Failed => "FAILED",
            Self::Cancelling => "CANCELLING",
            Self::Cancelled => "CANCELLED",
            Self::Refunding => "REFUNDING",
            Self::Refunded => "REFUNDED",
        }
    }

    /// Whether nothing is under way: no worker has anything to do, and whoever
    /// waits for the purchase gets an answer.
    pub const fn is_settled(self) -> bool {
        match self {
            Self::Confirmed | Self::Failed | Self::Cancelled | Self::Refunded => true,
            Self::Pending | Self::Failing | Self::Cancelling | Self::Refunding => false,
        }
    }

    /// Whether the purchase can never change again.
    pub const fn is_final(self) -> bool {
        self.is_settled() && !matches!(self, Self::Confirmed)
    }
}

/// Why a purchase failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureReason {
    /// There was too little of a product.
    OutOfStock,
    /// A product does not exist.
    ProductNotFound,
    /// A price is in another currency than the purchase.
    CurrencyMismatch,
    /// The user has too little store credit.
    InsufficientCredit,
    /// The user does not exist.
    UserNotFound,
    /// No decision could be reached in time; the purchase may be tried anew.
    TimedOut,
    /// The price is larger than an amount can be.
    TotalTooLarge,
}

impl FailureReason {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::OutOfStock,
        Self::ProductNotFound,
        Self::CurrencyMismatch,
        Self::InsufficientCredit,
        Self::UserNotFound,
        Self::TimedOut,
        Self::TotalTooLarge,
    ];

    /// Its name, in databases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OutOfStock => "OUT_OF_STOCK",
            Self::ProductNotFound => "PRODUCT_NOT_FOUND",
            Self::CurrencyMismatch => "CURRENCY_MISMATCH",
            Self::InsufficientCredit => "INSUFFICIENT_CREDIT",
            Self::UserNotFound => "USER_NOT_FOUND",
            Self::TimedOut => "TIMED_OUT",
            Self::TotalTooLarge => "TOTAL_TOO_LARGE",
        }
    }
}

/// A write of a state. It is done only if the purchase is still in `from`, together
/// with its event and the answer that it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transition {
    /// The state that the purchase must still be in.
    pub from: State,
    /// The state that it is in from then on.
    pub to: State,
    /// Why it fails, if it does.
    pub reason: Option<FailureReason>,
}

impl Transition {
    /// A transition that needs no reason.
    pub const fn new(from: State, to: State) -> Self {
        Self { from, to, reason: None }
    }
}

/// What becomes of a request to cancel or to refund. If a transition is lost, the
/// request is decided anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Record the decision, then wait for the outcome.
    Record(Transition),
    /// It is decided already: wait for the outcome.
    Wait,
    /// It is done already: answer.
    Answer,
    /// It cannot be any more, or not yet.
    Refuse,
}

/// Decides `CancelPurchase`.
pub const fn cancel(state: State) -> Decision {
    match state {
        State::Pending => Decision::Record(Transition::new(State::Pending, State::Cancelling)),
        State::Cancelling => Decision::Wait,
        State::Cancelled => Decision::Answer,
        State::Confirmed | State::Failing | State::Failed | State::Refunding | State::Refunded => {
            Decision::Refuse
        }
    }
}

/// Decides `RefundPurchase`.
pub const fn refund(state: State) -> Decision {
    match state {
        State::Confirmed => Decision::Record(Transition::new(State::Confirmed, State::Refunding)),
        State::Refunding => Decision::Wait,
        State::Refunded => Decision::Answer,
        State::Pending | State::Failing | State::Failed | State::Cancelling | State::Cancelled => {
            Decision::Refuse
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pending_purchase_can_be_cancelled_and_only_a_confirmed_one_refunded() {
        for state in State::ALL {
            assert_eq!(matches!(cancel(state), Decision::Record(_)), state == State::Pending);
            assert_eq!(matches!(refund(state), Decision::Record(_)), state == State::Confirmed);
        }
    }
}
