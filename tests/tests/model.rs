//! The purchase protocol holds in every order of events, within bounds that take
//! less than a minute. `cargo run -p suite-tests --example model` goes
//! further.

use std::thread;

use stateright::{Checker as _, HasDiscoveries, Model as _};
use suite_tests::model::Bounds;

fn explore(bounds: Bounds) {
    println!("{bounds:?}");
    let checker = bounds
        .checker()
        .threads(thread::available_parallelism().map_or(1, usize::from))
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!("{} unique states by {} steps", checker.unique_state_count(), checker.state_count());
    checker.assert_properties();
}

#[test]
fn a_purchase_survives_two_workers_late_messages_cancel_and_refund() {
    explore(Bounds { workers: 2, cancel: true, refund: true, late: true, ..Bounds::default() });
}

#[test]
fn two_workers_charge_the_price_that_was_locked() {
    let bounds = Bounds { workers: 2, cancel: true, refund: true, ..Bounds::default() };
    explore(Bounds { reprice: true, ..bounds });
}

#[test]
fn goods_for_one_are_sold_to_one_of_two() {
    explore(Bounds {
        purchases: 2,
        credit_for: 2,
        attempts: 1,
        cancel: true,
        refund: true,
        ..Bounds::default()
    });
}

#[test]
fn credit_for_one_pays_for_one_of_two() {
    explore(Bounds {
        purchases: 2,
        goods_for: 2,
        attempts: 1,
        cancel: true,
        refund: true,
        ..Bounds::default()
    });
}
