//! How slow and how reliable an endpoint is, from what was seen of it, without a lock.
//!
//! [`PeakEwma`] is Finagle's (`finagle-core`, `loadbalancer/PeakEwma.scala`), as tower and linkerd
//! have it too: an average of round trips, weighted by time, that takes a peak at once and lets it
//! go slowly. [`SuccessRate`] is a share of successes that forgets at the same pace. A value and
//! its time share one atomic word, so that calls record with `&self`. Nothing here reads a clock.
//!
//! The weights for unevenly spaced samples: Eckner, "Algorithms for unevenly spaced time series".

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{
    resilience::ConfigError,
    types::{Duration, Instant},
};

/// How estimates begin and forget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// After this time an old value weighs 1/e, about 37 %; 10 ms to 1 h. Default 10 s.
    pub decay: Duration,
    /// The guess for an endpoint from which nothing was seen; the first round trip replaces it.
    /// Default 30 ms, as in linkerd.
    pub seed: Duration,
    /// The least cost. An idle endpoint decays to it, and above zero, so that calls in flight
    /// still count. Endpoints faster than this look alike. Default 100 µs.
    pub floor: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(10),
            seed: Duration::from_millis(30),
            floor: Duration::from_micros(100),
        }
    }
}

impl Config {
    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        let decays = Duration::from_millis(10)..=Duration::from_hours(1);
        ConfigError::range(decays.contains(&self.decay), "decay", "10 ms to 1 h")?;
        ConfigError::zero(self.floor.is_zero(), "floor")?;
        Ok(ValidConfig(Self { seed: self.seed.max(self.floor), ..self }))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidConfig(Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults work")
    }
}

/// The round trip to expect of an endpoint, pessimistic about peaks.
///
/// ```
/// use quorate::{resilience::ewma::{PeakEwma, ValidConfig}, types::{Duration, Instant}};
///
/// let cost = PeakEwma::new(ValidConfig::default(), Instant::ZERO);
/// let second = |n| Instant::ZERO.after(Duration::from_secs(n));
/// cost.observe(Duration::from_millis(80), second(1));
/// assert_eq!(cost.cost(second(1)).as_millis(), 80);
/// cost.observe(Duration::from_millis(2), second(2));
/// assert!(cost.cost(second(2)) > Duration::from_millis(70), "a peak is let go slowly");
/// ```
#[derive(Debug)]
pub struct PeakEwma {
    word: Word,
    /// In nanoseconds, as is the floor.
    seed: f32,
    floor: f32,
}

impl PeakEwma {
    /// An endpoint from which nothing was seen.
    #[must_use]
    pub fn new(config: ValidConfig, now: Instant) -> Self {
        let Config { decay, seed, floor } = config.0;
        // Negative, as no round trip is: a guess, which the first one replaces.
        let seed = -nanos(seed);
        Self { word: Word::new(seed, decay, now), seed, floor: nanos(floor) }
    }

    /// Begins anew, with the guess.
    pub fn forget(&self, now: Instant) {
        self.word.update(now, |_, _| self.seed);
    }

    /// Whether nothing was seen yet, so that the estimate is the guess.
    #[must_use]
    pub fn is_guess(&self) -> bool {
        self.word.value().is_sign_negative()
    }

    /// Takes in a round trip that ended at `now`. One above the estimate replaces it; one below
    /// draws it down by as much as the time since the last one weighs.
    pub fn observe(&self, rtt: Duration, now: Instant) {
        let rtt = nanos(rtt);
        // Never below `rtt`, so that a peak is taken whole; and so is the first one, since a guess
        // is negative.
        self.word.update(now, |cost, weight| cost.mul_add(weight, rtt * (1.0 - weight)).max(rtt));
    }

    /// The estimate at `now`: what is not seen again decays towards the floor, so that an endpoint
    /// once slow is tried again.
    #[must_use]
    pub fn cost(&self, now: Instant) -> Duration {
        let (cost, weight) = self.word.read(now);
        Duration::from_nanos((cost.abs() * weight).max(self.floor) as u64)
    }
}

/// The share of calls that succeed, recent ones weighing most.
///
/// It is `(successes + 1) / (calls + 1)` of the counts decayed by time and by each call, so that 32
/// calls at most count, however many there are: an endpoint that begins to fail shows it after so
/// many. One from which nothing was seen has 1, and one that fails and then rests returns towards
/// 1, so that it is tried again.
///
/// ```
/// use quorate::{resilience::ewma::{SuccessRate, ValidConfig}, types::Instant};
///
/// let rate = SuccessRate::new(ValidConfig::default(), Instant::ZERO);
/// for call in 0..1_000 {
///     rate.record(call % 2 == 0, Instant::ZERO);
/// }
/// let half = rate.rate(Instant::ZERO);
/// assert!((0.48..0.55).contains(&half), "{half}");
/// ```
#[derive(Debug)]
pub struct SuccessRate {
    successes: Word,
    failures: Word,
}

impl SuccessRate {
    /// An endpoint from which nothing was seen. Only `decay` of the configuration matters.
    #[must_use]
    pub fn new(config: ValidConfig, now: Instant) -> Self {
        let word = || Word::new(0.0, config.0.decay, now);
        Self { successes: word(), failures: word() }
    }

    /// Counts a call that ended at `now`.
    pub fn record(&self, success: bool, now: Instant) {
        for (word, counts) in [(&self.successes, success), (&self.failures, !success)] {
            // Most endpoints never fail: spare them the second word.
            if counts || word.value() > 0.0 {
                let one = f32::from(counts);
                word.update(now, |count, weight| count.mul_add(weight * CALL_WEIGHT, one));
            }
        }
    }

    /// Begins anew.
    pub fn forget(&self, now: Instant) {
        for word in [&self.successes, &self.failures] {
            word.update(now, |_, _| 0.0);
        }
    }

    /// The share at `now`, above 0 and at most 1. It reads two words: a call that ends meanwhile
    /// may count in neither or in one.
    #[must_use]
    pub fn rate(&self, now: Instant) -> f64 {
        let count = |word: &Word| {
            let (count, weight) = word.read(now);
            f64::from(count * weight)
        };
        let good = count(&self.successes) + 1.0;
        good / (good + count(&self.failures))
    }
}

/// What each call leaves of the weight of those before it: 32 calls in all.
const CALL_WEIGHT: f32 = 1.0 - 1.0 / 32.0;

/// A tick is 2^20 ns, about 1 ms.
const TICK_BITS: u32 = 20;

/// How far back a time counts as late rather than as one after the stamp has wrapped; 68 s.
const LATE_TICKS: u32 = 1 << 16;

/// A value (`f32`, upper half) and the tick of its last change (lower half) in one atomic word.
///
/// The tick wraps after 52 days: a value unchanged for longer reads as that much younger. `f32`
/// has 24 bits.
#[derive(Debug)]
struct Word {
    packed: AtomicU64,
    /// The time after which a value weighs 1/e.
    decay_ticks: f32,
}

impl Word {
    fn new(value: f32, decay: Duration, now: Instant) -> Self {
        let decay_ticks = nanos(decay) / (1_u64 << TICK_BITS) as f32;
        Self { packed: AtomicU64::new(pack(value, tick(now))), decay_ticks }
    }

    /// The value as last changed.
    fn value(&self) -> f32 {
        unpack(self.packed.load(Relaxed)).0
    }

    /// The value as last changed, and what its age at `now` leaves of it, from 0 to 1.
    fn read(&self, now: Instant) -> (f32, f32) {
        let (value, stamp) = unpack(self.packed.load(Relaxed));
        (value, self.weight(stamp, tick(now)))
    }

    /// Replaces the value by `next(value, weight)`.
    fn update(&self, now: Instant, next: impl Fn(f32, f32) -> f32) {
        let now = tick(now);
        let changed = |packed| {
            let (value, stamp) = unpack(packed);
            let weight = self.weight(stamp, now);
            let stamp = if age(stamp, now) == 0 { stamp } else { now };
            Some(pack(next(value, weight), stamp))
        };
        self.packed.fetch_update(Relaxed, Relaxed, changed).expect("every value has a next one");
    }

    fn weight(&self, stamp: u32, now: u32) -> f32 {
        match age(stamp, now) {
            // Calls end many to a tick: spare them the power.
            0 => 1.0,
            ticks => (-(ticks as f32) / self.decay_ticks).exp(),
        }
    }
}

/// Ticks from `stamp` to `now`; zero where `now` is the earlier one, since calls that end at the
/// same time report in any order.
const fn age(stamp: u32, now: u32) -> u32 {
    let ticks = now.wrapping_sub(stamp);
    if ticks > u32::MAX - LATE_TICKS { 0 } else { ticks }
}

const fn tick(now: Instant) -> u32 {
    (now.as_nanos() >> TICK_BITS) as u32
}

fn pack(value: f32, stamp: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(stamp)
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

fn nanos(span: Duration) -> f32 {
    span.as_nanos() as f32
}

#[cfg(test)]
mod tests;
