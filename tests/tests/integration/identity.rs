//! Who is let in, and who may call what.

use chandlery::{clients::Clients, service::Service, suite::Credential};
use proto::{
    catalog::v1::{GetProductRequest, ReserveRequest},
    purchase::v1::CreatePurchaseRequest,
    user::v1::GetUserRequest,
};
use suite_tests::shop::Shop;
use tonic::{Code, Status};

use crate::shop;

async fn get_user(clients: &Clients) -> Status {
    let request = GetUserRequest { id: "01890a5d-ac96-774b-bcce-b302099a8057".to_owned() };
    clients.users.clone().get_user(request).await.unwrap_err()
}

#[tokio::test]
async fn a_foreign_and_an_expired_certificate_are_refused_at_the_handshake() {
    let shop = shop().await;
    assert_eq!(get_user(&shop.clients).await.code(), Code::NotFound, "the operator is let in");
    for credential in [Credential::Foreign, Credential::Expired] {
        let clients = shop.suite.clients_of(credential).unwrap();
        let refused = get_user(&clients).await;
        assert_eq!(refused.code(), Code::Unavailable, "{credential:?}: {refused:?}");
    }
    shop.close().await;
}

#[tokio::test]
async fn nobody_is_let_in_without_a_certificate() {
    let shop = shop().await;
    for service in Service::ALL {
        let refused = shop.connect_without_certificate(service).await;
        assert!(refused.to_string().contains("CertificateRequired"), "{service}: {refused}");
    }
    shop.close().await;
}

#[tokio::test]
async fn a_workload_may_call_what_the_contract_gives_it_and_nothing_else() {
    let shop = shop().await;
    let seller = shop.suite.clients_of(Credential::Workload("purchase-service")).unwrap();
    let guest = shop.suite.clients_of(Credential::Workload("user-service")).unwrap();

    // An admitted call reaches the handler, which refuses the empty request.
    let reserve = |clients: &Clients| {
        let mut stock = clients.stock.clone();
        async move { stock.reserve(ReserveRequest::default()).await.unwrap_err().code() }
    };
    assert_eq!(reserve(&seller).await, Code::InvalidArgument);
    assert_eq!(reserve(&guest).await, Code::PermissionDenied);
    assert_eq!(reserve(&shop.clients).await, Code::PermissionDenied);

    let read = guest.catalog.clone().get_product(GetProductRequest::default()).await;
    assert_eq!(read.unwrap_err().code(), Code::InvalidArgument, "open to any workload");
    let buy = seller.purchases.clone().create_purchase(CreatePurchaseRequest::default()).await;
    assert_eq!(buy.unwrap_err().code(), Code::PermissionDenied);
    shop.close().await;
}

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
