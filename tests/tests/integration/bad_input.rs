//! What input gets that nobody would send who means well, for every RPC there is.

use suite_tests::{bad_input, shop::printed_seed};

use crate::shop;

#[tokio::test]
async fn bad_input_is_answered_as_documented_and_leaves_the_shop_whole() {
    let shop = shop().await;
    let report = bad_input::send(&shop, printed_seed(), 200).await;
    assert!(report.is_sound(), "{report}");
    shop.close().await;
}
