//! `UserService`.

use proto::user::v1::{self as pb, user_service_server::UserService};
use service_runtime::{Caller, PageTokens};
use tonic::{Request, Response, Status};

use super::{Service, admit, convert::users as convert};
use crate::{error::Error, store::Store, user::Update};

/// The pages of users, the deleted among them or not.
const fn pages(show_deleted: bool) -> PageTokens<'static> {
    PageTokens::new(["ListUsers", if show_deleted { "show_deleted" } else { "" }])
}

#[tonic::async_trait]
impl<S: Store> UserService for Service<S> {
    async fn create_user(
        &self,
        request: Request<pb::CreateUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let caller = Caller::of(&request)?;
        let (key, profile, password) = convert::create_user(&caller, request.into_inner())?;
        let password = match password {
            Some(password) => Some(self.access.hash(password).await?),
            None => None,
        };
        let id = self.new_id();
        let user = self.store().create(key, id, profile, password, self.now()).await?;
        Ok(Response::new(user.into()))
    }

    async fn get_user(
        &self,
        request: Request<pb::GetUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let caller = Caller::of(&request)?;
        let id = convert::get_user(request.get_ref())?;
        admit(&caller, id)?;
        let user = self.store().get(id).await?.ok_or(Error::UserNotFound(id))?;
        Ok(Response::new(user.into()))
    }

    async fn list_users(
        &self,
        request: Request<pb::ListUsersRequest>,
    ) -> Result<Response<pb::ListUsersResponse>, Status> {
        let request = request.into_inner();
        let pages = pages(request.show_deleted);
        let page = convert::list_users(&pages, &request)?;
        let users = self.store().list(page, request.show_deleted).await?;
        Ok(Response::new(pb::ListUsersResponse {
            users: users.rows.into_iter().map(Into::into).collect(),
            next_page_token: pages.token(users.next),
        }))
    }

    async fn update_user(
        &self,
        request: Request<pb::UpdateUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let caller = Caller::of(&request)?;
        let convert::UpdateRequest { key, id, etag, changes, new_password, current_password } =
            convert::update_user(&caller, request.into_inner())?;
        admit(&caller, id)?;
        let password = match new_password {
            Some(new) => Some(self.access.replace_password(id, current_password, new).await?),
            None => None,
        };
        let update = Update { etag, changes, password };
        let user = self.store().update(key, caller.actor(), id, update, self.now()).await?;
        Ok(Response::new(user.into()))
    }

    async fn delete_user(
        &self,
        request: Request<pb::DeleteUserRequest>,
    ) -> Result<Response<pb::User>, Status> {
        let caller = Caller::of(&request)?;
        let (id, etag) = convert::delete_user(request.into_inner())?;
        admit(&caller, id)?;
        let user = self.store().delete(id, etag, self.now()).await?;
        Ok(Response::new(user.into()))
    }
}
