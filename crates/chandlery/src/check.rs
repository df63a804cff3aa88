//! Checks what must hold of purchases, stock and ledger wherever a fault falls: one
//! pure function that tests and the command line share.

mod evidence;
mod report;

use std::collections::{BTreeMap, HashMap, HashSet};

use proto::{
    catalog::v1::{AuditStockResponse, audit_stock_response::AuditedReservation, reservation},
    purchase::v1::{PurchaseState, audit_purchases_response::AuditedPurchase},
    user::v1::{
        AuditLedgerResponse,
        audit_ledger_response::{AuditedPayment, Sum},
    },
};

pub use evidence::{Answer, Error, Evidence, Sent};
pub use report::{Finding, Invariant, Report};

use report::Findings;

/// How long after its deadline a purchase may take to settle, in seconds: a worker
/// has to notice, and to be heard by services that may have been away.
const SETTLING_MARGIN_SECONDS: i64 = 30;

/// Checks every invariant.
///
/// What is read while purchases are under way is judged as far as it can be: a
/// purchase that is not settled yet may or may not have been paid.
pub fn check(evidence: &Evidence) -> Report {
    let Evidence { stock, ledger, purchases, sent } = evidence;
    let books = Books::new(stock, ledger, &purchases.purchases);
    let now = purchases.read_time.map_or(i64::MAX, |time| time.seconds);
    Report::new(|invariant| match invariant {
        Invariant::NothingOversold => nothing_oversold(stock),
        Invariant::StockBalances => stock_balances(stock),
        Invariant::AnswersKept => match sent {
            Some(sent) => answers_kept(sent, &purchases.purchases),
            None => Findings::Unknown,
        },
        Invariant::NothingInvented => match sent {
            Some(sent) => nothing_invented(sent, &purchases.purchases),
            None => Findings::Unknown,
        },
        Invariant::OncePerRequest => once_per_request(&purchases.purchases),
        Invariant::PaidPriceOrNothing => books.paid_price_or_nothing(),
        Invariant::PaidIfConfirmed => books.paid_if_confirmed(),
        Invariant::SoldIfConfirmed => books.sold_if_confirmed(),
        Invariant::LedgerBalances => ledger_balances(&ledger.sums),
        Invariant::AccountsSound => accounts_sound(ledger),
        Invariant::SettledInTime => settled_in_time(&purchases.purchases, now),
        Invariant::EventsComplete => events_complete(&purchases.purchases),
    })
}

fn nothing_oversold(stock: &AuditStockResponse) -> Findings {
    let count = stock.oversold_product_count;
    let offender = (count != 0).then(|| format!("{count} products"));
    Findings::of(stock.product_count, "products", offender)
}

fn stock_balances(stock: &AuditStockResponse) -> Findings {
    let AuditStockResponse {
        available_quantity: available,
        reserved_quantity: reserved,
        sold_quantity: sold,
        initial_quantity: initial,
        restocked_quantity: restocked,
        unbalanced_product_count: unbalanced,
        ..
    } = *stock;
    let products = (unbalanced != 0).then(|| format!("{unbalanced} products"));
    let pieces = (wide([available, reserved, sold]) != wide([initial, restocked])).then(|| {
        format!("{available} + {reserved} + {sold} pieces of {initial} + {restocked} in all")
    });
    let counted = i64::try_from(wide([initial, restocked])).unwrap_or(i64::MAX);
    Findings::of(counted, "pieces", products.into_iter().chain(pieces))
}

fn answers_kept(sent: &Sent, purchases: &[AuditedPurchase]) -> Findings {
    let by_id: HashMap<_, _> = purchases.iter().map(|it| (it.id.as_str(), it)).collect();
    let offenders = sent.answers.iter().filter_map(|answer| {
        let id = &answer.purchase_id;
        let Some(purchase) = by_id.get(id.as_str()) else {
            return Some(format!("{id} was answered {} and is gone", state_name(answer.state)));
        };
        if purchase.request_id != answer.request_id {
            return Some(format!("{id} was the answer to {} too", answer.request_id));
        }
        if !may_follow(answer.state, purchase.state()) {
            let (then, now) = (state_name(answer.state), state_name(purchase.state()));
            return Some(format!("{id} was answered {then} and is {now}"));
        }
        (purchase.total != answer.total).then(|| format!("{id} has another total than answered"))
    });
    Findings::of(sent.answers.len(), "answers", offenders)
}

/// Whether a purchase that was answered in one state may be in another since.
fn may_follow(answered: PurchaseState, now: PurchaseState) -> bool {
    use PurchaseState::{Confirmed, Refunded, Refunding};
    answered == now || (answered == Confirmed && matches!(now, Refunding | Refunded))
}

fn nothing_invented(sent: &Sent, purchases: &[AuditedPurchase]) -> Findings {
    let offenders = purchases
        .iter()
        .filter(|purchase| !sent.request_ids.contains(&purchase.request_id))
        .map(|purchase| format!("{} of request {}", purchase.id, purchase.request_id));
    Findings::of(purchases.len(), "purchases", offenders)
}

fn once_per_request(purchases: &[AuditedPurchase]) -> Findings {
    let mut keys = HashSet::new();
    let offenders = purchases
        .iter()
        .filter(|purchase| !keys.insert((&purchase.principal, &purchase.request_id)))
        .map(|purchase| format!("{} of request {}", purchase.id, purchase.request_id))
        .collect::<Vec<_>>();
    Findings::of(keys.len(), "requests", offenders)
}

fn ledger_balances(sums: &[Sum]) -> Findings {
    let offenders = sums.iter().filter_map(|sum| {
        let currency = &sum.currency_code;
        if sum.postings_minor_units != 0 {
            return Some(format!("postings in {currency} sum to {}", sum.postings_minor_units));
        }
        let accounted = wide([sum.balances_minor_units, sum.captured_minor_units]);
        let deposited = sum.deposited_minor_units;
        (accounted != i128::from(deposited)).then(|| {
            format!("{deposited} of {currency} deposited, {accounted} with users and captured")
        })
    });
    let codes: Vec<_> = sums.iter().map(|sum| sum.currency_code.as_str()).collect();
    Findings::Known { counted: codes.join(", "), offenders: offenders.collect() }
}

fn accounts_sound(ledger: &AuditLedgerResponse) -> Findings {
    let count = ledger.unsound_account_count;
    let offender = (count != 0).then(|| format!("{count} accounts"));
    Findings::of(ledger.payments.len(), "payments", offender)
}

fn settled_in_time(purchases: &[AuditedPurchase], now: i64) -> Findings {
    let offenders = purchases.iter().filter(|it| !is_settled(it.state())).filter_map(|purchase| {
        // A refund may begin long after the deadline of its purchase.
        let times = [purchase.not_after, purchase.update_time];
        let due = times.into_iter().flatten().map(|time| time.seconds).max().unwrap_or(i64::MIN);
        let late = now.saturating_sub(due);
        (late > SETTLING_MARGIN_SECONDS).then(|| {
            format!("{} is still {} {late} s on", purchase.id, state_name(purchase.state()))
        })
    });
    Findings::of(purchases.len(), "purchases", offenders)
}

fn events_complete(purchases: &[AuditedPurchase]) -> Findings {
    let offenders = purchases.iter().filter(|it| !it.events_sound).map(|it| it.id.clone());
    Findings::of(purchases.len(), "purchases", offenders)
}

/// What the three services say of each purchase, side by side.
struct Books<'a>(BTreeMap<&'a str, Row<'a>>);

#[derive(Default)]
struct Row<'a> {
    purchase: Option<&'a AuditedPurchase>,
    reservation: Option<&'a AuditedReservation>,
    payment: Option<&'a AuditedPayment>,
}

impl<'a> Books<'a> {
    fn new(
        stock: &'a AuditStockResponse,
        ledger: &'a AuditLedgerResponse,
        purchases: &'a [AuditedPurchase],
    ) -> Self {
        let mut rows = BTreeMap::<_, Row<'_>>::new();
        for purchase in purchases {
            rows.entry(purchase.id.as_str()).or_default().purchase = Some(purchase);
        }
        for reservation in &stock.reservations {
            let id = reservation.purchase_id.as_str();
            rows.entry(id).or_default().reservation = Some(reservation);
        }
        for payment in &ledger.payments {
            rows.entry(payment.purchase_id.as_str()).or_default().payment = Some(payment);
        }
        Self(rows)
    }

    fn paid_price_or_nothing(&self) -> Findings {
        let purchases = self.0.iter().filter(|(_, row)| row.purchase.is_some());
        let offenders = purchases.clone().filter_map(|(id, row)| {
            let paid = row.paid();
            let price = row.price();
            let currency = row.payment.map(|payment| payment.currency_code.as_str());
            let fits = paid == 0
                || price.is_some_and(|(price, code)| paid == price && currency == Some(code));
            (!fits).then(|| match price {
                Some((price, code)) => format!("{id} costs {price} {code}, {paid} are paid"),
                None => format!("{id} has no price, {paid} are paid"),
            })
        });
        Findings::of(purchases.clone().count(), "purchases", offenders)
    }

    fn paid_if_confirmed(&self) -> Findings {
        let settled = self.0.iter().filter(|(_, row)| row.is_settled());
        let offenders = settled.clone().filter_map(|(id, row)| {
            let is_paid = row.paid() != 0;
            let is_free = row.price().is_some_and(|(price, _)| price == 0);
            let fits = if row.is_confirmed() { is_paid || is_free } else { !is_paid };
            (!fits).then(|| format!("{id} is {}, {} are paid", row.state_name(), row.paid()))
        });
        Findings::of(settled.clone().count(), "purchases", offenders)
    }

    fn sold_if_confirmed(&self) -> Findings {
        use reservation::State::{Released, Reserved, Sold, Unspecified};
        let settled = self.0.iter().filter(|(_, row)| row.is_settled());
        let offenders = settled.clone().filter_map(|(id, row)| {
            let goods = row.reservation.map_or(Unspecified, AuditedReservation::state);
            let goods_are = match goods {
                Unspecified => "unknown",
                Reserved => "reserved",
                Sold => "sold",
                Released => "released",
            };
            let fits = match goods {
                Sold => row.is_confirmed(),
                Reserved => false,
                Unspecified | Released => !row.is_confirmed(),
            };
            if !fits {
                return Some(format!("{id} is {}, its goods are {goods_are}", row.state_name()));
            }
            let sold_for = row.reservation.filter(|_| goods == Sold);
            let sold_for = sold_for.map(|it| (it.total_minor_units, it.currency_code.as_str()));
            (sold_for.is_some() && sold_for != row.price())
                .then(|| format!("{id} was sold for another total"))
        });
        Findings::of(settled.clone().count(), "purchases", offenders)
    }
}

impl Row<'_> {
    /// What the user has paid and not got back, in minor units.
    fn paid(&self) -> i64 {
        self.payment.map_or(0, |payment| {
            payment.captured_minor_units.saturating_sub(payment.refunded_minor_units)
        })
    }

    /// The price in minor units of its currency, if the purchase got so far.
    fn price(&self) -> Option<(i64, &str)> {
        let total = self.purchase?.total.as_ref()?;
        Some((total.minor_units, total.currency_code.as_str()))
    }

    fn is_confirmed(&self) -> bool {
        self.purchase.is_some_and(|it| it.state() == PurchaseState::Confirmed)
    }

    /// Whether nothing may move any more; nothing ever may for a purchase that is
    /// not on record.
    fn is_settled(&self) -> bool {
        self.purchase.is_none_or(|purchase| is_settled(purchase.state()))
    }

    fn state_name(&self) -> &'static str {
        self.purchase.map_or("not on record", |purchase| state_name(purchase.state()))
    }
}

/// Whether nothing is under way for a purchase in this state.
pub fn is_settled(state: PurchaseState) -> bool {
    match state {
        PurchaseState::Confirmed
        | PurchaseState::Failed
        | PurchaseState::Cancelled
        | PurchaseState::Refunded => true,
        PurchaseState::Unspecified
        | PurchaseState::Pending
        | PurchaseState::Failing
        | PurchaseState::Cancelling
        | PurchaseState::Refunding => false,
    }
}

/// The name of a state without the prefix of its enumeration, for example
/// `CONFIRMED`.
pub fn state_name(state: PurchaseState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("PURCHASE_STATE_").unwrap_or(name)
}

/// A sum that cannot overflow.
fn wide<const N: usize>(values: [i64; N]) -> i128 {
    values.into_iter().map(i128::from).sum()
}

#[cfg(test)]
mod tests;
