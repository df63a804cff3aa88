//! Products.

use std::mem;

use proto::{catalog::v1 as pb, r#type::v1::Money};
use service_runtime::{
    Caller, Fields, Page, PageTokens, Reported, RequestKey, ResumeTokens, to_proto_money,
    to_proto_timestamp,
};
use tonic::Status;
use uuid::Uuid;

use crate::{
    filter::Filter,
    product::{Changes, Draft, Label, Product, Sku, Update},
    watch::Position,
};

/// What of a product can be changed.
const CHANGEABLE: [&str; 5] = ["sku", "name", "description", "category", "price"];
/// The most products that a request may name.
const MOST_IDS: usize = 100;

/// The most pieces that one request may speak of.
pub(super) const MOST_PIECES: i64 = 1_000_000_000;

pub(in crate::grpc) fn create_product(
    caller: &Caller,
    request: pb::CreateProductRequest,
) -> Result<(RequestKey, Draft), Status> {
    let mut fields = Fields::default();
    let draft = draft(&mut fields, request.product, request.initial_quantity);
    let key = fields.request_key(caller, "CreateProduct", &request.request_id, &draft);
    fields.accept(|| Ok((key?, draft?)))
}

pub(in crate::grpc) fn import_product(
    message: pb::ImportProductsRequest,
    line: i64,
) -> Result<Draft, pb::import_products_response::Refusal> {
    let mut fields = Fields::default();
    let sku = message.product.as_ref().map(|product| product.sku.clone()).unwrap_or_default();
    draft(&mut fields, message.product, message.initial_quantity).map_err(|Reported| {
        pb::import_products_response::Refusal {
            line,
            sku: sku.chars().take(40).collect(),
            description: fields.violations().collect::<Vec<_>>().join("; "),
        }
    })
}

fn draft(
    fields: &mut Fields,
    product: Option<pb::Product>,
    initial_quantity: i64,
) -> Result<Draft, Reported> {
    let initial_quantity = fields.integer("initial_quantity", initial_quantity, 0..=MOST_PIECES);
    let product = fields.present("product", product)?;
    let label = label(fields, product);
    Ok(Draft { label: label?, initial_quantity: initial_quantity? })
}

fn label(fields: &mut Fields, product: pb::Product) -> Result<Label, Reported> {
    let sku = sku(fields, product.sku);
    let name = name(fields, product.name);
    let description = description(fields, product.description);
    let category = category(fields, product.category);
    let price = price(fields, product.price);
    Ok(Label {
        sku: sku?,
        name: name?,
        description: description?,
        category: category?,
        price: price?,
    })
}

fn changes(fields: &mut Fields, product: pb::Product, names: &[&str]) -> Result<Changes, Reported> {
    let named = |field| names.contains(&field);
    let sku = named("sku").then(|| sku(fields, product.sku)).transpose();
    let name = named("name").then(|| name(fields, product.name)).transpose();
    let description =
        named("description").then(|| description(fields, product.description)).transpose();
    let category = named("category").then(|| category(fields, product.category)).transpose();
    let price = named("price").then(|| price(fields, product.price)).transpose();
    Ok(Changes {
        sku: sku?,
        name: name?,
        description: description?,
        category: category?,
        price: price?,
    })
}

fn sku(fields: &mut Fields, sku: String) -> Result<Sku, Reported> {
    fields.check("product.sku", Sku::try_from(sku))
}

fn name(fields: &mut Fields, name: String) -> Result<String, Reported> {
    fields.text("product.name", name, 1..=200)
}

fn description(fields: &mut Fields, description: String) -> Result<String, Reported> {
    fields.text("product.description", description, 0..=4000)
}

fn category(fields: &mut Fields, category: String) -> Result<String, Reported> {
    fields.text("product.category", category, 1..=60)
}

fn price(fields: &mut Fields, price: Option<Money>) -> Result<service_runtime::Money, Reported> {
    fields.money("product.price", price, 0..=i64::MAX)
}

pub(in crate::grpc) fn get_product(request: &pb::GetProductRequest) -> Result<Uuid, Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", &request.id);
    fields.accept(|| id)
}

pub(in crate::grpc) fn batch_get_products(
    request: &pb::BatchGetProductsRequest,
) -> Result<Vec<Uuid>, Status> {
    let mut fields = Fields::default();
    let ids = ids(&mut fields, &request.ids, 1);
    fields.accept(|| ids)
}

fn ids(fields: &mut Fields, ids: &[String], least: usize) -> Result<Vec<Uuid>, Reported> {
    if !(least..=MOST_IDS).contains(&ids.len()) {
        let problem = format!("has {} identifiers; send {least} to {MOST_IDS}", ids.len());
        return Err(fields.refuse("ids", problem));
    }
    let ids: Vec<_> = ids
        .iter()
        .enumerate()
        .map(|(place, id)| fields.uuid(&format!("ids[{place}]"), id))
        .collect();
    ids.into_iter().collect()
}

pub(in crate::grpc) fn list_products(
    request: pb::ListProductsRequest,
) -> Result<(Filter, Page), Status> {
    let mut fields = Fields::default();
    let filter = fields.text("filter", request.filter, 0..=500);
    let filter = filter.and_then(|text| fields.check("filter", text.parse::<Filter>()));
    let page = filter.as_ref().map_err(|reported| *reported).and_then(|filter| {
        let filter = filter.to_string();
        let tokens = products_that_meet(&filter);
        tokens.page(&mut fields, request.page_size, 50, &request.page_token)
    });
    fields.accept(|| Ok((filter?, page?)))
}

/// The tokens of the list of these products.
pub(in crate::grpc) fn products_that_meet(filter: &str) -> PageTokens<'_> {
    PageTokens::new(["ListProducts", filter])
}

pub(in crate::grpc) fn update_product(
    caller: &Caller,
    mut request: pb::UpdateProductRequest,
) -> Result<(RequestKey, Uuid, Update), Status> {
    let mut fields = Fields::default();
    let request_id = mem::take(&mut request.request_id);
    let update = update(&mut fields, request);
    let key = fields.request_key(caller, "UpdateProduct", &request_id, &update);
    fields.accept(|| {
        let (id, etag, changes) = update?;
        Ok((key?, id, Update { etag, changes }))
    })
}

fn update(
    fields: &mut Fields,
    request: pb::UpdateProductRequest,
) -> Result<(Uuid, Option<String>, Changes), Reported> {
    let mut product = fields.present("product", request.product)?;
    let id = fields.uuid("product.id", &product.id);
    let etag = fields.etag("product.etag", mem::take(&mut product.etag));
    let names = fields.update_mask(request.update_mask, &CHANGEABLE, |name| match name {
        "sku" => !product.sku.is_empty(),
        "name" => !product.name.is_empty(),
        "description" => !product.description.is_empty(),
        "category" => !product.category.is_empty(),
        _ => product.price.is_some(),
    });
    let changes = names.and_then(|names| changes(fields, product, &names));
    Ok((id?, etag?, changes?))
}

pub(in crate::grpc) fn delete_product(
    request: pb::DeleteProductRequest,
) -> Result<(Uuid, Option<String>), Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", &request.id);
    let etag = fields.etag("etag", request.etag);
    fields.accept(|| Ok((id?, etag?)))
}

pub(in crate::grpc) fn export_products(
    request: &pb::ExportProductsRequest,
) -> Result<Option<Uuid>, Status> {
    let mut fields = Fields::default();
    let after = Some(&request.after_id).filter(|id| !id.is_empty());
    let after = after.map(|id| fields.uuid("after_id", id)).transpose();
    fields.accept(|| after)
}

/// Which products to follow, from where on, and the tokens of this stream.
pub(in crate::grpc) fn watch_products(
    request: &pb::WatchProductsRequest,
    database: Uuid,
    last_change: i64,
) -> Result<(Vec<Uuid>, Option<Position>, ResumeTokens), Status> {
    let mut fields = Fields::default();
    let watched = ids(&mut fields, &request.ids, 0).and_then(|mut ids| {
        // The same products are the same stream, in whatever order they are named.
        ids.sort_unstable();
        ids.dedup();
        let names: Vec<_> = ids.iter().map(Uuid::to_string).collect();
        let database = database.to_string();
        let tokens = ResumeTokens::new(["WatchProducts", &database, &names.join(" ")]);
        let is_reached = |place: &[i64; 2]| place.iter().all(|change| *change <= last_change);
        let place = tokens.place(&mut fields, &request.resume_token, is_reached)?;
        Ok((ids, place.map(|[told, begun]| Position { told, begun }), tokens))
    });
    fields.accept(|| watched)
}

pub(in crate::grpc) fn product_change(
    tokens: ResumeTokens,
    product: Product,
    position: Position,
) -> pb::ProductChange {
    let Position { told, begun } = position;
    pb::ProductChange { product: Some(product.into()), resume_token: tokens.token([told, begun]) }
}

impl From<Product> for pb::Product {
    fn from(product: Product) -> Self {
        let etag = product.etag();
        let Product { id, label, available, revision: _, create_time, update_time, delete_time } =
            product;
        let Label { sku, name, description, category, price } = label;
        Self {
            id: id.to_string(),
            sku: sku.as_str().to_owned(),
            name,
            description,
            category,
            price: Some(to_proto_money(price)),
            available_quantity: available,
            etag,
            create_time: Some(to_proto_timestamp(create_time)),
            update_time: Some(to_proto_timestamp(update_time)),
            delete_time: delete_time.map(to_proto_timestamp),
        }
    }
}
