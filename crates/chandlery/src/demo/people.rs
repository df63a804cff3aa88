//! The people of the demonstration, and their store credit.

use indicatif::HumanCount;
use proto::{
    r#type::v1::Money,
    user::v1::{CreateUserRequest, DepositRequest, User},
};
use rand::{RngExt, rngs::StdRng};
use tokio::time::Instant;

use super::{Failure, call};
use crate::{
    clients::Clients,
    terminal::{Terminal, amount, seconds},
};

/// Who buys. The first has no credit, and is refused.
const BUYERS: [&str; 12] = [
    "Ishmael",
    "Starbuck",
    "Stubb",
    "Flask",
    "Tashtego",
    "Daggoo",
    "Fedallah",
    "Pip",
    "Bildad",
    "Peleg",
    "Elijah",
    "Bulkington",
];

/// Whose purchase is followed.
pub(super) const FOLLOWED: &str = "Queequeg";

/// What every other user is credited with in each currency, for every purchase that
/// will be made.
const CREDIT_MINOR_UNITS: i64 = 12_500;

/// Credit for so many purchases buys a few pieces of the dearest product.
const CREDITED_PURCHASES_AT_LEAST: u32 = 100;

/// Users, by identifier.
pub(super) struct People {
    pub(super) buyers: Vec<String>,
    pub(super) followed: String,
}

impl People {
    /// Creates the users and credits them.
    pub(super) async fn register(
        clients: &Clients,
        currencies: &[String],
        purchases: u32,
        random: &mut StdRng,
        terminal: &Terminal,
    ) -> Result<Self, Failure> {
        let begin = Instant::now();
        let minor_units =
            CREDIT_MINOR_UNITS * i64::from(purchases.max(CREDITED_PURCHASES_AT_LEAST));
        let credit: Vec<_> = currencies
            .iter()
            .map(|code| Money { currency_code: code.clone(), minor_units })
            .collect();
        let mut buyers = Vec::with_capacity(BUYERS.len());
        for name in BUYERS {
            let credit = if buyers.is_empty() { &[] } else { &credit[..] };
            buyers.push(open_account(clients, name, credit, random).await?);
        }
        let followed = open_account(clients, FOLLOWED, &credit, random).await?;
        terminal.line(format_args!(
            "  {} users with {} each, but for {}, who has no money in his purse, in {}",
            HumanCount(buyers.len() as u64 + 1),
            credit.iter().map(amount).collect::<Vec<_>>().join(" and "),
            BUYERS[0],
            seconds(begin.elapsed())
        ));
        Ok(Self { buyers, followed })
    }
}

async fn open_account(
    clients: &Clients,
    name: &str,
    credit: &[Money],
    random: &mut StdRng,
) -> Result<String, Failure> {
    let user = User {
        email: format!("{}@pequod.example", name.to_lowercase()),
        display_name: name.to_owned(),
        ..User::default()
    };
    let request = CreateUserRequest {
        user: Some(user),
        request_id: request_id(random),
        ..CreateUserRequest::default()
    };
    let create = || {
        let (mut users, request) = (clients.users.clone(), request.clone());
        async move { users.create_user(request).await }
    };
    let user = call("CreateUser", random, create).await?;
    for amount in credit {
        let request = DepositRequest {
            user_id: user.id.clone(),
            amount: Some(amount.clone()),
            request_id: request_id(random),
        };
        let deposit = || {
            let (mut accounts, request) = (clients.accounts.clone(), request.clone());
            async move { accounts.deposit(request).await }
        };
        call("Deposit", random, deposit).await?;
    }
    Ok(user.id)
}

fn request_id(random: &mut StdRng) -> String {
    uuid::Builder::from_random_bytes(random.random()).into_uuid().to_string()
}
