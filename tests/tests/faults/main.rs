//! Processes die and the books stay right.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::{sync::Arc, time::Duration};

use chandlery::{
    check::Sent,
    load::{self, Progress},
    service::Service,
    suite::Credential,
};
use futures::future::join_all;
use proto::{
    Role,
    purchase::v1::{
        CreatePurchaseRequest, Purchase, PurchaseState, WatchPurchaseRequest,
        audit_purchases_response::AuditedPurchase, shop_request::Step,
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use suite_tests::{
    member::Member,
    shop::{Shop, printed_seed},
    visit::{Visit, check_out, open, set},
};
use tokio::sync::watch;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chandlery-suite");

async fn orders(shop: &Shop, count: usize, random: &mut StdRng) -> Vec<CreatePurchaseRequest> {
    let products = join_all((0..8).map(|number| shop.product(100 + number, 200))).await;
    let users = join_all((0..6).map(|number| shop.user(number * 10_000))).await;
    let users: Vec<_> = users.into_iter().map(|user| user.id).collect();
    load::choose(count, &users, &products, random)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_kills_of_any_service_under_load_keep_every_invariant() {
    const KILLS: u32 = 10;
    let seed = printed_seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut shop = Shop::open(PROGRAM).await;
    let orders = orders(&shop, 600, &mut random).await;
    let options = load::Options { seed, ..load::Options::default() };
    let progress = Arc::new(watch::Sender::new(Progress::default()));

    let (clients, reported) = (shop.clients.clone(), Arc::clone(&progress));
    let buying =
        tokio::spawn(async move { load::run(&clients, orders, &options, &reported).await });
    let mut seen = progress.subscribe();
    // Each of them at least once.
    let mut targets = Service::ALL.to_vec();
    targets.shuffle(&mut random);
    for kill in 1..=KILLS {
        // A kill counts only if it hits purchases that are under way.
        let answered = 600 * usize::try_from(kill).unwrap() / 12;
        let hit = |progress: &Progress| progress.answered >= answered && progress.open_calls > 0;
        seen.wait_for(hit).await.unwrap();
        let service = targets.pop().unwrap_or_else(|| Service::ALL[random.random_range(0..3)]);
        println!("kill {kill} hits {service} after {:?}", *progress.borrow());
        shop.suite.kill(service).unwrap();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
        shop.suite.restart(service).await.unwrap();
    }
    let outcome = buying.await.unwrap();
    assert!(outcome.unanswered.is_empty(), "{:?}", outcome.unanswered);
    assert_eq!(outcome.answered(), 600);
    assert!(outcome.confirmed > 0, "some purchases can be confirmed");
    assert!(outcome.repeats > 0, "a kill of purchase-service cuts calls that are repeated");
    shop.check(Some(outcome.sent)).await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_answers_every_call_that_had_begun_and_repeats_succeed() {
    let seed = printed_seed();
    let mut random = StdRng::seed_from_u64(seed);
    let mut shop = Shop::open(PROGRAM).await;
    let mut orders = orders(&shop, 200, &mut random).await;
    let options = load::Options { seed, concurrency: 100, ..load::Options::default() };

    // These calls have begun for sure: their purchases are on record, and cannot go on
    // while the catalog is paused.
    shop.suite.pause(Service::Catalog).unwrap();
    let begun: Vec<_> = orders.drain(..40).collect();
    let calls = begun.iter().map(|order| {
        let mut purchases = shop.clients.purchases.clone();
        let order = order.clone();
        tokio::spawn(async move { purchases.create_purchase(order).await })
    });
    let calls: Vec<_> = calls.collect();
    shop.wait_for_purchases(40).await;

    let progress = Arc::new(watch::Sender::new(Progress::default()));
    let (clients, reported) = (shop.clients.clone(), Arc::clone(&progress));
    let others =
        tokio::spawn(async move { load::run(&clients, orders, &options, &reported).await });
    progress.subscribe().wait_for(|progress| progress.open_calls > 0).await.unwrap();
    shop.suite.begin_drain(Service::Purchase).unwrap();
    shop.suite.resume(Service::Catalog).unwrap();
    assert!(shop.suite.terminate(Service::Purchase).await.unwrap().success());
    shop.suite.restart(Service::Purchase).await.unwrap();

    for answer in join_all(calls).await {
        let purchase = answer.unwrap().expect("a call that had begun is answered").into_inner();
        assert!(matches!(purchase.state(), PurchaseState::Confirmed | PurchaseState::Failed));
    }
    let outcome = others.await.unwrap();
    assert!(outcome.unanswered.is_empty(), "{:?}", outcome.unanswered);
    shop.check(None).await;
    shop.close().await;
}

#[tokio::test]
async fn what_a_killed_process_left_is_finished_by_the_next_without_being_asked() {
    let mut shop = Shop::open(PROGRAM).await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(10_000).await;
    let order = shop.order(&user, &[(&rope, 1)]);

    shop.suite.pause(Service::Catalog).unwrap();
    let mut purchases = shop.clients.purchases.clone();
    let lost = tokio::spawn({
        let order = order.clone();
        async move { purchases.create_purchase(order).await }
    });
    shop.wait_for_purchases(1).await;
    shop.suite.kill(Service::Purchase).unwrap();
    assert!(lost.await.unwrap().is_err(), "the caller learns nothing");
    shop.suite.resume(Service::Catalog).unwrap();
    shop.suite.restart(Service::Purchase).await.unwrap();

    let evidence = shop.check(None).await;
    let states: Vec<_> = evidence.purchases.purchases.iter().map(AuditedPurchase::state).collect();
    assert_eq!(states, [PurchaseState::Confirmed]);
    assert_eq!(shop.buy(&order).await.id, evidence.purchases.purchases[0].id);
    shop.close().await;
}

/// Comes back to a cart until it has become a purchase.
async fn take_up(shop: &Shop, who: &Member, steps: &[Step]) -> Purchase {
    loop {
        let clients = shop.suite.clients_of(Credential::Workload("storefront")).unwrap();
        let token = Some(who.access_token.as_str());
        let outcome = match Visit::begin(clients.purchases, token, steps.to_vec()).await {
            Ok(mut visit) => visit.outcome().await,
            Err(status) => Err(status),
        };
        match outcome {
            Ok(purchase) => return purchase,
            Err(status) => assert!(load::is_worth_repeating(&status), "{status:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cart_that_is_checked_out_again_and_again_through_kills_becomes_one_purchase() {
    const CARTS: usize = 5;
    let mut shop = Shop::open(PROGRAM).await;
    let rope = shop.product(250, 100).await;
    let customer = shop.member(Role::Customer).await;
    let staff = shop.member(Role::Staff).await;
    shop.credit(&customer.user, 100_000).await;
    let mut sent = Sent::default();
    for number in 1..=CARTS {
        let cart_id = shop.uuid();
        sent.request(&cart_id);
        let steps = [open(&cart_id, &customer.user.id), set(&rope.id, 1), check_out("")];
        // Once its purchase is on record, the cart is checked out; it is not answered while
        // the catalog is paused, so that the kill comes in between.
        shop.suite.pause(Service::Catalog).unwrap();
        let cut = join_all([&customer, &staff].map(|who| take_up(&shop, who, &steps)));
        let recorded = tokio::select! {
            answers = cut => panic!("answered before the kill: {answers:?}"),
            recorded = shop.wait_for_purchases(number) => recorded,
        };
        shop.suite.kill(Service::Purchase).unwrap();
        shop.suite.resume(Service::Catalog).unwrap();
        shop.suite.restart(Service::Purchase).await.unwrap();
        shop.clients = shop.suite.clients().unwrap();
        let purchases = join_all([&staff, &customer].map(|who| take_up(&shop, who, &steps))).await;
        assert_eq!(purchases[0], purchases[1]);
        assert!(recorded.contains(&purchases[0].id), "{recorded:?}");
        sent.answer(&cart_id, &purchases[0]);
    }
    let evidence = shop.check(Some(sent)).await;
    assert_eq!(evidence.purchases.purchases.len(), CARTS);
    shop.close().await;
}

#[tokio::test]
async fn a_drain_ends_open_watches_at_once_and_a_silent_peer_cannot_delay_it() {
    let mut shop = Shop::open(PROGRAM).await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(10_000).await;
    let bought = shop.buy(&shop.order(&user, &[(&rope, 1)])).await;
    let request = WatchPurchaseRequest { id: bought.id, after_version: 3 };
    let mut purchases = shop.clients.purchases.clone();
    let mut watch = purchases.watch_purchase(request.clone()).await.unwrap().into_inner();
    let address = shop.suite.address(Service::Purchase);
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();

    let begun = std::time::Instant::now();
    assert!(shop.suite.terminate(Service::Purchase).await.unwrap().success());
    let end = watch.message().await.unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end:?}");
    // The drain deadline is twenty seconds, the handshake timeout ten.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    shop.suite.restart(Service::Purchase).await.unwrap();
    shop.close().await;
}

#[tokio::test]
async fn a_call_that_does_not_end_is_answered_at_the_drain_deadline() {
    let environment = [("DRAIN_DEADLINE_SECONDS", "1")];
    let mut shop = Shop::open_with(PROGRAM, &environment).await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(10_000).await;
    let order = shop.order(&user, &[(&rope, 1)]);

    shop.suite.pause(Service::Catalog).unwrap();
    let mut purchases = shop.clients.purchases.clone();
    let stuck = tokio::spawn({
        let order = order.clone();
        async move { purchases.create_purchase(order).await }
    });
    shop.wait_for_purchases(1).await;
    assert!(shop.suite.terminate(Service::Purchase).await.unwrap().success());
    let end = stuck.await.unwrap().unwrap_err();
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end:?}");

    shop.suite.resume(Service::Catalog).unwrap();
    shop.suite.restart(Service::Purchase).await.unwrap();
    assert_eq!(shop.buy(&order).await.state(), PurchaseState::Confirmed);
    shop.close().await;
}
