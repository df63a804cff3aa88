//! What a request gets when it is sent again.

use futures::future::join_all;
use prost::Message;
use proto::{
    catalog::v1::RestockRequest,
    purchase::v1::{PurchaseState, RefundPurchaseRequest},
    user::v1::{CreateUserRequest, DepositRequest, User},
};
use service_runtime::reason;
use suite_tests::shop::euros;
use tonic::Code;

use crate::shop;

#[tokio::test]
async fn a_repeated_purchase_gets_the_same_bytes_even_after_a_restart_and_a_refund() {
    let mut shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let order = shop.order(&user, &[(&rope, 2)]);
    let first = shop.buy(&order).await;
    assert_eq!(shop.buy(&order).await.encode_to_vec(), first.encode_to_vec());

    let request = RefundPurchaseRequest { id: first.id.clone(), ..Default::default() };
    shop.clients.purchases.clone().refund_purchase(request).await.unwrap();
    let service = chandlery::service::Service::Purchase;
    assert!(shop.suite.terminate(service).await.unwrap().success());
    shop.suite.restart(service).await.unwrap();
    let clients = shop.suite.clients().unwrap();
    shop.clients = clients;
    assert_eq!(shop.buy(&order).await.encode_to_vec(), first.encode_to_vec());
    assert_eq!(shop.purchase(&first.id).await.state(), PurchaseState::Refunded);
    shop.close().await;
}

#[tokio::test]
async fn fifty_concurrent_repeats_make_one_purchase_and_get_one_answer() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let order = shop.order(&user, &[(&rope, 2)]);
    let answers = join_all((0..50).map(|_| shop.buy(&order))).await;
    assert!(answers.iter().all(|answer| answer.encode_to_vec() == answers[0].encode_to_vec()));
    assert_eq!(answers[0].state(), PurchaseState::Confirmed);
    let evidence = shop.check(None).await;
    assert_eq!(evidence.purchases.purchases.len(), 1);
    shop.close().await;
}

#[tokio::test]
async fn other_parameters_under_the_same_request_id_are_refused() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let order = shop.order(&user, &[(&rope, 2)]);
    let first = shop.buy(&order).await;
    let mut altered = order.clone();
    altered.purchase.as_mut().unwrap().items[0].quantity = 3;
    let refused = shop.clients.purchases.clone().create_purchase(altered).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(reason(&refused).as_deref(), Some("REQUEST_ID_REUSED"));
    // What the contract ignores makes no other request.
    let mut echoed = order.clone();
    echoed.purchase.as_mut().unwrap().etag = first.etag.clone();
    assert_eq!(shop.buy(&echoed).await, first);
    shop.close().await;
}

#[tokio::test]
async fn every_request_with_a_request_id_has_one_effect_and_refuses_an_altered_repeat() {
    let shop = shop().await;
    let reused = |status: tonic::Status| {
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
        assert_eq!(reason(&status).as_deref(), Some("REQUEST_ID_REUSED"));
    };

    let mut request = shop.product_request(100, 5);
    let mut catalog = shop.clients.catalog.clone();
    let product = catalog.create_product(request.clone()).await.unwrap().into_inner();
    assert_eq!(catalog.create_product(request.clone()).await.unwrap().into_inner(), product);
    request.initial_quantity = 6;
    reused(catalog.create_product(request).await.unwrap_err());

    let mut request =
        RestockRequest { product_id: product.id, quantity: 7, request_id: shop.uuid() };
    let mut stock = shop.clients.stock.clone();
    let level = stock.restock(request.clone()).await.unwrap().into_inner();
    assert_eq!(level.available_quantity, 12);
    assert_eq!(stock.restock(request.clone()).await.unwrap().into_inner(), level);
    request.quantity = 8;
    reused(stock.restock(request).await.unwrap_err());

    let user = User {
        email: "grace@example.com".to_owned(),
        display_name: "Grace".to_owned(),
        ..User::default()
    };
    let mut request = CreateUserRequest {
        user: Some(user),
        request_id: shop.uuid(),
        ..CreateUserRequest::default()
    };
    let mut users = shop.clients.users.clone();
    let user = users.create_user(request.clone()).await.unwrap().into_inner();
    assert_eq!(users.create_user(request.clone()).await.unwrap().into_inner(), user);
    request.user.as_mut().unwrap().display_name = "Ada".to_owned();
    reused(users.create_user(request.clone()).await.unwrap_err());
    request.request_id = shop.uuid();
    let taken = users.create_user(request).await.unwrap_err();
    assert_eq!(reason(&taken).as_deref(), Some("EMAIL_TAKEN"));

    let mut request =
        DepositRequest { user_id: user.id, amount: Some(euros(500)), request_id: shop.uuid() };
    let mut accounts = shop.clients.accounts.clone();
    let balance = accounts.deposit(request.clone()).await.unwrap().into_inner();
    assert_eq!(accounts.deposit(request.clone()).await.unwrap().into_inner(), balance);
    assert_eq!(balance.amount, Some(euros(500)));
    request.amount = Some(euros(501));
    reused(accounts.deposit(request).await.unwrap_err());
    shop.close().await;
}
