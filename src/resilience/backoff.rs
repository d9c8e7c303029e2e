//! How long to wait before a connection is tried again.
//!
//! Exponential with jitter, after gRPC's connection back-off protocol
//! (`doc/connection-backoff.md` of gRPC): each failure multiplies the pause up to a maximum, and
//! chance spreads it so that clients of one lost server do not come back all at once. It never
//! waits itself.

use crate::{
    resilience::ConfigError,
    types::{Duration, Instant, Rng},
};

/// How pauses grow. The defaults are gRPC's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// The pause after the first failure, before jitter. Default 1 s.
    pub base: Duration,
    /// What each further failure multiplies the pause by; 1 to 10. Default 1.6.
    pub factor: f64,
    /// How far a pause is spread to either side, as a share of it; 0 to 1. Default 0.2.
    pub jitter: f64,
    /// The longest pause before jitter; with it a pause is at most `max * (1 + jitter)`. A `max`
    /// below `base` counts as `base`. Default 120 s.
    pub max: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(1),
            factor: 1.6,
            jitter: 0.2,
            max: Duration::from_secs(120),
        }
    }
}

impl Config {
    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    ///
    /// ```
    /// use quorate::resilience::{ConfigError, backoff};
    ///
    /// let config = backoff::Config { jitter: 1.5, ..backoff::Config::default() };
    /// let refused = config.validate().expect_err("more than the whole pause");
    /// assert!(matches!(refused, ConfigError::OutOfRange { field: "jitter", .. }));
    /// ```
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        ConfigError::zero(self.base.is_zero(), "base")?;
        ConfigError::range((1.0..=10.0).contains(&self.factor), "factor", "1 to 10")?;
        ConfigError::range((0.0..=1.0).contains(&self.jitter), "jitter", "0 to 1")?;
        Ok(ValidConfig(Self { max: self.max.max(self.base), ..self }))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidConfig(Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults are gRPC's")
    }
}

/// The pauses of one endpoint.
///
/// ```
/// use quorate::{resilience::backoff::Backoff, types::{Duration, Instant, Rng}};
///
/// let (mut backoff, mut rng) = (Backoff::default(), Rng::new(7));
/// let again = backoff.failed(Instant::ZERO, &mut rng);
/// assert!(again.since(Instant::ZERO) >= Duration::from_millis(800));
/// assert!(again.since(Instant::ZERO) <= Duration::from_millis(1_200));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    config: ValidConfig,
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    #[must_use]
    pub const fn new(config: ValidConfig) -> Self {
        Self { config, failures: 0 }
    }

    /// Counts a failed attempt and says when to try next.
    ///
    /// gRPC counts the pause from the start of the attempt: give that time as `now` to do the
    /// same. The answer may then lie in the past, which means at once.
    pub fn failed(&mut self, now: Instant, rng: &mut Rng) -> Instant {
        let pause = self.pause().as_secs_f64();
        self.failures = self.failures.saturating_add(1);
        // 53 bits are what an f64 holds exactly: evenly drawn from [-1, 1).
        let unit = (rng.next_u64() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
        let spread = pause * self.config.0.jitter * unit;
        now.after(Duration::try_from_secs_f64(pause + spread).unwrap_or(Duration::MAX))
    }

    /// Forgets the failures: the next pause is the first again. Call it when a connection works.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// How many attempts have failed since the start or the last reset.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The pause that the next failure brings, before jitter.
    #[must_use]
    pub fn pause(&self) -> Duration {
        let Config { base, factor, max, .. } = self.config.0;
        let power = i32::try_from(self.failures).unwrap_or(i32::MAX);
        // An overflow is infinite, and so the maximum.
        let pause = (base.as_secs_f64() * factor.powi(power)).min(max.as_secs_f64());
        Duration::try_from_secs_f64(pause).unwrap_or(max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Rng;

    fn seconds(backoff: &mut Backoff, rng: &mut Rng) -> f64 {
        let now = Instant::from_nanos(5_000_000_000);
        backoff.failed(now, rng).since(now).as_secs_f64()
    }

    #[test]
    fn pauses_grow_by_the_factor_up_to_the_maximum() {
        let config = Config { jitter: 0.0, ..Config::default() };
        let mut backoff = Backoff::new(config.validate().unwrap());
        let mut rng = Rng::new(1);
        let pauses: Vec<_> = (0..13).map(|_| seconds(&mut backoff, &mut rng)).collect();
        for (power, pause) in pauses.iter().enumerate() {
            let expected = 1.6_f64.powi(i32::try_from(power).unwrap()).min(120.0);
            assert!((pause - expected).abs() < 1e-6, "pause {power} is {pause}, not {expected}");
        }
        assert_eq!(pauses.last(), Some(&120.0));
        assert_eq!(backoff.failures(), 13);
    }

    #[test]
    fn a_reset_starts_over() {
        let mut backoff = Backoff::default();
        let mut rng = Rng::new(1);
        for _ in 0..20 {
            backoff.failed(Instant::ZERO, &mut rng);
        }
        assert_eq!(backoff.pause(), Duration::from_secs(120));
        backoff.reset();
        assert_eq!((backoff.failures(), backoff.pause()), (0, Duration::from_secs(1)));
    }

    #[test]
    fn jitter_spreads_to_both_sides() {
        let pauses: Vec<_> =
            (0..200).map(|seed| seconds(&mut Backoff::default(), &mut Rng::new(seed))).collect();
        assert!(pauses.iter().any(|pause| *pause < 0.85), "nothing near the lower end");
        assert!(pauses.iter().any(|pause| *pause > 1.15), "nothing near the upper end");
        let mean = pauses.iter().sum::<f64>() / 200.0;
        assert!((mean - 1.0).abs() < 0.05, "the mean is {mean}");
    }

    #[test]
    fn figures_that_cannot_work_are_refused() {
        let default = Config::default();
        for (config, wrong) in [
            (Config { base: Duration::ZERO, ..default }, "base"),
            (Config { factor: 0.9, ..default }, "factor"),
            (Config { factor: f64::NAN, ..default }, "factor"),
            (Config { jitter: -0.1, ..default }, "jitter"),
            (Config { jitter: 1.1, ..default }, "jitter"),
        ] {
            let refused = config.validate().expect_err(wrong).to_string();
            assert!(refused.starts_with(wrong), "{refused}");
        }
        let short = Config { max: Duration::from_millis(1), ..default }.validate().unwrap();
        assert_eq!(Backoff::new(short).pause(), Duration::from_secs(1));
    }

    proptest! {
        #[test]
        fn every_pause_is_within_the_jitter_of_its_step(
            base_ms in 1_u64..10_000,
            factor in 1.0_f64..4.0,
            jitter in 0.0_f64..=1.0,
            max_ms in 1_u64..1_000_000,
            failures in 0_usize..40,
            seed: u64,
        ) {
            let config = Config {
                base: Duration::from_millis(base_ms),
                factor,
                jitter,
                max: Duration::from_millis(max_ms),
            };
            let mut backoff = Backoff::new(config.validate().unwrap());
            let mut rng = Rng::new(seed);
            let mut before = Duration::ZERO;
            for _ in 0..failures {
                let step = backoff.pause();
                prop_assert!(step >= before);
                prop_assert!(step <= config.max.max(config.base));
                before = step;
                let pause = seconds(&mut backoff, &mut rng);
                let step = step.as_secs_f64();
                prop_assert!(pause >= step * (1.0 - jitter) - 1e-6);
                prop_assert!(pause <= step * (1.0 + jitter) + 1e-6);
            }
        }
    }
}
