//! The number itself: gathers samples, has the algorithm judge them, keeps the bounds.
//!
//! It counts nothing that is in flight; that is the limiter's.

use crate::{
    resilience::concurrency_limit::{
        ValidConfig,
        algorithm::{Seen, State},
    },
    types::{Duration, Instant, Rng},
};

/// How a call ended, as far as a limit is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was answered after this time, counted from when it got its place.
    Answered(Duration),
    /// The other side refused or dropped it because it had too much to do.
    Dropped,
    /// In a way that says nothing about load: given up by the caller, or broken.
    Ignored,
}

/// What one call tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// How many were in flight when it began, itself included.
    pub in_flight: usize,
    /// How it ended.
    pub ended: Ended,
}

/// A limit that follows what calls tell.
///
/// ```
/// use quorate::{
///     resilience::concurrency_limit::{Aimd, Algorithm, Config, Ended, Limit, Sample},
///     types::{Duration, Instant, Rng},
/// };
///
/// let algorithm = Algorithm::Aimd(Aimd::default());
/// let config = Config { algorithm, window: Duration::ZERO, ..Config::default() };
/// let mut limit = Limit::new(config.validate()?, Rng::new(7));
/// assert_eq!(limit.limit(), 20);
///
/// let good = Ended::Answered(Duration::from_millis(2));
/// limit.record(Sample { in_flight: 20, ended: good }, Instant::ZERO);
/// assert_eq!(limit.limit(), 21, "it was used, and all went well");
/// limit.record(Sample { in_flight: 3, ended: good }, Instant::ZERO);
/// assert_eq!(limit.limit(), 21, "it was hardly used: that tells nothing");
/// limit.record(Sample { in_flight: 21, ended: Ended::Dropped }, Instant::ZERO);
/// assert_eq!(limit.limit(), 18);
/// # Ok::<(), quorate::resilience::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Limit {
    config: ValidConfig,
    state: State,
    /// Within the bounds. Its fraction adds up.
    exact: f64,
    window: Window,
}

/// The samples that are judged together.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    /// When the first sample came.
    since: Option<Instant>,
    samples: u32,
    answered: u32,
    nanos: f64,
    in_flight: usize,
    dropped: bool,
}

impl Limit {
    /// Begins at [`Config::initial`](super::Config::initial). Vegas takes chance from `rng`.
    #[must_use]
    pub fn new(config: ValidConfig, rng: Rng) -> Self {
        Self {
            config,
            state: State::new(config.0.algorithm, rng),
            exact: config.0.initial as f64,
            window: Window::default(),
        }
    }

    /// How many calls may be in flight; within the bounds.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.exact as usize
    }

    /// How many calls of a class may be in flight before one more of it; at least 1. Classes beyond
    /// the last one count as it.
    #[must_use]
    pub fn allowance(&self, class: u8) -> usize {
        let shares = &self.config.0.shares;
        let share = shares[usize::from(class).min(shares.len() - 1)] as usize;
        (self.limit() * share).div_ceil(100)
    }

    /// The latency that later ones are held against, where the algorithm has one.
    #[must_use]
    pub fn baseline(&self) -> Option<Duration> {
        self.state.baseline().map(|nanos| Duration::from_nanos(nanos as u64))
    }

    /// Takes in what a call told. `Some` is the limit where it became another.
    pub fn record(&mut self, sample: Sample, now: Instant) -> Option<usize> {
        if !self.window.add(sample, now) {
            return None;
        }
        let config = &self.config.0;
        let since = self.window.since.unwrap_or(now);
        let whole = config.window.is_zero() || self.window.samples >= config.window_samples;
        if !whole || now.since(since) < config.window {
            return None;
        }
        let window = core::mem::take(&mut self.window);
        let before = self.limit();
        let next = self.state.next(self.exact, window.seen());
        self.exact = next.clamp(config.min as f64, config.max as f64);
        (self.limit() != before).then(|| self.limit())
    }

    pub(super) const fn config(&self) -> &ValidConfig {
        &self.config
    }
}

impl Window {
    /// Whether there was something to add.
    fn add(&mut self, sample: Sample, now: Instant) -> bool {
        match sample.ended {
            Ended::Ignored => return false,
            Ended::Dropped => self.dropped = true,
            Ended::Answered(latency) => {
                self.answered += 1;
                // Zero would divide by zero, and no call takes none.
                self.nanos += (latency.as_nanos() as f64).max(1.0);
            }
        }
        self.since.get_or_insert(now);
        self.samples += 1;
        self.in_flight = self.in_flight.max(sample.in_flight);
        true
    }

    fn seen(&self) -> Seen {
        let latency = (self.answered > 0).then(|| self.nanos / f64::from(self.answered));
        Seen { latency, in_flight: self.in_flight as f64, dropped: self.dropped }
    }
}
