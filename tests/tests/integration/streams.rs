//! Streams in, streams out, and a watch that resumes.

use futures::{StreamExt, TryStreamExt, future::join, stream};
use proto::{
    catalog::v1::{ExportProductsRequest, ImportProductsRequest, ListProductsRequest, Product},
    purchase::v1::{PurchaseState, RefundPurchaseRequest, WatchPurchaseRequest},
};
use suite_tests::shop::euros;
use tonic::Code;

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

    let exported = catalog.export_products(ExportProductsRequest {}).await.unwrap().into_inner();
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
