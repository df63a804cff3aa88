//! Store credit as a double-entry ledger: money is never made or lost, only moved
//! from one account to another.

use service_runtime::{Money, Timestamp};
use uuid::Uuid;

/// Where money can be. An account has one balance per currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// The store credit of a user. Never negative.
    User(Uuid),
    /// What users paid in, as a negative balance.
    Till,
    /// What was captured for purchases and not refunded. Never negative.
    Sales,
}

/// One line of the ledger: what an account gains, or loses if negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Posting {
    /// The account.
    pub account: Account,
    /// The change of its balance.
    pub amount: Money,
}

/// An amount that moves from one account to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// The account that loses the amount.
    pub from: Account,
    /// The account that gains the amount.
    pub to: Account,
    /// How much, zero or more.
    pub amount: Money,
}

impl Transfer {
    /// The two lines of the ledger, which sum to zero.
    pub const fn postings(&self) -> [Posting; 2] {
        let loss = Money { currency: self.amount.currency, minor_units: -self.amount.minor_units };
        [
            Posting { account: self.from, amount: loss },
            Posting { account: self.to, amount: self.amount },
        ]
    }
}

/// Why money moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A user was credited from the till.
    Deposit,
    /// A user paid for a purchase.
    Charge,
    /// A user got the price of a purchase back.
    Refund,
}

/// A transfer as its user sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The identifier of the transfer.
    pub id: Uuid,
    /// The user.
    pub user_id: Uuid,
    /// Why money moved.
    pub kind: Kind,
    /// What the user gained, or lost if negative.
    pub amount: Money,
    /// The purchase, if there was one.
    pub purchase_id: Option<Uuid>,
    /// When money moved.
    pub create_time: Timestamp,
}

/// A deposit after which a balance would leave the range of an int64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deposit would take a balance out of the range of an int64; deposit less")]
pub struct BalanceLimit;

/// Credits a user from the till, whose balance in minor units is `till`.
///
/// No other account can hold more than was paid in, so that keeping the till
/// within its range keeps them all within it, and a refund cannot fail.
pub fn deposit(user_id: Uuid, amount: Money, till: i64) -> Result<Transfer, BalanceLimit> {
    match till.checked_sub(amount.minor_units) {
        Some(after) if after > i64::MIN => {
            Ok(Transfer { from: Account::Till, to: Account::User(user_id), amount })
        }
        _ => Err(BalanceLimit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deposit_that_would_overflow_is_refused() {
        let amount = Money { currency: "EUR".parse().unwrap(), minor_units: i64::MAX };
        let transfer = deposit(Uuid::nil(), amount, 0).unwrap();
        let [loss, gain] = transfer.postings();
        assert_eq!(loss.amount.minor_units + gain.amount.minor_units, 0);
        assert_eq!(deposit(Uuid::nil(), amount, -1), Err(BalanceLimit));
        assert_eq!(deposit(Uuid::nil(), amount, -i64::MAX), Err(BalanceLimit));
    }
}
