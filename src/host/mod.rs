//! Floor 1: what the code asks of the machine that it runs on, files and clocks aside: sockets,
//! chance, and threads that may block.
//!
//! In a shipped build these are tokio's and the operating system's own, under other names. In the
//! build of the unit tests a simulation can take their place, so that what is tested there is the
//! code that ships (docs/testing.md).

#[cfg(test)]
pub(crate) mod simulated;
pub mod tcp;

use tokio::{sync::mpsc, task::JoinError};
use uuid::Uuid;

/// A number that nobody else has: ids, and the seeds of jitter.
#[must_use]
pub fn random() -> Uuid {
    #[cfg(test)]
    if let Some(drawn) = simulated::draw() {
        return drawn;
    }
    Uuid::new_v4()
}

/// Such a number as a seed.
#[must_use]
pub fn seed() -> u64 {
    random().as_u64_pair().0
}

/// Runs what may take a while on a thread that may block.
///
/// # Errors
/// Where the work panicked, or the runtime ends before it begins.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    #[cfg(test)]
    if simulated::is_on() {
        return tokio::spawn(async { work() }).await;
    }
    tokio::task::spawn_blocking(work).await
}

/// Puts what an iterator makes, which may take a while, into a queue; it is made no faster than it
/// is taken, on a thread that may block.
pub fn produce<T: Send + 'static>(
    items: impl Iterator<Item = T> + Send + 'static,
    queue: mpsc::Sender<T>,
) {
    #[cfg(test)]
    if simulated::is_on() {
        tokio::spawn(async move {
            for item in items {
                if queue.send(item).await.is_err() {
                    return;
                }
            }
        });
        return;
    }
    tokio::task::spawn_blocking(move || {
        for item in items {
            if queue.blocking_send(item).is_err() {
                return;
            }
        }
    });
}
