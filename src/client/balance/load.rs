//! What is known of an endpoint from the calls that it was given: counted by those who call, without
//! a lock, and read by the policies.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use crate::{
    layers::{BoxError, Clock},
    resilience::{
        ewma::{self, PeakEwma, SuccessRate},
        outlier::Tally,
    },
    types::{Duration, Instant},
};

/// The upper bounds of the latency histogram's buckets.
pub(super) const LATENCY_BOUNDS: [Duration; 12] = [
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Counters of one endpoint.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    picks: AtomicU64,
    successes: AtomicU64,
    failures: AtomicU64,
    latency: PeakEwma,
    success_rate: SuccessRate,
    latency_buckets: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    latency_sum_micros: AtomicU64,
    pub(super) tally: Arc<Tally>,
    /// Whether calls were sent since the connection stood, and whether any was answered.
    asked: AtomicBool,
    spoke: AtomicBool,
    /// Why a call broke last, until there is a new connection.
    broke: ArcSwapOption<BoxError>,
    /// Told when an endpoint's failures in a row call for a look.
    suspicion: Arc<Notify>,
}

impl Load {
    pub(super) fn new(tally: Arc<Tally>, suspicion: Arc<Notify>, now: Instant) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            picks: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            latency: PeakEwma::new(ewma::ValidConfig::default(), now),
            success_rate: SuccessRate::new(ewma::ValidConfig::default(), now),
            latency_buckets: Default::default(),
            latency_sum_micros: AtomicU64::new(0),
            tally,
            asked: AtomicBool::new(false),
            spoke: AtomicBool::new(false),
            broke: ArcSwapOption::empty(),
            suspicion,
        }
    }

    /// That of an endpoint which nobody watches, with calls in flight that never end.
    pub(super) fn of_nobody(in_flight: u32) -> Self {
        let load = Self::new(Arc::default(), Arc::default(), Instant::ZERO);
        load.in_flight.store(in_flight, Ordering::Relaxed);
        load
    }

    /// How many calls are under way.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How many calls it was given.
    #[must_use]
    pub fn picks(&self) -> u64 {
        self.picks.load(Ordering::Relaxed)
    }

    /// How many calls it answered, refusals included.
    #[must_use]
    pub fn successes(&self) -> u64 {
        self.successes.load(Ordering::Relaxed)
    }

    /// How many calls it failed: with a code that says that it does not work, or without a word.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Its latency to the first byte of an answer: a moving average that takes peaks at once, and
    /// failures as slow answers.
    #[must_use]
    pub fn latency(&self, now: Instant) -> Duration {
        self.latency.cost(now)
    }

    /// Whether nothing was seen of it yet, so that its latency is a guess.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.latency.is_guess()
    }

    /// Forgets how slow it was and what it failed: it has begun anew.
    pub(super) fn forget(&self, now: Instant) {
        self.latency.forget(now);
        self.success_rate.forget(now);
    }

    /// The share of its latest calls that it answered, from 0 to 1.
    #[must_use]
    pub fn success_rate(&self, now: Instant) -> f64 {
        self.success_rate.rate(now)
    }

    /// How many answers took no longer than each of the bounds, and their sum.
    pub(super) fn latencies(&self) -> ([u64; LATENCY_BOUNDS.len() + 1], Duration) {
        let buckets = std::array::from_fn(|at| self.latency_buckets[at].load(Ordering::Relaxed));
        (buckets, Duration::from_micros(self.latency_sum_micros.load(Ordering::Relaxed)))
    }

    /// A call is not answered for long.
    pub(super) fn silent(&self, now: Instant) {
        self.success_rate.record(false, now);
        self.latency.observe(FAILURE_COSTS, now);
    }

    pub(super) fn why_broken(&self) -> Option<Arc<BoxError>> {
        self.broke.load_full()
    }

    /// Whether calls were sent since the connection stood and none was answered.
    pub(super) fn was_asked_in_vain(&self) -> bool {
        self.asked.load(Ordering::Relaxed) && !self.spoke.load(Ordering::Relaxed)
    }

    pub(super) fn mended(&self) {
        self.asked.store(false, Ordering::Relaxed);
        self.spoke.store(false, Ordering::Relaxed);
        self.broke.store(None);
    }

    fn answered(&self, took: Duration) {
        let bucket = LATENCY_BOUNDS.iter().position(|bound| took <= *bound);
        let bucket = bucket.unwrap_or(LATENCY_BOUNDS.len());
        self.latency_buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.latency_sum_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// A call under way. Dropping it without an end is a cancellation, which says nothing about the
/// endpoint but that an answer would have taken longer.
#[derive(Debug)]
pub(super) struct Call {
    load: Arc<Load>,
    clock: Clock,
    started: Instant,
    /// Whether its answer has begun, or it ended without one.
    settled: bool,
}

/// What an answer that failed counts as, at least: failing fast must not look like being fast.
const FAILURE_COSTS: Duration = Duration::from_secs(5);

impl Call {
    pub(super) fn start(load: Arc<Load>, clock: Clock) -> Self {
        load.in_flight.fetch_add(1, Ordering::Relaxed);
        load.picks.fetch_add(1, Ordering::Relaxed);
        raise(&load.asked);
        let started = clock.now();
        Self { load, clock, started, settled: false }
    }

    /// The answer has begun.
    pub(super) fn answered(&mut self) {
        let now = self.clock.now();
        let took = now.since(self.started);
        self.settled = true;
        raise(&self.load.spoke);
        self.load.answered(took);
        self.load.latency.observe(took, now);
    }

    /// The call broke. Gives the error back, to be told to the caller as well.
    pub(super) fn broke(self, error: BoxError) -> BoxError {
        let error = Arc::new(error);
        self.load.broke.store(Some(Arc::clone(&error)));
        self.ended(true);
        Box::new(Breakage(error))
    }

    /// The request never left: its wait says nothing.
    pub(super) fn not_sent(mut self) {
        self.settled = true;
    }

    /// The call is over.
    pub(super) fn ended(mut self, failed: bool) {
        self.settled = true;
        let load = &self.load;
        let now = self.clock.now();
        let counter = if failed { &load.failures } else { &load.successes };
        counter.fetch_add(1, Ordering::Relaxed);
        load.success_rate.record(!failed, now);
        if failed {
            load.latency.observe(now.since(self.started).max(FAILURE_COSTS), now);
        }
        if load.tally.record(!failed) {
            load.suspicion.notify_one();
        }
    }
}

/// Sets a flag that is mostly set already, without taking its line for nothing.
fn raise(flag: &AtomicBool) {
    if !flag.load(Ordering::Relaxed) {
        flag.store(true, Ordering::Relaxed);
    }
}

/// An error that is told to a caller and kept.
#[derive(Debug)]
struct Breakage(Arc<BoxError>);

impl fmt::Display for Breakage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Breakage {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.0)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.load.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.settled {
            return;
        }
        // Given up without an answer, as by a hedge that another one won: it would have taken longer
        // than that. What was given up early tells nothing.
        let now = self.clock.now();
        let waited = now.since(self.started);
        if waited > self.load.latency.cost(now) {
            self.load.latency.observe(waited, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_without_an_answer_would_have_taken_longer() {
        let clock = Clock::start();
        let load = Arc::new(Load::new(Arc::default(), Arc::default(), clock.now()));
        let call = || Call::start(Arc::clone(&load), clock);
        let after = async |millis| tokio::time::advance(Duration::from_millis(millis)).await;
        let mut answered = call();
        after(10).await;
        answered.answered();
        answered.ended(false);
        let millis = || load.latency(clock.now()).as_millis();
        assert_eq!(millis(), 10);

        let given_up = call();
        after(400).await;
        drop(given_up);
        assert_eq!((millis(), load.failures()), (400, 0), "slow, and no failure");
        drop(call());
        assert_eq!(millis(), 400, "what is given up at once tells nothing");

        let mut streaming = call();
        streaming.answered();
        after(5_000).await;
        drop(streaming);
        assert!(millis() < 400, "its answer had begun");
        assert_eq!(load.in_flight(), 0);
    }
}
