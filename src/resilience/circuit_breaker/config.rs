//! The parameters of a circuit breaker.
//!
//! [`Config`] is what was said, [`ValidConfig`] what a breaker can be made of. Each of the three
//! conditions can be left out. Nothing here decides about a call.

use crate::{
    resilience::{ConfigError, backoff},
    types::Duration,
};

/// When a breaker opens, for how long, and what makes it close.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// It opens after so many failures in a row; `None` for not. Default 5.
    pub consecutive_failures: Option<u32>,
    /// It opens when this share of the window's calls failed, in percent; `None` for not.
    /// Default 50.
    pub failure_rate: Option<u32>,
    /// It opens when a share of the window's calls were slow; `None` for not. Default none.
    pub slow_rate: Option<SlowRate>,
    /// Which calls the shares are of. Default the last 10 s, in 10 buckets.
    pub window: Window,
    /// How many calls the window must have for a share to mean something; at least 1, and at most
    /// the size of a window of calls. Default 20.
    pub minimum_calls: u32,
    /// How long it is open. `base` is the first time; each opening that follows without a closing
    /// between multiplies it by `factor`, up to `max`, spread by `jitter`. Default 1 s, doubled up
    /// to 60 s, spread by 0.2.
    pub open: backoff::Config,
    /// How many probes may be under way at once while it is half-open; 1 to 1000. Default 1.
    pub probes: u32,
    /// How many probes must succeed for it to close; at least 1. Default 1.
    pub probe_successes: u32,
    /// After this time a probe that has not ended gives its place to another, so that one that
    /// hangs, or a long stream, does not keep the breaker half-open. Its result still counts.
    /// Default 10 s.
    pub probe_timeout: Duration,
}

/// The calls that shares are taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// The last so many calls; 1 to 65,536. It takes one byte a call.
    Calls(u32),
    /// The calls of a time just past.
    Time {
        /// How long; up to 1 h.
        span: Duration,
        /// In how many equal parts it is counted; 1 to 1000. It moves on by a part at a time, so
        /// that it covers between `span` less a part and `span`.
        buckets: u32,
    },
}

/// What too many slow calls are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowRate {
    /// A call that took this long is slow, however it ended.
    pub threshold: Duration,
    /// The share of slow calls at which the breaker opens, in percent.
    pub percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            consecutive_failures: Some(5),
            failure_rate: Some(50),
            slow_rate: None,
            window: Window::Time { span: Duration::from_secs(10), buckets: 10 },
            minimum_calls: 20,
            open: backoff::Config {
                base: Duration::from_secs(1),
                factor: 2.0,
                jitter: 0.2,
                max: Duration::from_secs(60),
            },
            probes: 1,
            probe_successes: 1,
            probe_timeout: Duration::from_secs(10),
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
    /// use quorate::resilience::{ConfigError, circuit_breaker::{Config, Window}};
    ///
    /// let config = Config { window: Window::Calls(10), ..Config::default() };
    /// let refused = config.validate().expect_err("20 calls are never in a window of 10");
    /// assert!(matches!(refused, ConfigError::OutOfRange { field: "minimum_calls", .. }));
    /// ```
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        ConfigError::zero(self.consecutive_failures == Some(0), "consecutive_failures")?;
        if let Some(percent) = self.failure_rate {
            ConfigError::zero(percent == 0, "failure_rate")?;
            ConfigError::percent(percent, "failure_rate")?;
        }
        if let Some(rule) = self.slow_rate {
            ConfigError::zero(rule.threshold.is_zero(), "slow_rate.threshold")?;
            ConfigError::zero(rule.percent == 0, "slow_rate.percent")?;
            ConfigError::percent(rule.percent, "slow_rate.percent")?;
        }
        ConfigError::zero(self.minimum_calls == 0, "minimum_calls")?;
        match self.window {
            Window::Calls(calls) => {
                let sizes = 1..=65_536;
                ConfigError::range(sizes.contains(&calls), "window.calls", "1 to 65536")?;
                let reachable = self.minimum_calls <= calls || !self.has_shares();
                ConfigError::range(reachable, "minimum_calls", "1 to the calls of the window")?;
            }
            Window::Time { span, buckets } => {
                let spans = Duration::from_millis(1)..=Duration::from_hours(1);
                ConfigError::range(spans.contains(&span), "window.span", "1 ms to 1 h")?;
                let parts = 1..=1_000;
                ConfigError::range(parts.contains(&buckets), "window.buckets", "1 to 1000")?;
            }
        }
        let open = self.open.validate()?;
        ConfigError::range((1..=1_000).contains(&self.probes), "probes", "1 to 1000")?;
        ConfigError::zero(self.probe_successes == 0, "probe_successes")?;
        ConfigError::zero(self.probe_timeout.is_zero(), "probe_timeout")?;
        Ok(ValidConfig { config: self, open })
    }

    /// Whether anything looks at the window.
    const fn has_shares(&self) -> bool {
        self.failure_rate.is_some() || self.slow_rate.is_some()
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidConfig {
    pub(super) config: Config,
    pub(super) open: backoff::ValidConfig,
}

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults work")
    }
}

impl ValidConfig {
    /// As [`Config::has_shares`].
    pub(super) const fn has_shares(&self) -> bool {
        self.config.has_shares()
    }

    /// Whether a call that took `span` was slow.
    pub(super) fn is_slow(&self, span: Duration) -> bool {
        self.config.slow_rate.is_some_and(|rule| span >= rule.threshold)
    }
}
