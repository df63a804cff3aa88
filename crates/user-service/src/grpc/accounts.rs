//! `AccountService`.

use std::pin::Pin;

use futures::{Stream, StreamExt, TryStreamExt, stream};
use proto::user::v1::{self as pb, account_service_server::AccountService};
use service_runtime::{Page, PageTokens};
use tonic::{Request, Response, Status};

use super::{Service, admit, caller, convert::accounts as convert};
use crate::{error::Error, store::Store};

/// How many entries are read at once.
const BATCH: u32 = 500;

const PAYMENTS: PageTokens<'_> = PageTokens::new(["AuditLedger", ""]);

#[tonic::async_trait]
impl<S: Store> AccountService for Service<S> {
    async fn deposit(
        &self,
        request: Request<pb::DepositRequest>,
    ) -> Result<Response<pb::Balance>, Status> {
        let caller = caller(&request)?;
        let deposit = convert::deposit(&caller, request.into_inner())?;
        let transfer_id = self.identifiers.next();
        let balance = self.store.deposit(deposit, transfer_id, self.clock.now()).await?;
        Ok(Response::new(balance.into()))
    }

    async fn charge(
        &self,
        request: Request<pb::ChargeRequest>,
    ) -> Result<Response<pb::Payment>, Status> {
        let charge = convert::charge(request.into_inner())?;
        let transfer_id = self.identifiers.next();
        let payment = self.store.charge(charge, transfer_id, self.clock.now()).await?;
        Ok(Response::new(payment.into()))
    }

    async fn refund(
        &self,
        request: Request<pb::RefundRequest>,
    ) -> Result<Response<pb::Payment>, Status> {
        let refund = convert::refund(&request.into_inner())?;
        let transfer_id = self.identifiers.next();
        let payment = self.store.refund(refund, transfer_id, self.clock.now()).await?;
        Ok(Response::new(payment.into()))
    }

    async fn get_balance(
        &self,
        request: Request<pb::GetBalanceRequest>,
    ) -> Result<Response<pb::Balance>, Status> {
        let caller = caller(&request)?;
        let (user_id, currency) = convert::get_balance(request.get_ref())?;
        admit(&caller, user_id)?;
        let balance = self.store.balance(user_id, currency).await?;
        Ok(Response::new(balance.into()))
    }

    type ListEntriesStream = Pin<Box<dyn Stream<Item = Result<pb::Entry, Status>> + Send>>;

    async fn list_entries(
        &self,
        request: Request<pb::ListEntriesRequest>,
    ) -> Result<Response<Self::ListEntriesStream>, Status> {
        let caller = caller(&request)?;
        let (user_id, after) = convert::list_entries(request.get_ref())?;
        admit(&caller, user_id)?;
        let store = self.store.clone();
        let first = Some(Page { size: BATCH, after });
        // A page is read when the one before it has been taken, so that a slow reader
        // holds the database back and memory stays flat.
        let pages = stream::try_unfold(first, move |page| {
            let store = store.clone();
            async move {
                let Some(page) = page else { return Ok(None) };
                let entries = store.entries(user_id, page).await?;
                let next = entries.next.map(|after| Page { after: Some(after), ..page });
                Ok::<_, Error>(Some((
                    stream::iter(entries.rows.into_iter().map(Ok::<_, Error>)),
                    next,
                )))
            }
        });
        let entries = pages.try_flatten().map_ok(pb::Entry::from).map_err(Status::from);
        Ok(Response::new(entries.boxed()))
    }

    async fn audit_ledger(
        &self,
        request: Request<pb::AuditLedgerRequest>,
    ) -> Result<Response<pb::AuditLedgerResponse>, Status> {
        let page = convert::audit_ledger(&PAYMENTS, request.get_ref())?;
        let audit = self.store.audit(page).await?;
        let next_page_token = PAYMENTS.token(audit.payments.next);
        Ok(Response::new(pb::AuditLedgerResponse { next_page_token, ..audit.into() }))
    }
}
