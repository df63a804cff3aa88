//! Messages in gzip and zstd, both ways.

use chandlery::service::Service;
use futures::{TryStreamExt, stream};
use http_body_util::{BodyExt, Full};
use prost::Message;
use proto::catalog::v1::{
    CreateProductRequest, ExportProductsRequest, GetProductRequest, ImportProductsRequest,
    ListProductsRequest, Product, catalog_service_client::CatalogServiceClient,
};
use suite_tests::{shop::euros, usage::Usage};
use tonic::{
    Code, Request,
    body::Body,
    codec::CompressionEncoding,
    codegen::{Bytes, http},
    transport::Channel,
};
use tower::{Service as _, ServiceExt};

use crate::shop;

const ENCODINGS: [(CompressionEncoding, &str); 2] =
    [(CompressionEncoding::Gzip, "gzip"), (CompressionEncoding::Zstd, "zstd")];

fn line(number: usize) -> ImportProductsRequest {
    let product = Product {
        sku: format!("ROPE-{number}"),
        name: format!("Rope of {number} m"),
        category: "Rope".to_owned(),
        description: "=".repeat(1 << 10),
        price: Some(euros(100)),
        ..Product::default()
    };
    ImportProductsRequest { product: Some(product), initial_quantity: 5 }
}

#[tokio::test]
async fn what_is_sent_and_accepted_in_either_encoding_is_the_same_as_without() {
    const COUNT: usize = 50;
    let shop = shop().await;
    let plain = CatalogServiceClient::new(shop.raw_channel(Service::Catalog).await);
    for (encoding, name) in ENCODINGS {
        let mut catalog = plain.clone().send_compressed(encoding).accept_compressed(encoding);
        let import = catalog.import_products(stream::iter((0..COUNT).map(line))).await.unwrap();
        assert_eq!(import.get_ref().refused_count, 0);
        assert_eq!(import.metadata().get("grpc-encoding").unwrap(), name);

        let request = ListProductsRequest::default();
        let listed = catalog.list_products(request.clone()).await.unwrap().into_inner();
        assert_eq!(plain.clone().list_products(request).await.unwrap().into_inner(), listed);
        let request = ExportProductsRequest::default();
        let export = catalog.export_products(request).await.unwrap().into_inner();
        assert_eq!(export.try_collect::<Vec<_>>().await.unwrap(), listed.products);
    }
    shop.close().await;
}

/// What the catalog answers to one who accepts an encoding: the head, and the body.
async fn answer(
    channel: &mut Channel,
    rpc: &str,
    message: &impl Message,
    accepted: &str,
) -> http::Response<Bytes> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let frame = Bytes::from([&[0][..], &length, &message].concat());
    let request = http::Request::post(format!("/chandlery.catalog.v1.CatalogService/{rpc}"))
        .header("content-type", "application/grpc")
        .header("grpc-accept-encoding", accepted)
        .body(Body::new(Full::new(frame).map_err(|never| match never {})))
        .unwrap();
    let (head, body) = channel.ready().await.unwrap().call(request).await.unwrap().into_parts();
    http::Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_large_answer_is_compressed_for_those_who_accept_it_and_a_small_one_is_not() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    shop.clients.catalog.clone().import_products(stream::iter((0..50).map(line))).await.unwrap();
    let mut channel = shop.raw_channel(Service::Catalog).await;
    let (list, get) = (ListProductsRequest::default(), GetProductRequest { id: rope.id });
    for (_, name) in ENCODINGS {
        let accepted = format!("identity, deflate, {name}");
        let large = answer(&mut channel, "ListProducts", &list, &accepted).await;
        assert_eq!(large.headers()["grpc-encoding"], name);
        let large = large.into_body();
        assert!(large[0] == 1 && large.len() < 10 << 10, "{} bytes", large.len());
        let small = answer(&mut channel, "GetProduct", &get, &accepted).await;
        assert_eq!(small.headers()["grpc-encoding"], name);
        assert_eq!(small.into_body()[0], 0);
    }
    let plain = answer(&mut channel, "ListProducts", &list, "identity, deflate").await;
    assert_eq!(plain.headers().get("grpc-encoding"), None);
    assert_eq!(plain.into_body()[0], 0);
    shop.close().await;
}

/// Ten MiB become some KiB in gzip, and less in zstd.
#[tokio::test]
async fn a_message_that_is_too_large_once_it_is_decompressed_is_refused_and_takes_no_memory() {
    const MOST_GROWTH: u64 = 24 << 20;
    let shop = shop().await;
    let process = shop.suite.process_id(Service::Catalog).unwrap();
    let catalog = CatalogServiceClient::new(shop.raw_channel(Service::Catalog).await);
    let before = Usage::of(process);
    let mut bomb = CreateProductRequest { request_id: shop.uuid(), ..Default::default() };
    bomb.product = Some(Product { description: "=".repeat(10 << 20), ..Product::default() });
    for (encoding, name) in ENCODINGS {
        let mut catalog = catalog.clone().send_compressed(encoding);
        for _ in 0..4 {
            let refused = catalog.create_product(bomb.clone()).await.unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted, "{name}: {refused:?}");
            assert!(refused.message().contains("too large"), "{name}: {refused:?}");
        }
    }
    if let (Some(before), Some(after)) = (before, Usage::of(process)) {
        let growth = after.peak_bytes - before.resident_bytes;
        assert!(growth < MOST_GROWTH, "{before:?} became {after:?}");
    }
    shop.close().await;
}

#[tokio::test]
async fn an_encoding_that_nobody_knows_is_refused_and_those_that_are_known_are_named() {
    let shop = shop().await;
    let mut catalog = CatalogServiceClient::new(shop.raw_channel(Service::Catalog).await);
    let mut request = Request::new(ListProductsRequest::default());
    request.metadata_mut().insert("grpc-encoding", "br".parse().unwrap());
    let refused = catalog.list_products(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    assert!(refused.message().ends_with("or in gzip or zstd"), "{refused:?}");
    assert_eq!(refused.metadata().get("grpc-accept-encoding").unwrap(), "gzip,zstd,identity");
    shop.close().await;
}
