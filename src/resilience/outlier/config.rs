//! The parameters of outlier detection, with the defaults of gRFC A50 and Envoy.
//!
//! [`Config`] is what was said, [`ValidConfig`] what a detector can be made of. Each of the three
//! detections can be left out. Nothing here decides about a host.

use crate::{resilience::ConfigError, types::Duration};

/// How outliers are detected. By default all three detections are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The time between two sweeps, at which hosts are judged and returned; up to 1 h.
    /// Default 10 s.
    pub interval: Duration,
    /// How long a host is ejected; multiplied by how often it was of late. Default 30 s.
    pub base_ejection_time: Duration,
    /// The longest time a host is ejected; below `base_ejection_time` it counts as that.
    /// Default 300 s.
    pub max_ejection_time: Duration,
    /// No host is ejected while this share of them is, in percent; but one always may be.
    /// Default 10.
    pub max_ejection_percent: u32,
    /// Detection by success rate, or `None` for none.
    pub success_rate: Option<SuccessRate>,
    /// Detection by failure percentage, or `None` for none.
    pub failure_percentage: Option<FailurePercentage>,
    /// Detection by failures in a row, or `None` for none.
    pub consecutive_failures: Option<ConsecutiveFailures>,
}

/// Ejects hosts whose success rate in an interval is far below the mean of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// How many thousandths of the standard deviation below the mean a rate may lie.
    /// Default 1900.
    pub stdev_factor: u32,
    /// The chance that a detected host is ejected, in percent. Default 100.
    pub enforcement_percentage: u32,
    /// How many hosts must have `request_volume` for any to be judged. Default 5.
    pub minimum_hosts: u32,
    /// How many calls a host must have had in the interval to be judged. Default 100.
    pub request_volume: u32,
}

/// Ejects hosts of whose calls in an interval more than a share failed, whatever others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// The percentage of failures above which a host is ejected. Default 85.
    pub threshold: u32,
    /// The chance that a detected host is ejected, in percent. Default 100.
    pub enforcement_percentage: u32,
    /// How many hosts must have `request_volume` for any to be judged. Default 5.
    pub minimum_hosts: u32,
    /// How many calls a host must have had in the interval to be judged. Default 50.
    pub request_volume: u32,
}

/// Ejects a host at once when so many calls in a row have failed. Envoy's
/// `consecutive_gateway_failure`, with the caller saying what a failure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsecutiveFailures {
    /// How many in a row. Default 5.
    pub threshold: u32,
    /// The chance that a detected host is ejected, in percent. Default 100.
    pub enforcement_percentage: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 10,
            success_rate: Some(SuccessRate::default()),
            failure_percentage: Some(FailurePercentage::default()),
            consecutive_failures: Some(ConsecutiveFailures::default()),
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            stdev_factor: 1_900,
            enforcement_percentage: 100,
            minimum_hosts: 5,
            request_volume: 100,
        }
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self { threshold: 85, enforcement_percentage: 100, minimum_hosts: 5, request_volume: 50 }
    }
}

impl Default for ConsecutiveFailures {
    fn default() -> Self {
        Self { threshold: 5, enforcement_percentage: 100 }
    }
}

impl Config {
    /// No detection at all: nothing is ever ejected.
    #[must_use]
    pub fn off() -> Self {
        Self {
            success_rate: None,
            failure_percentage: None,
            consecutive_failures: None,
            ..Self::default()
        }
    }

    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    ///
    /// ```
    /// use quorate::resilience::outlier::{Config, ConsecutiveFailures};
    ///
    /// let strict = ConsecutiveFailures { threshold: 3, ..ConsecutiveFailures::default() };
    /// let config = Config { consecutive_failures: Some(strict), ..Config::default() };
    /// assert!(config.validate().is_ok());
    /// ```
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        let intervals = Duration::from_nanos(1)..=Duration::from_hours(1);
        ConfigError::range(intervals.contains(&self.interval), "interval", "1 ns to 1 h")?;
        ConfigError::zero(self.base_ejection_time.is_zero(), "base_ejection_time")?;
        ConfigError::percent(self.max_ejection_percent, "max_ejection_percent")?;
        if let Some(rule) = self.success_rate {
            let field = "success_rate.enforcement_percentage";
            ConfigError::percent(rule.enforcement_percentage, field)?;
            ConfigError::zero(rule.request_volume == 0, "success_rate.request_volume")?;
        }
        if let Some(rule) = self.failure_percentage {
            ConfigError::percent(rule.threshold, "failure_percentage.threshold")?;
            let field = "failure_percentage.enforcement_percentage";
            ConfigError::percent(rule.enforcement_percentage, field)?;
            ConfigError::zero(rule.request_volume == 0, "failure_percentage.request_volume")?;
        }
        if let Some(rule) = self.consecutive_failures {
            ConfigError::zero(rule.threshold == 0, "consecutive_failures.threshold")?;
            let field = "consecutive_failures.enforcement_percentage";
            ConfigError::percent(rule.enforcement_percentage, field)?;
        }
        let max_ejection_time = self.max_ejection_time.max(self.base_ejection_time);
        Ok(ValidConfig(Self { max_ejection_time, ..self }))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidConfig(pub(super) Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults are those of A50 and Envoy")
    }
}

impl ValidConfig {
    /// Whether any detection is on.
    pub(super) const fn detects(&self) -> bool {
        let Config { success_rate, failure_percentage, consecutive_failures, .. } = &self.0;
        success_rate.is_some() || failure_percentage.is_some() || consecutive_failures.is_some()
    }
}
