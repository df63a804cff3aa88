//! What bad input gets: every violation at once, by field, and no effect.

use proto::{
    purchase::v1::{CreatePurchaseRequest, Purchase, WatchPurchaseRequest, purchase::Item},
    user::v1::{CreateUserRequest, User},
};
use tonic::{Code, Request, Status, codegen::http::uri::PathAndQuery};
use tonic_types::StatusExt;

use crate::shop;

fn violated(status: &Status) -> Vec<String> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let details = status.get_details_bad_request().expect("a BadRequest");
    let fields = details.field_violations.into_iter();
    let mut fields: Vec<_> = fields.map(|violation| violation.field).collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn every_violation_is_answered_at_once_by_field_and_nothing_is_done() {
    let shop = shop().await;
    let mut purchases = shop.clients.purchases.clone();
    let twice = shop.uuid();
    let item = |product_id: &str, quantity| Item {
        product_id: product_id.to_owned(),
        quantity,
        unit_price: None,
    };
    let purchase = Purchase {
        user_id: "me".to_owned(),
        items: vec![item(&twice, 0), item(&twice, 1), item("7", i32::MIN)],
        currency_code: "euro".to_owned(),
        ..Purchase::default()
    };
    let request = CreatePurchaseRequest { purchase: Some(purchase), request_id: "once".to_owned() };
    let refused = purchases.create_purchase(request).await.unwrap_err();
    assert_eq!(
        violated(&refused),
        [
            "purchase.currency_code",
            "purchase.items[0].quantity",
            "purchase.items[1].product_id",
            "purchase.items[2].product_id",
            "purchase.items[2].quantity",
            "purchase.user_id",
            "request_id",
        ]
    );
    let refused = purchases.create_purchase(CreatePurchaseRequest::default()).await.unwrap_err();
    assert_eq!(violated(&refused), ["purchase", "request_id"]);
    let request = WatchPurchaseRequest { id: String::new(), after_version: -1 };
    let refused = purchases.watch_purchase(request).await.unwrap_err();
    assert_eq!(violated(&refused), ["after_version", "id"]);

    let user = User { email: "nobody".to_owned(), ..User::default() };
    let request = CreateUserRequest {
        user: Some(user),
        request_id: shop.uuid(),
        ..CreateUserRequest::default()
    };
    let refused = shop.clients.users.clone().create_user(request).await.unwrap_err();
    assert_eq!(violated(&refused), ["user.display_name", "user.email"]);

    let mut request = shop.product_request(-1, -1);
    request.product.as_mut().unwrap().name = "\0".to_owned();
    let refused = shop.clients.catalog.clone().create_product(request).await.unwrap_err();
    assert_eq!(
        violated(&refused),
        ["initial_quantity", "product.name", "product.price.minor_units"]
    );

    let evidence = shop.check(None).await;
    assert_eq!(evidence.purchases.purchases.len(), 0);
    assert_eq!(evidence.stock.product_count, 0);
    shop.close().await;
}

#[tokio::test]
async fn bytes_that_are_no_message_are_the_fault_of_their_sender() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Other {
        #[prost(int64, tag = "1")]
        id: i64,
    }

    let shop = shop().await;
    let channel = shop.channel(chandlery::service::Service::User);
    let mut client = tonic::client::Grpc::new(channel);
    let path = PathAndQuery::from_static("/chandlery.user.v1.UserService/GetUser");
    let codec = tonic_prost::ProstCodec::<Other, Other>::default();
    client.ready().await.unwrap();
    let refused = client.unary(Request::new(Other { id: 7 }), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    shop.close().await;
}
