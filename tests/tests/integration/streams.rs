//! Streams in, streams out, and a watch that resumes.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chandlery::service::Service;
use futures::{StreamExt, TryStreamExt, future::join, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use prost::Message;
use proto::{
    catalog::v1::{
        ExportProductsRequest, ImportProductsRequest, ImportProductsResponse, ListProductsRequest,
        Product, RestockRequest, WatchProductsRequest,
        catalog_service_client::CatalogServiceClient,
    },
    purchase::v1::{PurchaseState, RefundPurchaseRequest, WatchPurchaseRequest},
};
use suite_tests::{
    shop::{Shop, euros},
    usage::Usage,
};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, Request, Status,
    body::Body,
    codegen::{Bytes, http},
};
use tower::{Service as _, ServiceExt};

use crate::shop;

fn line(number: usize, price: i64) -> ImportProductsRequest {
    let product = Product {
        sku: format!("ROPE-{number}"),
        name: format!("Rope of {number} m"),
        category: "Rope".to_owned(),
        price: Some(euros(price)),
        ..Product::default()
    };
    ImportProductsRequest { product: Some(product), initial_quantity: 5 }
}

/// A product of 4 KB, so that a stream of them is more than buffers on the way can hold.
fn bulky_line(number: usize, price: i64) -> ImportProductsRequest {
    let mut line = line(number, price);
    line.product.as_mut().unwrap().description = "=".repeat(4000);
    line
}

async fn import(shop: &Shop, lines: impl Iterator<Item = ImportProductsRequest> + Send + 'static) {
    let mut catalog = shop.clients.catalog.clone();
    let imported = catalog.import_products(stream::iter(lines)).await.unwrap().into_inner();
    assert_eq!(imported.refused_count, 0);
}

/// Go and Python send a frame of HTTP/2 for every message. h2 counts small ones that
/// wait to be read, and closes the connection when they are too many.
#[tokio::test]
async fn an_import_in_a_burst_of_small_frames_is_held_back_and_not_cut_off() {
    const COUNT: usize = 20_000;
    let shop = shop().await;
    let frames = stream::iter((0..COUNT).map(|number| {
        let product = Product { sku: format!("S-{number}"), ..Product::default() };
        let message = ImportProductsRequest { product: Some(product), initial_quantity: 1 };
        let message = message.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let frame = [&[0][..], &length, &message].concat();
        Ok::<_, Status>(Frame::data(Bytes::from(frame)))
    }));
    let request = http::Request::post("/chandlery.catalog.v1.CatalogService/ImportProducts")
        .header("content-type", "application/grpc")
        .body(Body::new(StreamBody::new(frames)))
        .unwrap();
    let mut channel = shop.raw_channel(Service::Catalog).await;
    let answer = channel.ready().await.unwrap().call(request).await.unwrap();
    let answer = answer.into_body().collect().await.unwrap();
    let status = Status::from_header_map(answer.trailers().unwrap()).unwrap();
    assert_eq!(status.code(), Code::Ok, "{status:?}");
    let answer = answer.to_bytes();
    let summary = ImportProductsResponse::decode(&answer[5..]).unwrap();
    assert_eq!(summary.refused_count, i64::try_from(COUNT).unwrap(), "they have no name");
    shop.close().await;
}

#[tokio::test]
async fn an_import_carries_every_product_can_be_sent_again_and_an_export_brings_all_back() {
    const COUNT: usize = 1_234;
    let shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    let import = |price| stream::iter((0..COUNT).map(move |number| line(number, price)));
    let first = catalog.import_products(import(100)).await.unwrap().into_inner();
    assert_eq!((first.created_count, first.refused_count), (1_234, 0));
    let again = catalog.import_products(import(100)).await.unwrap().into_inner();
    assert_eq!((again.created_count, again.unchanged_count), (0, 1_234));
    let dearer = catalog.import_products(import(101)).await.unwrap().into_inner();
    assert_eq!((dearer.updated_count, dearer.unchanged_count), (1_234, 0));

    let exported =
        catalog.export_products(ExportProductsRequest::default()).await.unwrap().into_inner();
    let exported: Vec<_> = exported.try_collect().await.unwrap();
    let skus: Vec<_> = exported.iter().map(|product| product.sku.clone()).collect();
    let sent: Vec<_> = (0..COUNT).map(|number| format!("ROPE-{number}")).collect();
    assert!(skus == sent, "in the order of their creation");
    assert!(exported.iter().all(|product| product.price == Some(euros(101))));
    assert!(exported.iter().all(|product| product.available_quantity == 5));

    let mut listed = Vec::new();
    let mut request = ListProductsRequest { page_size: 500, ..Default::default() };
    loop {
        let page = catalog.list_products(request.clone()).await.unwrap().into_inner();
        listed.extend(page.products);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert!(listed == exported, "page by page the same");
    shop.close().await;
}

#[tokio::test]
async fn an_import_reports_what_it_refuses_by_line_and_takes_the_rest() {
    let shop = shop().await;
    let mut lines: Vec<_> = (0..5).map(|number| line(number, 100)).collect();
    lines[1].product.as_mut().unwrap().sku = "rope one".to_owned();
    lines[1].initial_quantity = -1;
    lines[3].product = None;
    let imported = shop.clients.catalog.clone().import_products(stream::iter(lines)).await;
    let imported = imported.unwrap().into_inner();
    assert_eq!((imported.created_count, imported.refused_count), (3, 2));
    let refusals: Vec<_> =
        imported.refusals.iter().map(|refusal| (refusal.line, refusal.sku.as_str())).collect();
    assert_eq!(refusals, [(2, "rope one"), (4, "")]);
    let description = &imported.refusals[0].description;
    assert!(description.contains("product.sku") && description.contains("initial_quantity"));
    shop.close().await;
}

#[tokio::test]
async fn a_slow_reader_holds_an_export_back_and_memory_stays_flat() {
    const COUNT: usize = 20_000;
    const MOST_GROWTH: u64 = 32 << 20;
    let shop = shop().await;
    let process = shop.suite.process_id(Service::Catalog).unwrap();
    let before = Usage::of(process);

    import(&shop, (0..COUNT).map(|number| bulky_line(number, 100))).await;
    let export = ExportProductsRequest::default();
    let export = shop.clients.catalog.clone().export_products(export).await.unwrap();
    let mut export = export.into_inner();
    assert_eq!(export.try_next().await.unwrap().unwrap().price, Some(euros(100)));
    // What the service had not read when the reader stopped, it reads with the new price.
    import(&shop, (0..COUNT).map(|number| bulky_line(number, 101))).await;
    let (mut old, mut new) = (1, 0);
    while let Some(product) = export.try_next().await.unwrap() {
        if product.price == Some(euros(100)) { old += 1 } else { new += 1 }
    }
    assert_eq!(old + new, COUNT);
    assert!(old < COUNT / 4, "{old} of {COUNT} products were read before anybody took them");
    if let (Some(before), Some(after)) = (before, Usage::of(process)) {
        let growth = after.peak_bytes - before.resident_bytes;
        assert!(growth < MOST_GROWTH, "{before:?} became {after:?}");
    }
    shop.close().await;
}

#[tokio::test]
async fn an_export_that_breaks_goes_on_after_the_last_product_that_was_seen() {
    const COUNT: usize = 5_000;
    let mut shop = shop().await;
    import(&shop, (0..COUNT).map(|number| bulky_line(number, 100))).await;
    let mut catalog = shop.clients.catalog.clone();
    let export = catalog.export_products(ExportProductsRequest::default()).await.unwrap();
    let mut export = export.into_inner();
    let mut seen = vec![export.try_next().await.unwrap().unwrap()];
    shop.suite.kill(Service::Catalog).unwrap();
    let broken = loop {
        match export.next().await.unwrap() {
            Ok(product) => seen.push(product),
            Err(broken) => break broken,
        }
    };
    assert_eq!(broken.code(), Code::Unavailable, "{broken:?}");
    assert!(seen.len() < COUNT, "the service was killed while it sent");

    shop.suite.restart(Service::Catalog).await.unwrap();
    let rest = ExportProductsRequest { after_id: seen.last().unwrap().id.clone() };
    let rest = catalog.export_products(rest).await.unwrap().into_inner();
    seen.extend(rest.try_collect::<Vec<_>>().await.unwrap());
    let skus = seen.iter().map(|product| product.sku.clone());
    assert!(skus.eq((0..COUNT).map(|number| format!("ROPE-{number}"))));
    shop.close().await;
}

#[tokio::test]
async fn an_export_ends_at_its_deadline_with_a_clear_status() {
    const COUNT: usize = 5_000;
    const DEADLINE: Duration = Duration::from_secs(1);
    let shop = shop().await;
    import(&shop, (0..COUNT).map(|number| bulky_line(number, 100))).await;
    // A raw connection, since the channel of the suite would end the call itself.
    let mut catalog = CatalogServiceClient::new(shop.raw_channel(Service::Catalog).await);
    let mut request = Request::new(ExportProductsRequest::default());
    request.metadata_mut().insert("grpc-timeout", "1S".parse().unwrap());
    let export = catalog.export_products(request).await.unwrap().into_inner();
    // There is more than buffers hold, so the service is not done when its time is up.
    sleep(DEADLINE).await;
    let late = export.collect::<Vec<_>>().await.pop().unwrap().unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    shop.close().await;
}

#[tokio::test]
async fn a_watch_of_products_ends_at_drain_and_goes_on_without_a_gap_or_a_repeat() {
    const PATIENCE: Duration = Duration::from_mins(1);
    const RESTARTS: usize = 3;
    let mut shop = shop().await;
    let (rope, anchor) = (shop.product(250, 0).await, shop.product(100, 0).await);
    let goods = [rope.id, anchor.id];

    let is_over = AtomicBool::new(false);
    // Adds a piece of one and of the other, again and again, whatever the service does.
    let identifiers: Vec<_> = (0..10_000).map(|_| shop.uuid()).collect();
    let clients = shop.clients.clone();
    let restocking = async {
        let mut levels = HashMap::new();
        for (request_id, id) in identifiers.into_iter().zip(goods.iter().cycle()) {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let request = RestockRequest { product_id: id.clone(), quantity: 1, request_id };
            let level = loop {
                match clients.stock.clone().restock(request.clone()).await {
                    Ok(level) => break level.into_inner(),
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status:?}"),
                }
                sleep(Duration::from_millis(5)).await;
            };
            levels.insert(id.clone(), level.available_quantity);
        }
        levels
    };
    let watching = async {
        let mut seen: HashMap<String, Vec<i64>> = HashMap::new();
        let mut request = WatchProductsRequest { ids: goods.to_vec(), ..Default::default() };
        for _ in 0..RESTARTS {
            let watch = clients.catalog.clone().watch_products(request.clone()).await.unwrap();
            let mut watch = watch.into_inner();
            let mut told: Vec<_> = watch.by_ref().take(10).collect().await;
            let drained = shop.suite.terminate(Service::Catalog);
            let (drained, rest) = join(drained, watch.collect::<Vec<_>>()).await;
            assert!(drained.unwrap().success());
            told.extend(rest);
            let end = told.pop().unwrap().unwrap_err();
            assert_eq!(end.code(), Code::Unavailable, "{end:?}");
            for change in told {
                let change = change.unwrap();
                let product = change.product.unwrap();
                seen.entry(product.id).or_default().push(product.available_quantity);
                request.resume_token = change.resume_token;
            }
            shop.suite.restart(Service::Catalog).await.unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        (seen, request)
    };
    let (levels, (mut seen, request)) =
        timeout(PATIENCE, join(restocking, watching)).await.unwrap();

    let watch = clients.catalog.clone().watch_products(request).await.unwrap();
    let mut watch = watch.into_inner();
    while levels.iter().any(|(id, level)| seen[id].last() != Some(level)) {
        let change = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        let product = change.product.unwrap();
        seen.get_mut(&product.id).unwrap().push(product.available_quantity);
    }
    for (id, quantities) in seen {
        assert!(quantities.is_sorted_by(|one, next| one < next), "{id}: {quantities:?}");
    }
    drop(watch);
    shop.close().await;
}

#[tokio::test]
async fn a_watch_tells_every_change_in_order_resumes_after_a_version_and_ends() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let bought = shop.buy(&shop.order(&user, &[(&rope, 2)])).await;

    let mut purchases = shop.clients.purchases.clone();
    let request = WatchPurchaseRequest { id: bought.id.clone(), after_version: 0 };
    let mut watch = purchases.watch_purchase(request).await.unwrap().into_inner();
    let mut states = Vec::new();
    for _ in 0..3 {
        let event = watch.next().await.unwrap().unwrap();
        states.push((event.version, event.state(), event.total));
    }
    assert_eq!(
        states,
        [
            (1, PurchaseState::Pending, None),
            (2, PurchaseState::Pending, Some(euros(500))),
            (3, PurchaseState::Confirmed, Some(euros(500))),
        ]
    );

    // What is still to come wakes the watch that is open, and one that resumes.
    let request = WatchPurchaseRequest { id: bought.id.clone(), after_version: 3 };
    let resumed = purchases.watch_purchase(request).await.unwrap().into_inner();
    let refund = RefundPurchaseRequest { id: bought.id.clone(), ..Default::default() };
    purchases.refund_purchase(refund).await.unwrap();
    let (rest, resumed) =
        join(watch.try_collect::<Vec<_>>(), resumed.try_collect::<Vec<_>>()).await;
    let (rest, resumed) = (rest.unwrap(), resumed.unwrap());
    let states: Vec<_> = rest.iter().map(|event| (event.version, event.state())).collect();
    assert_eq!(states, [(4, PurchaseState::Refunding), (5, PurchaseState::Refunded)]);
    assert_eq!(resumed, rest);

    let request = WatchPurchaseRequest { id: bought.id, after_version: 5 };
    let over = purchases.watch_purchase(request).await.unwrap().into_inner();
    assert_eq!(over.try_collect::<Vec<_>>().await.unwrap(), []);
    let request = WatchPurchaseRequest { id: shop.uuid(), after_version: 0 };
    let unknown = purchases.watch_purchase(request).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    shop.close().await;
}
