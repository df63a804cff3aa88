//! Checks the purchase protocol within wider bounds than the tests do, and tells of
//! its progress: `cargo run -p suite-tests --example model`.

use std::{collections::BTreeMap, process::ExitCode, thread, time::Duration};

use stateright::{
    Checker as _, DiscoveryClassification, HasDiscoveries, Model as _,
    report::{ReportData, ReportDiscovery, Reporter},
};
use suite_tests::model::Bounds;

fn main() -> ExitCode {
    let everything = Bounds { cancel: true, refund: true, late: true, ..Bounds::default() };
    let rivals = Bounds { purchases: 2, attempts: 1, ..Bounds::default() };
    let runs = [
        Bounds { workers: 2, attempts: 4, ..everything.clone() },
        Bounds { workers: 3, ..everything },
        Bounds { late: true, credit_for: 2, ..rivals.clone() },
        Bounds { late: true, goods_for: 2, ..rivals.clone() },
        Bounds { workers: 2, ..rivals },
    ];
    let states = runs.into_iter().map(explore).sum::<Option<usize>>();
    match states {
        Some(states) => {
            println!("Every invariant holds in {states} states.");
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    }
}

/// How many states there are within the bounds, if all of them are sound.
fn explore(bounds: Bounds) -> Option<usize> {
    println!("{bounds:?}");
    let checker = bounds
        .checker()
        .threads(thread::available_parallelism().map_or(1, usize::from))
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join_and_report(&mut Terminal);
    let found = checker.discoveries();
    let properties = checker.model().properties();
    properties
        .iter()
        .all(|property| {
            let is_found = found.contains_key(property.name);
            is_found != property.expectation.discovery_is_failure()
        })
        .then(|| checker.unique_state_count())
}

struct Terminal;

impl Reporter<Bounds> for Terminal {
    fn report_checking(&mut self, data: ReportData) {
        println!(
            "  {:>4} s  {:>9} unique states by {} steps",
            data.duration.as_secs(),
            data.unique_states,
            data.total_states,
        );
    }

    fn report_discoveries(
        &mut self,
        _: &Bounds,
        discoveries: BTreeMap<&'static str, ReportDiscovery<Bounds>>,
    ) {
        for (name, discovery) in discoveries {
            if let DiscoveryClassification::Counterexample = discovery.classification {
                println!("Broken: {name}. {}", discovery.path);
            }
        }
    }

    fn delay(&self) -> Duration {
        Duration::from_secs(5)
    }
}
