//! What the client costs, against tonic's channel, which does none of what it does. It is
//! shown and decides nothing: whatever else the machine does would decide.

use std::{future::Future, process, time::Duration};

use chandlery::service::Service;
use futures::{FutureExt, future::join_all};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use proto::catalog::v1::{GetProductRequest, catalog_service_client::CatalogServiceClient};
use tonic::Status;
use tracing::{Dispatch, instrument::WithSubscriber};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt};

use super::{Bench, Case, Verdict};
use crate::{shop::Shop, usage::Usage};

pub(super) const CASES: &[Case] = &[Case {
    name: "cost of the client against a raw channel",
    must_hold: "CPU per call <= 1.15 (shown, not demanded)",
    run: |bench| compare(bench).boxed(),
}];

/// Calls that are under way at once.
const CONCURRENCY: u32 = 32;

async fn compare(bench: Bench) -> Verdict {
    let shop = Shop::open(&bench.program).await;
    let request = GetProductRequest { id: shop.product(1, 1).await.id };
    let own = CatalogServiceClient::new(shop.channel(Service::Catalog));
    let raw = CatalogServiceClient::new(shop.raw_channel(Service::Catalog).await);
    let request_again = request.clone();
    let own = move || {
        let (mut client, request) = (own.clone(), request.clone());
        async move { client.get_product(request).await.map(drop) }
    };
    let raw = move || {
        let (mut client, request) = (raw.clone(), request_again.clone());
        async move { client.get_product(request).await.map(drop) }
    };

    let (telemetry, calls) = (unsampled(), bench.scale.choose(20, 1_000));
    let rounds = bench.scale.choose(3, 15);
    let (mut ratios, mut spent) = (Vec::new(), Duration::ZERO);
    // The first round warms up.
    for round in 0..=rounds {
        // One after the other, so that what else the machine does falls on both alike.
        let own = cpu_time(calls, &own, &telemetry).await;
        let raw = cpu_time(calls, &raw, &telemetry).await;
        let (Some(own), Some(raw)) = (own, raw) else {
            return Ok("the system does not tell the time on CPUs".to_owned());
        };
        if round > 0 {
            ratios.push(own.as_secs_f64() / raw.as_secs_f64());
            spent += own;
        }
    }
    ratios.sort_by(f64::total_cmp);
    let [least, median, most] = [0, ratios.len() / 2, ratios.len() - 1].map(|at| ratios[at]);
    let per_call = spent / (rounds * calls * CONCURRENCY);
    Ok(format!("{median:.2} ({least:.2} to {most:.2} in {rounds} rounds), {per_call:.1?} per call"))
}

/// What calls take of this process on CPUs, if so many are made by each of those that
/// call at once.
async fn cpu_time<F>(
    calls: u32,
    call: &(impl Fn() -> F + Clone + Send + 'static),
    telemetry: &Dispatch,
) -> Option<Duration>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let before = Usage::of(process::id())?.cpu_time;
    let callers = (0..CONCURRENCY).map(|_| {
        let call = call.clone();
        let calling = async move {
            for _ in 0..calls {
                call().await.unwrap();
            }
        };
        tokio::spawn(calling.with_subscriber(telemetry.clone()))
    });
    join_all(callers.collect::<Vec<_>>()).await.into_iter().for_each(Result::unwrap);
    Some(Usage::of(process::id())?.cpu_time.saturating_sub(before))
}

/// Telemetry as a service has it that exports no spans.
fn unsampled() -> Dispatch {
    let provider = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("chandlery"))
        .with_location(false)
        .with_threads(false)
        .with_filter(EnvFilter::new("info,h2=off,hyper=off,tonic=off"));
    Dispatch::new(tracing_subscriber::registry().with(spans))
}
