//! `AccountService`.

use std::pin::Pin;

use futures::{Stream, StreamExt, TryStreamExt};
use proto::user::v1::{self as pb, account_service_server::AccountService};
use service_runtime::{Caller, Page, PageTokens};
use tonic::{Request, Response, Status};

use super::{Service, admit, convert::accounts as convert};
use crate::store::Store;

/// How many entries are read at once.
const BATCH: u32 = 500;

const PAYMENTS: PageTokens<'_> = PageTokens::new(["AuditLedger", ""]);

#[tonic::async_trait]
impl<S: Store> AccountService for Service<S> {
    async fn deposit(
        &self,
        request: Request<pb::DepositRequest>,
    ) -> Result<Response<pb::Balance>, Status> {
        let caller = Caller::of(&request)?;
        let deposit = convert::deposit(&caller, request.into_inner())?;
        let transfer_id = self.new_id();
        let balance = self.store().deposit(deposit, transfer_id, self.now()).await?;
        Ok(Response::new(balance.into()))
    }

    async fn charge(
        &self,
        request: Request<pb::ChargeRequest>,
    ) -> Result<Response<pb::Payment>, Status> {
        let charge = convert::charge(request.into_inner())?;
        let transfer_id = self.new_id();
        let payment = self.store().charge(charge, transfer_id, self.now()).await?;
        Ok(Response::new(payment.into()))
    }

    async fn refund(
        &self,
        request: Request<pb::RefundRequest>,
    ) -> Result<Response<pb::Payment>, Status> {
        let refund = convert::refund(&request.into_inner())?;
        let transfer_id = self.new_id();
        let payment = self.store().refund(refund, transfer_id, self.now()).await?;
        Ok(Response::new(payment.into()))
    }

    async fn get_balance(
        &self,
        request: Request<pb::GetBalanceRequest>,
    ) -> Result<Response<pb::Balance>, Status> {
        let caller = Caller::of(&request)?;
        let (user_id, currency) = convert::get_balance(request.get_ref())?;
        admit(&caller, user_id)?;
        let balance = self.store().balance(user_id, currency).await?;
        Ok(Response::new(balance.into()))
    }

    type ListEntriesStream = Pin<Box<dyn Stream<Item = Result<pb::Entry, Status>> + Send>>;

    async fn list_entries(
        &self,
        request: Request<pb::ListEntriesRequest>,
    ) -> Result<Response<Self::ListEntriesStream>, Status> {
        let caller = Caller::of(&request)?;
        let (user_id, after) = convert::list_entries(request.get_ref())?;
        admit(&caller, user_id)?;
        let store = self.store().clone();
        let entries = Page { size: BATCH, after }.stream(move |page| {
            let store = store.clone();
            async move { store.entries(user_id, page).await }
        });
        let entries = entries.map_ok(pb::Entry::from).map_err(Status::from);
        Ok(Response::new(entries.boxed()))
    }

    async fn audit_ledger(
        &self,
        request: Request<pb::AuditLedgerRequest>,
    ) -> Result<Response<pb::AuditLedgerResponse>, Status> {
        let page = convert::audit_ledger(&PAYMENTS, request.get_ref())?;
        let audit = self.store().audit(page).await?;
        let next_page_token = PAYMENTS.token(audit.payments.next);
        Ok(Response::new(pb::AuditLedgerResponse { next_page_token, ..audit.into() }))
    }
}
