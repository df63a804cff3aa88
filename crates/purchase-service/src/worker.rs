//! Carries out what the [`saga`](crate::saga) commands, and takes up again what was
//! left behind: by a crash, a lost answer, or another service that was away.

use std::{convert::Infallible, sync::Arc, time::Duration};

use client::Channel;
use proto::{
    catalog::v1::{
        ConfirmRequest, ReleaseRequest, Reservation, ReserveRequest,
        catalog_service_client::CatalogServiceClient, reserve_request,
        stock_service_client::StockServiceClient,
    },
    user::v1::{ChargeRequest, RefundRequest, account_service_client::AccountServiceClient},
};
use service_runtime::{Clock, Money, reason, to_proto_money, to_proto_timestamp, trace};
use tokio::{sync::Notify, task::JoinSet, time};
use tonic::{Code, Status};
use tracing::Instrument;
use uuid::Uuid;

use crate::{
    changes::Changes,
    error::Error,
    purchase::{FailureReason, Purchase},
    saga::{Claim, Command, Event, Line, Progress, step},
    store::{Store, Work},
};

/// How many purchases one process drives at once.
const CONCURRENCY: usize = 256;
/// How long a claim keeps other workers away: longer than it takes to drive a
/// purchase when every call runs into its deadline.
const LEASE: Duration = Duration::from_secs(30);
/// How often purchases that have become due are looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The delay before the first repeat; it doubles with every further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
/// The longest delay before a repeat.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);
/// From which failed attempt on somebody should be told.
const ATTEMPTS_WORTH_A_WARNING: u32 = 5;

/// The services whose votes make a purchase, and whose goods and credit a shopper sees.
#[derive(Clone, Debug)]
pub struct Others {
    pub(crate) catalog: CatalogServiceClient<Channel>,
    pub(crate) watches: CatalogServiceClient<Channel>,
    pub(crate) stock: StockServiceClient<Channel>,
    pub(crate) accounts: AccountServiceClient<Channel>,
}

impl Others {
    /// The services behind these channels. The `watches` of the catalog last for hours
    /// and are many, and have a connection of their own so that no purchase waits for one.
    pub fn new(catalog_service: Channel, watches: Channel, user_service: Channel) -> Self {
        Self {
            watches: CatalogServiceClient::new(watches),
            catalog: CatalogServiceClient::new(catalog_service.clone()),
            stock: StockServiceClient::new(catalog_service),
            accounts: AccountServiceClient::new(user_service),
        }
    }
}

/// Drives purchases.
#[derive(Clone, Debug)]
pub struct Worker<S> {
    store: S,
    others: Others,
    changes: Changes,
    clock: Clock,
    nudge: Arc<Notify>,
}

impl<S: Store> Worker<S> {
    /// A worker that drives the purchases of `store`.
    pub fn new(store: S, others: Others, changes: Changes, clock: Clock) -> Self {
        Self { store, others, changes, clock, nudge: Arc::default() }
    }

    /// What to notify when a purchase has become due, so that it need not wait to be
    /// found.
    pub fn nudge(&self) -> Arc<Notify> {
        Arc::clone(&self.nudge)
    }

    /// Drives whatever is due, for ever. Dropped at any point, it leaves nothing that
    /// another worker could not go on with.
    pub async fn run(self) -> Infallible {
        let mut driven = JoinSet::new();
        loop {
            let room = u32::try_from(CONCURRENCY.saturating_sub(driven.len())).unwrap_or(0);
            match self.store.claim(LEASE, room, self.clock.now()).await {
                Ok(claimed) => {
                    for work in claimed {
                        driven.spawn(self.clone().drive(work));
                    }
                }
                Err(error) => tracing::warn!(%error, "no purchase could be claimed; trying again"),
            }
            tokio::select! {
                () = self.nudge.notified() => {}
                () = time::sleep(POLL_INTERVAL) => {}
            }
            while let Some(ended) = driven.try_join_next() {
                if let Err(error) = ended {
                    tracing::error!(%error, "a purchase is left until its lease ends");
                }
            }
        }
    }

    async fn drive(self, work: Work) {
        let span = tracing::info_span!(
            "drive purchase",
            purchase = %work.purchase_id,
            attempts = work.attempts,
            trace_id = tracing::field::Empty,
        );
        trace::continue_from(&span, &work.trace_parent);
        self.pursue(work).instrument(span).await;
    }

    /// Goes on with one purchase until it is settled, or can only be tried later.
    async fn pursue(&self, work: Work) {
        let id = work.purchase_id;
        loop {
            let outcome = self.walk(&work).await;
            let retry = match outcome {
                Ok(Pause::ReadAgain) => continue,
                Ok(Pause::Done) | Err(Error::PurchaseNotFound(_)) => return,
                Ok(Pause::RetryLater) => "a call got no answer",
                Err(error) => {
                    tracing::warn!(%error, "the purchase could not be read or written");
                    // What failed may have been written all the same.
                    self.changes.announce(id);
                    "the database failed"
                }
            };
            if work.attempts >= ATTEMPTS_WORTH_A_WARNING {
                tracing::warn!(%id, work.attempts, retry, "the purchase is still not settled");
            }
            let due = self.clock.now().saturating_add(back_off(id, work.attempts));
            if let Err(error) = self.store.retry(&work, due).await {
                tracing::warn!(%error, "the purchase is left until its lease ends");
            }
            return;
        }
    }

    /// Reads the purchase, then does as the saga commands.
    async fn walk(&self, work: &Work) -> Result<Pause, Error> {
        let id = work.purchase_id;
        let purchase = self.store.get(id).await?.ok_or(Error::PurchaseNotFound(id))?;
        let claimed = Event::Claimed(Claim {
            state: purchase.last.state,
            total: purchase.last.total,
            attempts: work.attempts,
            is_late: self.clock.now() > purchase.not_after,
        });
        let (mut progress, mut command) = step(Progress::default(), claimed);
        loop {
            let event = match command {
                Command::Reserve => self.reserve(&purchase).await,
                Command::Charge(total) => self.charge(&purchase, total).await,
                Command::Confirm => self.confirm(&purchase).await,
                Command::Release => self.release(&purchase).await,
                Command::Refund => self.refund(&purchase).await,
                Command::RecordTotal { unit_prices, total } => {
                    let now = self.clock.now();
                    let won = self.store.record_total(id, unit_prices, total, now).await?;
                    self.changes.announce(id);
                    written(won)
                }
                Command::Transition(transition) => {
                    let now = self.clock.now();
                    let won = self.store.transition(id, transition, None, now).await?;
                    // A settled state is announced by the command to answer.
                    if !transition.to.is_settled() {
                        self.changes.announce(id);
                    }
                    written(won)
                }
                Command::Answer(_) => {
                    self.changes.announce(id);
                    Event::Answered
                }
                Command::RetryLater => return Ok(Pause::RetryLater),
                Command::ReadAgain => return Ok(Pause::ReadAgain),
                Command::Done => return Ok(Pause::Done),
            };
            (progress, command) = step(progress, event);
        }
    }

    async fn reserve(&self, purchase: &Purchase) -> Event {
        let items = purchase.order.items.iter().map(|item| reserve_request::Item {
            product_id: item.product_id.to_string(),
            quantity: i32::try_from(item.quantity).unwrap_or(i32::MAX),
        });
        let request = ReserveRequest {
            purchase_id: purchase.id.to_string(),
            items: items.collect(),
            currency_code: purchase.order.currency.as_str().to_owned(),
            not_after: Some(to_proto_timestamp(purchase.not_after)),
        };
        match self.others.stock.clone().reserve(request).await {
            Ok(reservation) => reserved(purchase, &reservation.into_inner()),
            Err(status) => vote(&status),
        }
    }

    async fn charge(&self, purchase: &Purchase, minor_units: i64) -> Event {
        let amount = Money { currency: purchase.order.currency, minor_units };
        let request = ChargeRequest {
            purchase_id: purchase.id.to_string(),
            user_id: purchase.order.user_id.to_string(),
            amount: Some(to_proto_money(amount)),
            not_after: Some(to_proto_timestamp(purchase.not_after)),
        };
        answered(self.others.accounts.clone().charge(request).await)
    }

    async fn confirm(&self, purchase: &Purchase) -> Event {
        let request = ConfirmRequest { purchase_id: purchase.id.to_string() };
        answered(self.others.stock.clone().confirm(request).await)
    }

    async fn release(&self, purchase: &Purchase) -> Event {
        let request = ReleaseRequest {
            purchase_id: purchase.id.to_string(),
            not_after: Some(to_proto_timestamp(purchase.not_after)),
        };
        answered(self.others.stock.clone().release(request).await)
    }

    async fn refund(&self, purchase: &Purchase) -> Event {
        let request = RefundRequest {
            purchase_id: purchase.id.to_string(),
            not_after: Some(to_proto_timestamp(purchase.not_after)),
        };
        answered(self.others.accounts.clone().refund(request).await)
    }
}

/// Why a walk ends.
enum Pause {
    Done,
    ReadAgain,
    RetryLater,
}

fn written(won: bool) -> Event {
    if won { Event::Won } else { Event::Lost }
}

fn answered<T>(answer: Result<T, Status>) -> Event {
    match answer {
        Ok(_) => Event::Yes,
        Err(status) => vote(&status),
    }
}

/// What an error means for a purchase: only a reason that the contract names is a
/// no; whatever else went wrong, the call may have had its effect.
fn vote(status: &Status) -> Event {
    let (Code::FailedPrecondition, Some(named)) = (status.code(), reason(status)) else {
        tracing::info!(code = ?status.code(), message = status.message(), "no vote");
        return Event::Unknown;
    };
    Event::No(match named.as_str() {
        "OUT_OF_STOCK" => FailureReason::OutOfStock,
        "PRODUCT_NOT_FOUND" => FailureReason::ProductNotFound,
        "CURRENCY_MISMATCH" => FailureReason::CurrencyMismatch,
        "INSUFFICIENT_CREDIT" => FailureReason::InsufficientCredit,
        "USER_NOT_FOUND" => FailureReason::UserNotFound,
        "TOO_LATE"
        | "RESERVATION_EXPIRED"
        | "RESERVATION_NOT_FOUND"
        | "RESERVATION_RELEASED"
        | "PAYMENT_REFUNDED" => FailureReason::TimedOut,
        other => {
            tracing::error!(reason = other, "a no that this service does not expect");
            FailureReason::TimedOut
        }
    })
}

/// The prices that a reservation locked, if it is one for the goods that were
/// ordered.
fn reserved(purchase: &Purchase, reservation: &Reservation) -> Event {
    let goods = &purchase.order.items;
    let lines: Vec<_> = goods
        .iter()
        .zip(&reservation.items)
        .filter_map(|(ordered, held)| {
            let price = held.unit_price.as_ref()?;
            let is_same = ordered.product_id.to_string() == held.product_id
                && i64::from(ordered.quantity) == i64::from(held.quantity)
                && purchase.order.currency.as_str() == price.currency_code;
            is_same.then_some(Line { quantity: ordered.quantity, unit_price: price.minor_units })
        })
        .collect();
    if lines.len() == goods.len() {
        return Event::Reserved(lines);
    }
    tracing::error!("catalog-service reserved other goods than were asked for");
    Event::Unknown
}

/// Doubles with every attempt, and differs between purchases so that they do not
/// all come back at once.
pub(crate) fn back_off(id: Uuid, attempts: u32) -> Duration {
    let longest = FIRST_BACK_OFF.saturating_mul(1 << attempts.min(10)).min(LONGEST_BACK_OFF);
    // The last bytes of a UUIDv7 are random: somewhere between half and all of it.
    let spread = f64::from(id.as_bytes()[15]) / f64::from(u8::MAX);
    longest.mul_f64(0.5 + spread / 2.0)
}

#[cfg(test)]
mod tests {
    use service_runtime::refusal;

    use super::*;

    #[test]
    fn only_a_reason_of_the_contract_is_a_no() {
        let no = refusal(Code::FailedPrecondition, "OUT_OF_STOCK", "too few");
        assert_eq!(vote(&no), Event::No(FailureReason::OutOfStock));
        for unknown in [
            Status::unavailable("away"),
            Status::deadline_exceeded("late"),
            Status::cancelled("gone"),
            Status::internal("broken"),
            Status::unknown("odd"),
            Status::failed_precondition("from a proxy"),
            Status::permission_denied("misconfigured"),
        ] {
            assert_eq!(vote(&unknown), Event::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn delays_grow_to_a_limit_and_differ_between_purchases() {
        let slow = Uuid::from_u128(0xff);
        let quick = Uuid::from_u128(0);
        assert_eq!(back_off(slow, 0), FIRST_BACK_OFF);
        assert_eq!(back_off(quick, 0), FIRST_BACK_OFF / 2);
        assert!(back_off(slow, 3) > back_off(slow, 2));
        assert_eq!(back_off(slow, u32::MAX), LONGEST_BACK_OFF);
    }
}
