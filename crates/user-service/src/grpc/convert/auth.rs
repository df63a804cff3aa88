//! Sessions and API keys.

use proto::user::v1 as pb;
use service_runtime::{
    Fields, Page, PageTokens, Reported, Timestamp, access_token::SigningKey, to_proto_timestamp,
};
use tonic::Status;
use uuid::Uuid;

use crate::{access::Tokens, api_key::ApiKey, password::Password, secret::Secret, user::Email};

pub(in crate::grpc) fn sign_in(request: pb::SignInRequest) -> Result<(Email, Password), Status> {
    let mut fields = Fields::default();
    let email = fields.check("email", Email::try_from(request.email));
    let password = fields.check("password", Password::shown(request.password));
    fields.accept(|| Ok((email?, password?)))
}

pub(in crate::grpc) fn refresh_token(request: pb::RefreshTokenRequest) -> Result<Secret, Status> {
    let mut fields = Fields::default();
    let token = secret(&mut fields, "refresh_token", request.refresh_token);
    fields.accept(|| token)
}

pub(in crate::grpc) fn exchange_api_key(
    request: pb::ExchangeApiKeyRequest,
) -> Result<Secret, Status> {
    let mut fields = Fields::default();
    let key = secret(&mut fields, "key", request.key);
    fields.accept(|| key)
}

fn secret(fields: &mut Fields, field: &str, text: String) -> Result<Secret, Reported> {
    let text = Some(text).filter(|text| !text.is_empty());
    fields.present(field, text).map(Secret::shown)
}

/// A key to create, under an identifier.
pub(in crate::grpc) fn create_api_key(
    request: pb::CreateApiKeyRequest,
    id: Uuid,
    now: Timestamp,
) -> Result<ApiKey, Status> {
    let mut fields = Fields::default();
    let user_id = fields.uuid("user_id", &request.user_id);
    let display_name = fields.text("display_name", request.display_name, 1..=100);
    let expire_time = request.expire_time.map(|time| {
        let time = fields.timestamp("expire_time", Some(time))?;
        let problem =
            "is not in the future; send a time that is, or none for a key that never expires";
        if time > now { Ok(time) } else { Err(fields.refuse("expire_time", problem)) }
    });
    let expire_time = expire_time.transpose();
    fields.accept(|| {
        Ok(ApiKey {
            id,
            user_id: user_id?,
            display_name: display_name?,
            create_time: now,
            expire_time: expire_time?,
            revoke_time: None,
        })
    })
}

/// The pages of one user's keys.
pub(in crate::grpc) fn keys_of(user_id: &str) -> PageTokens<'_> {
    PageTokens::new(["ListApiKeys", user_id])
}

pub(in crate::grpc) fn list_api_keys(
    request: &pb::ListApiKeysRequest,
) -> Result<(Uuid, Page), Status> {
    let mut fields = Fields::default();
    let user_id = fields.uuid("user_id", &request.user_id);
    let tokens = keys_of(&request.user_id);
    let page = tokens.page(&mut fields, request.page_size, 50, &request.page_token);
    fields.accept(|| Ok((user_id?, page?)))
}

pub(in crate::grpc) fn revoke_api_key(request: &pb::RevokeApiKeyRequest) -> Result<Uuid, Status> {
    let mut fields = Fields::default();
    let id = fields.uuid("id", &request.id);
    fields.accept(|| id)
}

pub(in crate::grpc) fn json_web_key_set(keys: &[SigningKey]) -> pb::GetJsonWebKeySetResponse {
    pb::GetJsonWebKeySetResponse { keys: keys.iter().map(SigningKey::public_key).collect() }
}

impl From<Tokens> for pb::Tokens {
    fn from(tokens: Tokens) -> Self {
        let Tokens { user_id, access_token, access_token_expire_time, refresh_token } = tokens;
        let (refresh_token, refresh_token_expire_time) = refresh_token.unzip();
        Self {
            user_id: user_id.to_string(),
            access_token,
            access_token_expire_time: Some(to_proto_timestamp(access_token_expire_time)),
            refresh_token: refresh_token.map(Secret::into_text).unwrap_or_default(),
            refresh_token_expire_time: refresh_token_expire_time.map(to_proto_timestamp),
        }
    }
}

impl From<ApiKey> for pb::ApiKey {
    fn from(api_key: ApiKey) -> Self {
        let ApiKey { id, user_id, display_name, create_time, expire_time, revoke_time } = api_key;
        Self {
            id: id.to_string(),
            user_id: user_id.to_string(),
            display_name,
            create_time: Some(to_proto_timestamp(create_time)),
            expire_time: expire_time.map(to_proto_timestamp),
            revoke_time: revoke_time.map(to_proto_timestamp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_with_a_list_of_keys_is_told_at_once() {
        let request = pb::ListApiKeysRequest {
            user_id: "nobody".to_owned(),
            page_size: -1,
            page_token: "nonsense".to_owned(),
        };
        let refused = list_api_keys(&request).unwrap_err();
        for field in ["user_id", "page_size", "page_token"] {
            assert!(refused.message().contains(&format!("{field}: ")), "{refused:?}");
        }
    }
}
