//! Users: who may see and change whom, and how.

use prost_types::FieldMask;
use proto::{
    Role,
    user::v1::{
        CreateApiKeyRequest, CreateUserRequest, DeleteUserRequest, DepositRequest,
        GetBalanceRequest, GetUserRequest, ListUsersRequest, UpdateUserRequest, User,
    },
};
use suite_tests::{member::Member, shop::euros};
use tonic::Code;

use crate::{
    auth::{refused, signed},
    shop,
};

fn denied(reason: &str) -> (Code, String) {
    (Code::PermissionDenied, reason.to_owned())
}

/// The update of these fields to what they are in `user`; of those that are set if
/// none are named.
fn update(user: User, paths: &[&str], request_id: String) -> UpdateUserRequest {
    let paths = paths.iter().map(|&path| path.to_owned()).collect();
    UpdateUserRequest {
        user: Some(user),
        update_mask: Some(FieldMask { paths }),
        request_id,
        ..UpdateUserRequest::default()
    }
}

fn get(id: &str) -> GetUserRequest {
    GetUserRequest { id: id.to_owned() }
}

#[tokio::test]
async fn a_customer_sees_and_changes_himself_alone_and_staff_anyone() {
    let shop = shop().await;
    let (ada, grace) = (shop.member(Role::Customer).await, shop.member(Role::Customer).await);
    let staff = shop.member(Role::Staff).await;
    let mut users = shop.clients.users.clone();
    let renamed = |member: &Member, name: &str| {
        let user =
            User { id: member.user.id.clone(), display_name: name.to_owned(), ..User::default() };
        update(user, &[], shop.uuid())
    };

    for by in [&ada, &staff] {
        let seen = users.get_user(signed(by, get(&ada.user.id))).await.unwrap().into_inner();
        assert_eq!(seen.id, ada.user.id);
        let request = signed(by, renamed(&ada, &by.user.id));
        let changed = users.update_user(request).await.unwrap().into_inner();
        assert_eq!(changed.display_name, by.user.id);
        users.list_users(signed(&staff, ListUsersRequest::default())).await.unwrap();
    }
    // That a user exists is not to be learned.
    for id in [grace.user.id.clone(), shop.uuid()] {
        let outcome = users.get_user(signed(&ada, get(&id))).await;
        assert_eq!(refused(outcome), denied("NOT_OWNER"));
    }
    let outcome = users.update_user(signed(&ada, renamed(&grace, "Ada"))).await;
    assert_eq!(refused(outcome), denied("NOT_OWNER"));
    let request = DeleteUserRequest { id: grace.user.id.clone(), etag: String::new() };
    assert_eq!(refused(users.delete_user(signed(&ada, request)).await), denied("NOT_OWNER"));
    let listed = users.list_users(signed(&ada, ListUsersRequest::default())).await;
    assert_eq!(refused(listed), denied("ROLE_MISSING"));

    let mut accounts = shop.clients.accounts.clone();
    let balance = |user_id: &str| GetBalanceRequest {
        user_id: user_id.to_owned(),
        currency_code: "EUR".to_owned(),
    };
    let own = accounts.get_balance(signed(&ada, balance(&ada.user.id))).await.unwrap();
    assert_eq!(own.into_inner().amount, Some(euros(0)));
    let outcome = accounts.get_balance(signed(&ada, balance(&grace.user.id))).await;
    assert_eq!(refused(outcome), denied("NOT_OWNER"));
    shop.close().await;
}

#[tokio::test]
async fn only_the_operator_gives_a_role() {
    let shop = shop().await;
    let (ada, staff) = (shop.member(Role::Customer).await, shop.member(Role::Staff).await);
    assert_eq!((ada.user.role(), staff.user.role()), (Role::Customer, Role::Staff));
    let mut users = shop.clients.users.clone();
    let promoted = User { role: Role::Staff.into(), ..ada.user.clone() };
    for paths in [&["role"][..], &["*"], &[]] {
        for by in [&ada, &staff] {
            let request = update(promoted.clone(), paths, shop.uuid());
            assert_eq!(
                refused(users.update_user(signed(by, request)).await),
                denied("NOT_ALLOWED")
            );
        }
    }
    // What was read can be written back with another name, with the role or without.
    for (paths, role) in
        [(&["*"][..], Role::Customer), (&["*"], Role::Unspecified), (&[], Role::Customer)]
    {
        for by in [&ada, &staff] {
            let name = shop.uuid();
            let read = users.get_user(signed(by, get(&ada.user.id))).await.unwrap().into_inner();
            let renamed = User { display_name: name.clone(), role: role.into(), ..read };
            let request = signed(by, update(renamed, paths, shop.uuid()));
            let changed = users.update_user(request).await.unwrap().into_inner();
            assert_eq!((changed.display_name, changed.role), (name, ada.user.role));
        }
    }
    let promoted = User { etag: String::new(), ..promoted };
    let request = update(promoted, &["role"], shop.uuid());
    assert_eq!(users.update_user(request).await.unwrap().into_inner().role(), Role::Staff);

    // Whoever signs up is a customer, whatever he says.
    let user = User {
        email: "eve@example.com".to_owned(),
        display_name: "Eve".to_owned(),
        role: Role::Staff.into(),
        ..User::default()
    };
    let request = CreateUserRequest {
        user: Some(user),
        request_id: shop.uuid(),
        ..CreateUserRequest::default()
    };
    assert_eq!(users.create_user(request).await.unwrap().into_inner().role(), Role::Customer);
    shop.close().await;
}

#[tokio::test]
async fn staff_does_not_change_what_other_staff_signs_in_with() {
    let shop = shop().await;
    let (ada, staff) = (shop.member(Role::Customer).await, shop.member(Role::Staff).await);
    let eve = shop.member(Role::Staff).await;
    let mut users = shop.clients.users.clone();
    let password = |member: &Member| UpdateUserRequest {
        user: Some(User { id: member.user.id.clone(), ..User::default() }),
        new_password: "tr0ub4dor&3 indeed".to_owned(),
        request_id: shop.uuid(),
        ..UpdateUserRequest::default()
    };
    let email = |member: &Member| {
        let email = format!("{}@example.com", shop.uuid());
        let user = User { id: member.user.id.clone(), email, ..User::default() };
        update(user, &["email"], shop.uuid())
    };
    for request in [password(&staff), email(&staff)] {
        let refused_to_eve = refused(users.update_user(signed(&eve, request.clone())).await);
        assert_eq!(refused_to_eve, denied("NOT_ALLOWED"));
        users.update_user(request).await.unwrap();
    }
    for request in [password(&ada), email(&ada), email(&eve)] {
        users.update_user(signed(&eve, request)).await.unwrap();
    }

    let mut auth = shop.clients.auth.clone();
    let mut create = async |member: &Member| {
        let request = CreateApiKeyRequest {
            user_id: member.user.id.clone(),
            display_name: "Till".to_owned(),
            expire_time: None,
        };
        auth.create_api_key(signed(&eve, request)).await
    };
    assert_eq!(refused(create(&staff).await), denied("NOT_ALLOWED"));
    for member in [&ada, &eve] {
        create(member).await.unwrap();
    }
    shop.close().await;
}

#[tokio::test]
async fn whether_there_is_a_password_makes_another_request_and_which_does_not() {
    let shop = shop().await;
    let mut users = shop.clients.users.clone();
    let request_id = shop.uuid();
    let user = User {
        email: "ada@example.com".to_owned(),
        display_name: "Ada".to_owned(),
        ..User::default()
    };
    let request = |password: &str| CreateUserRequest {
        user: Some(user.clone()),
        request_id: request_id.clone(),
        password: password.to_owned(),
    };
    let created = users.create_user(request("correct horse")).await.unwrap().into_inner();
    let repeated = users.create_user(request("battery staple")).await.unwrap().into_inner();
    assert_eq!(repeated, created);
    let reused = (Code::AlreadyExists, "REQUEST_ID_REUSED".to_owned());
    assert_eq!(refused(users.create_user(request("")).await), reused);
    shop.close().await;
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_once_and_refuses_a_stale_etag() {
    let shop = shop().await;
    let before = shop.user(0).await;
    let mut users = shop.clients.users.clone();
    let wanted = User {
        email: "countess@example.com".to_owned(),
        display_name: "Augusta".to_owned(),
        ..before.clone()
    };
    let request = update(wanted.clone(), &["display_name"], shop.uuid());
    let after = users.update_user(request.clone()).await.unwrap().into_inner();
    assert_eq!((after.display_name.as_str(), &after.email), ("Augusta", &before.email));
    assert_eq!(users.update_user(request).await.unwrap().into_inner(), after);

    let stale = users.update_user(update(wanted.clone(), &["email"], shop.uuid())).await;
    assert_eq!(refused(stale), (Code::Aborted, "ETAG_STALE".to_owned()));
    let request = DeleteUserRequest { id: before.id.clone(), etag: before.etag.clone() };
    let stale = users.delete_user(request).await;
    assert_eq!(refused(stale), (Code::Aborted, "ETAG_STALE".to_owned()));
    let unknown = users.update_user(update(wanted.clone(), &["etag"], shop.uuid())).await;
    assert_eq!(unknown.unwrap_err().code(), Code::InvalidArgument);

    let whole = User { etag: after.etag, ..wanted };
    let changed = users.update_user(update(whole, &["*"], shop.uuid())).await.unwrap();
    assert_eq!(changed.get_ref().email, "countess@example.com");
    let mut other = shop.user(0).await;
    other.email = "Countess@Example.com".to_owned();
    other.etag.clear();
    let taken = users.update_user(update(other, &["email"], shop.uuid())).await;
    assert_eq!(refused(taken), (Code::AlreadyExists, "EMAIL_TAKEN".to_owned()));
    shop.close().await;
}

#[tokio::test]
async fn a_user_who_is_deleted_is_listed_on_demand_and_is_credited_no_more() {
    let shop = shop().await;
    let (ada, grace) = (shop.user(500).await, shop.user(0).await);
    let mut users = shop.clients.users.clone();
    let request = DeleteUserRequest { id: ada.id.clone(), etag: String::new() };
    let deleted = users.delete_user(request.clone()).await.unwrap().into_inner();
    assert_eq!(users.delete_user(request).await.unwrap().into_inner(), deleted);
    let mut list = async |request| users.list_users(request).await.unwrap().into_inner();
    let shown = list(ListUsersRequest::default()).await.users;
    assert_eq!(shown, [grace]);
    let request = ListUsersRequest { show_deleted: true, page_size: 1, ..Default::default() };
    let page = list(request.clone()).await;
    assert_eq!(page.users, [deleted]);
    // A token continues its own list alone.
    let page_token = page.next_page_token;
    let next = list(ListUsersRequest { page_token: page_token.clone(), ..request }).await;
    assert_eq!((next.users, next.next_page_token), (shown, String::new()));
    let request = ListUsersRequest { page_token, ..ListUsersRequest::default() };
    let other = users.list_users(request).await.unwrap_err();
    assert_eq!(other.code(), Code::InvalidArgument);

    let request =
        DepositRequest { user_id: ada.id, amount: Some(euros(1)), request_id: shop.uuid() };
    let deposit = shop.clients.accounts.clone().deposit(request).await;
    assert_eq!(refused(deposit), (Code::NotFound, "USER_NOT_FOUND".to_owned()));
    shop.close().await;
}

#[tokio::test]
async fn a_purchase_of_a_user_who_is_deleted_can_be_refunded() {
    let shop = shop().await;
    let (user, rope) = (shop.user(500).await, shop.product(100, 10).await);
    let bought = shop.buy(&shop.order(&user, &[(&rope, 2)])).await;
    let request = DeleteUserRequest { id: user.id.clone(), etag: String::new() };
    shop.clients.users.clone().delete_user(request).await.unwrap();
    let request =
        proto::purchase::v1::RefundPurchaseRequest { id: bought.id.clone(), ..Default::default() };
    shop.clients.purchases.clone().refund_purchase(request).await.unwrap();
    shop.wait_for_state(&bought.id, proto::purchase::v1::PurchaseState::Refunded).await;
    let refused = shop.buy(&shop.order(&user, &[(&rope, 1)])).await;
    assert_eq!(refused.state(), proto::purchase::v1::PurchaseState::Failed);
    shop.close().await;
}
