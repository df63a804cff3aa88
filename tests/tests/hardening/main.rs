//! Every case of the hardening table, in its short form.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use suite_tests::{
    hardening::{Bench, Scale, cases},
    shop::printed_seed,
};
use tokio::sync::Mutex;

const PROGRAM: &str = env!("CARGO_BIN_EXE_chandlery-suite");

/// Cases measure time, and would disturb each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// A test for each case, of the name of the case.
macro_rules! tests {
    ($($test:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($test)),*];

        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                assert_holds(stringify!($test)).await;
            }
        )*
    };
}

tests! {
    rolling_restart_of_three_replicas
    sigkill_of_one_of_three_replicas
    one_of_four_endpoints_dead_from_the_start
    an_empty_set_of_endpoints
    all_endpoints_down_then_up
    sigterm_with_silent_and_stopped_peers
    sigterm_with_calls_that_do_not_end
    silent_connections
    connections_silent_after_the_tls_hello
    connections_silent_after_the_tls_handshake
    more_connections_than_descriptors
    silent_connections_on_the_port_of_probes
    flood_of_streams_that_are_reset
    flood_of_settings
    flood_of_ping
    flood_of_continuation
    flood_of_header_lists
    flood_of_tiny_data
    pages_that_nobody_takes
    streams_that_nobody_reads
    windows_that_open_byte_by_byte
    windows_that_overflow
    as_many_streams_as_can_be_had
    leaf_and_ca_rotated_under_load
    a_certificate_without_its_key
    dependency_sigstopped
    a_deadline_of_half_a_second_on_a_stream_of_three
    a_deadline_of_a_reader_who_has_stopped
    a_deadline_handed_on_over_two_hops
    a_caller_who_goes_away
    exports_that_nobody_wants_any_more
    cost_of_the_client_against_a_raw_channel
}

async fn assert_holds(test: &str) {
    let _turn = TURN.lock().await;
    let case = cases().into_iter().find(|case| test_of(case.name) == test).expect("it is a case");
    let bench = Bench { program: PROGRAM.to_owned(), scale: Scale::Short, seed: printed_seed() };
    let row = case.row(bench).await;
    println!("{row}");
    assert!(row.holds, "{row}");
}

fn test_of(case: &str) -> String {
    case.to_lowercase().replace(',', "").replace(' ', "_")
}

#[test]
fn every_case_has_a_test() {
    let cases: Vec<_> = cases().into_iter().map(|case| test_of(case.name)).collect();
    assert_eq!(cases, TESTED);
}
