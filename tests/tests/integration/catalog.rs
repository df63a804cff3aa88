//! What staff and shoppers do with the catalog.

use std::fs;

use chandlery::service::Service;
use futures::{TryStreamExt, stream};
use prost_types::FieldMask;
use proto::{
    catalog::v1::{
        BatchGetProductsRequest, DeleteProductRequest, ExportProductsRequest, GetProductRequest,
        ImportProductsRequest, ListProductsRequest, Product, RestockRequest, UpdateProductRequest,
        WatchProductsRequest,
    },
    purchase::v1::{PurchaseState, RefundPurchaseRequest},
};
use service_runtime::reason;
use suite_tests::shop::{Shop, euros};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::shop;

/// The code, the reason and one word of the metadata.
fn refused(status: &Status, about: &str) -> (Code, String, Option<String>) {
    let info = status.get_details_error_info().unwrap();
    (status.code(), info.reason, info.metadata.get(about).cloned())
}

fn violated(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().unwrap().field_violations;
    violations.into_iter().map(|violation| violation.field).collect()
}

fn mask(paths: &[&str]) -> FieldMask {
    FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() }
}

async fn delete(shop: &Shop, product: &Product) -> Product {
    let request = DeleteProductRequest { id: product.id.clone(), etag: String::new() };
    shop.clients.catalog.clone().delete_product(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn an_update_changes_what_the_mask_names_and_its_repeat_gets_the_same_answer() {
    let shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    let anchor = shop.product(250, 10).await;
    let other = shop.product(250, 10).await;
    let product = Product { price: Some(euros(300)), name: String::new(), ..anchor.clone() };
    let mut request = UpdateProductRequest {
        product: Some(product),
        update_mask: Some(mask(&["price"])),
        request_id: shop.uuid(),
    };
    let updated = catalog.update_product(request.clone()).await.unwrap().into_inner();
    assert_eq!((updated.price.clone(), &updated.name), (Some(euros(300)), &anchor.name));
    assert!(updated.etag != anchor.etag && updated.update_time != anchor.update_time);
    let repeated = catalog.update_product(request.clone()).await.unwrap().into_inner();
    assert_eq!(repeated, updated);

    request.request_id = shop.uuid();
    let stale = catalog.update_product(request.clone()).await.unwrap_err();
    let expected = (Code::Aborted, "ETAG_STALE".to_owned(), Some(anchor.id.clone()));
    assert_eq!(refused(&stale, "product_id"), expected);

    // Without a mask, what is set is what changes; with an asterisk everything is.
    let named = Product { id: anchor.id.clone(), name: "Kedge".to_owned(), ..Product::default() };
    request.product = Some(named);
    request.update_mask = None;
    let named = catalog.update_product(request.clone()).await.unwrap().into_inner();
    assert_eq!((named.name.as_str(), named.price.clone()), ("Kedge", Some(euros(300))));
    request.request_id = shop.uuid();
    request.update_mask = Some(mask(&["*"]));
    let refused_fields = violated(&catalog.update_product(request.clone()).await.unwrap_err());
    assert_eq!(refused_fields, ["product.sku", "product.category", "product.price"]);
    request.update_mask = Some(mask(&["available_quantity"]));
    let refused_fields = violated(&catalog.update_product(request.clone()).await.unwrap_err());
    assert_eq!(refused_fields, ["update_mask"]);

    request.product = Some(Product { id: anchor.id, sku: other.sku.clone(), ..Product::default() });
    request.update_mask = None;
    let taken = catalog.update_product(request.clone()).await.unwrap_err();
    let expected = (Code::AlreadyExists, "SKU_TAKEN".to_owned(), Some(other.sku));
    assert_eq!(refused(&taken, "sku"), expected);
    request.product.as_mut().unwrap().id = shop.uuid();
    let unknown = catalog.update_product(request).await.unwrap_err();
    assert_eq!(reason(&unknown).as_deref(), Some("PRODUCT_NOT_FOUND"));
    shop.close().await;
}

#[tokio::test]
async fn a_deleted_product_is_sold_no_more_and_what_was_sold_can_be_given_back() {
    let shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    let (anchor, rope) = (shop.product(250, 10).await, shop.product(100, 5).await);
    let user = shop.user(5_000).await;
    let bought = shop.buy(&shop.order(&user, &[(&anchor, 2), (&rope, 1)])).await;
    assert_eq!(bought.state(), PurchaseState::Confirmed);

    let request = DeleteProductRequest { id: anchor.id.clone(), etag: "\"7\"".to_owned() };
    let stale = catalog.delete_product(request).await.unwrap_err();
    assert_eq!(reason(&stale).as_deref(), Some("ETAG_STALE"));
    let deleted = delete(&shop, &anchor).await;
    assert!(deleted.delete_time.is_some());
    assert_eq!(delete(&shop, &anchor).await, deleted);

    let get = GetProductRequest { id: anchor.id.clone() };
    let gone = catalog.get_product(get).await.unwrap_err();
    let expected = (Code::NotFound, "PRODUCT_NOT_FOUND".to_owned(), Some(anchor.id.clone()));
    assert_eq!(refused(&gone, "product_id"), expected);
    let listed = catalog.list_products(ListProductsRequest::default()).await.unwrap().into_inner();
    let listed: Vec<_> = listed.products.iter().map(|product| &product.id).collect();
    assert_eq!(listed, [&rope.id]);
    let exported = catalog.export_products(ExportProductsRequest::default()).await.unwrap();
    let exported: Vec<_> = exported.into_inner().try_collect().await.unwrap();
    assert!(exported.len() == 1 && exported[0].id == rope.id);
    let request =
        RestockRequest { product_id: anchor.id.clone(), quantity: 1, request_id: shop.uuid() };
    let gone = shop.clients.stock.clone().restock(request).await.unwrap_err();
    assert_eq!(refused(&gone, "product_id"), expected);

    let failed = shop.buy(&shop.order(&user, &[(&rope, 1), (&anchor, 1)])).await;
    assert_eq!(failed.state(), PurchaseState::Failed);
    let request = RefundPurchaseRequest { id: bought.id, ..RefundPurchaseRequest::default() };
    let refunded = shop.clients.purchases.clone().refund_purchase(request).await.unwrap();
    assert_eq!(refunded.get_ref().state(), PurchaseState::Refunded);

    let mut again = shop.product_request(300, 1);
    again.product.as_mut().unwrap().sku = anchor.sku;
    let again = catalog.create_product(again).await.unwrap().into_inner();
    assert_ne!(again.id, anchor.id);
    let evidence = shop.check(None).await;
    assert_eq!((evidence.stock.available_quantity, evidence.stock.sold_quantity), (16, 0));
    shop.close().await;
}

#[tokio::test]
async fn a_batch_is_answered_in_its_own_order_or_names_all_that_is_missing() {
    let shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    let (anchor, rope) = (shop.product(250, 10).await, shop.product(100, 5).await);
    let batch = |ids: &[&String]| BatchGetProductsRequest {
        ids: ids.iter().map(|&id| id.clone()).collect(),
    };
    let request = batch(&[&rope.id, &anchor.id, &rope.id]);
    let products = catalog.batch_get_products(request).await.unwrap().into_inner().products;
    assert_eq!(products, [rope.clone(), anchor.clone(), rope.clone()]);

    let (one, other) = (shop.uuid(), shop.uuid());
    let request = batch(&[&rope.id, &other, &one]);
    let missing = catalog.batch_get_products(request).await.unwrap_err();
    let both = format!("{other},{one}");
    let expected = (Code::NotFound, "PRODUCT_NOT_FOUND".to_owned(), Some(both));
    assert_eq!(refused(&missing, "product_ids"), expected);
    assert!(missing.message().contains(&other), "{missing:?}");

    for (request, field) in [
        (batch(&[]), "ids"),
        (batch(&vec![&rope.id; 101]), "ids"),
        (batch(&[&rope.id, &"rope".to_owned()]), "ids[1]"),
    ] {
        let refused = catalog.batch_get_products(request).await.unwrap_err();
        assert_eq!(violated(&refused), [field]);
    }
    shop.close().await;
}

#[tokio::test]
async fn a_list_holds_what_meets_its_filter_and_its_tokens_are_good_for_no_other() {
    let shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    for name in ["Manila rope", "MANILA HAWSER", "Hemp rope"] {
        let mut request = shop.product_request(100, 1);
        request.product.as_mut().unwrap().name = name.to_owned();
        request.product.as_mut().unwrap().category = "Rope & Cord".to_owned();
        catalog.create_product(request).await.unwrap();
    }
    shop.product(250, 1).await;
    let filter = r#"category = "rope & cord" AND name : manila"#;
    let mut request = ListProductsRequest {
        page_size: 1,
        filter: filter.to_owned(),
        ..ListProductsRequest::default()
    };
    let first = catalog.list_products(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.products[0].name, "Manila rope");
    request.page_token = first.next_page_token.clone();
    let second = catalog.list_products(request.clone()).await.unwrap().into_inner();
    assert_eq!(second.products[0].name, "MANILA HAWSER");
    assert_eq!(second.next_page_token, "");

    for foreign in ["", "name : rope"] {
        request.filter = foreign.to_owned();
        let refused = catalog.list_products(request.clone()).await.unwrap_err();
        assert_eq!(violated(&refused), ["page_token"]);
    }
    for wrong in ["price < 100", "name = rope", "name : \"rope", &"name : a AND ".repeat(40)] {
        let request = ListProductsRequest { filter: wrong.to_owned(), ..Default::default() };
        let refused = catalog.list_products(request).await.unwrap_err();
        assert_eq!(violated(&refused), ["filter"]);
    }
    shop.close().await;
}

#[tokio::test]
async fn a_page_ends_early_where_a_message_could_not_carry_more() {
    const COUNT: usize = 400;
    let shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    let anchor = shop.product_request(100, 1).product.unwrap();
    let lines = (0..COUNT).map(move |number| {
        let (sku, description) = (format!("ANCHOR-{number}"), "⚓".repeat(4000));
        let product = Product { sku, description, ..anchor.clone() };
        ImportProductsRequest { product: Some(product), initial_quantity: 1 }
    });
    let imported = catalog.import_products(stream::iter(lines)).await.unwrap().into_inner();
    assert_eq!(imported.created_count, 400);

    let mut request = ListProductsRequest { page_size: 1000, ..Default::default() };
    let (mut skus, mut pages) = (Vec::new(), 0);
    loop {
        let page = catalog.list_products(request.clone()).await.unwrap().into_inner();
        skus.extend(page.products.into_iter().map(|product| product.sku));
        pages += 1;
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let sent: Vec<_> = (0..COUNT).map(|number| format!("ANCHOR-{number}")).collect();
    assert_eq!((skus, pages), (sent, 2));
    shop.close().await;
}

#[tokio::test]
async fn a_watch_is_refused_a_token_from_after_the_copy_that_was_restored() {
    let mut shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    let anchor = shop.product(250, 10).await;
    let files = ["", "-wal", "-shm"]
        .map(|part| shop.suite.directory().join(format!("catalog-service.db{part}")));
    shop.suite.terminate(Service::Catalog).await.unwrap();
    let copy = files.each_ref().map(|file| fs::read(file).ok());
    shop.suite.restart(Service::Catalog).await.unwrap();

    let mut request = WatchProductsRequest::default();
    let mut watch = catalog.watch_products(request.clone()).await.unwrap().into_inner();
    let first = watch.try_next().await.unwrap().unwrap();
    delete(&shop, &anchor).await;
    let second = watch.try_next().await.unwrap().unwrap();
    drop(watch);
    shop.suite.terminate(Service::Catalog).await.unwrap();
    for (file, content) in files.iter().zip(copy) {
        match content {
            Some(content) => fs::write(file, content).unwrap(),
            None if file.exists() => fs::remove_file(file).unwrap(),
            None => {}
        }
    }
    shop.suite.restart(Service::Catalog).await.unwrap();

    request.resume_token = second.resume_token;
    let refused = catalog.watch_products(request.clone()).await.unwrap_err();
    assert_eq!(violated(&refused), ["resume_token"]);
    assert!(refused.message().contains("nothing to begin anew"), "{refused:?}");
    request.resume_token = first.resume_token;
    catalog.watch_products(request).await.unwrap();
    shop.close().await;
}

#[tokio::test]
async fn a_watch_is_refused_the_token_of_other_products() {
    let shop = shop().await;
    let mut catalog = shop.clients.catalog.clone();
    let (anchor, rope) = (shop.product(250, 10).await, shop.product(100, 5).await);
    let ids = |ids: &[&Product]| ids.iter().map(|product| product.id.clone()).collect::<Vec<_>>();
    let mut request =
        WatchProductsRequest { ids: ids(&[&anchor, &rope]), ..WatchProductsRequest::default() };
    let mut watch = catalog.watch_products(request.clone()).await.unwrap().into_inner();
    let first = watch.try_next().await.unwrap().unwrap();
    assert_eq!(first.product.as_ref(), Some(&anchor));

    // The order in which they are named does not matter.
    request.resume_token = first.resume_token;
    request.ids = ids(&[&rope, &anchor, &rope]);
    let mut watch = catalog.watch_products(request.clone()).await.unwrap().into_inner();
    assert_eq!(watch.try_next().await.unwrap().unwrap().product, Some(rope.clone()));
    for others in [ids(&[]), ids(&[&rope])] {
        request.ids = others;
        let refused = catalog.watch_products(request.clone()).await.unwrap_err();
        assert_eq!(violated(&refused), ["resume_token"]);
    }
    let deleted = delete(&shop, &anchor).await;
    assert_eq!(watch.try_next().await.unwrap().unwrap().product, Some(deleted));
    drop(watch);
    shop.close().await;
}
