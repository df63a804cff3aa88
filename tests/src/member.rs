//! People who have signed up and signed in, as tests need them.

use proto::{
    Role,
    user::v1::{
        ApiKey, CreateApiKeyRequest, CreateUserRequest, DepositRequest, ExchangeApiKeyRequest,
        RevokeApiKeyRequest, SignInRequest, UpdateUserRequest, User,
    },
};
use service_runtime::{
    Timestamp,
    access_token::{ACCESS_TOKEN_LIFETIME, SigningKey, TokenIssuer},
};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tonic::Code;
use uuid::Uuid;

use chandlery::{
    certs::{NAMESPACE, TRUST_DOMAIN},
    service::Service,
};

use crate::shop::{Shop, euros};

/// What everybody signs in with.
pub const PASSWORD: &str = "correct horse battery staple";

/// A user who has signed in.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who it is.
    pub user: User,
    /// What the user may do.
    pub role: Role,
    /// What proves it, for five minutes.
    pub access_token: String,
    /// What prolongs that.
    pub refresh_token: String,
}

impl Shop {
    /// Signs somebody up, gives the role if it is not a customer's, and signs in.
    pub async fn member(&self, role: Role) -> Member {
        let mut users = self.clients.users.clone();
        let request_id = self.uuid();
        let user = User {
            email: format!("{request_id}@example.com"),
            display_name: format!("{role:?}"),
            ..User::default()
        };
        let password = PASSWORD.to_owned();
        let request = CreateUserRequest { user: Some(user), request_id, password };
        let mut user = users.create_user(request).await.unwrap().into_inner();
        if role != Role::Customer {
            let promoted = User { id: user.id, role: role.into(), ..User::default() };
            let request = UpdateUserRequest {
                user: Some(promoted),
                request_id: self.uuid(),
                ..UpdateUserRequest::default()
            };
            user = users.update_user(request).await.unwrap().into_inner();
        }
        let request = SignInRequest { email: user.email.clone(), password: PASSWORD.to_owned() };
        let tokens = self.clients.auth.clone().sign_in(request).await.unwrap().into_inner();
        let (access_token, refresh_token) = (tokens.access_token, tokens.refresh_token);
        Member { user, role, access_token, refresh_token }
    }

    /// Gives a user so many cents of store credit.
    pub async fn credit(&self, user: &User, minor_units: i64) {
        let request = DepositRequest {
            user_id: user.id.clone(),
            amount: Some(euros(minor_units)),
            request_id: self.uuid(),
        };
        self.clients.accounts.clone().deposit(request).await.unwrap();
    }

    /// A new API key of a user: what is on record of it, and the key itself.
    pub async fn api_key(&self, member: &Member) -> (ApiKey, String) {
        let request = CreateApiKeyRequest {
            user_id: member.user.id.clone(),
            display_name: "for a test".to_owned(),
            expire_time: None,
        };
        let created = self.clients.auth.clone().create_api_key(request).await.unwrap();
        let created = created.into_inner();
        (created.api_key.unwrap(), created.key)
    }

    /// An API key that was good for a token once, and was revoked.
    pub async fn revoked_api_key(&self, member: &Member) -> String {
        let mut auth = self.clients.auth.clone();
        let (on_record, key) = self.api_key(member).await;
        let exchange = ExchangeApiKeyRequest { key: key.clone() };
        auth.exchange_api_key(exchange.clone()).await.unwrap();
        auth.revoke_api_key(RevokeApiKeyRequest { id: on_record.id }).await.unwrap();
        let refused = auth.exchange_api_key(exchange).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
        key
    }

    /// A token of a user that expired a moment ago, signed as user-service signed it.
    pub async fn expired_token(&self, member: &Member) -> String {
        let file = self.suite.directory().join(format!("{}.db", Service::User));
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        let mut database = SqliteConnection::connect_with(&options).await.unwrap();
        let (id, private_key): (Uuid, Vec<u8>) =
            sqlx::query_as("SELECT id, private_key FROM signing_keys ORDER BY sign_time LIMIT 1")
                .fetch_one(&mut database)
                .await
                .unwrap();
        let key = SigningKey::from_pkcs8(id.to_string(), &private_key).unwrap();
        let issuer = TokenIssuer::new(TRUST_DOMAIN, NAMESPACE);
        let user_id = member.user.id.parse().unwrap();
        let role = match member.role {
            Role::Staff => service_runtime::Role::Staff,
            Role::Customer | Role::Unspecified => service_runtime::Role::Customer,
        };
        let long_ago: Timestamp = self.now().saturating_sub(ACCESS_TOKEN_LIFETIME);
        issuer.issue(&key, user_id, role, long_ago).unwrap().0
    }
}
