//! When a call that is slow is sent a second time, so that one slow server does not make it slow.
//!
//! After Dean and Barroso, "The Tail at Scale", and gRPC's proposal A6: a copy goes out where the
//! first has no answer after a delay, and the first answer counts. The delay is fixed, or a
//! percentile of the latencies seen, so that only the slowest calls are sent twice. Unlike in A6 a
//! copy that fails is not replaced at once: that is what retries with their pauses are for.
//!
//! | state of a call | event | then |
//! |---|---|---|
//! | copies open, another due | the time comes, the budget allows | one more copy is open |
//! | copies open, another due | the time comes, the budget does not | no other is due |
//! | copies open | one fails and others are open | those decide |
//! | copies open | one fails and asks for a pause | the next is due no sooner |
//! | copies open | one fails and asks for none | no other is due |
//! | copies open | the last one fails | over: its failure is the answer |
//! | copies open | one is answered | over: the others are dropped |
//!
//! Nothing here sends, waits or drops anything.

mod latencies;
#[cfg(test)]
mod tests;

pub use latencies::Latencies;

use crate::{
    resilience::{ConfigError, retry::Asked},
    types::{Duration, Instant},
};

/// How soon and how often a call is sent again while it is open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The most copies of a call, the first included; 1 to 5, where 1 is never to hedge. Default 2.
    pub copies_max: u32,
    /// How long a copy may take before the next is sent. Default the 95th percentile.
    pub delay: Delay,
}

/// How long a copy may take before the next is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Delay {
    /// This long; at most 1 h. Zero sends all copies at once.
    Fixed(Duration),
    /// As long as this share of the calls takes.
    Percentile(Percentile),
}

/// A share of the calls whose latencies were seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentile {
    /// The share; 0.5 to 0.999. Default 0.95: one in twenty is sent twice.
    pub share: f64,
    /// The shortest delay. Default 1 ms.
    pub min: Duration,
    /// The longest delay, and the delay until 32 latencies were seen; at least `min`, at most 1 h.
    /// Default 1 s.
    pub max: Duration,
}

impl Default for Percentile {
    fn default() -> Self {
        Self { share: 0.95, min: Duration::from_millis(1), max: Duration::from_secs(1) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { copies_max: 2, delay: Delay::Percentile(Percentile::default()) }
    }
}

impl Config {
    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        let (hour, copies) = (Duration::from_hours(1), (1..=5).contains(&self.copies_max));
        ConfigError::range(copies, "copies_max", "1 to 5")?;
        match self.delay {
            Delay::Fixed(delay) => ConfigError::range(delay <= hour, "delay", "0 to 1 h")?,
            Delay::Percentile(Percentile { share, min, max }) => {
                ConfigError::range((0.5..=0.999).contains(&share), "share", "0.5 to 0.999")?;
                ConfigError::range(max >= min && max <= hour, "max", "the minimum to 1 h")?;
            }
        }
        Ok(ValidConfig(self))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidConfig(Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults work")
    }
}

/// What is known of the calls to one service: how long they take.
///
/// ```
/// use quorate::{resilience::hedge::{Hedge, ValidConfig}, types::Duration};
///
/// let hedge = Hedge::new(ValidConfig::default());
/// assert_eq!(hedge.delay(), Duration::from_secs(1), "nothing was seen yet");
/// for call in 0..1_000 {
///     hedge.took(Duration::from_millis(if call % 100 == 0 { 500 } else { 10 }));
/// }
/// let delay = hedge.delay();
/// assert!(delay >= Duration::from_millis(10) && delay < Duration::from_millis(12));
/// ```
#[derive(Debug)]
pub struct Hedge {
    config: ValidConfig,
    latencies: Latencies,
}

impl Hedge {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        let share = match config.0.delay {
            Delay::Percentile(percentile) => percentile.share,
            Delay::Fixed(_) => 1.0,
        };
        Self { config, latencies: Latencies::new(share) }
    }

    /// Takes in how long a copy took, or how long it was open when another one was sooner.
    pub fn took(&self, latency: Duration) {
        if matches!(self.config.0.delay, Delay::Percentile(_)) {
            self.latencies.record(latency);
        }
    }

    /// How long a copy may take now before the next is sent.
    #[must_use]
    pub fn delay(&self) -> Duration {
        match self.config.0.delay {
            Delay::Fixed(delay) => delay,
            Delay::Percentile(Percentile { min, max, .. }) => {
                self.latencies.percentile().map_or(max, |seen| seen.clamp(min, max))
            }
        }
    }

    /// A call begins: its first copy is sent `now`.
    #[must_use]
    pub fn start(&self, now: Instant) -> Race {
        let delay = self.delay();
        let copies_max = self.config.0.copies_max;
        let next = (copies_max > 1).then(|| now.after(delay));
        Race { copies_max, delay, sent: 1, open: 1, next }
    }
}

/// The copies of one call.
///
/// ```
/// use quorate::{
///     resilience::{hedge::{Hedge, ValidConfig}, retry::Asked},
///     types::{Duration, Instant},
/// };
///
/// let hedge = Hedge::new(ValidConfig::default());
/// let mut race = hedge.start(Instant::ZERO);
/// let second = race.next_at().expect("it may be hedged");
/// race.sent(second);
/// assert_eq!(race.next_at(), None, "two at most");
/// race.failed(second, Asked::Nothing);
/// assert!(!race.is_over(), "the other one decides");
/// race.failed(second, Asked::Nothing);
/// assert!(race.is_over());
/// ```
#[derive(Clone, Debug)]
pub struct Race {
    copies_max: u32,
    delay: Duration,
    sent: u32,
    open: u32,
    /// When the next copy is due, where there is to be one.
    next: Option<Instant>,
}

impl Race {
    /// When another copy is due; `None` where there is to be none.
    #[must_use]
    pub const fn next_at(&self) -> Option<Instant> {
        self.next
    }

    /// The copy that was due is sent.
    ///
    /// # Panics
    /// Where none was to be.
    pub fn sent(&mut self, now: Instant) {
        assert!(self.next.is_some(), "no other copy was due");
        self.sent += 1;
        self.open += 1;
        self.next = (self.sent < self.copies_max).then(|| now.after(self.delay));
    }

    /// There is to be no other copy: the budget is empty.
    pub const fn stop(&mut self) {
        self.next = None;
    }

    /// A copy failed, in a way that another one may mend.
    ///
    /// # Panics
    /// Where none was open.
    pub fn failed(&mut self, now: Instant, asked: Asked) {
        assert!(self.open > 0, "no copy was open");
        self.open -= 1;
        if self.open == 0 {
            self.next = None;
        }
        match asked {
            Asked::Nothing => {}
            Asked::After(span) => self.next = self.next.map(|next| next.max(now.after(span))),
            Asked::Never => self.next = None,
        }
    }

    /// How many copies were sent.
    #[must_use]
    pub const fn copies(&self) -> u32 {
        self.sent
    }

    /// Whether all copies failed that were sent.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.open == 0
    }
}
