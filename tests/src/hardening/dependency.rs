//! A service stops without a word, as one does on a machine that is overcommitted: its
//! connections stay, and nothing comes.

use std::{
    future::Future,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use chandlery::{load, service::Service};
use client::Snapshot;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use proto::{
    catalog::v1::{ListProductsRequest, catalog_service_client::CatalogServiceClient},
    purchase::v1::{purchase::Item, purchase_service_client::PurchaseServiceClient},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Status};

use super::{
    Bench, Case, Verdict, all,
    traffic::{Call, Traffic, effort},
};
use crate::shop::Shop;

pub(super) const CASES: &[Case] = &[Case {
    name: "dependency SIGSTOPped",
    must_hold: "answer within the deadline + 100 ms; attempts <= 1.2 x calls",
    run: |bench| stop(bench).boxed(),
}];

/// Long enough for callers to find that nobody is there, and for that to pass as well.
const LONG_STOP: Duration = Duration::from_secs(40);

/// What the deadlines of calls are chosen from, in milliseconds.
const DEADLINES_MS: Range<u64> = 200..1_500;

async fn stop(bench: Bench) -> Verdict {
    let mut shop = Shop::open(&bench.program).await;
    let (rope, user) = (shop.product(1, 1_000_000).await, shop.user(1_000_000).await);
    let [catalog, purchase] = [Service::Catalog, Service::Purchase].map(|it| shop.channel(it));
    let mut random = StdRng::seed_from_u64(bench.seed);
    let mut orders = StdRng::from_rng(&mut random);
    // A machine that does other things is not held to a tenth of a second.
    let lateness = Lateness {
        limit: bench.scale.choose(Duration::from_secs(1), Duration::from_millis(100)),
        ..Lateness::default()
    };

    let (client, late) = (CatalogServiceClient::new(catalog.clone()), lateness.clone());
    let mut deadlines = StdRng::from_rng(&mut random);
    let read = move || {
        let mut client = client.clone();
        let (request, deadline) = request(ListProductsRequest::default(), &mut deadlines);
        let answer = async move { client.list_products(request).await.map(drop) };
        Call { rpc: "ListProducts", is_repeatable: true, answer: late.judge(deadline, answer) }
    };
    let (client, late) = (PurchaseServiceClient::new(purchase.clone()), lateness.clone());
    let mut deadlines = StdRng::from_rng(&mut random);
    let buy = move || {
        let mut client = client.clone();
        let item = Item { product_id: rope.id.clone(), quantity: 1, unit_price: None };
        let order = load::request(&user.id, "EUR", vec![item], &mut orders);
        let (request, deadline) = request(order, &mut deadlines);
        let answer = async move { client.create_purchase(request).await.map(drop) };
        Call { rpc: "CreatePurchase", is_repeatable: true, answer: late.judge(deadline, answer) }
    };

    let traffic = [Traffic::begin(50, read), Traffic::begin(10, buy)];
    traffic[0].wait_for_more(50).await;
    shop.suite.pause(Service::Catalog).unwrap();
    sleep(bench.scale.choose(Duration::from_secs(4), LONG_STOP)).await;
    shop.suite.resume(Service::Catalog).unwrap();
    let found = traffic.map(async |traffic| traffic.end().await.none_failed());
    let mut found = join_all(found).await;
    for channel in [catalog, purchase] {
        let Snapshot { calls, attempts, .. } = channel.snapshot();
        let is_modest = attempts * 10 <= calls * 12;
        found.push(if is_modest { Ok(effort(&channel)) } else { Err(effort(&channel)) });
    }
    found.push(Ok(format!("{:.0?} past the deadline at most", lateness.most())));
    shop.check(None).await;
    all(found)
}

/// A request with a deadline.
fn request<T>(message: T, random: &mut StdRng) -> (Request<T>, Duration) {
    let deadline = Duration::from_millis(random.random_range(DEADLINES_MS));
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    (request, deadline)
}

/// How long after their deadlines calls are answered.
#[derive(Clone, Default)]
struct Lateness {
    limit: Duration,
    most: Arc<Mutex<Duration>>,
}

impl Lateness {
    /// Lets no call pass that is answered too late, or otherwise than a service that is
    /// away lets it be.
    fn judge(
        &self,
        deadline: Duration,
        answer: impl Future<Output = Result<(), Status>> + Send + 'static,
    ) -> BoxFuture<'static, Result<(), Status>> {
        let Self { limit, most } = self.clone();
        let judged = async move {
            let begun = Instant::now();
            let answer = answer.await;
            let late = begun.elapsed().saturating_sub(deadline);
            let mut most = most.lock().unwrap();
            *most = late.max(*most);
            match answer {
                _ if late > limit => Err(Status::aborted("too late")),
                Err(status)
                    if !matches!(status.code(), Code::DeadlineExceeded | Code::Unavailable) =>
                {
                    Err(status)
                }
                _ => Ok(()),
            }
        };
        judged.boxed()
    }

    fn most(&self) -> Duration {
        *self.most.lock().unwrap()
    }
}
