//! The limiter and its parameters.
//!
//! Nothing here knows what a call is, or for whom it counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::{
    resilience::ConfigError,
    types::{Duration, Instant},
};

/// How many calls pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many calls pass in each `period`; at least 1, and at most one in a microsecond.
    /// Default 1000.
    pub rate: u32,
    /// The time that `rate` is for; up to 24 h. Default 1 s.
    pub period: Duration,
    /// How many calls pass at once after a rest; at least 1, and at most as many as pass at the rate
    /// within a year. Default 100.
    pub burst: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { rate: 1_000, period: Duration::from_secs(1), burst: 100 }
    }
}

impl Config {
    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    ///
    /// ```
    /// use quorate::resilience::{ConfigError, rate_limit::Config};
    ///
    /// let refused = Config { burst: 0, ..Config::default() }.validate().expect_err("none pass");
    /// assert_eq!(refused, ConfigError::Zero { field: "burst" });
    /// ```
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        ConfigError::zero(self.rate == 0, "rate")?;
        ConfigError::zero(self.burst == 0, "burst")?;
        let periods = Duration::from_nanos(1)..=Duration::from_hours(24);
        ConfigError::range(periods.contains(&self.period), "period", "1 ns to 24 h")?;
        let period = u64::try_from(self.period.as_nanos()).unwrap_or(u64::MAX);
        let interval = period.div_ceil(u64::from(self.rate));
        ConfigError::range(interval >= 1_000, "rate", "one call in a microsecond at most")?;
        let fills = interval.saturating_mul(u64::from(self.burst));
        let in_a_year = fills <= 366 * 86_400 * 1_000_000_000;
        ConfigError::range(in_a_year, "burst", "what the rate fills within a year")?;
        Ok(ValidConfig { config: self, interval })
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidConfig {
    config: Config,
    /// Between two calls at the rate, in nanoseconds.
    interval: u64,
}

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults work")
    }
}

impl ValidConfig {
    /// What was asked for.
    #[must_use]
    pub const fn config(&self) -> Config {
        self.config
    }

    /// How far ahead of now the calls let through may reach, in nanoseconds.
    const fn reach(&self) -> u64 {
        self.interval * self.config.burst as u64
    }
}

/// Lets calls through at a rate.
///
/// ```
/// use quorate::{
///     resilience::rate_limit::{Config, RateLimiter},
///     types::{Duration, Instant},
/// };
///
/// let config = Config { rate: 10, burst: 2, ..Config::default() };
/// let limiter = RateLimiter::new(config.validate()?);
/// let now = Instant::ZERO;
/// assert!(limiter.try_take(1, now).is_ok() && limiter.try_take(1, now).is_ok());
/// let again = limiter.try_take(1, now).expect_err("the burst is spent");
/// assert_eq!(again.since(now), Duration::from_millis(100));
/// assert!(limiter.try_take(1, again).is_ok());
/// # Ok::<(), quorate::resilience::ConfigError>(())
/// ```
#[derive(Debug)]
pub struct RateLimiter {
    config: ValidConfig,
    /// GCRA's theoretical arrival time, in nanoseconds: when the calls let through so far would be
    /// over, had they come at the rate. Relaxed suffices: nothing else is published with it.
    ahead: AtomicU64,
}

/// Calls that were let through for a time to come; see [`RateLimiter::reserve`].
#[derive(Debug, PartialEq, Eq)]
pub struct Reservation {
    at: Instant,
    before: u64,
    after: u64,
}

impl Reservation {
    /// When the calls may be sent; a time that is past says at once.
    #[must_use]
    pub const fn at(&self) -> Instant {
        self.at
    }
}

impl RateLimiter {
    /// A limiter that has rested: a burst passes at once.
    #[must_use]
    pub const fn new(config: ValidConfig) -> Self {
        Self { config, ahead: AtomicU64::new(0) }
    }

    /// Lets `n` calls through, or none.
    ///
    /// # Errors
    /// When they would pass, if nobody else comes; [`Instant::FAR`] where `n` is more than the
    /// burst, so that they never do.
    pub fn try_take(&self, n: u32, now: Instant) -> Result<(), Instant> {
        self.reserve(n, now, Duration::ZERO).map(|_| ())
    }

    /// Lets `n` calls through for the first time at which they may pass, if that is within
    /// `wait_max`. Whoever comes later gets a later time, so that those who wait are served in
    /// order.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub fn reserve(
        &self,
        n: u32,
        now: Instant,
        wait_max: Duration,
    ) -> Result<Reservation, Instant> {
        if n > self.config.config.burst {
            return Err(Instant::FAR);
        }
        let (reach, cost) = (self.config.reach(), self.config.interval * u64::from(n));
        let latest = now.after(wait_max).as_nanos();
        let mut before = self.ahead.load(Relaxed);
        loop {
            let after = before.max(now.as_nanos()).saturating_add(cost);
            let at = after.saturating_sub(reach);
            if at > latest {
                return Err(Instant::from_nanos(at));
            }
            match self.ahead.compare_exchange_weak(before, after, Relaxed, Relaxed) {
                Ok(_) => return Ok(Reservation { at: Instant::from_nanos(at), before, after }),
                Err(changed) => before = changed,
            }
        }
    }

    /// Gives a reservation back whose calls are not sent. That makes room only where nobody has
    /// reserved after it: the times of those who did stand. Whether it did.
    #[expect(clippy::needless_pass_by_value, reason = "it can be given back once")]
    pub fn cancel(&self, reservation: Reservation) -> bool {
        let Reservation { before, after, .. } = reservation;
        self.ahead.compare_exchange(after, before, Relaxed, Relaxed).is_ok()
    }

    /// How many calls would pass at `now`.
    #[must_use]
    pub fn available(&self, now: Instant) -> u32 {
        let ahead = self.ahead.load(Relaxed).saturating_sub(now.as_nanos());
        let room = self.config.reach().saturating_sub(ahead) / self.config.interval;
        u32::try_from(room).unwrap_or(u32::MAX)
    }

    /// Whether it has rested, so that a new one would do as well.
    #[must_use]
    pub fn is_idle(&self, now: Instant) -> bool {
        self.ahead.load(Relaxed) <= now.as_nanos()
    }

    /// What it was made of.
    #[must_use]
    pub const fn config(&self) -> Config {
        self.config.config
    }
}
