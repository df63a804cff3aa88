//! The goods of the demonstration, and of a new shop of `chandlery dev`.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use indicatif::HumanCount;
use proto::{
    catalog::v1::{ExportProductsRequest, ImportProductsRequest, Product},
    r#type::v1::Money,
};
use rand::rngs::StdRng;
use serde::Deserialize;
use tokio::time::Instant;
use tonic::Response;

use super::{Failure, call};
use crate::{
    clients::Clients,
    terminal::{Terminal, seconds},
};

const PRODUCTS: &str = include_str!("../../data/products.csv");

/// A line of the list of products.
#[derive(Debug, Deserialize)]
struct Row {
    sku: String,
    name: String,
    description: String,
    category: String,
    price_minor_units: i64,
    currency_code: String,
    initial_quantity: i64,
}

impl From<Row> for ImportProductsRequest {
    fn from(row: Row) -> Self {
        let Row { sku, name, description, category, .. } = row;
        let price = Money { currency_code: row.currency_code, minor_units: row.price_minor_units };
        let product =
            Product { sku, name, description, category, price: Some(price), ..Product::default() };
        Self { product: Some(product), initial_quantity: row.initial_quantity }
    }
}

fn read() -> Result<Vec<ImportProductsRequest>, csv::Error> {
    let mut rows = csv::Reader::from_reader(PRODUCTS.as_bytes());
    rows.deserialize::<Row>().map(|row| row.map(ImportProductsRequest::from)).collect()
}

/// Streams the list of products in, and what became of it out.
pub(crate) async fn import(
    clients: &Clients,
    random: &mut StdRng,
    terminal: &Terminal,
) -> Result<Vec<Product>, Failure> {
    let begin = Instant::now();
    let rows = read().map_err(|error| Failure::Products(error.to_string()))?;
    let bar = terminal.begin_bar(rows.len(), "products sent");
    let import = || {
        bar.reset();
        let (mut catalog, bar, rows) = (clients.catalog.clone(), bar.clone(), rows.clone());
        let sent = stream::iter(rows).inspect(move |_| bar.inc(1));
        async move { catalog.import_products(sent).await }
    };
    let summary = call("ImportProducts", random, import).await?;
    terminal.end_bar();
    if let Some(refusal) = summary.refusals.first() {
        let (line, sku, why) = (refusal.line + 1, &refusal.sku, &refusal.description);
        return Err(Failure::Products(format!("line {line}, {sku}: {why}")));
    }

    let export = || {
        let mut catalog = clients.catalog.clone();
        async move {
            let products =
                catalog.export_products(ExportProductsRequest::default()).await?.into_inner();
            products.try_collect::<Vec<_>>().await.map(Response::new)
        }
    };
    let products = call("ExportProducts", random, export).await?;
    let shelves: BTreeSet<_> = products.iter().map(|product| &product.category).collect();
    terminal.line(format_args!(
        "  {} products on {} shelves, streamed in and out in {}",
        HumanCount(products.len() as u64),
        shelves.len(),
        seconds(begin.elapsed())
    ));
    Ok(products)
}

/// The currencies that products are sold in.
pub(super) fn currencies(products: &[Product]) -> Vec<String> {
    let prices = products.iter().filter_map(|product| product.price.as_ref());
    let codes: BTreeSet<_> = prices.map(|price| price.currency_code.clone()).collect();
    codes.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_products_is_long_and_names_each_once() {
        let products = read().unwrap();
        let skus: BTreeSet<_> =
            products.iter().filter_map(|it| Some(&it.product.as_ref()?.sku)).collect();
        assert!(products.len() >= 2_000, "{}", products.len());
        assert_eq!(skus.len(), products.len());
    }
}
