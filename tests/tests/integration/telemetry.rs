//! One trace leads from the caller through every service.

use std::{collections::BTreeSet, sync::Arc};

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use proto::purchase::v1::PurchaseState;
use suite_tests::shop::Shop;
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::PROGRAM;

/// The spans that were received: trace, service and name of each.
type Spans = BTreeSet<(Vec<u8>, String, String)>;

struct Receiver(Arc<watch::Sender<Spans>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send_modify(|spans| {
            for resource_spans in request.into_inner().resource_spans {
                let attributes = resource_spans.resource.unwrap_or_default().attributes;
                let name = attributes.into_iter().find(|attribute| attribute.key == "service.name");
                let name = format!("{:?}", name.and_then(|name| name.value));
                for span in resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                    spans.insert((span.trace_id, name.clone(), span.name));
                }
            }
        });
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn a_purchase_is_one_trace_through_all_services_that_the_caller_began() {
    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let spans = Arc::new(watch::Sender::new(Spans::new()));
    let receiver = TraceServiceServer::new(Receiver(Arc::clone(&spans)));
    let incoming = TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(receiver).serve_with_incoming(incoming),
    );

    let environment =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let shop = Shop::open_with(PROGRAM, &environment).await;
    let rope = shop.product(250, 10).await;
    let user = shop.user(1_000).await;
    let mut request = Request::new(shop.order(&user, &[(&rope, 1)]));
    let trace_parent = format!("00-{TRACE:032x}-00f067aa0ba902b7-01");
    request.metadata_mut().insert("traceparent", trace_parent.parse().unwrap());
    let mut purchases = shop.raw_purchases().await;
    let bought = purchases.create_purchase(request).await.unwrap().into_inner();
    assert_eq!(bought.state(), PurchaseState::Confirmed);

    let expected = [
        ("purchase-service", "chandlery.purchase.v1.PurchaseService/CreatePurchase"),
        ("purchase-service", "drive purchase"),
        ("purchase-service", "chandlery.catalog.v1.StockService/Reserve"),
        ("catalog-service", "chandlery.catalog.v1.StockService/Reserve"),
        ("user-service", "chandlery.user.v1.AccountService/Charge"),
        ("catalog-service", "chandlery.catalog.v1.StockService/Confirm"),
    ];
    let mut received = spans.subscribe();
    let complete = |spans: &Spans| {
        expected.iter().all(|(service, name)| {
            spans.iter().any(|(trace, from, span)| {
                trace == &TRACE.to_be_bytes() && from.contains(service) && span == name
            })
        })
    };
    let patience = std::time::Duration::from_secs(20);
    let waited = tokio::time::timeout(patience, received.wait_for(complete)).await.is_ok();
    assert!(waited, "{:#?}", spans.borrow());
    shop.close().await;
}
