//! `CatalogService`.

use std::{collections::HashMap, pin::Pin};

use futures::{Stream, StreamExt, TryStreamExt, stream};
use proto::catalog::v1::{self as pb, catalog_service_server::CatalogService};
use service_runtime::{Caller, Page};
use tonic::{Request, Response, Status, Streaming};

use super::{Service, convert::products as convert};
use crate::{
    error::Error,
    filter::Filter,
    product::{Draft, Imported},
    store::Store,
    watch::Watch,
};

/// How many products an import applies at once.
const BATCH: u16 = 500;
/// How many products an export reads at once, which is what a reader who stops leaves in
/// memory: of the largest, as much as is sent at once.
const PAGE: u16 = 16;
/// How many refusals an import reports.
const REPORTED_REFUSALS: usize = 20;

#[tonic::async_trait]
impl<S: Store> CatalogService for Service<S> {
    async fn create_product(
        &self,
        request: Request<pb::CreateProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        let caller = Caller::of(&request)?;
        let (key, draft) = convert::create_product(&caller, request.into_inner())?;
        let id = self.identifiers.next();
        let product = self.store.create(key, id, draft, self.clock.now()).await?;
        Ok(Response::new(product.into()))
    }

    async fn get_product(
        &self,
        request: Request<pb::GetProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        let id = convert::get_product(request.get_ref())?;
        let product = self.store.get(id).await?.ok_or(Error::ProductNotFound(id))?;
        Ok(Response::new(product.into()))
    }

    async fn batch_get_products(
        &self,
        request: Request<pb::BatchGetProductsRequest>,
    ) -> Result<Response<pb::BatchGetProductsResponse>, Status> {
        let ids = convert::batch_get_products(request.get_ref())?;
        let found = self.store.get_many(&ids).await?;
        let found: HashMap<_, _> = found.into_iter().map(|product| (product.id, product)).collect();
        let absent: Vec<_> = ids.iter().copied().filter(|id| !found.contains_key(id)).collect();
        if !absent.is_empty() {
            return Err(Error::ProductsNotFound(absent).into());
        }
        // A product that is named twice is answered twice: the answer goes by the request.
        let products = ids.iter().filter_map(|id| found.get(id).cloned().map(Into::into));
        Ok(Response::new(pb::BatchGetProductsResponse { products: products.collect() }))
    }

    async fn list_products(
        &self,
        request: Request<pb::ListProductsRequest>,
    ) -> Result<Response<pb::ListProductsResponse>, Status> {
        let (filter, page) = convert::list_products(request.into_inner())?;
        let products = self.store.list(&filter, page).await?.into_messages(|product| product.id);
        let filter = filter.to_string();
        Ok(Response::new(pb::ListProductsResponse {
            next_page_token: convert::products_that_meet(&filter).token(products.next),
            products: products.rows,
        }))
    }

    async fn update_product(
        &self,
        request: Request<pb::UpdateProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        let caller = Caller::of(&request)?;
        let (key, id, update) = convert::update_product(&caller, request.into_inner())?;
        let product = self.store.update(key, id, update, self.clock.now()).await?;
        Ok(Response::new(product.into()))
    }

    async fn delete_product(
        &self,
        request: Request<pb::DeleteProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        let (id, etag) = convert::delete_product(request.into_inner())?;
        let product = self.store.delete(id, etag, self.clock.now()).await?;
        Ok(Response::new(product.into()))
    }

    async fn import_products(
        &self,
        request: Request<Streaming<pb::ImportProductsRequest>>,
    ) -> Result<Response<pb::ImportProductsResponse>, Status> {
        let mut lines = request.into_inner().zip(stream::iter(1_i64..));
        let mut summary = pb::ImportProductsResponse::default();
        let mut batch = Vec::with_capacity(BATCH.into());
        while let Some((message, line)) = lines.next().await {
            match convert::import_product(message?, line) {
                Ok(draft) => batch.push(draft),
                Err(refusal) => {
                    summary.refused_count += 1;
                    if summary.refusals.len() < REPORTED_REFUSALS {
                        summary.refusals.push(refusal);
                    }
                }
            }
            if batch.len() >= BATCH.into() {
                self.import(&mut batch, &mut summary).await?;
            }
        }
        self.import(&mut batch, &mut summary).await?;
        Ok(Response::new(summary))
    }

    type ExportProductsStream = Pin<Box<dyn Stream<Item = Result<pb::Product, Status>> + Send>>;

    async fn export_products(
        &self,
        request: Request<pb::ExportProductsRequest>,
    ) -> Result<Response<Self::ExportProductsStream>, Status> {
        let after = convert::export_products(request.get_ref())?;
        let store = self.store.clone();
        let products = Page { size: PAGE.into(), after }.stream(move |page| {
            let store = store.clone();
            async move { store.list(&Filter::default(), page).await }
        });
        let products = products.map_ok(pb::Product::from).map_err(Status::from);
        Ok(Response::new(products.boxed()))
    }

    type WatchProductsStream =
        Pin<Box<dyn Stream<Item = Result<pb::ProductChange, Status>> + Send>>;

    async fn watch_products(
        &self,
        request: Request<pb::WatchProductsRequest>,
    ) -> Result<Response<Self::WatchProductsStream>, Status> {
        let (database, last_change) = (self.store.identity(), self.store.last_change().await?);
        let (ids, position, tokens) =
            convert::watch_products(request.get_ref(), database, last_change)?;
        let watch = Watch::begin(self.store.clone(), ids, position).await?;
        // As with an export, nothing is read for a reader who does not take it.
        let changes = stream::try_unfold(watch, |mut watch| async move {
            Ok::<_, Error>(Some((watch.next().await?, watch)))
        });
        let changes = changes
            .map_ok(move |(product, position)| convert::product_change(tokens, product, position))
            .map_err(Status::from);
        Ok(Response::new(changes.boxed()))
    }
}

impl<S: Store> Service<S> {
    async fn import(
        &self,
        batch: &mut Vec<Draft>,
        summary: &mut pb::ImportProductsResponse,
    ) -> Result<(), Error> {
        let drafts: Vec<_> =
            batch.drain(..).map(|draft| (self.identifiers.next(), draft)).collect();
        for outcome in self.store.import(drafts, self.clock.now()).await? {
            match outcome {
                Imported::Created => summary.created_count += 1,
                Imported::Updated => summary.updated_count += 1,
                Imported::Unchanged => summary.unchanged_count += 1,
            }
        }
        Ok(())
    }
}
