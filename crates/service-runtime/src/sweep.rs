//! The work that is done again and again beside the calls.

use std::{convert::Infallible, fmt::Display, time::Duration};

use crate::{Clock, Timestamp};

/// How often a store is looked through for what has expired or is of no use any more.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sweeps a store for ever. `sweep` does a bounded part of the work and says whether
/// there may be more, which is then done at once.
pub async fn sweep<E: Display>(
    clock: Clock,
    sweep: impl AsyncFn(Timestamp) -> Result<bool, E>,
) -> Infallible {
    loop {
        match sweep(clock.now()).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the store could not be swept; trying again"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
