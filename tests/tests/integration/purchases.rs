//! What a purchase comes to.

use std::collections::BTreeMap;

use chandlery::{service::Service, suite::Credential};
use futures::future::join_all;
use proto::{
    Role,
    catalog::v1::{GetProductRequest, Product},
    purchase::v1::{
        CancelPurchaseRequest, FailureReason, GetPurchaseRequest, ListPurchasesRequest,
        PurchaseState, RefundPurchaseRequest, WatchPurchaseRequest,
    },
    user::v1::GetBalanceRequest,
};
use service_runtime::reason;
use suite_tests::{
    member::Member,
    shop::{Shop, euros},
};
use tonic::{Code, Request, Status};

use crate::shop;

async fn balance(shop: &Shop, user_id: &str) -> i64 {
    let request =
        GetBalanceRequest { user_id: user_id.to_owned(), currency_code: "EUR".to_owned() };
    let balance = shop.clients.accounts.clone().get_balance(request).await.unwrap();
    balance.into_inner().amount.unwrap().minor_units
}

async fn available(shop: &Shop, product_id: &str) -> i64 {
    let request = GetProductRequest { id: product_id.to_owned() };
    let product = shop.clients.catalog.clone().get_product(request).await.unwrap();
    product.into_inner().available_quantity
}

#[tokio::test]
async fn a_confirmed_purchase_moves_goods_and_credit_once_and_a_refund_moves_them_back() {
    let shop = shop().await;
    let (rope, anchor) = (shop.product(250, 10).await, shop.product(9_900, 1).await);
    let user = shop.user(20_000).await;

    let bought = shop.buy(&shop.order(&user, &[(&rope, 4), (&anchor, 1)])).await;
    assert_eq!(bought.state(), PurchaseState::Confirmed);
    assert_eq!(bought.total, Some(euros(10_900)));
    assert_eq!(bought.items[0].unit_price, Some(euros(250)));
    assert_eq!(balance(&shop, &user.id).await, 9_100);
    assert_eq!(available(&shop, &rope.id).await, 6);

    let mut purchases = shop.clients.purchases.clone();
    let request = RefundPurchaseRequest { id: bought.id.clone(), etag: bought.etag };
    let refunded = purchases.refund_purchase(request.clone()).await.unwrap().into_inner();
    assert_eq!(refunded.state(), PurchaseState::Refunded);
    assert_eq!(balance(&shop, &user.id).await, 20_000);
    assert_eq!(available(&shop, &anchor.id).await, 1);
    // A repeat gets the same answer, though its etag is stale by now.
    assert_eq!(purchases.refund_purchase(request).await.unwrap().into_inner(), refunded);
    shop.close().await;
}

#[tokio::test]
async fn a_purchase_that_fails_says_why_and_takes_nothing() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let (rich, poor) = (shop.user(100_000).await, shop.user(249).await);
    let (mut ghost, mut absent) = (rich.clone(), rope.clone());
    ghost.id = shop.uuid();
    absent.id = shop.uuid();
    let mut in_dollars = shop.order(&rich, &[(&rope, 1)]);
    in_dollars.purchase.as_mut().unwrap().currency_code = "USD".to_owned();
    let dear = shop.product(i64::MAX, 10).await;
    // What a purchase may ask for, a reservation may hold.
    let strangers: Vec<_> =
        (0..100).map(|_| Product { id: shop.uuid(), ..absent.clone() }).collect();
    let largest: Vec<_> = strangers.iter().map(|product| (product, 1_000_000)).collect();

    for (order, expected) in [
        (shop.order(&rich, &[(&rope, 11)]), FailureReason::OutOfStock),
        (shop.order(&poor, &[(&rope, 1)]), FailureReason::InsufficientCredit),
        (shop.order(&ghost, &[(&rope, 1)]), FailureReason::UserNotFound),
        (shop.order(&rich, &[(&rope, 1), (&absent, 1)]), FailureReason::ProductNotFound),
        (in_dollars, FailureReason::CurrencyMismatch),
        (shop.order(&rich, &largest), FailureReason::ProductNotFound),
        (shop.order(&rich, &[(&dear, 2)]), FailureReason::TotalTooLarge),
    ] {
        let failed = shop.buy(&order).await;
        assert_eq!(failed.state(), PurchaseState::Failed);
        assert_eq!(failed.failure_reason(), expected);
    }
    assert_eq!(balance(&shop, &rich.id).await, 100_000);
    assert_eq!(available(&shop, &rope.id).await, 10);
    shop.close().await;
}

#[tokio::test]
async fn a_purchase_in_a_state_that_forbids_it_is_neither_cancelled_nor_refunded() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let mut purchases = shop.clients.purchases.clone();

    let confirmed = shop.buy(&shop.order(&user, &[(&rope, 1)])).await;
    let request = CancelPurchaseRequest { id: confirmed.id.clone(), ..Default::default() };
    let refused = purchases.cancel_purchase(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused).as_deref(), Some("PURCHASE_NOT_CANCELLABLE"));

    let request = RefundPurchaseRequest { id: confirmed.id.clone(), etag: "\"1\"".to_owned() };
    let refused = purchases.refund_purchase(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(reason(&refused).as_deref(), Some("ETAG_STALE"));

    let failed = shop.buy(&shop.order(&user, &[(&rope, 100)])).await;
    let request = RefundPurchaseRequest { id: failed.id, ..Default::default() };
    let refused = purchases.refund_purchase(request).await.unwrap_err();
    assert_eq!(reason(&refused).as_deref(), Some("PURCHASE_NOT_REFUNDABLE"));

    let request = RefundPurchaseRequest { id: shop.uuid(), ..Default::default() };
    let refused = purchases.refund_purchase(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(reason(&refused).as_deref(), Some("PURCHASE_NOT_FOUND"));
    assert_eq!(shop.purchase(&confirmed.id).await.state(), PurchaseState::Confirmed);
    shop.close().await;
}

#[tokio::test]
async fn a_purchase_cancelled_while_it_is_pending_gives_everybody_the_same_answer() {
    let mut shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let order = shop.order(&user, &[(&rope, 1)]);

    shop.suite.pause(Service::Catalog).unwrap();
    let buyer = tokio::spawn({
        let (mut purchases, order) = (shop.clients.purchases.clone(), order.clone());
        async move { purchases.create_purchase(order).await.unwrap().into_inner() }
    });
    let id = shop.wait_for_purchases(1).await.remove(0);
    let canceller = tokio::spawn({
        let mut purchases = shop.clients.purchases.clone();
        let request = CancelPurchaseRequest { id: id.clone(), ..Default::default() };
        async move { purchases.cancel_purchase(request).await.unwrap().into_inner() }
    });
    shop.wait_for_state(&id, PurchaseState::Cancelling).await;
    shop.suite.resume(Service::Catalog).unwrap();

    let cancelled = canceller.await.unwrap();
    assert_eq!(cancelled.state(), PurchaseState::Cancelled);
    assert_eq!(buyer.await.unwrap(), cancelled);
    assert_eq!(shop.buy(&order).await, cancelled);
    assert_eq!(available(&shop, &rope.id).await, 10);
    shop.close().await;
}

#[tokio::test]
async fn a_thousand_racing_buyers_of_a_hundred_pieces_get_exactly_a_hundred() {
    let shop = shop().await;
    let rope = shop.product(250, 100).await;
    let users = join_all((0..10).map(|_| shop.user(1_000_000))).await;
    let orders = (0..1_000).map(|number| shop.order(&users[number % 10], &[(&rope, 1)]));
    let orders: Vec<_> = orders.collect();
    let bought = join_all(orders.iter().map(|order| shop.buy(order))).await;

    let mut outcomes = BTreeMap::new();
    for purchase in &bought {
        *outcomes.entry((purchase.state(), purchase.failure_reason())).or_insert(0) += 1;
    }
    let sold = (PurchaseState::Confirmed, FailureReason::Unspecified);
    let sold_out = (PurchaseState::Failed, FailureReason::OutOfStock);
    assert_eq!(outcomes, BTreeMap::from([(sold, 100), (sold_out, 900)]));
    assert_eq!(available(&shop, &rope.id).await, 0);
    shop.close().await;
}

#[tokio::test]
async fn purchases_of_a_user_are_listed_page_by_page_each_once() {
    let shop = shop().await;
    let rope = shop.product(1, 100).await;
    let (user, other) = (shop.user(100).await, shop.user(100).await);
    let mut bought = Vec::new();
    for _ in 0..7 {
        bought.push(shop.buy(&shop.order(&user, &[(&rope, 1)])).await.id);
        shop.buy(&shop.order(&other, &[(&rope, 1)])).await;
    }

    let mut purchases = shop.clients.purchases.clone();
    let mut request =
        ListPurchasesRequest { user_id: user.id.clone(), page_size: 3, ..Default::default() };
    let mut listed = Vec::new();
    loop {
        let page = purchases.list_purchases(request.clone()).await.unwrap().into_inner();
        listed.extend(page.purchases.into_iter().map(|purchase| purchase.id));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        let foreign = ListPurchasesRequest { user_id: other.id.clone(), ..request.clone() };
        let refused = purchases.list_purchases(foreign).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    bought.sort();
    assert_eq!(listed, bought);
    shop.close().await;
}

/// A request on behalf of somebody.
fn of<T>(who: &Member, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let token = format!("Bearer {}", who.access_token).parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request
}

/// What a customer learns of a purchase, whatever he asks.
async fn learned(shop: &Shop, who: &Member, id: &str) -> Vec<Status> {
    let (id, etag) = (id.to_owned(), String::new());
    let clients = shop.suite.clients_of(Credential::Workload("storefront")).unwrap();
    let mut purchases = clients.purchases;
    let get = of(who, GetPurchaseRequest { id: id.clone() });
    let cancel = of(who, CancelPurchaseRequest { id: id.clone(), etag: etag.clone() });
    let refund = of(who, RefundPurchaseRequest { id: id.clone(), etag });
    let watch = of(who, WatchPurchaseRequest { id, after_version: 0 });
    vec![
        purchases.get_purchase(get).await.unwrap_err(),
        purchases.cancel_purchase(cancel).await.unwrap_err(),
        purchases.refund_purchase(refund).await.unwrap_err(),
        purchases.watch_purchase(watch).await.unwrap_err(),
    ]
}

#[tokio::test]
async fn to_a_customer_the_purchases_of_others_are_not_there_and_staff_sees_all() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let (ada, eve) = (shop.member(Role::Customer).await, shop.member(Role::Customer).await);
    let staff = shop.member(Role::Staff).await;
    shop.credit(&ada.user, 1_000).await;
    let clients = shop.suite.clients_of(Credential::Workload("storefront")).unwrap();
    let mut purchases = clients.purchases;

    let order = shop.order(&ada.user, &[(&rope, 1)]);
    let bought = purchases.create_purchase(of(&ada, order.clone())).await.unwrap().into_inner();
    assert_eq!(bought.state(), PurchaseState::Confirmed);
    let unknown = shop.uuid();
    let as_unknown = |status: &Status, id: &str| {
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        assert_eq!(reason(status).as_deref(), Some("PURCHASE_NOT_FOUND"));
        status.message().replace(id, &unknown)
    };
    let others = learned(&shop, &eve, &bought.id).await;
    let nobodys = learned(&shop, &eve, &unknown).await;
    for (others, nobodys) in others.iter().zip(&nobodys) {
        assert_eq!(as_unknown(others, &bought.id), as_unknown(nobodys, &unknown));
    }

    let mut for_nobody = order.clone();
    for_nobody.purchase.as_mut().unwrap().user_id = shop.uuid();
    for order in [order, for_nobody] {
        let user_id = order.purchase.as_ref().unwrap().user_id.clone();
        let refused = purchases.create_purchase(of(&eve, order)).await.unwrap_err();
        let list = ListPurchasesRequest { user_id, ..ListPurchasesRequest::default() };
        let listed = purchases.list_purchases(of(&eve, list)).await.unwrap_err();
        for status in [refused, listed] {
            assert_eq!(status.code(), Code::PermissionDenied);
            assert_eq!(reason(&status).as_deref(), Some("NOT_OWNER"));
        }
    }

    let list = ListPurchasesRequest { user_id: ada.user.id.clone(), ..Default::default() };
    for who in [&ada, &staff] {
        let listed = purchases.list_purchases(of(who, list.clone())).await.unwrap().into_inner();
        assert_eq!(listed.purchases, std::slice::from_ref(&bought));
    }
    let refund = RefundPurchaseRequest { id: bought.id.clone(), ..Default::default() };
    let refunded = purchases.refund_purchase(of(&staff, refund)).await.unwrap().into_inner();
    assert_eq!(refunded.state(), PurchaseState::Refunded);
    let get = of(&ada, GetPurchaseRequest { id: bought.id });
    assert_eq!(purchases.get_purchase(get).await.unwrap().into_inner(), refunded);
    shop.close().await;
}
