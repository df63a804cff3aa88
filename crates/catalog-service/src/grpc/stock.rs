//! `StockService`.

use proto::catalog::v1::{self as pb, stock_service_server::StockService};
use service_runtime::{Caller, PageTokens};
use tonic::{Request, Response, Status};

use super::{Service, convert::stock as convert};
use crate::store::Store;

const RESERVATIONS: PageTokens<'_> = PageTokens::new(["AuditStock", ""]);

#[tonic::async_trait]
impl<S: Store> StockService for Service<S> {
    async fn restock(
        &self,
        request: Request<pb::RestockRequest>,
    ) -> Result<Response<pb::StockLevel>, Status> {
        let caller = Caller::of(&request)?;
        let restock = convert::restock(&caller, request.get_ref())?;
        let level = self.store.restock(restock, self.clock.now()).await?;
        Ok(Response::new(level.into()))
    }

    async fn reserve(
        &self,
        request: Request<pb::ReserveRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let reserve = convert::reserve(request.get_ref())?;
        let reservation = self.store.reserve(reserve, self.clock.now()).await?;
        Ok(Response::new(reservation.into()))
    }

    async fn confirm(
        &self,
        request: Request<pb::ConfirmRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let purchase_id = convert::confirm(request.get_ref())?;
        let reservation = self.store.confirm(purchase_id, self.clock.now()).await?;
        Ok(Response::new(reservation.into()))
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Response<pb::Reservation>, Status> {
        let (purchase_id, not_after) = convert::release(request.get_ref())?;
        let reservation = self.store.release(purchase_id, not_after).await?;
        Ok(Response::new(reservation.into()))
    }

    async fn audit_stock(
        &self,
        request: Request<pb::AuditStockRequest>,
    ) -> Result<Response<pb::AuditStockResponse>, Status> {
        let page = convert::audit_stock(&RESERVATIONS, request.get_ref())?;
        let audit = self.store.audit(page).await?;
        let next_page_token = RESERVATIONS.token(audit.reservations.next);
        Ok(Response::new(pb::AuditStockResponse { next_page_token, ..audit.into() }))
    }
}
