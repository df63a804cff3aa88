//! Health and reflection, which are open to whoever is let in.

use chandlery::service::Service;
use suite_tests::shop::Shop;
use tonic::Code;

use crate::shop;

#[tokio::test]
async fn health_is_served_on_both_ports_and_reflection_only_when_it_is_switched_on() {
    let quiet = shop().await;
    let open = Shop::open_with(crate::PROGRAM, &[("REFLECTION_ENABLED", "true")]).await;
    for shop in [&quiet, &open] {
        for service in Service::ALL {
            assert!(shop.is_serving(service, "").await);
        }
        assert!(shop.is_serving(Service::Catalog, "chandlery.catalog.v1.StockService").await);
    }
    assert_eq!(quiet.reflected_services().await.unwrap_err().code(), Code::Unimplemented);
    let services = open.reflected_services().await.unwrap();
    assert!(services.contains(&"chandlery.user.v1.AccountService".to_owned()), "{services:?}");
    quiet.close().await;
    open.close().await;
}
