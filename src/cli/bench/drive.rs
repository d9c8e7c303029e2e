//! What the clients of a run share: when to stop, and when the last operation was acknowledged.
//!
//! A pause is the time between two acknowledged operations of the whole run: what a user of the
//! cluster sees of a failover.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use hdrhistogram::Histogram;
use tokio::{
    task::JoinSet,
    time::{Instant, interval_at, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{
        Error,
        bench::options::Load,
        show::{is_heard, say},
    },
    client,
    types::Duration,
};

/// How long a client waits after an error, so that a refusal does not become a storm.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// How often a person is told how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The state that the clients of a run share. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    until: Instant,
    left: AtomicU64,
    stop: CancellationToken,
    acknowledged: AtomicU64,
    pauses: Pauses,
}

/// The longest time between two moments, in nanoseconds since the start.
#[derive(Debug, Default)]
struct Pauses {
    last: AtomicU64,
    longest: AtomicU64,
}

impl Pauses {
    fn note(&self, now: u64) {
        let last = self.last.fetch_max(now, Ordering::Relaxed);
        self.longest.fetch_max(now.saturating_sub(last), Ordering::Relaxed);
    }
}

impl Drive {
    pub(super) fn new(load: &Load) -> Self {
        let started = Instant::now();
        Self {
            shared: Arc::new(Shared {
                started,
                until: started + load.duration,
                left: AtomicU64::new(load.count.unwrap_or(u64::MAX)),
                stop: CancellationToken::new(),
                acknowledged: AtomicU64::new(0),
                pauses: Pauses::default(),
            }),
        }
    }

    /// Ends the run early, with its report, at Ctrl-C.
    pub(super) fn stop_at_interrupt(&self) {
        let stop = self.shared.stop.clone();
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
        });
    }

    /// The same run from now on, after preparations.
    pub(super) fn restarted(&self, load: &Load) -> Self {
        let fresh = Self::new(load);
        let stop = self.shared.stop.clone();
        let shared = Arc::into_inner(fresh.shared).expect("nobody else has it yet");
        Self { shared: Arc::new(Shared { stop, ..shared }) }
    }

    /// Runs a closed loop for each client and joins what they measured.
    pub(super) async fn clients<F, T>(
        &self,
        clients: u64,
        body: impl Fn(u64, Worker) -> F,
    ) -> Result<(Measured, Vec<T>), Error>
    where
        F: Future<Output = (Worker, T)> + Send + 'static,
        T: Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            tasks.spawn(body(number, Worker::new(self.clone())));
        }
        let mut measured = Measured::new();
        let mut results = Vec::new();
        let first = Instant::now() + PROGRESS_INTERVAL;
        let mut progress = interval_at(first, PROGRESS_INTERVAL);
        loop {
            tokio::select! {
                ended = tasks.join_next() => {
                    let Some(ended) = ended else { break };
                    let (worker, result) =
                        ended.map_err(|error| Error::failed(format!("a client failed: {error}")))?;
                    measured.add(&worker);
                    results.push(result);
                }
                _ = progress.tick(), if is_heard() => {
                    let done = self.shared.acknowledged.load(Ordering::Relaxed);
                    let seconds = self.shared.started.elapsed().as_secs();
                    say(&format!("{seconds:4}s  {done} operations"));
                }
            }
        }
        measured.elapsed = self.shared.started.elapsed();
        self.shared.pauses.note(self.nanos());
        let longest = self.shared.pauses.longest.load(Ordering::Relaxed);
        measured.longest_pause = Duration::from_nanos(longest);
        Ok((measured, results))
    }

    /// Whether another operation may begin; takes it off the count.
    pub(super) fn take(&self) -> bool {
        if self.is_over() {
            return false;
        }
        let left = &self.shared.left;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn is_over(&self) -> bool {
        self.is_stopped() || Instant::now() >= self.shared.until
    }

    /// Whether the run was interrupted.
    pub(super) fn is_stopped(&self) -> bool {
        self.shared.stop.is_cancelled()
    }

    /// Nanoseconds since the start.
    pub(super) fn nanos(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn acknowledge(&self) {
        self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.shared.pauses.note(self.nanos());
    }
}

/// One client's measurements.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) drive: Drive,
    latencies: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl Worker {
    fn new(drive: Drive) -> Self {
        Self { drive, latencies: histogram(), errors: BTreeMap::new() }
    }

    /// Carries out one operation. `None` where it failed, or the run was interrupted.
    pub(super) async fn measure<T>(
        &mut self,
        operation: impl Future<Output = Result<T, client::Error>>,
    ) -> Option<T> {
        let started = Instant::now();
        let stop = self.drive.shared.stop.clone();
        let outcome = tokio::select! {
            outcome = operation => outcome,
            () = stop.cancelled() => return None,
        };
        match outcome {
            Ok(answer) => {
                self.record(started.elapsed());
                Some(answer)
            }
            Err(error) => {
                self.failed(&error);
                sleep_until(Instant::now() + PAUSE_AFTER_ERROR).await;
                None
            }
        }
    }

    /// Takes note of an operation that was acknowledged.
    pub(super) fn record(&mut self, latency: Duration) {
        self.drive.acknowledge();
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.record(micros.max(1)).expect("the histogram grows");
    }

    /// Takes note of an operation that failed.
    pub(super) fn failed(&mut self, error: &client::Error) {
        let kind = if error.reason().is_empty() {
            format!("{:?}", error.code())
        } else {
            error.reason().to_owned()
        };
        *self.errors.entry(kind).or_default() += 1;
    }
}

/// What a whole run measured.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) latencies: Histogram<u64>,
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) elapsed: Duration,
    pub(super) longest_pause: Duration,
}

impl Measured {
    fn new() -> Self {
        Self {
            latencies: histogram(),
            errors: BTreeMap::new(),
            elapsed: Duration::ZERO,
            longest_pause: Duration::ZERO,
        }
    }

    fn add(&mut self, worker: &Worker) {
        self.latencies.add(&worker.latencies).expect("the histogram grows");
        for (kind, count) in &worker.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
    }
}

/// Microseconds, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(count: Option<u64>) -> Load {
        Load { clients: 4, connections: None, duration: Duration::from_secs(60), count }
    }

    async fn run(drive: &Drive) -> Measured {
        let body = |_, mut worker: Worker| async move {
            while worker.drive.take() {
                worker.measure(async { Ok::<_, client::Error>(()) }).await;
            }
            (worker, ())
        };
        drive.clients(4, body).await.expect("no client fails").0
    }

    #[tokio::test]
    async fn a_run_ends_after_its_count_over_all_clients() {
        assert_eq!(run(&Drive::new(&load(Some(100)))).await.latencies.len(), 100);
    }

    #[tokio::test]
    async fn an_interrupted_run_ends_with_its_report() {
        let drive = Drive::new(&load(None));
        let stop = drive.clone();
        let body = move |_, mut worker: Worker| {
            let stop = stop.clone();
            async move {
                while worker.drive.take() {
                    worker.measure(async { Ok::<_, client::Error>(()) }).await;
                    stop.shared.stop.cancel();
                }
                (worker, ())
            }
        };
        let (measured, _) = drive.clients(1, body).await.expect("no client fails");
        assert_eq!(measured.latencies.len(), 1);
    }

    #[test]
    fn the_longest_pause_is_that_between_two_moments() {
        let pauses = Pauses::default();
        for now in [10, 510, 500, 530, 700] {
            pauses.note(now);
        }
        assert_eq!(pauses.longest.load(Ordering::Relaxed), 500);
    }
}
