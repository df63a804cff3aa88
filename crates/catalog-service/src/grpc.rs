//! The RPCs: convert, call, convert.

mod convert;

use std::pin::Pin;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use proto::catalog::v1::{
    self as pb, catalog_service_server::CatalogService, stock_service_server::StockService,
};
use service_runtime::{Caller, Clock, Identifiers, Page, PageTokens};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    error::Error,
    product::{Draft, Imported},
    store::Store,
};

/// How many products an import applies at once, and an export reads at once.
const BATCH: u16 = 500;
/// How many refusals an import reports.
const REPORTED_REFUSALS: usize = 20;

const PRODUCTS: PageTokens<'_> = PageTokens::new(["ListProducts", ""]);
const RESERVATIONS: PageTokens<'_> = PageTokens::new(["AuditStock", ""]);

/// Serves the RPCs from a store.
#[derive(Clone, Debug)]
pub struct Service<S> {
    store: S,
    clock: Clock,
    identifiers: Identifiers,
}

impl<S: Store> Service<S> {
    /// Serves from `store`, with these sources of time and identifiers.
    pub fn new(store: S, clock: Clock, identifiers: Identifiers) -> Self {
        Self { store, clock, identifiers }
    }

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

#[tonic::async_trait]
impl<S: Store> CatalogService for Service<S> {
    async fn batch_get_products(
        &self,
        _request: Request<pb::BatchGetProductsRequest>,
    ) -> Result<Response<pb::BatchGetProductsResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn update_product(
        &self,
        _request: Request<pb::UpdateProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn delete_product(
        &self,
        _request: Request<pb::DeleteProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    type WatchProductsStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<pb::ProductChange, Status>> + Send>>;

    async fn watch_products(
        &self,
        _request: Request<pb::WatchProductsRequest>,
    ) -> Result<Response<Self::WatchProductsStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn create_product(
        &self,
        request: Request<pb::CreateProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let (key, draft) = convert::create_product(&caller, request.into_inner())?;
        let id = self.identifiers.next();
        let product = self.store.create(key, id, draft, self.clock.now()).await?;
        Ok(Response::new(product.into()))
    }

    async fn get_product(
        &self,
        request: Request<pb::GetProductRequest>,
    ) -> Result<Response<pb::Product>, Status> {
        let id = convert::get_product(&request.into_inner())?;
        let product = self.store.get(id).await?.ok_or(Error::ProductNotFound)?;
        Ok(Response::new(product.into()))
    }

    async fn list_products(
        &self,
        request: Request<pb::ListProductsRequest>,
    ) -> Result<Response<pb::ListProductsResponse>, Status> {
        let page = convert::list_products(&PRODUCTS, &request.into_inner())?;
        let products = self.store.list(page).await?;
        Ok(Response::new(pb::ListProductsResponse {
            products: products.rows.into_iter().map(Into::into).collect(),
            next_page_token: PRODUCTS.token(products.next),
        }))
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
        _request: Request<pb::ExportProductsRequest>,
    ) -> Result<Response<Self::ExportProductsStream>, Status> {
        let store = self.store.clone();
        let first = Some(Page { size: BATCH.into(), after: None });
        // A page is read when the one before it has been taken, so that a slow reader
        // holds the database back and memory stays flat.
        let pages = stream::try_unfold(first, move |page| {
            let store = store.clone();
            async move {
                let Some(page) = page else { return Ok(None) };
                let products = store.list(page).await?;
                let next = products.next.map(|after| Page { after: Some(after), ..page });
                Ok::<_, Error>(Some((
                    stream::iter(products.rows.into_iter().map(Ok::<_, Error>)),
                    next,
                )))
            }
        });
        let products = pages.try_flatten().map_ok(pb::Product::from).map_err(Status::from);
        Ok(Response::new(products.boxed()))
    }
}

#[tonic::async_trait]
impl<S: Store> StockService for Service<S> {
    async fn restock(
        &self,
        request: Request<pb::RestockRequest>,
    ) -> Result<Response<pb::StockLevel>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let restock = convert::restock(&caller, &request.into_inner())?;
        let level = self.store.restock(restock, self.clock.now()).await?;
        Ok(Response::new(level.into()))
    }

    async fn reserve(
        &self,
        request: Request<pb::ReserveRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let reserve = convert::reserve(&request.into_inner())?;
        let reservation = self.store.reserve(reserve, self.clock.now()).await?;
        Ok(Response::new(reservation.into()))
    }

    async fn confirm(
        &self,
        request: Request<pb::ConfirmRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let purchase_id = convert::confirm(&request.into_inner())?;
        let reservation = self.store.confirm(purchase_id, self.clock.now()).await?;
        Ok(Response::new(reservation.into()))
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let (purchase_id, not_after) = convert::release(&request.into_inner())?;
        let reservation = self.store.release(purchase_id, not_after).await?;
        Ok(Response::new(reservation.into()))
    }

    async fn audit_stock(
        &self,
        request: Request<pb::AuditStockRequest>,
    ) -> Result<Response<pb::AuditStockResponse>, Status> {
        let page = convert::audit_stock(&RESERVATIONS, &request.into_inner())?;
        let audit = self.store.audit(page).await?;
        let next_page_token = RESERVATIONS.token(audit.reservations.next);
        Ok(Response::new(pb::AuditStockResponse { next_page_token, ..audit.into() }))
    }
}
