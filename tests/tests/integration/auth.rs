//! Sign-in, sessions, API keys, and the end of each.

use std::fs;

use chandlery::service::Service;
use futures::future::join;
use proto::{
    Role,
    user::v1::{
        CreateApiKeyRequest, DeleteUserRequest, ExchangeApiKeyRequest, GetJsonWebKeySetRequest,
        GetUserRequest, ListApiKeysRequest, RefreshTokenRequest, RevokeApiKeyRequest,
        SignInRequest, Tokens, UpdateUserRequest, User,
    },
};
use service_runtime::{Clock, reason};
use suite_tests::{
    member::{Member, PASSWORD},
    shop::Shop,
};
use tonic::{Code, Request, Status};

use crate::shop;

/// A request on behalf of whoever has signed in.
pub(crate) fn signed<T>(member: &Member, message: T) -> Request<T> {
    with_token(&member.access_token, message)
}

fn with_token<T>(access_token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let token = format!("Bearer {access_token}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request
}

/// The code and the reason of a refusal.
pub(crate) fn refused<T>(outcome: Result<T, Status>) -> (Code, String) {
    let status = outcome.map(drop).unwrap_err();
    (status.code(), reason(&status).unwrap_or_else(|| panic!("{status:?} names no reason")))
}

fn unauthenticated(reason: &str) -> (Code, String) {
    (Code::Unauthenticated, reason.to_owned())
}

async fn sign_in(shop: &Shop, email: &str, password: &str) -> Result<Tokens, Status> {
    let request = SignInRequest { email: email.to_owned(), password: password.to_owned() };
    Ok(shop.clients.auth.clone().sign_in(request).await?.into_inner())
}

async fn refresh(shop: &Shop, refresh_token: &str) -> Result<Tokens, Status> {
    let request = RefreshTokenRequest { refresh_token: refresh_token.to_owned() };
    Ok(shop.clients.auth.clone().refresh_token(request).await?.into_inner())
}

async fn exchange(shop: &Shop, key: &str) -> Result<Tokens, Status> {
    let request = ExchangeApiKeyRequest { key: key.to_owned() };
    Ok(shop.clients.auth.clone().exchange_api_key(request).await?.into_inner())
}

/// Whom an access token proves.
async fn whoami(shop: &Shop, tokens: &Tokens) -> Result<User, Status> {
    let request = with_token(&tokens.access_token, GetUserRequest { id: tokens.user_id.clone() });
    Ok(shop.clients.users.clone().get_user(request).await?.into_inner())
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_address_get_the_same_answer() {
    let shop = shop().await;
    let ada = shop.member(Role::Customer).await;
    let tokens = sign_in(&shop, &ada.user.email.to_uppercase(), PASSWORD).await.unwrap();
    assert_eq!(whoami(&shop, &tokens).await.unwrap(), ada.user);
    let no_password = shop.user(0).await;
    let mut messages = Vec::new();
    for (email, password) in [
        (ada.user.email.as_str(), "incorrect horse"),
        ("nobody@example.com", PASSWORD),
        (no_password.email.as_str(), PASSWORD),
    ] {
        let status = sign_in(&shop, email, password).await.unwrap_err();
        messages.push((status.message().to_owned(), refused(Err::<(), _>(status))));
    }
    assert_eq!(messages[0].1, unauthenticated("SIGN_IN_FAILED"));
    assert!(messages.iter().all(|message| *message == messages[0]), "{messages:?}");
    shop.close().await;
}

#[tokio::test]
async fn a_refresh_token_that_is_shown_twice_ends_the_session_for_all() {
    let shop = shop().await;
    let ada = shop.member(Role::Customer).await;
    let second = refresh(&shop, &ada.refresh_token).await.unwrap();
    assert_eq!(whoami(&shop, &second).await.unwrap(), ada.user);
    let third = refresh(&shop, &second.refresh_token).await.unwrap();
    let invalid = unauthenticated("REFRESH_TOKEN_INVALID");
    assert_eq!(refused(refresh(&shop, &second.refresh_token).await), invalid);
    assert_eq!(refused(refresh(&shop, &third.refresh_token).await), invalid);

    let again = sign_in(&shop, &ada.user.email, PASSWORD).await.unwrap().refresh_token;
    let (one, other) = join(refresh(&shop, &again), refresh(&shop, &again)).await;
    let (won, lost) = if one.is_ok() { (one, other) } else { (other, one) };
    assert_eq!(refused(lost), invalid);
    assert_eq!(refused(refresh(&shop, &won.unwrap().refresh_token).await), invalid);
    shop.close().await;
}

#[tokio::test]
async fn an_api_key_is_shown_once_and_exchanged_until_it_is_revoked() {
    let shop = shop().await;
    let (ada, grace) = (shop.member(Role::Customer).await, shop.member(Role::Customer).await);
    let mut auth = shop.clients.auth.clone();
    let request = |user_id: &str| CreateApiKeyRequest {
        user_id: user_id.to_owned(),
        display_name: "Till".to_owned(),
        expire_time: None,
    };
    let created = auth.create_api_key(signed(&ada, request(&ada.user.id))).await.unwrap();
    let (api_key, key) = (created.get_ref().api_key.clone().unwrap(), &created.get_ref().key);
    let tokens = exchange(&shop, key).await.unwrap();
    assert_eq!((tokens.user_id.as_str(), tokens.refresh_token.as_str()), (&*ada.user.id, ""));
    assert_eq!(whoami(&shop, &tokens).await.unwrap(), ada.user);
    assert_eq!(refused(refresh(&shop, key).await), unauthenticated("REFRESH_TOKEN_INVALID"));

    let not_owner = (Code::PermissionDenied, "NOT_OWNER".to_owned());
    let foreign = auth.create_api_key(signed(&grace, request(&ada.user.id))).await;
    assert_eq!(refused(foreign), not_owner);
    let list = |user_id: &str| ListApiKeysRequest {
        user_id: user_id.to_owned(),
        page_size: 1,
        page_token: String::new(),
    };
    assert_eq!(refused(auth.list_api_keys(signed(&grace, list(&ada.user.id))).await), not_owner);
    let listed = auth.list_api_keys(signed(&ada, list(&ada.user.id))).await.unwrap().into_inner();
    assert_eq!(listed.api_keys, std::slice::from_ref(&api_key));

    // Another's key is as unknown as one that there is not.
    let revoke = |id: String| RevokeApiKeyRequest { id };
    for id in [api_key.id.clone(), shop.uuid()] {
        let outcome = auth.revoke_api_key(signed(&grace, revoke(id))).await;
        assert_eq!(refused(outcome), (Code::NotFound, "API_KEY_NOT_FOUND".to_owned()));
    }
    let revoked = auth.revoke_api_key(signed(&ada, revoke(api_key.id.clone()))).await.unwrap();
    let again = auth.revoke_api_key(signed(&ada, revoke(api_key.id))).await.unwrap();
    assert_eq!(revoked.get_ref(), again.get_ref());
    assert_eq!(refused(exchange(&shop, key).await), unauthenticated("API_KEY_INVALID"));
    shop.close().await;
}

#[tokio::test]
async fn an_api_key_cannot_expire_before_it_is_created() {
    let shop = shop().await;
    let ada = shop.member(Role::Customer).await;
    let now = service_runtime::to_proto_timestamp(Clock::system().now());
    let request = CreateApiKeyRequest {
        user_id: ada.user.id.clone(),
        display_name: "Till".to_owned(),
        expire_time: Some(now),
    };
    let outcome = shop.clients.auth.clone().create_api_key(signed(&ada, request)).await;
    let refused = outcome.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("expire_time: "), "{refused:?}");
    shop.close().await;
}

#[tokio::test]
async fn whoever_is_deleted_signs_in_refreshes_and_exchanges_no_more() {
    let shop = shop().await;
    let ada = shop.member(Role::Customer).await;
    let (_, key) = shop.api_key(&ada).await;
    let request = DeleteUserRequest { id: ada.user.id.clone(), etag: String::new() };
    let mut users = shop.clients.users.clone();
    let deleted = users.delete_user(signed(&ada, request)).await.unwrap().into_inner();
    assert!(deleted.delete_time.is_some());

    let failed = sign_in(&shop, &ada.user.email, PASSWORD).await;
    assert_eq!(refused(failed), unauthenticated("SIGN_IN_FAILED"));
    let ended = refresh(&shop, &ada.refresh_token).await;
    assert_eq!(refused(ended), unauthenticated("REFRESH_TOKEN_INVALID"));
    assert_eq!(refused(exchange(&shop, &key).await), unauthenticated("API_KEY_INVALID"));
    let gone = users.get_user(signed(&ada, GetUserRequest { id: ada.user.id.clone() })).await;
    assert_eq!(refused(gone), (Code::NotFound, "USER_NOT_FOUND".to_owned()));
    shop.close().await;
}

#[tokio::test]
async fn a_new_password_takes_the_old_one_ends_all_sessions_and_can_be_repeated() {
    const NEW: &str = "tr0ub4dor&3 indeed";
    let shop = shop().await;
    let ada = shop.member(Role::Customer).await;
    let mut users = shop.clients.users.clone();
    let request = |current_password: &str| UpdateUserRequest {
        user: Some(User { id: ada.user.id.clone(), ..User::default() }),
        new_password: NEW.to_owned(),
        current_password: current_password.to_owned(),
        request_id: shop.uuid(),
        ..UpdateUserRequest::default()
    };
    let missing = users.update_user(signed(&ada, request(""))).await.unwrap_err();
    assert_eq!(missing.code(), Code::InvalidArgument);
    let wrong = users.update_user(signed(&ada, request(NEW))).await;
    assert_eq!(refused(wrong), (Code::PermissionDenied, "PASSWORD_WRONG".to_owned()));

    let right = request(PASSWORD);
    let changed = users.update_user(signed(&ada, right.clone())).await.unwrap().into_inner();
    let again = users.update_user(signed(&ada, right)).await.unwrap().into_inner();
    assert_eq!(again, changed);
    let ended = refresh(&shop, &ada.refresh_token).await;
    assert_eq!(refused(ended), unauthenticated("REFRESH_TOKEN_INVALID"));
    let old = sign_in(&shop, &ada.user.email, PASSWORD).await;
    assert_eq!(refused(old), unauthenticated("SIGN_IN_FAILED"));
    sign_in(&shop, &ada.user.email, NEW).await.unwrap();
    shop.close().await;
}

#[tokio::test]
async fn sessions_and_signing_keys_outlive_the_process() {
    let mut shop = shop().await;
    let ada = shop.member(Role::Customer).await;
    let mut auth = shop.clients.auth.clone();
    let keys = auth.get_json_web_key_set(GetJsonWebKeySetRequest {}).await.unwrap().into_inner();
    assert_eq!(keys.keys.len(), 1);
    assert!(shop.suite.terminate(Service::User).await.unwrap().success());
    shop.suite.restart(Service::User).await.unwrap();
    shop.clients = shop.suite.clients().unwrap();

    let mut auth = shop.clients.auth.clone();
    let after = auth.get_json_web_key_set(GetJsonWebKeySetRequest {}).await.unwrap().into_inner();
    assert_eq!(after, keys);
    let request = signed(&ada, GetUserRequest { id: ada.user.id.clone() });
    assert_eq!(shop.clients.users.clone().get_user(request).await.unwrap().into_inner(), ada.user);
    let tokens = refresh(&shop, &ada.refresh_token).await.unwrap();
    assert_eq!(whoami(&shop, &tokens).await.unwrap(), ada.user);
    shop.close().await;
}

#[tokio::test]
async fn no_file_and_no_log_holds_a_password_or_a_secret() {
    let shop = shop().await;
    let ada = shop.member(Role::Customer).await;
    let (_, key) = shop.api_key(&ada).await;
    let tokens = refresh(&shop, &ada.refresh_token).await.unwrap();
    exchange(&shop, &key).await.unwrap();
    // A failure is logged, and must not take its cause along.
    refresh(&shop, &ada.refresh_token).await.unwrap_err();
    let secrets = [PASSWORD, &key, &ada.refresh_token, &tokens.refresh_token, &tokens.access_token];

    let mut files = 0;
    for entry in fs::read_dir(shop.suite.directory()).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        files += 1;
        let content = fs::read(&path).unwrap();
        for secret in secrets {
            let is_in = content.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!is_in, "{secret} is in {}", path.display());
        }
    }
    assert!(files > 3, "the databases and the logs are there");
    shop.close().await;
}
