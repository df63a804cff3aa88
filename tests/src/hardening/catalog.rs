//! The catalog as peers use it who write every frame themselves: its RPCs, and what is on
//! its shelves.

use futures::stream;
use proto::catalog::v1::{ImportProductsRequest, Product};

use crate::{
    peer::Call,
    shop::{Shop, euros},
};

pub(super) const LIST: Call<'_> =
    Call { path: "/chandlery.catalog.v1.CatalogService/ListProducts", timeout: "1H", message: &[] };
pub(super) const EXPORT: Call<'_> =
    Call { path: "/chandlery.catalog.v1.CatalogService/ExportProducts", ..LIST };
pub(super) const IMPORT: Call<'_> =
    Call { path: "/chandlery.catalog.v1.CatalogService/ImportProducts", ..LIST };
pub(super) const WATCH_PRODUCTS: Call<'_> =
    Call { path: "/chandlery.catalog.v1.CatalogService/WatchProducts", ..LIST };
pub(super) const WATCH_HEALTH: Call<'_> = Call { path: "/grpc.health.v1.Health/Watch", ..LIST };

/// Brings in so many products with descriptions of so many bytes.
pub(super) async fn fill(shop: &Shop, count: usize, description_length: usize) {
    let lines = (0..count).map(move |number| {
        let product = Product {
            sku: format!("ROPE-{number}"),
            name: format!("Rope of {number} m"),
            description: "=".repeat(description_length),
            category: "Rope".to_owned(),
            price: Some(euros(100)),
            ..Product::default()
        };
        ImportProductsRequest { product: Some(product), initial_quantity: 5 }
    });
    let imported = shop.clients.catalog.clone().import_products(stream::iter(lines)).await;
    assert_eq!(imported.unwrap().into_inner().refused_count, 0);
}
