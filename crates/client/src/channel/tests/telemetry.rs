//! The trace of a call.

use std::sync::Mutex;

use opentelemetry::{
    KeyValue,
    trace::{SpanKind, TracerProvider},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use tracing_subscriber::layer::SubscriberExt;

use super::*;

/// Keeps the spans that have ended.
#[derive(Clone, Debug, Default)]
struct Spans(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Spans {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

#[tokio::test]
async fn a_call_is_a_span_of_the_trace_that_it_hands_on() {
    let spans = Spans::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).unwrap();
    // Another test may have met the span while nobody was interested.
    tracing::callsite::rebuild_interest_cache();
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());

    let authority = Authority::new();
    let server = Server::start(&authority.identity(CATALOG)).await;
    let channel = channel(server.target(), &authority.identity(PURCHASE));
    check(&channel).await.unwrap();

    let requests = server.seen.requests.lock().unwrap();
    let traceparent = requests[0]["traceparent"].to_str().unwrap();
    let spans = spans.0.lock().unwrap();
    let span = spans
        .iter()
        .find(|span| {
            let context = &span.span_context;
            traceparent == format!("00-{}-{}-01", context.trace_id(), context.span_id())
        })
        .unwrap();
    assert_eq!(span.name, "grpc.health.v1.Health/Check");
    assert_eq!(span.span_kind, SpanKind::Client);
    let status_code = KeyValue::new("rpc.grpc.status_code", 0);
    assert!(span.attributes.contains(&status_code), "{span:?}");
}
