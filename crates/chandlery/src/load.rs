//! Buys, many purchases at once, each repeated under its `request_id` until it is
//! answered; and remembers what was sent and answered for the checker.

use std::{collections::BTreeMap, error::Error as _, future::ready, time::Duration};

use futures::{StreamExt, stream};
use proto::{
    catalog::v1::Product,
    purchase::v1::{
        CreatePurchaseRequest, FailureReason, Purchase, PurchaseState, purchase::Item,
        purchase_service_client::PurchaseServiceClient,
    },
};
use rand::{
    RngExt, SeedableRng,
    rngs::StdRng,
    seq::{IndexedRandom, IteratorRandom},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tonic::{Code, Request, Status};

use crate::{check::Sent, clients::Clients};

/// The longest wait before the first repeat of a request. It doubles with every
/// other.
const FIRST_BACK_OFF: Duration = Duration::from_millis(20);
/// The longest wait before any repeat.
const BACK_OFF_LIMIT: Duration = Duration::from_secs(1);

/// One purchase in so many asks for more of a product than there is.
const OUT_OF_STOCK_ONE_IN: u32 = 12;
/// How many products a purchase has at most.
const ITEMS_LIMIT: usize = 3;
/// How many pieces of each.
const QUANTITY_LIMIT: i32 = 4;

/// How to buy.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many purchases are under way at once.
    pub concurrency: usize,
    /// How long one call may take before it is repeated.
    pub attempt_timeout: Duration,
    /// How long a purchase is repeated before it is given up.
    pub patience: Duration,
    /// Where the jitter of the back-off comes from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            concurrency: 32,
            attempt_timeout: Duration::from_secs(10),
            patience: Duration::from_mins(1),
            seed: 0,
        }
    }
}

/// How far a load has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Calls that are open now: sent and not answered.
    pub open_calls: usize,
    /// Purchases that were answered.
    pub answered: usize,
    /// Purchases that were refused or given up.
    pub unanswered: usize,
    /// Calls that repeated another.
    pub repeats: u64,
}

/// What became of a load.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What was sent and answered, for the checker.
    pub sent: Sent,
    /// How many were answered CONFIRMED.
    pub confirmed: usize,
    /// How many were answered CANCELLED.
    pub cancelled: usize,
    /// How many were answered FAILED, by reason.
    pub failed: BTreeMap<FailureReason, usize>,
    /// Requests that were refused or given up, each with its last status.
    pub unanswered: Vec<(String, Status)>,
    /// How many calls repeated another.
    pub repeats: u64,
    /// How long it all took.
    pub elapsed: Duration,
    /// How long each purchase that was answered took, its repeats included, the
    /// shortest first.
    pub latencies: Vec<Duration>,
}

impl Outcome {
    /// How many purchases were answered.
    pub fn answered(&self) -> usize {
        self.latencies.len()
    }

    /// The time within which so many percent of the purchases were answered.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.latencies.len() * percent).div_ceil(100).max(1);
        self.latencies.get(rank - 1).copied().unwrap_or_default()
    }

    /// Purchases answered in a second.
    pub fn rate(&self) -> f64 {
        let answered = u32::try_from(self.answered()).map_or(f64::INFINITY, f64::from);
        answered / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }
}

/// Chooses what `users` buy: a few pieces of a few products of one currency, and now
/// and then more than there is. A user without credit makes purchases fail as well.
///
/// Empty if there is nobody to buy or nothing to be bought.
pub fn choose(
    count: usize,
    users: &[String],
    products: &[Product],
    random: &mut StdRng,
) -> Vec<CreatePurchaseRequest> {
    let mut shelves = BTreeMap::<&str, Vec<&Product>>::new();
    for product in products {
        shelves.entry(currency_code(product)).or_default().push(product);
    }
    let choose_one = |_| {
        let user_id = users.choose(random)?;
        let (currency_code, shelf) = shelves.iter().choose(random)?;
        let item_count = random.random_range(1..=ITEMS_LIMIT);
        let items = shelf.sample(random, item_count).collect::<Vec<_>>();
        let mut items: Vec<_> = items
            .into_iter()
            .map(|product| Item {
                product_id: product.id.clone(),
                quantity: random.random_range(1..=QUANTITY_LIMIT),
                unit_price: None,
            })
            .collect();
        if random.random_ratio(1, OUT_OF_STOCK_ONE_IN) {
            items[0].quantity = 1_000_000;
        }
        Some(request(user_id, currency_code, items, random))
    };
    (0..count).map_while(choose_one).collect()
}

/// The request that buys `items` for a user, under a `request_id` made up from
/// `random`.
pub fn request(
    user_id: &str,
    currency_code: &str,
    items: Vec<Item>,
    random: &mut StdRng,
) -> CreatePurchaseRequest {
    let purchase = Purchase {
        user_id: user_id.to_owned(),
        items,
        currency_code: currency_code.to_owned(),
        ..Purchase::default()
    };
    let request_id = uuid::Builder::from_random_bytes(random.random()).into_uuid().to_string();
    CreatePurchaseRequest { purchase: Some(purchase), request_id }
}

fn currency_code(product: &Product) -> &str {
    product.price.as_ref().map_or("", |price| &price.currency_code)
}

/// Sends all requests and repeats each until it is answered, refused, or given up.
/// Begins no more after one that is not answered, since what stands in its way
/// stands in that of the others.
///
/// The future holds all of the load: dropped, it sends no more.
pub async fn run(
    clients: &Clients,
    requests: Vec<CreatePurchaseRequest>,
    options: &Options,
    progress: &watch::Sender<Progress>,
) -> Outcome {
    let begin = Instant::now();
    let mut outcome = Outcome::default();
    for request in &requests {
        outcome.sent.request(&request.request_id);
    }
    let mut seeds = StdRng::seed_from_u64(options.seed);
    let is_answered = |_: &_| ready(progress.borrow().unanswered == 0);
    let buying = stream::iter(requests).take_while(is_answered).map(|request| {
        let random = StdRng::from_rng(&mut seeds);
        async move {
            let begin = Instant::now();
            let answer = buy(clients, &request, options, random, progress).await;
            (request.request_id, answer, begin.elapsed())
        }
    });
    let mut buying = buying.buffer_unordered(options.concurrency.max(1));
    while let Some((request_id, answer, latency)) = buying.next().await {
        match answer {
            Ok(purchase) => {
                outcome.sent.answer(&request_id, &purchase);
                outcome.latencies.push(latency);
                match purchase.state() {
                    PurchaseState::Confirmed => outcome.confirmed += 1,
                    PurchaseState::Cancelled => outcome.cancelled += 1,
                    // What else it may be is for the checker to find.
                    _ => *outcome.failed.entry(purchase.failure_reason()).or_default() += 1,
                }
                progress.send_modify(|progress| progress.answered += 1);
            }
            Err(status) => {
                outcome.unanswered.push((request_id, status));
                progress.send_modify(|progress| progress.unanswered += 1);
            }
        }
    }
    outcome.latencies.sort_unstable();
    outcome.repeats = progress.borrow().repeats;
    outcome.elapsed = begin.elapsed();
    outcome
}

/// Sends one request, and repeats it until it is answered, refused, or given up.
pub async fn buy(
    clients: &Clients,
    request: &CreatePurchaseRequest,
    options: &Options,
    random: StdRng,
    progress: &watch::Sender<Progress>,
) -> Result<Purchase, Status> {
    let call = |mut client: PurchaseServiceClient<_>| {
        let mut attempt = Request::new(request.clone());
        attempt.set_timeout(options.attempt_timeout);
        async move {
            let _open = OpenCall::new(progress);
            client.create_purchase(attempt).await
        }
    };
    let on_repeat = || progress.send_modify(|progress| progress.repeats += 1);
    repeat(options.patience, random, on_repeat, || call(clients.purchases.clone())).await
}

/// Repeats an idempotent call with a growing wait while its outcome is unknown or
/// the service is away.
pub async fn repeat<T, F>(
    patience: Duration,
    mut random: StdRng,
    mut on_repeat: impl FnMut(),
    mut call: impl FnMut() -> F,
) -> Result<T, Status>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let end = Instant::now() + patience;
    let mut back_off = FIRST_BACK_OFF;
    loop {
        match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if !is_worth_repeating(&status) || Instant::now() >= end => {
                return Err(status);
            }
            Err(_) => {}
        }
        sleep(random.random_range(Duration::ZERO..=back_off)).await;
        back_off = (back_off * 2).min(BACK_OFF_LIMIT);
        on_repeat();
    }
}

/// Whether a call that ended so may have had its effect, or may have it if it is
/// sent again.
pub fn is_worth_repeating(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => true,
        // From the connection. The service's own failure has no source, and is not
        // to be passed over.
        Code::Internal => status.source().is_some(),
        _ => false,
    }
}

/// Counts a call for as long as it is open.
struct OpenCall<'a>(&'a watch::Sender<Progress>);

impl<'a> OpenCall<'a> {
    fn new(progress: &'a watch::Sender<Progress>) -> Self {
        progress.send_modify(|progress| progress.open_calls += 1);
        Self(progress)
    }
}

impl Drop for OpenCall<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|progress| progress.open_calls -= 1);
    }
}

#[cfg(test)]
mod tests;
