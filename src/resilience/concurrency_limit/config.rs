//! The parameters of a concurrency limit, with the defaults of Netflix's library where it has some.
//!
//! [`Config`] is what was said, [`ValidConfig`] what a limit can be made of. Nothing here decides
//! about a call.

use crate::{resilience::ConfigError, types::Duration};

/// How many classes calls may have: 0 is the most important one, 7 the least.
pub const CLASSES: usize = 8;

/// How a limit is found, and who may wait for a place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How the limit follows the load. Default Gradient2.
    pub algorithm: Algorithm,
    /// The limit at the start, in calls; drawn into `min` and `max`. Default 20.
    pub initial: usize,
    /// The least limit, at least 1. Default 4.
    pub min: usize,
    /// The greatest limit, at least `min`, up to 1,000,000. Default 1,000.
    pub max: usize,
    /// Samples are gathered for so long and judged as one: their mean latency, their greatest
    /// number in flight, and whether any was dropped. Zero judges each on its own; up to 1 min.
    /// Default 100 ms. Netflix has 1 s, which is slow for calls of a few milliseconds.
    pub window: Duration,
    /// A window goes on until it has so many samples. Default 10.
    pub window_samples: u32,
    /// How many calls may wait for a place; zero refuses at once. Default 100.
    pub queue_max: usize,
    /// How long a call may wait for a place. Zero refuses at once. Default 100 ms.
    pub queue_wait_max: Duration,
    /// How much of the limit the calls of each class may fill, in percent: 1 to 100, never more than
    /// the class before it. Every class gets at least one place. Default 100 for all.
    pub shares: [u32; CLASSES],
}

/// How a limit follows the load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Algorithm {
    /// Not at all: it stays at `initial`.
    Fixed,
    /// Up by one, down by a share: the plainest, good where overload shows as drops or as latency
    /// above a known bound.
    Aimd(Aimd),
    /// Keeps a few calls queued, judged by the latency over the least one seen. Good where calls
    /// are alike.
    Vegas(Vegas),
    /// Follows the ratio of the long to the latest latency. Good where latencies differ and drift.
    Gradient2(Gradient2),
}

/// Additive increase, multiplicative decrease (`AIMDLimit`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aimd {
    /// What a drop multiplies the limit by; 0.5 to below 1. Default 0.9.
    pub backoff: f64,
    /// A latency above it counts as a drop. Default 5 s.
    pub latency_max: Duration,
}

/// After TCP Vegas (`VegasLimit`). With `n` the limit, the estimate of calls that queue is
/// `n * (1 - least latency / latency)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vegas {
    /// Below `alpha * log10(n)` queued the limit grows. Above zero, below `beta`. Default 3.
    pub alpha: f64,
    /// Above `beta * log10(n)` queued it shrinks. Default 6.
    pub beta: f64,
    /// How much of a change is taken; above 0 to 1. Default 1.
    pub smoothing: f64,
    /// The least latency is measured anew after about so many times the limit in samples, so that
    /// it can also grow; at least 1. Default 30.
    pub probe: u32,
}

/// By the gradient of the latency (`Gradient2Limit`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gradient2 {
    /// How far the latest latency may lie above the long average before the limit shrinks, as a
    /// factor; 1 to 10. Default 1.5.
    pub tolerance: f64,
    /// How much of a change is taken; above 0 to 1. Default 0.2.
    pub smoothing: f64,
    /// How many calls may queue: what the limit grows by. 1 to 1,000. Default 4.
    pub queue: u32,
    /// How many samples the long average spans; 10 to 1,000,000. Default 600.
    pub long_window: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            algorithm: Algorithm::Gradient2(Gradient2::default()),
            initial: 20,
            min: 4,
            max: 1_000,
            window: Duration::from_millis(100),
            window_samples: 10,
            queue_max: 100,
            queue_wait_max: Duration::from_millis(100),
            shares: [100; CLASSES],
        }
    }
}

impl Default for Aimd {
    fn default() -> Self {
        Self { backoff: 0.9, latency_max: Duration::from_secs(5) }
    }
}

impl Default for Vegas {
    fn default() -> Self {
        Self { alpha: 3.0, beta: 6.0, smoothing: 1.0, probe: 30 }
    }
}

impl Default for Gradient2 {
    fn default() -> Self {
        Self { tolerance: 1.5, smoothing: 0.2, queue: 4, long_window: 600 }
    }
}

impl Config {
    /// A limit that stays, with the queue of the defaults.
    #[must_use]
    pub fn fixed(limit: usize) -> Self {
        let algorithm = Algorithm::Fixed;
        Self { algorithm, initial: limit, min: limit, max: limit, ..Self::default() }
    }

    /// Checks the figures.
    ///
    /// # Errors
    /// The first figure that cannot work.
    ///
    /// ```
    /// use quorate::resilience::{ConfigError, concurrency_limit::Config};
    ///
    /// assert!(Config::fixed(16).validate().is_ok());
    /// let refused = Config::fixed(0).validate().expect_err("nothing would ever pass");
    /// assert_eq!(refused, ConfigError::Zero { field: "min" });
    /// ```
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        ConfigError::zero(self.min == 0, "min")?;
        ConfigError::range((self.min..=1_000_000).contains(&self.max), "max", "min to 1,000,000")?;
        ConfigError::range(self.window <= Duration::from_mins(1), "window", "0 to 1 min")?;
        ConfigError::zero(self.window_samples == 0, "window_samples")?;
        let mut before = 100;
        for share in self.shares {
            let why = "1 to 100, never rising from class to class";
            ConfigError::range((1..=before).contains(&share), "shares", why)?;
            before = share;
        }
        self.algorithm.validate()?;
        Ok(ValidConfig(Self { initial: self.initial.clamp(self.min, self.max), ..self }))
    }
}

impl Algorithm {
    fn validate(&self) -> Result<(), ConfigError> {
        let share = |figure: f64| figure > 0.0 && figure <= 1.0;
        match self {
            Self::Fixed => Ok(()),
            Self::Aimd(aimd) => {
                let inside = (0.5..1.0).contains(&aimd.backoff);
                ConfigError::range(inside, "backoff", "0.5 to below 1")?;
                ConfigError::zero(aimd.latency_max.is_zero(), "latency_max")
            }
            Self::Vegas(vegas) => {
                let inside = vegas.alpha > 0.0 && vegas.alpha < vegas.beta;
                ConfigError::range(inside, "alpha", "above 0, below beta")?;
                ConfigError::range(vegas.beta <= 1_000.0, "beta", "alpha to 1,000")?;
                ConfigError::range(share(vegas.smoothing), "smoothing", "above 0 to 1")?;
                ConfigError::zero(vegas.probe == 0, "probe")
            }
            Self::Gradient2(gradient) => {
                let inside = (1.0..=10.0).contains(&gradient.tolerance);
                ConfigError::range(inside, "tolerance", "1 to 10")?;
                ConfigError::range(share(gradient.smoothing), "smoothing", "above 0 to 1")?;
                let inside = (1..=1_000).contains(&gradient.queue);
                ConfigError::range(inside, "queue", "1 to 1,000")?;
                let inside = (10..=1_000_000).contains(&gradient.long_window);
                ConfigError::range(inside, "long_window", "10 to 1,000,000")
            }
        }
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValidConfig(pub(super) Config);

impl Default for ValidConfig {
    fn default() -> Self {
        Config::default().validate().expect("the defaults work")
    }
}

impl ValidConfig {
    /// The figures.
    #[must_use]
    pub const fn figures(&self) -> &Config {
        &self.0
    }
}
