use super::*;
use proto::r#type::v1::Money;
use std::collections::BTreeSet;

fn product(id: &str, currency_code: &str) -> Product {
    let price = Money { currency_code: currency_code.to_owned(), minor_units: 100 };
    Product { id: id.to_owned(), price: Some(price), ..Product::default() }
}

fn chosen(seed: u64) -> Vec<CreatePurchaseRequest> {
    let users = ["ada".to_owned(), "grace".to_owned()];
    let products = ["a", "b", "c", "d"].map(|id| product(id, "EUR"));
    let products = [&products[..], &[product("x", "USD")]].concat();
    choose(200, &users, &products, &mut StdRng::seed_from_u64(seed))
}

#[test]
fn the_same_seed_chooses_the_same() {
    assert_eq!(chosen(1), chosen(1));
    assert_ne!(chosen(1), chosen(2));
}

#[test]
fn a_purchase_names_a_product_once_and_has_one_currency() {
    let requests = chosen(3);
    assert_eq!(requests.len(), 200);
    for request in &requests {
        let Purchase { items, currency_code, .. } = request.purchase.as_ref().unwrap();
        let ids: BTreeSet<_> = items.iter().map(|item| &item.product_id).collect();
        assert_eq!(ids.len(), items.len());
        assert!(!items.is_empty());
        assert!(ids.iter().all(|id| (*id == "x") == (currency_code == "USD")), "{items:?}");
    }
    let request_ids: BTreeSet<_> = requests.iter().map(|it| &it.request_id).collect();
    assert_eq!(request_ids.len(), requests.len());
}

#[test]
fn an_empty_shop_sells_nothing() {
    let random = &mut StdRng::seed_from_u64(4);
    assert_eq!(choose(10, &["ada".to_owned()], &[], random), []);
    assert_eq!(choose(10, &[], &[product("a", "EUR")], random), []);
}

#[test]
fn percentiles_are_of_the_sorted_latencies() {
    let latencies = (1..=200).map(Duration::from_millis).collect();
    let outcome = Outcome { latencies, ..Outcome::default() };
    assert_eq!(outcome.percentile(50), Duration::from_millis(100));
    assert_eq!(outcome.percentile(99), Duration::from_millis(198));
    assert_eq!(outcome.percentile(100), Duration::from_millis(200));
    assert_eq!(Outcome::default().percentile(50), Duration::ZERO);
}

/// How often a call that ends so is repeated before another that succeeds.
async fn repeats_after(status: Status) -> u32 {
    let (mut repeats, mut answers) = (0, vec![Ok(tonic::Response::new(())), Err(status)]);
    let random = StdRng::seed_from_u64(5);
    let call = || std::future::ready(answers.pop().unwrap());
    let _ = repeat(Duration::from_mins(1), random, || repeats += 1, call).await;
    repeats
}

#[tokio::test(start_paused = true)]
async fn what_may_have_had_its_effect_is_repeated_and_a_refusal_is_not() {
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown] {
        assert_eq!(repeats_after(Status::new(code, "")).await, 1, "{code:?}");
    }
    for code in [Code::InvalidArgument, Code::AlreadyExists, Code::Internal] {
        assert_eq!(repeats_after(Status::new(code, "")).await, 0, "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn patience_ends() {
    let begin = Instant::now();
    let call = || std::future::ready(Err::<tonic::Response<()>, _>(Status::unavailable("away")));
    let random = StdRng::seed_from_u64(6);
    let status = repeat(Duration::from_secs(5), random, || {}, call).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let waited = begin.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(7)).contains(&waited), "{waited:?}");
}
