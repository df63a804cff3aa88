//! Kills purchase-service while purchases are in flight.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep},
};

use super::{Failure, supervisor::Supervisor};
use crate::{
    load::Progress,
    service::Service,
    terminal::{Terminal, counted, seconds},
};

/// A kill comes at most so long after the answer that is its cue.
const DELAY_LIMIT: Duration = Duration::from_millis(60);

/// A killed service stays away for at most so long before it is started again.
const ABSENCE_LIMIT: Duration = Duration::from_millis(150);

/// What was killed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kills {
    /// How often.
    pub(super) count: usize,
    /// How often while calls were in flight.
    pub(super) hits: usize,
    /// How many calls were in flight, over all kills.
    pub(super) calls: usize,
}

/// After how many answers to kill: at random, once in every equal part of the load.
pub(super) fn moments(kills: u32, purchases: u32, random: &mut StdRng) -> Vec<usize> {
    let part = |index: u32| u64::from(index) * u64::from(purchases) / u64::from(kills);
    (0..kills)
        .map(|index| random.random_range(part(index)..part(index + 1).max(part(index) + 1)))
        .map(|answers| usize::try_from(answers).unwrap_or(usize::MAX))
        .collect()
}

/// Kills and restarts at those moments, or until the load is over.
pub(super) async fn run(
    supervisor: &Supervisor<'_>,
    moments: Vec<usize>,
    mut random: StdRng,
    mut progress: Receiver<Progress>,
    terminal: &Terminal,
) -> Result<Kills, Failure> {
    let mut kills = Kills::default();
    for answers in moments {
        let cue = |progress: &Progress| progress.answered + progress.unanswered >= answers;
        if progress.wait_for(cue).await.is_err() {
            break;
        }
        sleep(random.random_range(Duration::ZERO..DELAY_LIMIT)).await;
        let mut supervised = supervisor.attend().await?;
        let calls = progress.borrow().open_calls;
        supervised.suite.kill(Service::Purchase)?;
        drop(supervised);
        let killed = Instant::now();
        kills.count += 1;
        kills.hits += usize::from(calls > 0);
        kills.calls += calls;
        sleep(random.random_range(Duration::ZERO..ABSENCE_LIMIT)).await;
        supervisor.attend().await?.restart(Service::Purchase).await?;
        let away = seconds(killed.elapsed());
        let calls = counted(calls, "call");
        let text = format!("SIGKILL {away} ago, with {calls} in flight; serving again");
        terminal.event("kill -9", text);
    }
    Ok(kills)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn kills_are_spread_over_the_load_and_never_after_its_end() {
        for seed in 0..50 {
            let moments = moments(8, 400, &mut StdRng::seed_from_u64(seed));
            assert!(moments.is_sorted(), "seed {seed}: {moments:?}");
            for (index, moment) in moments.iter().enumerate() {
                assert!((index * 50..(index + 1) * 50).contains(moment), "seed {seed}");
            }
        }
    }
}
