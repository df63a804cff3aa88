//! A call is over when its caller said so, whatever the services do.

use std::time::{Duration, Instant};

use chandlery::service::Service;
use futures::StreamExt;
use proto::purchase::v1::{PurchaseState, WatchPurchaseRequest};
use tonic::{Code, Request};

use crate::shop;

#[tokio::test]
async fn a_purchase_whose_supplier_hangs_is_answered_at_the_deadline_and_settled_later() {
    let mut shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let order = shop.order(&user, &[(&rope, 2)]);

    shop.suite.pause(Service::Catalog).unwrap();
    let mut request = Request::new(order.clone());
    request.set_timeout(Duration::from_millis(500));
    let begun = Instant::now();
    let late = shop.clients.purchases.clone().create_purchase(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

    shop.suite.resume(Service::Catalog).unwrap();
    assert_eq!(shop.buy(&order).await.state(), PurchaseState::Confirmed);
    shop.close().await;
}

#[tokio::test]
async fn a_purchase_whose_caller_goes_away_is_settled_without_him() {
    let mut shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let order = shop.order(&user, &[(&rope, 2)]);

    shop.suite.pause(Service::Catalog).unwrap();
    let mut purchases = shop.clients.purchases.clone();
    let buying = purchases.create_purchase(order);
    let ids = tokio::select! {
        answer = buying => panic!("the supplier hangs: {answer:?}"),
        ids = shop.wait_for_purchases(1) => ids,
    };
    shop.suite.resume(Service::Catalog).unwrap();
    shop.wait_for_state(&ids[0], PurchaseState::Confirmed).await;
    shop.close().await;
}

#[tokio::test]
async fn the_service_itself_ends_a_stream_at_the_deadline_with_a_clear_status() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let bought = shop.buy(&shop.order(&user, &[(&rope, 2)])).await;

    // A raw connection, since the channel of the suite would end the call itself.
    let mut purchases = shop.raw_purchases().await;
    let mut request = Request::new(WatchPurchaseRequest { id: bought.id, after_version: 0 });
    request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
    let watch = purchases.watch_purchase(request).await.unwrap().into_inner();
    let events: Vec<_> = watch.collect().await;
    let late = events.last().unwrap().as_ref().unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert_eq!(events.iter().filter(|event| event.is_ok()).count(), 3);

    let mut request = Request::new(WatchPurchaseRequest::default());
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let refused = purchases.watch_purchase(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("grpc-timeout"), "{refused:?}");
    shop.close().await;
}
