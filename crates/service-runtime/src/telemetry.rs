//! Logs with the trace of the call they belong to, spans over OTLP when the
//! standard `OTEL_*` variables ask for them, and W3C trace context from hop to
//! hop.

use std::{collections::HashMap, io::IsTerminal, time::Duration};

use http::HeaderMap;
use opentelemetry::{
    global,
    propagation::Extractor,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{Config, config::LogFormat};

/// How long the last spans may take to leave: a collector that hangs must not keep the
/// process from ending within a second of its drain.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(400);

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("RUST_LOG is not a filter ({0}); it takes directives such as \"info,sqlx=warn\"")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("spans cannot be exported ({0}); correct the OTEL_EXPORTER_OTLP_* variables")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// What must be flushed before the process ends.
pub(crate) struct Telemetry(SdkTracerProvider);

impl Telemetry {
    pub(crate) fn flush(self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_TIMEOUT) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// Sends the logs and spans of this process where `config` says.
pub(crate) fn install(service: &'static str, config: &Config) -> Result<Telemetry, Error> {
    let mut provider = SdkTracerProvider::builder().with_resource(resource(service));
    if config.export_spans {
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().build()?;
        provider = provider.with_batch_exporter(exporter);
    } else {
        // Trace identifiers are made and handed on all the same: the logs need them.
        provider = provider.with_sampler(Sampler::AlwaysOff);
    }
    let provider = provider.build();
    global::set_text_map_propagator(TraceContextPropagator::new());

    // h2 warns of what peers do wrong, as often as they do it.
    let log_filter = EnvFilter::try_new(format!("h2=error,{}", config.log_filter))?;
    // The exporter's own calls must not make spans, or it would never rest.
    let span_filter = EnvFilter::try_new("info,h2=off,hyper=off,tonic=off,opentelemetry=off")?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let lines = match config.log_format {
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("chandlery"))
        .with_location(false)
        .with_threads(false);
    tracing_subscriber::registry()
        .with(spans.with_filter(span_filter))
        .with(lines.with_filter(log_filter))
        .init();
    Ok(Telemetry(provider))
}

fn resource(service: &'static str) -> Resource {
    let resource = Resource::builder().build();
    let named = resource
        .get(&"service.name".into())
        .is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    // OTEL_SERVICE_NAME, if set, has the last word.
    if named { resource } else { Resource::builder().with_service_name(service).build() }
}

/// The span of a call that is served, in the trace that its caller began.
pub(crate) fn server_span(path: &str, headers: &HeaderMap) -> Span {
    let name = path.trim_start_matches('/');
    let (service, method) = name.split_once('/').unwrap_or((name, ""));
    let span = tracing::info_span!(
        "rpc",
        otel.name = name,
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        client.address = Empty,
        trace_id = Empty,
    );
    adopt(
        &span,
        global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers))),
    );
    span
}

/// The trace that the current span belongs to, as W3C `traceparent`.
/// <https://www.w3.org/TR/trace-context/>
pub fn current() -> String {
    let mut headers = HashMap::new();
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut headers);
    });
    headers.remove("traceparent").unwrap_or_default()
}

/// Makes a span go on with the trace of a `traceparent` that was kept.
pub fn continue_from(span: &Span, trace_parent: &str) {
    let headers = HashMap::from([("traceparent".to_owned(), trace_parent.to_owned())]);
    adopt(span, global::get_text_map_propagator(|propagator| propagator.extract(&headers)));
}

fn adopt(span: &Span, parent: opentelemetry::Context) {
    // Fails only where no subscriber listens, as in unit tests.
    let _ = span.set_parent(parent);
    let context = span.context();
    let trace_id = context.span().span_context().trace_id();
    span.record("trace_id", tracing::field::display(trace_id));
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
