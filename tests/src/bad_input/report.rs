//! What was answered, in a table, and what should not have been.

use std::{cmp::Reverse, collections::BTreeMap, fmt};

use super::{rpc::Rpc, verdict::Judged};

/// What became of the inputs.
#[derive(Debug)]
pub struct Report {
    seed: u64,
    sent: usize,
    /// How often each RPC was answered how.
    outcomes: BTreeMap<String, BTreeMap<String, usize>>,
    /// How often there was a fault, and what it was seen with first.
    faults: BTreeMap<String, (usize, String)>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, sent: 0, outcomes: BTreeMap::new(), faults: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, rpc: &Rpc, spoiled: &[String], judged: Judged) {
        let Judged { outcome, fault, messages: _ } = judged;
        self.sent += 1;
        *self.outcomes.entry(rpc.name()).or_default().entry(outcome).or_default() += 1;
        if let Some(fault) = fault {
            let spoiled = if spoiled.is_empty() { "nothing".into() } else { spoiled.join(", ") };
            self.fault(fault, format!("input {} of {}: {spoiled}", self.sent, rpc.name()));
        }
    }

    pub(super) fn fault(&mut self, fault: String, seen_with: String) {
        self.faults.entry(fault).or_insert((0, seen_with)).0 += 1;
    }

    /// Whether every input was answered as the contract documents, and every service
    /// still serves.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, sent, outcomes, faults } = self;
        let mut total = BTreeMap::new();
        for (outcome, count) in outcomes.values().flatten() {
            *total.entry(outcome.clone()).or_default() += count;
        }
        let rows = outcomes.iter().map(|(rpc, counts)| (rpc.as_str(), counts));
        for (rpc, counts) in rows.chain([("all", &total)]) {
            let mut counts: Vec<_> = counts.iter().collect();
            counts.sort_by_key(|(_, count)| Reverse(*count));
            let counts: Vec<_> =
                counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            writeln!(formatter, "{rpc:32} {}", counts.join(", "))?;
        }
        for (fault, (count, seen_with)) in faults {
            writeln!(formatter, "{count} times, as with {seen_with}: {fault}")?;
        }
        let found = faults.values().map(|(count, _)| count).sum::<usize>();
        write!(formatter, "{sent} inputs of seed {seed}, {found} answered as none should be")
    }
}
