//! Carries a million products into the catalog and out again, and shows what it takes:
//! `just streams`. Start it with a number for as many products.

#![expect(clippy::unwrap_used, reason = "a measurement fails by panicking")]

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use chandlery::service::Service;
use futures::{TryStreamExt, stream};
use proto::catalog::v1::{ExportProductsRequest, ImportProductsRequest, Product};
use suite_tests::{
    shop::{Shop, euros},
    usage::{self, Usage},
};
use tokio::{runtime::Runtime, time::sleep};
use tonic::Request;

const COUNT: u64 = 1_000_000;

/// How long the slow reader does nothing.
const IDLE: Duration = Duration::from_secs(10);

/// More than any of the steps takes.
const DEADLINE: Duration = Duration::from_hours(1);

fn main() -> ExitCode {
    // The services are this program again, with the name of one.
    match env::args().nth(1).map(|count| count.parse()) {
        None => Runtime::new().unwrap().block_on(measure(COUNT)),
        Some(Ok(count)) => Runtime::new().unwrap().block_on(measure(count)),
        Some(Err(_)) => return chandlery::main(),
    }
    ExitCode::SUCCESS
}

async fn measure(count: u64) {
    let program = env::current_exe().unwrap();
    let shop = Shop::open(program.to_str().unwrap()).await;
    let mut catalog = shop.clients.catalog.clone();
    let table = Table { process: shop.suite.process_id(Service::Catalog).unwrap() };
    println!(
        "{:<32} {:>9} {:>8} {:>9}   {:>13} {:>10} {:>9}",
        "", "items", "seconds", "items/s", "MiB in memory", "at most", "MiB read",
    );

    let step = table.begin("import");
    let imported = catalog.import_products(patient(stream::iter((0..count).map(line)))).await;
    let created = imported.unwrap().into_inner().created_count;
    step.end(created.unsigned_abs());

    let step = table.begin("import again, unchanged");
    let imported = catalog.import_products(patient(stream::iter((0..count).map(line)))).await;
    let unchanged = imported.unwrap().into_inner().unchanged_count;
    step.end(unchanged.unsigned_abs());

    let export = || patient(ExportProductsRequest::default());
    let step = table.begin("export");
    let products = catalog.export_products(export()).await.unwrap().into_inner();
    let exported = products.try_fold(0, |seen, _| async move { Ok(seen + 1) }).await.unwrap();
    step.end(exported);

    let step = table.begin("export, and nobody reads on");
    let mut products = catalog.export_products(export()).await.unwrap().into_inner();
    products.try_next().await.unwrap().unwrap();
    sleep(IDLE).await;
    step.end(1);
    let step = table.begin("export, and the reader goes on");
    let rest = products.try_fold(0, |seen, _| async move { Ok(seen + 1) }).await.unwrap();
    step.end(rest);
    shop.suite.stop().await.unwrap();
}

fn patient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

fn line(number: u64) -> ImportProductsRequest {
    let product = Product {
        sku: format!("ROPE-{number}"),
        name: format!("Rope, three strands, {number} m"),
        description: "Hemp from the Elbe, tarred; holds a brig in a gale.".to_owned(),
        category: format!("Rope {}", number % 40),
        price: Some(euros(100)),
        ..Product::default()
    };
    ImportProductsRequest { product: Some(product), initial_quantity: 5 }
}

/// A line for each step, with what it took of the service.
struct Table {
    process: u32,
}

impl Table {
    fn begin(&self, name: &'static str) -> Step {
        usage::forget_peak(self.process);
        let begun = Instant::now();
        Step { name, begun, process: self.process, before: Usage::of(self.process) }
    }
}

struct Step {
    name: &'static str,
    begun: Instant,
    process: u32,
    before: Option<Usage>,
}

impl Step {
    #[expect(clippy::cast_precision_loss, reason = "nobody counts so far")]
    fn end(self, items: u64) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = items as f64 / seconds;
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let usage = match (self.before, Usage::of(self.process)) {
            (Some(before), Some(after)) => format!(
                "{:>13.1} {:>10.1} {:>9.1}",
                mebibytes(before.resident_bytes),
                mebibytes(after.peak_bytes),
                mebibytes(after.read_bytes - before.read_bytes),
            ),
            _ => "  not told here".to_owned(),
        };
        println!("{:<32} {items:>9} {seconds:>8.1} {rate:>9.0}   {usage}", self.name);
    }
}
