//! The payment of a purchase as functions of what is on record. The store reads
//! the rows in one transaction, asks a function here, and writes what it decided in
//! that same transaction; nothing here knows how.

use std::time::Duration;

use service_runtime::{Money, Timestamp};
use uuid::Uuid;

use crate::ledger::{Account, Transfer};

/// How long after its `not_after` a record is kept: longer than a clock is ever set
/// back, or a message under way is held up after it was looked at.
pub const RETENTION: Duration = Duration::from_hours(1);

/// What became of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The user has paid.
    Charged,
    /// The user has the money back, or never paid and never can.
    Refunded,
}

/// The payment of one purchase.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Payment {
    /// The purchase, which is the key.
    pub purchase_id: Uuid,
    /// What became of the payment.
    pub state: State,
    /// Who paid what. None in the mark that a refund of an unknown purchase leaves.
    pub paid: Option<Paid>,
    /// Until when the record must be kept.
    pub not_after: Timestamp,
    /// When the payment was first heard of.
    pub create_time: Timestamp,
}

/// Who paid what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Paid {
    /// The user.
    pub user_id: Uuid,
    /// The price of the purchase.
    pub amount: Money,
}

impl Payment {
    /// Whether the record may be forgotten: whatever comes late for it is refused
    /// for being late. Money that is captured is never forgotten.
    pub fn is_collectable(&self, now: Timestamp) -> bool {
        match self.state {
            State::Refunded => now > self.not_after.saturating_add(RETENTION),
            State::Charged => false,
        }
    }
}

/// What a purchase costs whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChargeRequest {
    /// The purchase.
    pub purchase_id: Uuid,
    /// Who pays what.
    pub paid: Paid,
    /// From when on a purchase that is not known yet is refused.
    pub not_after: Timestamp,
}

/// A yes, and what makes it true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The answer is on record already; there is nothing to write.
    OnRecord(Payment),
    /// The answer is true once the record and the transfer are written, both in
    /// the transaction that read what they were decided from.
    Write {
        /// The record to insert or replace.
        payment: Payment,
        /// What to post to the ledger, if money moves.
        transfer: Option<Transfer>,
    },
}

impl Decision {
    /// The payment to answer with.
    pub const fn payment(&self) -> &Payment {
        match self {
            Self::OnRecord(payment) | Self::Write { payment, .. } => payment,
        }
    }
}

/// A no. Nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The user has too little store credit.
    #[error("the user has too little store credit; deposit more")]
    InsufficientCredit,
    /// The user does not exist, or no more.
    #[error("there is no such user; name one who is not deleted")]
    UserNotFound,
    /// A refund came first.
    #[error("the payment of the purchase was refunded; make another purchase")]
    PaymentRefunded,
    /// The purchase is unknown and its time has passed.
    #[error("the time of the purchase has passed; make another purchase")]
    TooLate,
    /// The purchase was charged with other parameters.
    #[error("the purchase was charged otherwise; make another purchase")]
    PaymentDiffers,
}

/// Takes the price of a purchase from the user, at most once per purchase.
/// `balance` is what the user can spend in the currency of the amount, in minor
/// units; a user who does not exist has none.
pub fn charge(
    current: Option<&Payment>,
    request: &ChargeRequest,
    balance: Option<i64>,
    now: Timestamp,
) -> Result<Decision, Refusal> {
    if let Some(current) = current {
        return match current.state {
            State::Refunded => Err(Refusal::PaymentRefunded),
            State::Charged if current.paid != Some(request.paid) => Err(Refusal::PaymentDiffers),
            State::Charged => Ok(Decision::OnRecord(current.clone())),
        };
    }
    if now > request.not_after {
        return Err(Refusal::TooLate);
    }
    let Paid { user_id, amount } = request.paid;
    if balance.ok_or(Refusal::UserNotFound)? < amount.minor_units {
        return Err(Refusal::InsufficientCredit);
    }
    Ok(Decision::Write {
        payment: Payment {
            purchase_id: request.purchase_id,
            state: State::Charged,
            paid: Some(request.paid),
            not_after: request.not_after,
            create_time: now,
        },
        transfer: Some(Transfer { from: Account::User(user_id), to: Account::Sales, amount }),
    })
}

/// Gives back what a purchase cost, whether or not the user still exists. An
/// unknown purchase is marked as refunded, so that a Charge that comes later is
/// refused.
pub fn refund(
    current: Option<&Payment>,
    purchase_id: Uuid,
    not_after: Timestamp,
    now: Timestamp,
) -> Decision {
    let Some(current) = current else {
        return Decision::Write {
            payment: Payment {
                purchase_id,
                state: State::Refunded,
                paid: None,
                not_after,
                create_time: now,
            },
            transfer: None,
        };
    };
    match current.state {
        State::Refunded => Decision::OnRecord(current.clone()),
        State::Charged => Decision::Write {
            payment: Payment { state: State::Refunded, ..current.clone() },
            transfer: current.paid.map(|Paid { user_id, amount }| Transfer {
                from: Account::Sales,
                to: Account::User(user_id),
                amount,
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::ledger::deposit;

    const NOT_AFTER: Timestamp = Timestamp::from_micros(100);
    const LATE: Timestamp = Timestamp::from_micros(101);
    const FORGETTABLE: Timestamp = Timestamp::from_micros(101 + 3_600_000_000);
    const ADA: Uuid = Uuid::from_u128(0xada);

    fn euros(minor_units: i64) -> Money {
        Money { currency: "EUR".parse().unwrap(), minor_units }
    }

    fn request(purchase: u128, minor_units: i64) -> ChargeRequest {
        ChargeRequest {
            purchase_id: Uuid::from_u128(purchase),
            paid: Paid { user_id: ADA, amount: euros(minor_units) },
            not_after: NOT_AFTER,
        }
    }

    /// The accounts' database in memory.
    #[derive(Clone, Debug, PartialEq)]
    struct Bank {
        balances: BTreeMap<Account, i64>,
        payments: BTreeMap<Uuid, Payment>,
        now: Timestamp,
    }

    impl Bank {
        fn with(credit: i64) -> Self {
            let mut bank = Self {
                balances: [Account::Till, Account::Sales, Account::User(ADA)]
                    .map(|account| (account, 0))
                    .into(),
                payments: BTreeMap::new(),
                now: NOT_AFTER,
            };
            bank.deposit(credit);
            bank
        }

        fn balance(&self, account: Account) -> i64 {
            self.balances[&account]
        }

        fn deposit(&mut self, minor_units: i64) {
            let till = self.balance(Account::Till);
            self.post(&deposit(ADA, euros(minor_units), till).unwrap());
        }

        fn charge(&mut self, request: &ChargeRequest) -> Result<Payment, Refusal> {
            let current = self.payments.get(&request.purchase_id);
            let balance = self.balances.get(&Account::User(request.paid.user_id));
            let decision = charge(current, request, balance.copied(), self.now)?;
            Ok(self.write(decision))
        }

        fn refund(&mut self, purchase: u128) -> Payment {
            let purchase_id = Uuid::from_u128(purchase);
            let current = self.payments.get(&purchase_id);
            let decision = refund(current, purchase_id, NOT_AFTER, self.now);
            self.write(decision)
        }

        fn collect(&mut self) {
            let now = self.now;
            self.payments.retain(|_, row| !row.is_collectable(now));
        }

        fn write(&mut self, decision: Decision) -> Payment {
            let answer = decision.payment().clone();
            if let Decision::Write { payment, transfer } = decision {
                self.payments.insert(payment.purchase_id, payment);
                if let Some(transfer) = transfer {
                    self.post(&transfer);
                }
            }
            answer
        }

        fn post(&mut self, transfer: &Transfer) {
            for posting in transfer.postings() {
                *self.balances.get_mut(&posting.account).unwrap() += posting.amount.minor_units;
            }
        }
    }

    #[test]
    fn a_replay_is_answered_and_an_altered_one_refused_even_when_late() {
        let mut bank = Bank::with(100);
        let paid = bank.charge(&request(1, 60)).unwrap();
        bank.now = LATE;
        assert_eq!(bank.charge(&request(1, 60)), Ok(paid));
        assert_eq!(bank.charge(&request(1, 61)), Err(Refusal::PaymentDiffers));
        assert_eq!(bank.charge(&request(2, 1)), Err(Refusal::TooLate));
        assert_eq!(bank.balance(Account::User(ADA)), 40);
    }

    #[test]
    fn a_charge_needs_a_user_with_enough_credit() {
        let mut bank = Bank::with(100);
        assert_eq!(bank.charge(&request(1, 101)), Err(Refusal::InsufficientCredit));
        let mut stranger = request(1, 0);
        stranger.paid.user_id = Uuid::nil();
        assert_eq!(bank.charge(&stranger), Err(Refusal::UserNotFound));
        assert!(bank.payments.is_empty());
    }

    #[test]
    fn a_refund_gives_the_money_back_and_bars_the_purchase() {
        let mut bank = Bank::with(100);
        bank.charge(&request(1, 100)).unwrap();
        bank.refund(1);
        assert_eq!(bank.balance(Account::User(ADA)), 100);
        assert_eq!(bank.charge(&request(1, 100)), Err(Refusal::PaymentRefunded));
    }

    #[test]
    fn a_refund_of_an_unknown_purchase_bars_it_until_it_would_be_late() {
        let mut bank = Bank::with(100);
        assert_eq!(bank.refund(1).paid, None);
        bank.collect();
        assert_eq!(bank.charge(&request(1, 1)), Err(Refusal::PaymentRefunded));
        bank.now = FORGETTABLE;
        bank.collect();
        assert!(bank.payments.is_empty());
        assert_eq!(bank.charge(&request(1, 1)), Err(Refusal::TooLate));
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Charge(u128, i64),
        Refund(u128),
        Deposit(i64),
        Collect,
        RunLate,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            6 => (0..4_u128, 0..80_i64).prop_map(|(id, amount)| Operation::Charge(id, amount)),
            3 => (0..4_u128).prop_map(Operation::Refund),
            1 => (1..50_i64).prop_map(Operation::Deposit),
            1 => Just(Operation::Collect),
            1 => Just(Operation::RunLate),
        ]
    }

    impl Bank {
        fn run(&mut self, operation: &Operation) -> Option<Result<Payment, Refusal>> {
            match *operation {
                Operation::Charge(id, amount) => return Some(self.charge(&request(id, amount))),
                Operation::Refund(id) => return Some(Ok(self.refund(id))),
                Operation::Deposit(amount) => self.deposit(amount),
                Operation::Collect => self.collect(),
                Operation::RunLate if self.now == NOT_AFTER => self.now = LATE,
                Operation::RunLate => self.now = FORGETTABLE,
            }
            None
        }
    }

    proptest! {
        #[test]
        fn any_sequence_keeps_the_ledger_sound_and_every_vote_can_be_repeated(
            operations in prop::collection::vec(operation(), 1..40),
        ) {
            let mut bank = Bank::with(100);
            for operation in operations {
                let answer = bank.run(&operation);
                if answer.is_some() {
                    let before = bank.clone();
                    let again = bank.run(&operation);
                    prop_assert_eq!(again, answer);
                    prop_assert_eq!(&bank, &before);
                }
                prop_assert_eq!(bank.balances.values().sum::<i64>(), 0);
                prop_assert!(bank.balance(Account::User(ADA)) >= 0);
                let captured: i64 = bank
                    .payments
                    .values()
                    .filter(|payment| payment.state == State::Charged)
                    .filter_map(|payment| payment.paid)
                    .map(|paid| paid.amount.minor_units)
                    .sum();
                prop_assert_eq!(bank.balance(Account::Sales), captured);
            }
        }
    }
}
