//! A live cart: edits in, the priced cart out, a purchase in the end.

use std::time::Duration;

use chandlery::{check::Sent, service::Service, suite::Credential};
use futures::future::join_all;
use proto::{
    Role,
    catalog::v1::{DeleteProductRequest, Product, RestockRequest, UpdateProductRequest},
    purchase::v1::{
        Cart, PurchaseState, RefundPurchaseRequest,
        cart::{Item, Problem},
        shop_request::{Open, Step},
    },
};
use service_runtime::reason;
use suite_tests::{
    member::Member,
    shop::{Shop, euros},
    visit::{Visit, check_out, open, set},
};
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::shop;

/// How long a cart may take to show how things stand.
const PATIENCE: Duration = Duration::from_secs(20);

/// A visit of the operator.
async fn visit(shop: &Shop, steps: impl IntoIterator<Item = Step>) -> Visit {
    Visit::begin(shop.clients.purchases.clone(), None, steps).await.unwrap()
}

/// A visit of somebody through a workload that anybody may run.
async fn visit_of(shop: &Shop, who: &Member, steps: impl IntoIterator<Item = Step>) -> Visit {
    let clients = shop.suite.clients_of(Credential::Workload("storefront")).unwrap();
    Visit::begin(clients.purchases, Some(&who.access_token), steps).await.unwrap()
}

async fn reprice(shop: &Shop, product: &Product, price: i64) {
    let product =
        Product { id: product.id.clone(), price: Some(euros(price)), ..Product::default() };
    let request = UpdateProductRequest {
        product: Some(product),
        request_id: shop.uuid(),
        ..UpdateProductRequest::default()
    };
    shop.clients.catalog.clone().update_product(request).await.unwrap();
}

async fn restock(shop: &Shop, product: &Product, quantity: i64) {
    let request =
        RestockRequest { product_id: product.id.clone(), quantity, request_id: shop.uuid() };
    shop.clients.stock.clone().restock(request).await.unwrap();
}

fn item(product: &Product, quantity: i32, available: i64) -> Item {
    Item {
        product_id: product.id.clone(),
        quantity,
        name: product.name.clone(),
        unit_price: product.price.clone(),
        available_quantity: available,
        problem: Problem::Unspecified.into(),
    }
}

fn goods(cart: &Cart) -> Vec<(&str, i32)> {
    cart.items.iter().map(|item| (item.product_id.as_str(), item.quantity)).collect()
}

fn refused(status: &Status) -> (Code, Option<String>) {
    (status.code(), reason(status))
}

#[tokio::test]
async fn every_edit_is_answered_with_the_priced_cart_and_checking_out_with_one_purchase() {
    let shop = shop().await;
    let (rope, anchor) = (shop.product(250, 10).await, shop.product(9_900, 1).await);
    let user = shop.user(20_000).await;
    let cart_id = shop.uuid();
    let mut sent = Sent::default();
    sent.request(&cart_id);

    let mut visit = visit(&shop, [open(&cart_id, &user.id)]).await;
    let empty = visit.cart().await;
    let nothing = Cart {
        id: cart_id.clone(),
        user_id: user.id.clone(),
        currency_code: "EUR".to_owned(),
        total: Some(euros(0)),
        etag: empty.etag.clone(),
        ..Cart::default()
    };
    assert_eq!(empty, nothing);
    visit.set(&rope.id, 2);
    assert_eq!(visit.cart().await.items, [item(&rope, 2, 10)]);
    visit.set(&anchor.id, 1);
    let both = visit.cart().await;
    assert_eq!(both.items, [item(&rope, 2, 10), item(&anchor, 1, 1)]);
    assert_eq!(both.total, Some(euros(10_400)));
    visit.set(&anchor.id, 0);
    let agreed = visit.cart().await;
    assert_eq!((&agreed.items[..], &agreed.total), (&[item(&rope, 2, 10)][..], &Some(euros(500))));
    assert_eq!(agreed.store_credit, None, "the operator has none");
    visit.check_out(&agreed.etag);
    let purchase = visit.purchase().await;
    sent.answer(&cart_id, &purchase);
    assert_eq!((purchase.state(), &purchase.total), (PurchaseState::Confirmed, &agreed.total));
    assert_eq!(purchase.user_id, user.id);

    // Whoever comes back gets the same answer, even after a refund.
    let request = RefundPurchaseRequest { id: purchase.id.clone(), ..Default::default() };
    shop.clients.purchases.clone().refund_purchase(request).await.unwrap();
    let steps = [open(&cart_id, &user.id), set(&rope.id, 9), check_out("")];
    assert_eq!(self::visit(&shop, steps).await.purchase().await, purchase);
    shop.check(Some(sent)).await;
    shop.close().await;
}

#[tokio::test]
async fn a_shopper_who_sends_all_at_once_and_leaves_gets_every_answer() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let cart_id = shop.uuid();

    let mut first = visit(&shop, [open(&cart_id, &user.id), set(&rope.id, 1)]).await;
    first.leave();
    assert_eq!(goods(&first.cart().await), []);
    let left = first.cart_where(|cart| !cart.items.is_empty()).await;
    while let Some(_repeated) = first.view().await.unwrap() {}
    let steps = [open(&cart_id, &user.id), set(&rope.id, 3), check_out("")];
    let mut second = visit(&shop, steps).await;
    second.leave();
    assert_eq!(second.cart().await, left, "the cart is kept");
    let purchase = second.purchase().await;
    assert_eq!((purchase.state(), purchase.items[0].quantity), (PurchaseState::Confirmed, 3));
    shop.close().await;
}

#[tokio::test]
async fn a_cart_is_shown_again_when_its_goods_change_or_somebody_else_edits_it() {
    let shop = shop().await;
    let (rope, anchor) = (shop.product(250, 10).await, shop.product(9_900, 1).await);
    let user = shop.user(20_000).await;
    let cart_id = shop.uuid();
    let mut mine = visit(&shop, [open(&cart_id, &user.id), set(&rope.id, 2)]).await;
    let first = mine.cart_where(|cart| !cart.items.is_empty()).await;

    restock(&shop, &rope, 5).await;
    let restocked = mine.cart_where(|cart| cart.items[0].available_quantity == 15).await;
    assert_eq!(restocked.etag, first.etag, "stock is no part of what a buyer agrees to");
    reprice(&shop, &rope, 300).await;
    let dearer = mine.cart_where(|cart| cart.total == Some(euros(600))).await;
    assert_ne!(dearer.etag, first.etag);

    let mut yours = visit(&shop, [open(&cart_id, &user.id), set(&anchor.id, 1)]).await;
    let is_both = |cart: &Cart| goods(cart) == [(rope.id.as_str(), 2), (anchor.id.as_str(), 1)];
    mine.cart_where(is_both).await;
    yours.cart_where(is_both).await;
    // What somebody else has put in is watched, too.
    reprice(&shop, &anchor, 9_000).await;
    mine.cart_where(|cart| cart.total == Some(euros(9_600))).await;
    let request = DeleteProductRequest { id: anchor.id.clone(), ..Default::default() };
    shop.clients.catalog.clone().delete_product(request).await.unwrap();
    let gone = mine.cart_where(|cart| cart.items[1].problem() != Problem::Unspecified).await;
    assert_eq!((gone.items[1].problem(), gone.total), (Problem::ProductNotFound, None));

    mine.set(&anchor.id, 0);
    yours.cart_where(|cart| goods(cart) == [(rope.id.as_str(), 2)]).await;
    mine.check_out("");
    let purchase = mine.purchase().await;
    assert_eq!(purchase.total, Some(euros(600)));
    assert_eq!(yours.purchase().await, purchase, "one cart, one purchase");
    shop.close().await;
}

#[tokio::test]
async fn a_cart_says_what_cannot_be_bought_and_becomes_a_purchase_that_fails_for_it() {
    let shop = shop().await;
    let rope = shop.product(250, 1).await;
    let user = shop.user(20_000).await;
    let (cart_id, absent) = (shop.uuid(), shop.uuid());
    let in_dollars = Step::Open(Open {
        cart_id: shop.uuid(),
        user_id: user.id.clone(),
        currency_code: "USD".to_owned(),
    });
    let mut foreign = visit(&shop, [in_dollars, set(&rope.id, 1)]).await;
    let cart = foreign.cart_where(|cart| !cart.items.is_empty()).await;
    assert_eq!((cart.items[0].problem(), cart.total), (Problem::CurrencyMismatch, None));
    assert_eq!(cart.items[0].unit_price, Some(euros(250)));

    let mut visit = visit(&shop, [open(&cart_id, &user.id), set(&rope.id, 2)]).await;
    let cart = visit.cart_where(|cart| !cart.items.is_empty()).await;
    assert_eq!((cart.items[0].problem(), cart.total), (Problem::OutOfStock, Some(euros(500))));
    visit.set(&absent, 1);
    let cart = visit.cart_where(|cart| cart.items.len() == 2).await;
    let unknown = Item {
        product_id: absent,
        quantity: 1,
        problem: Problem::ProductNotFound.into(),
        ..Item::default()
    };
    assert_eq!((&cart.items[1], &cart.total), (&unknown, &None));
    visit.check_out(&cart.etag);
    assert_eq!(visit.purchase().await.state(), PurchaseState::Failed);
    shop.close().await;
}

#[tokio::test]
async fn goods_that_do_not_exist_are_all_told_of_however_many() {
    let shop = shop().await;
    let rope = shop.product(250, 1).await;
    let user = shop.user(0).await;
    let opening = open(&shop.uuid(), &user.id);
    let mut filling = visit(&shop, [opening.clone(), set(&rope.id, 1)]).await;
    (0..14).for_each(|_| filling.set(&shop.uuid(), 1));
    filling.cart_where(|cart| cart.items.len() == 15).await;

    let mut visit = visit(&shop, [opening]).await;
    let is_told = |cart: &Cart| cart.items.iter().all(|it| it.problem() != Problem::CatalogAway);
    let told = timeout(PATIENCE, visit.cart_where(is_told)).await.expect("all is told in time");
    assert_eq!(told.items[0], item(&rope, 1, 1));
    let absent = |item: &Item| item.problem() == Problem::ProductNotFound;
    assert!(told.items[1..].iter().all(absent), "{told:?}");
    shop.close().await;
}

#[tokio::test]
async fn a_cart_follows_its_goods_however_many_carts_there_are() {
    // More than a connection to the catalog has streams.
    const CARTS: usize = 600;
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(0).await;
    let clients = [shop.suite.clients().unwrap(), shop.suite.clients().unwrap()];
    let visits = (0..CARTS).map(|number| {
        let steps = [open(&shop.uuid(), &user.id), set(&rope.id, 1)];
        let purchases = clients[number % 2].purchases.clone();
        async move {
            let mut visit = Visit::begin(purchases, None, steps).await.unwrap();
            visit.cart_where(|cart| !cart.items.is_empty()).await;
            visit
        }
    });
    let mut visits = join_all(visits).await;
    reprice(&shop, &rope, 300).await;
    let is_dearer = |cart: &Cart| cart.total == Some(euros(300));
    let all = join_all(visits.iter_mut().map(|visit| visit.cart_where(is_dearer)));
    timeout(PATIENCE, all).await.expect("all are shown the price in time");
    drop(visits);
    shop.close().await;
}

#[tokio::test]
async fn of_two_customers_who_make_up_the_same_cart_one_has_it_and_the_other_is_no_owner() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let ada = shop.member(Role::Customer).await;
    let eve = shop.member(Role::Customer).await;
    for _ in 0..10 {
        let cart_id = shop.uuid();
        let mut visits = Vec::new();
        for who in [&ada, &eve] {
            let mut visit = visit_of(&shop, who, [open(&cart_id, &who.user.id)]).await;
            assert_eq!(goods(&visit.cart().await), [], "nobody has made it yet");
            visits.push(visit);
        }
        for visit in &mut visits {
            visit.set(&rope.id, 1);
            visit.leave();
        }
        let ends = visits.iter_mut().map(|visit| async {
            while visit.view().await?.is_some() {}
            Ok(())
        });
        let ends = join_all(ends).await;
        let refused: Vec<_> =
            ends.iter().filter_map(|end| end.as_ref().err().map(refused)).collect();
        assert_eq!(refused, [(Code::PermissionDenied, Some("NOT_OWNER".to_owned()))], "{ends:?}");
    }
    shop.close().await;
}

#[tokio::test]
async fn a_step_that_cannot_be_ends_the_visit_and_leaves_the_cart_as_it_was() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let cart_id = shop.uuid();
    let opening = || open(&cart_id, &user.id);
    let mut kept = visit(&shop, [opening(), set(&rope.id, 2)]).await;
    let kept = kept.cart_where(|cart| !cart.items.is_empty()).await;

    let nowhere = Step::Open(Open { cart_id: "7".to_owned(), ..Open::default() });
    let opened = |step| vec![Some(opening()), step];
    for (steps, fields) in [
        (vec![Some(set(&rope.id, 1))], vec!["open"]),
        (vec![Some(check_out(""))], vec!["open"]),
        (vec![None], vec!["open"]),
        (vec![], vec!["open"]),
        (vec![Some(nowhere)], vec!["open.cart_id", "open.user_id", "open.currency_code"]),
        (opened(Some(opening())), vec!["open"]),
        (opened(None), vec!["step"]),
        (opened(Some(set("rope", -1))), vec!["set_item.product_id", "set_item.quantity"]),
        (opened(Some(set(&rope.id, 1_000_001))), vec!["set_item.quantity"]),
        (opened(Some(check_out(&"x".repeat(65)))), vec!["check_out.etag"]),
    ] {
        let mut visit = visit(&shop, []).await;
        for step in steps {
            visit.take(step);
        }
        visit.leave();
        let status = visit.refusal().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        let named: Vec<_> = violations.into_iter().map(|violation| violation.field).collect();
        assert_eq!(named, fields);
    }

    let in_dollars = Step::Open(Open {
        cart_id: cart_id.clone(),
        user_id: user.id.clone(),
        currency_code: "USD".to_owned(),
    });
    let precondition = |reason: &str| (Code::FailedPrecondition, Some(reason.to_owned()));
    let taken = shop.order(&user, &[(&rope, 1)]);
    shop.buy(&taken).await;
    for (steps, expected) in [
        (vec![in_dollars], precondition("CART_DIFFERS")),
        (vec![open(&cart_id, &shop.uuid())], precondition("CART_DIFFERS")),
        (vec![open(&shop.uuid(), &user.id), check_out("")], precondition("CART_EMPTY")),
        (vec![opening(), check_out("\"0\"")], (Code::Aborted, Some("ETAG_STALE".to_owned()))),
        (
            vec![open(&taken.request_id, &user.id), set(&rope.id, 1), check_out("")],
            (Code::AlreadyExists, Some("REQUEST_ID_REUSED".to_owned())),
        ),
    ] {
        let status = visit(&shop, steps).await.refusal().await;
        assert_eq!(refused(&status), expected, "{status:?}");
    }
    let full: Vec<_> = (0..=100).map(|_| set(&shop.uuid(), 1)).collect();
    let steps = [open(&shop.uuid(), &user.id)].into_iter().chain(full);
    let status = visit(&shop, steps).await.refusal().await;
    assert_eq!(refused(&status), precondition("CART_FULL"));

    let after = visit(&shop, [opening()]).await.cart().await;
    assert_eq!((goods(&after), &after.etag), (goods(&kept), &kept.etag));
    shop.close().await;
}

#[tokio::test]
async fn a_price_that_has_changed_since_it_was_shown_is_not_paid() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let cart_id = shop.uuid();
    let mut visit = visit(&shop, [open(&cart_id, &user.id), set(&rope.id, 2)]).await;
    let agreed = visit.cart_where(|cart| !cart.items.is_empty()).await;
    reprice(&shop, &rope, 300).await;
    visit.check_out(&agreed.etag);
    let status = visit.refusal().await;
    assert_eq!(refused(&status), (Code::Aborted, Some("ETAG_STALE".to_owned())));

    let mut again = self::visit(&shop, [open(&cart_id, &user.id)]).await;
    let shown = again.cart().await;
    assert_eq!(shown.total, Some(euros(600)));
    again.check_out(&shown.etag);
    assert_eq!(again.purchase().await.total, Some(euros(600)));
    shop.close().await;
}

#[tokio::test]
async fn a_cart_outlives_a_drain_and_is_taken_up_again_where_it_was() {
    let mut shop = shop().await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let opening = open(&shop.uuid(), &user.id);
    let mut visit = visit(&shop, [opening.clone(), set(&rope.id, 2)]).await;
    let before = visit.cart_where(|cart| !cart.items.is_empty()).await;

    assert!(shop.suite.terminate(Service::Purchase).await.unwrap().success());
    let end = visit.refusal().await;
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
    shop.suite.restart(Service::Purchase).await.unwrap();
    shop.clients = shop.suite.clients().unwrap();
    let mut again = self::visit(&shop, [opening]).await;
    assert_eq!(again.cart().await, before);
    again.check_out(&before.etag);
    assert_eq!(again.purchase().await.state(), PurchaseState::Confirmed);
    shop.close().await;
}

#[tokio::test]
async fn while_the_catalog_is_away_a_cart_shows_what_was_last_known_and_catches_up() {
    let mut shop = shop().await;
    let (rope, anchor) = (shop.product(250, 10).await, shop.product(9_900, 1).await);
    let user = shop.user(20_000).await;
    let mut visit = visit(&shop, [open(&shop.uuid(), &user.id), set(&rope.id, 2)]).await;
    let known = visit.cart_where(|cart| !cart.items.is_empty()).await;

    shop.suite.kill(Service::Catalog).unwrap();
    visit.set(&anchor.id, 1);
    let cart = visit.cart_where(|cart| cart.items.len() == 2).await;
    assert_eq!(cart.items[0], known.items[0]);
    assert_eq!((cart.items[1].problem(), cart.total), (Problem::CatalogAway, None));
    shop.suite.restart(Service::Catalog).await.unwrap();
    let back = visit.cart_where(|cart| cart.total.is_some()).await;
    assert_eq!(back.total, Some(euros(10_400)));

    shop.suite.kill(Service::Catalog).unwrap();
    visit.check_out(&back.etag);
    let status = visit.refusal().await;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    shop.suite.restart(Service::Catalog).await.unwrap();
    shop.clients = shop.suite.clients().unwrap();
    shop.close().await;
}

#[tokio::test]
async fn a_customer_shops_for_himself_and_staff_may_help_with_the_same_cart() {
    let shop = shop().await;
    let rope = shop.product(250, 10).await;
    let (ada, eve) = (shop.member(Role::Customer).await, shop.member(Role::Customer).await);
    let staff = shop.member(Role::Staff).await;
    shop.credit(&ada.user, 1_000).await;
    let cart_id = shop.uuid();
    let opening = || open(&cart_id, &ada.user.id);

    let mut own = visit_of(&shop, &ada, [opening(), set(&rope.id, 2)]).await;
    let cart = own.cart_where(|cart| !cart.items.is_empty()).await;
    assert_eq!(cart.store_credit, Some(euros(1_000)));

    let not_owner = (Code::PermissionDenied, Some("NOT_OWNER".to_owned()));
    for steps in [[opening()], [open(&cart_id, &eve.user.id)], [open(&shop.uuid(), &ada.user.id)]] {
        let status = visit_of(&shop, &eve, steps).await.refusal().await;
        assert_eq!(refused(&status), not_owner, "{status:?}");
    }

    let mut help = visit_of(&shop, &staff, [opening()]).await;
    assert_eq!(help.cart().await, Cart { store_credit: None, ..cart });
    help.set(&rope.id, 3);
    own.cart_where(|cart| goods(cart) == [(rope.id.as_str(), 3)]).await;
    help.check_out("");
    let purchase = help.purchase().await;
    assert_eq!((purchase.state(), &purchase.user_id), (PurchaseState::Confirmed, &ada.user.id));
    assert_eq!(own.purchase().await, purchase);
    let again = visit_of(&shop, &ada, [opening(), check_out("")]).await.purchase().await;
    assert_eq!(again, purchase, "whoever comes back");
    let audited = shop.check(None).await.purchases.purchases;
    assert_eq!(audited.len(), 1);
    assert_eq!(audited[0].principal, format!("user:{}", staff.user.id));
    assert_eq!(audited[0].request_id, cart_id);
    shop.close().await;
}
