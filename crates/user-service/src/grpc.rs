//! The RPCs: convert, call, convert.

mod convert;

use proto::user::v1::{
    self as pb, account_service_server::AccountService, user_service_server::UserService,
};
use service_runtime::{Caller, Clock, Identifiers, PageTokens};
use tonic::{Request, Response, Status};

use crate::{error::Error, store::Store};

const PAYMENTS: PageTokens<'_> = PageTokens::new(["AuditLedger", ""]);

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
}

#[tonic::async_trait]
impl<S: Store> UserService for Service<S> {
    async fn list_users(
        &self,
        _request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn update_user(
        &self,
        _request: Request<pb::UpdateUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn delete_user(
        &self,
        _request: Request<pb::DeleteUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn create_user(
        &self,
        request: Request<pb::CreateUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
        let (key, profile) = convert::create_user(&caller, request.into_inner())?;
        let id = self.identifiers.next();
        let user = self.store.create(key, id, profile, self.clock.now()).await?;
        Ok(Response::new(user.into()))
    }

    async fn get_user(
        &self,
        request: Request<pb::GetUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let id = convert::get_user(&request.into_inner())?;
        let user = self.store.get(id).await?.ok_or(Error::UserNotFound)?;
        Ok(Response::new(user.into()))
    }
}

#[tonic::async_trait]
impl<S: Store> AccountService for Service<S> {
    type ListEntriesStream = std::pin::Pin<Box<dyn futures::Stream<Item = Result<pb::Entry, Status>> + Send>>;

    async fn list_entries(
        &self,
        _request: Request<pb::ListEntriesRequest>,
    ) -> Result<Response<Self::ListEntriesStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn deposit(
        &self,
        request: Request<pb::DepositRequest>,
    ) -> Result<Response<pb::Balance>, Status> {
        let caller = Caller::of(request.extensions())?.clone();
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
        let (user_id, currency) = convert::get_balance(&request.into_inner())?;
        let balance = self.store.balance(user_id, currency).await?;
        Ok(Response::new(balance.into()))
    }

    async fn audit_ledger(
        &self,
        request: Request<pb::AuditLedgerRequest>,
    ) -> Result<Response<pb::AuditLedgerResponse>, Status> {
        let page = convert::audit_ledger(&PAYMENTS, &request.into_inner())?;
        let audit = self.store.audit(page).await?;
        let next_page_token = PAYMENTS.token(audit.payments.next);
        Ok(Response::new(pb::AuditLedgerResponse { next_page_token, ..audit.into() }))
    }
}
