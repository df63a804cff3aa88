//! What moved the store credit of a user, as a stream.

use futures::{StreamExt, TryStreamExt, stream};
use proto::{
    Role,
    purchase::v1::{PurchaseState, RefundPurchaseRequest},
    user::v1::{DepositRequest, Entry, ListEntriesRequest, entry::Kind},
};
use suite_tests::shop::{Shop, euros};
use tonic::Code;

use crate::{
    auth::{refused, signed},
    shop,
};

fn entries_of(user_id: &str, after_id: &str) -> ListEntriesRequest {
    ListEntriesRequest { user_id: user_id.to_owned(), after_id: after_id.to_owned() }
}

async fn list(shop: &Shop, user_id: &str, after_id: &str) -> Vec<Entry> {
    let mut accounts = shop.clients.accounts.clone();
    let entries = accounts.list_entries(entries_of(user_id, after_id)).await.unwrap();
    entries.into_inner().try_collect().await.unwrap()
}

#[tokio::test]
async fn entries_tell_the_life_of_an_account_to_its_owner_and_to_no_other_customer() {
    let shop = shop().await;
    let (ada, grace) = (shop.member(Role::Customer).await, shop.member(Role::Customer).await);
    shop.credit(&ada.user, 1_000).await;
    let rope = shop.product(250, 10).await;
    let bought = shop.buy(&shop.order(&ada.user, &[(&rope, 2)])).await;
    let request = RefundPurchaseRequest { id: bought.id.clone(), ..Default::default() };
    shop.clients.purchases.clone().refund_purchase(request).await.unwrap();
    shop.wait_for_state(&bought.id, PurchaseState::Refunded).await;

    let mut accounts = shop.clients.accounts.clone();
    let own = accounts.list_entries(signed(&ada, entries_of(&ada.user.id, ""))).await.unwrap();
    let own: Vec<Entry> = own.into_inner().try_collect().await.unwrap();
    let told: Vec<_> = own
        .iter()
        .map(|entry| (entry.kind(), entry.amount.clone().unwrap(), entry.purchase_id.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Kind::Deposit, euros(1_000), ""),
            (Kind::Charge, euros(-500), bought.id.as_str()),
            (Kind::Refund, euros(500), bought.id.as_str()),
        ]
    );
    assert_eq!(list(&shop, &ada.user.id, "").await, own);
    assert_eq!(list(&shop, &shop.uuid(), "").await, []);
    let foreign = accounts.list_entries(signed(&grace, entries_of(&ada.user.id, ""))).await;
    assert_eq!(refused(foreign), (Code::PermissionDenied, "NOT_OWNER".to_owned()));
    shop.close().await;
}

#[tokio::test]
async fn a_stream_of_entries_goes_on_after_the_last_one_that_was_seen() {
    // More than are read at once.
    const COUNT: i64 = 1_100;
    let shop = shop().await;
    let user = shop.user(0).await;
    let deposits = stream::iter(1..=COUNT).map(|cents| {
        let mut accounts = shop.clients.accounts.clone();
        let request = DepositRequest {
            user_id: user.id.clone(),
            amount: Some(euros(cents)),
            request_id: shop.uuid(),
        };
        async move { accounts.deposit(request).await.unwrap() }
    });
    deposits.buffer_unordered(50).for_each(async |_| {}).await;

    let all = list(&shop, &user.id, "").await;
    assert!(all.is_sorted_by(|one, next| one.id < next.id));
    let mut amounts: Vec<_> =
        all.iter().map(|entry| entry.amount.clone().unwrap().minor_units).collect();
    amounts.sort_unstable();
    assert!(amounts == (1..=COUNT).collect::<Vec<_>>(), "every one once");
    for seen in [1, 499, 500, 501, 1_099, 1_100] {
        let rest = list(&shop, &user.id, &all[seen - 1].id).await;
        assert!(rest == all[seen..], "after {seen}");
    }
    shop.close().await;
}
