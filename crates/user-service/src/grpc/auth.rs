//! `AuthService`.

use proto::user::v1::{self as pb, auth_service_server::AuthService};
use service_runtime::Caller;
use tonic::{Request, Response, Status};

use super::{Service, admit, convert::auth as convert};
use crate::{secret::Secret, store::Store};

#[tonic::async_trait]
impl<S: Store> AuthService for Service<S> {
    async fn sign_in(
        &self,
        request: Request<pb::SignInRequest>,
    ) -> Result<Response<pb::Tokens>, Status> {
        let (email, password) = convert::sign_in(request.into_inner())?;
        let tokens = self.access.sign_in(&email, password).await?;
        Ok(Response::new(tokens.into()))
    }

    async fn refresh_token(
        &self,
        request: Request<pb::RefreshTokenRequest>,
    ) -> Result<Response<pb::Tokens>, Status> {
        let token = convert::refresh_token(request.into_inner())?;
        let tokens = self.access.refresh(&token).await?;
        Ok(Response::new(tokens.into()))
    }

    async fn exchange_api_key(
        &self,
        request: Request<pb::ExchangeApiKeyRequest>,
    ) -> Result<Response<pb::Tokens>, Status> {
        let key = convert::exchange_api_key(request.into_inner())?;
        let tokens = self.access.exchange(&key).await?;
        Ok(Response::new(tokens.into()))
    }

    async fn create_api_key(
        &self,
        request: Request<pb::CreateApiKeyRequest>,
    ) -> Result<Response<pb::CreateApiKeyResponse>, Status> {
        let caller = Caller::of(&request)?;
        let id = self.new_id();
        let api_key = convert::create_api_key(request.into_inner(), id, self.now())?;
        admit(&caller, api_key.user_id)?;
        let key = Secret::api_key(self.access.identifiers.secret());
        let actor = caller.actor();
        let api_key = self.store().create_api_key(api_key, actor, key.digest()).await?;
        let api_key = Some(api_key.into());
        Ok(Response::new(pb::CreateApiKeyResponse { api_key, key: key.into_text() }))
    }

    async fn list_api_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Result<Response<pb::ListApiKeysResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let (user_id, page) = convert::list_api_keys(&request)?;
        admit(&caller, user_id)?;
        let api_keys = self.store().list_api_keys(user_id, page).await?;
        Ok(Response::new(pb::ListApiKeysResponse {
            next_page_token: convert::keys_of(&request.user_id).token(api_keys.next),
            api_keys: api_keys.rows.into_iter().map(Into::into).collect(),
        }))
    }

    async fn revoke_api_key(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Result<Response<pb::ApiKey>, Status> {
        let caller = Caller::of(&request)?;
        let id = convert::revoke_api_key(request.get_ref())?;
        let api_key = self.store().revoke_api_key(id, caller.actor(), self.now()).await?;
        Ok(Response::new(api_key.into()))
    }

    async fn get_json_web_key_set(
        &self,
        _request: Request<pb::GetJsonWebKeySetRequest>,
    ) -> Result<Response<pb::GetJsonWebKeySetResponse>, Status> {
        let keys = self.access.published_keys().await?;
        Ok(Response::new(convert::json_web_key_set(&keys)))
    }
}
