//! A call is over when its deadline says so or its caller is gone, and so is what was
//! begun for it.

use std::time::Duration;

use chandlery::{service::Service, suite::Credential};
use futures::{FutureExt, TryStreamExt};
use prost::Message;
use proto::{
    catalog::v1::{
        RestockRequest, WatchProductsRequest, catalog_service_client::CatalogServiceClient,
    },
    purchase::v1::ShopRequest,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status, Streaming};

use super::{
    Bench, Case, Verdict,
    catalog::{EXPORT, fill},
    supplier::Supplier,
};
use crate::{
    peer::{
        Call, Line, Peer,
        frame::{Frame, INITIAL_WINDOW_SIZE},
    },
    shop::Shop,
    usage::Usage,
    visit::{Visit, open, set},
};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "a deadline of half a second on a stream of three",
        must_hold: "DEADLINE_EXCEEDED in time",
        run: |bench| end_a_stream(bench).boxed(),
    },
    Case {
        name: "a deadline of a reader who has stopped",
        must_hold: "what the call held is released in time",
        run: |bench| end_an_unread_stream(bench).boxed(),
    },
    Case {
        name: "a deadline handed on over two hops",
        must_hold: "the callee sees less than the caller had",
        run: |bench| hand_on(bench).boxed(),
    },
    Case {
        name: "a caller who goes away",
        must_hold: "work stops within 100 ms",
        run: |bench| go_away(bench).boxed(),
    },
    Case {
        name: "exports that nobody wants any more",
        must_hold: "work stops within 100 ms",
        run: |bench| abandon_exports(bench).boxed(),
    },
];

const TIMEOUT: Duration = Duration::from_millis(500);
/// How much later than it should be something may be.
const TOLERANCE: Duration = Duration::from_millis(100);
/// How long anything is waited for that should have been long before.
const PATIENCE: Duration = Duration::from_secs(20);

/// How late something may be, also on a machine that does other things.
fn tolerance(bench: &Bench) -> Duration {
    bench.scale.choose(Duration::from_secs(2), TOLERANCE)
}

async fn end_a_stream(bench: Bench) -> Verdict {
    const STREAM: Duration = Duration::from_secs(3);
    let shop = Shop::open(&bench.program).await;
    let rope = shop.product(100, 10).await;
    let restocking = async {
        let end = Instant::now() + STREAM;
        while Instant::now() < end {
            let (product_id, request_id) = (rope.id.clone(), shop.uuid());
            let request = RestockRequest { product_id, quantity: 1, request_id };
            shop.clients.stock.clone().restock(request).await.unwrap();
            sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let request = || {
        let mut request = Request::new(WatchProductsRequest::default());
        request.set_timeout(TIMEOUT);
        request
    };
    // The channel of the suite ends a call itself, a bare connection leaves it to the
    // service.
    let (mut own, mut bare) = (
        shop.clients.catalog.clone(),
        CatalogServiceClient::new(shop.raw_channel(Service::Catalog).await),
    );
    let watching = async {
        let begun = Instant::now();
        let own = own.watch_products(request()).await.unwrap().into_inner();
        let own = (end_of(own).await, begun.elapsed());
        let begun = Instant::now();
        let bare = bare.watch_products(request()).await.unwrap().into_inner();
        [own, (end_of(bare).await, begun.elapsed())]
    };
    let ends = tokio::select! {
        ends = watching => ends,
        () = restocking => unreachable!("it pends"),
    };
    shop.close().await;
    let limit = TIMEOUT + tolerance(&bench);
    let found = ends.each_ref().map(|((count, code), elapsed)| {
        format!("{code:?} after {} ms and {count} messages", elapsed.as_millis())
    });
    let is_in_time = |((count, code), elapsed): &((usize, Code), Duration)| {
        *count > 0 && *code == Code::DeadlineExceeded && *elapsed < limit
    };
    let found = format!("channel: {}; service: {}", found[0], found[1]);
    if ends.iter().all(is_in_time) { Ok(found) } else { Err(found) }
}

/// How many messages a stream has, and what ends it.
async fn end_of<T>(mut messages: Streaming<T>) -> (usize, Code) {
    let mut count = 0;
    let end = async {
        loop {
            match messages.try_next().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => return Code::Ok,
                Err(status) => return Status::code(&status),
            }
        }
    };
    let end = timeout(PATIENCE, end).await.unwrap_or(Code::Unknown);
    (count, end)
}

/// A shop whose carts watch the products of a catalog that keeps record of it.
struct Market {
    shop: Shop,
    supplier: Supplier,
    line: Line,
    visit: Vec<u8>,
}

impl Market {
    async fn open(bench: &Bench) -> Self {
        let (listener, address) = Supplier::place().await;
        let target = format!("static:///{address}");
        let environment = [("CATALOG_SERVICE_TARGET", target.as_str())];
        let shop = Shop::open_with(&bench.program, &environment).await;
        let supplier = Supplier::serve(listener, &shop.suite);
        let line = Line::new(&shop.suite, Service::Purchase, Credential::OPERATOR);

        // A cart with something in it is watched as soon as it is opened.
        let step = open(&shop.uuid(), &shop.uuid());
        let steps = [step.clone(), set(&shop.uuid(), 1)];
        let mut visit = Visit::begin(shop.clients.purchases.clone(), None, steps).await.unwrap();
        visit.cart_where(|cart| !cart.items.is_empty()).await;
        let visit = ShopRequest { step: Some(step) }.encode_to_vec();
        Self { shop, supplier, line, visit }
    }

    /// Opens the cart, on a connection of its own with such windows.
    async fn visit(&self, timeout: &str, window: u32) -> (Peer, u32) {
        let mut peer = self.line.open(&[(INITIAL_WINDOW_SIZE, window)]).await.unwrap();
        let path = "/chandlery.purchase.v1.PurchaseService/Shop";
        let call = Call { path, timeout, message: &self.visit };
        let stream = peer.writer.begin(&call).await.unwrap();
        (peer, stream)
    }
}

/// A window that holds whatever a cart comes to.
const WIDE: u32 = 1 << 16;

async fn end_an_unread_stream(bench: Bench) -> Verdict {
    let mut market = Market::open(&bench).await;
    let (before, begun) = (market.supplier.calls(), Instant::now());
    // The first view is made and not taken, so that nothing asks for the next.
    let visit = market.visit("500m", 0).await;
    let (watch, _) = market.supplier.asked_after(before, "WatchProducts").await;
    let ended = market.supplier.end_of(watch).await;
    drop(visit);
    market.shop.close().await;
    let Some(ended) = ended else {
        return Err(format!("the cart still watches its goods after {PATIENCE:?}"));
    };
    let elapsed = ended - begun;
    let found = format!("the cart watched its goods for {} ms", elapsed.as_millis());
    if elapsed < TIMEOUT + tolerance(&bench) { Ok(found) } else { Err(found) }
}

async fn hand_on(bench: Bench) -> Verdict {
    let mut market = Market::open(&bench).await;
    let before = market.supplier.calls();
    let visit = market.visit("500m", WIDE).await;
    let (_, asked) = market.supplier.asked_after(before, "BatchGetProducts").await;
    drop(visit);
    market.shop.close().await;
    let Some(left) = asked.timeout else { return Err("the callee is told nothing".to_owned()) };
    let found = format!("the caller had {TIMEOUT:?}, the callee {left:?}");
    if left < TIMEOUT { Ok(found) } else { Err(found) }
}

async fn go_away(bench: Bench) -> Verdict {
    let mut market = Market::open(&bench).await;
    let (mut found, mut slowest) = (Vec::new(), Duration::ZERO);
    for way in ["reset", "closed"] {
        let before = market.supplier.calls();
        let (mut peer, stream) = market.visit("1M", WIDE).await;
        let (watch, _) = market.supplier.asked_after(before, "WatchProducts").await;
        let gone = Instant::now();
        let _connection = if way == "reset" {
            peer.writer.send([Frame::cancel(stream)]).await.unwrap();
            Some(peer)
        } else {
            drop(peer);
            None
        };
        let Some(ended) = market.supplier.end_of(watch).await else {
            return Err(format!("{way}: the cart still watches its goods after {PATIENCE:?}"));
        };
        found.push(format!("{way}: {} ms", (ended - gone).as_millis()));
        slowest = slowest.max(ended - gone);
    }
    market.shop.close().await;
    let found = format!("the watch of a cart ends after its stream is {}", found.join(", "));
    if slowest < tolerance(&bench) { Ok(found) } else { Err(found) }
}

async fn abandon_exports(bench: Bench) -> Verdict {
    const PRODUCTS: usize = 20_000;
    const EXPORTS: usize = 64;
    /// How long the work is looked at before and after.
    const LOOK: Duration = Duration::from_millis(500);
    /// As much as there can be: the exports are as fast as they can be read.
    const WINDOW: u32 = (1 << 31) - 1;
    let shop = Shop::open(&bench.program).await;
    fill(&shop, PRODUCTS, 0).await;
    let process = shop.suite.process_id(Service::Catalog).unwrap();
    let line = Line::new(&shop.suite, Service::Catalog, Credential::OPERATOR);
    let mut peer = line.open(&[(INITIAL_WINDOW_SIZE, WINDOW)]).await.unwrap();
    peer.writer.send([Frame::window_update(0, WINDOW - (1 << 16))]).await.unwrap();
    let mut exports = Vec::new();
    for _ in 0..EXPORTS {
        exports.push(peer.writer.call(&EXPORT).await.unwrap());
    }
    let Peer { mut reader, mut writer } = peer;
    let reading = tokio::spawn(async move { reader.drain().await });
    let work = async || {
        let before = Usage::of(process)?;
        sleep(LOOK).await;
        Some(Usage::of(process)?.cpu_time.saturating_sub(before.cpu_time))
    };
    let busy = work().await;
    writer.send(exports.into_iter().map(Frame::cancel)).await.unwrap();
    let tolerance = tolerance(&bench);
    sleep(tolerance).await;
    let idle = work().await;
    reading.abort();
    shop.close().await;
    let Some((busy, idle)) = busy.zip(idle) else {
        return Ok("not told here: the system does not tell of CPU time".to_owned());
    };
    let [busy_ms, idle_ms] = [busy, idle].map(|time| time.as_millis());
    let found = format!("{busy_ms} ms of CPU in {LOOK:?}; then, after {tolerance:?}, {idle_ms} ms");
    if busy > LOOK / 10 && idle < LOOK / 20 { Ok(found) } else { Err(found) }
}
