//! What a channel knows and has done, for people to look at.

use std::{fmt, time::Duration};

use crate::Balance;

/// The state of a channel at some moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// Where its peer may be found.
    pub target: String,
    /// The SPIFFE ID that its peer must have.
    pub peer: String,
    /// How the endpoint of a call is chosen.
    pub balance: Balance,
    /// The calls that were made so far.
    pub calls: u64,
    /// The attempts at them, replays included.
    pub attempts: u64,
    /// The requests that no peer had begun with and that were sent again.
    pub replays: u64,
    /// The retries that the budget allows at this moment.
    pub retries_left: u32,
    /// The endpoints that discovery names.
    pub endpoints: Vec<EndpointSnapshot>,
    /// Why discovery does not know better.
    pub discovery_error: Option<String>,
}

/// The state of one endpoint.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// Where it is.
    pub address: String,
    /// Whether it can be called.
    pub state: EndpointState,
    /// The connections to it.
    pub connections: usize,
    /// The calls that are open on them.
    pub open_calls: usize,
    /// The latency of its calls as the balance sees it; zero before the first one.
    pub latency: Duration,
    /// The attempts at calls that were sent to it.
    pub attempts: u64,
    /// Those of them that it failed.
    pub failures: u64,
}

/// Whether an endpoint can be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Not yet, but maybe soon.
    Connecting,
    /// Yes.
    Ready,
    /// Not before a further attempt to connect succeeds.
    Failed {
        /// What was wrong at the last attempt.
        reason: String,
        /// The time until the next one.
        retry_in: Duration,
    },
}

impl fmt::Display for Snapshot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, peer, balance, calls, attempts, replays, retries_left, .. } = self;
        let balance = match balance {
            Balance::PowerOfTwoChoices => "the better of two random endpoints",
            Balance::RoundRobin => "each endpoint in turn",
        };
        writeln!(formatter, "target   {target}")?;
        writeln!(formatter, "peer     {peer}")?;
        writeln!(formatter, "balance  {balance}")?;
        writeln!(
            formatter,
            "calls    {calls} in {attempts} attempts, {replays} replays; {retries_left} retries left",
        )?;
        if let Some(error) = &self.discovery_error {
            writeln!(formatter, "discovery failed: {error}")?;
        }
        if self.endpoints.is_empty() {
            return write!(formatter, "no endpoints");
        }
        let heads = ["endpoint", "connections", "open", "latency", "attempts", "failures", "state"];
        let rows = self.endpoints.iter().map(EndpointSnapshot::cells);
        let rows: Vec<_> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
        let widths: [usize; 7] = std::array::from_fn(|column| {
            rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
        });
        for [address, numbers @ .., state] in &rows {
            write!(formatter, "\n{address:<0$}", widths[0])?;
            for (number, width) in numbers.iter().zip(&widths[1..]) {
                write!(formatter, "  {number:>width$}")?;
            }
            write!(formatter, "  {state}")?;
        }
        Ok(())
    }
}

impl EndpointSnapshot {
    fn cells(&self) -> [String; 7] {
        let Self { address, state, connections, open_calls, latency, attempts, failures } = self;
        [
            address.clone(),
            connections.to_string(),
            open_calls.to_string(),
            format!("{:.1} ms", latency.as_secs_f64() * 1e3),
            attempts.to_string(),
            failures.to_string(),
            state.to_string(),
        ]
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => write!(formatter, "connecting"),
            Self::Ready => write!(formatter, "ready"),
            Self::Failed { reason, retry_in } => {
                write!(formatter, "failed, again in {:.1} s: {reason}", retry_in.as_secs_f64())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, state: EndpointState) -> EndpointSnapshot {
        EndpointSnapshot {
            address: address.to_owned(),
            state,
            connections: 1,
            open_calls: 12,
            latency: Duration::from_micros(1_250),
            attempts: 1_234,
            failures: 0,
        }
    }

    #[test]
    fn a_snapshot_is_a_table() {
        let reason = "Connection refused (os error 111)".to_owned();
        let failed = EndpointState::Failed { reason, retry_in: Duration::from_millis(1_500) };
        let mut snapshot = Snapshot {
            target: "static:///a:1,catalog:50051".to_owned(),
            peer: "spiffe://test.local/ns/shop/sa/catalog-service".to_owned(),
            balance: Balance::PowerOfTwoChoices,
            calls: 1_230,
            attempts: 1_234,
            replays: 2,
            retries_left: 100,
            endpoints: vec![
                endpoint("a:1", EndpointState::Ready),
                EndpointSnapshot {
                    connections: 0,
                    latency: Duration::ZERO,
                    ..endpoint("catalog:50051", failed)
                },
            ],
            discovery_error: None,
        };
        assert_eq!(
            snapshot.to_string(),
            "\
target   static:///a:1,catalog:50051
peer     spiffe://test.local/ns/shop/sa/catalog-service
balance  the better of two random endpoints
calls    1230 in 1234 attempts, 2 replays; 100 retries left

endpoint       connections  open  latency  attempts  failures  state
a:1                      1    12   1.2 ms      1234         0  ready
catalog:50051            0    12   0.0 ms      1234         0  failed, again in 1.5 s: \
             Connection refused (os error 111)"
        );

        snapshot.endpoints.clear();
        snapshot.discovery_error = Some("no answer within 5s".to_owned());
        let text = snapshot.to_string();
        assert!(text.ends_with("discovery failed: no answer within 5s\nno endpoints"), "{text}");
    }
}
