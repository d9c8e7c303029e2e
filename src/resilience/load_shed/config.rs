//! The parameters of shedding, with CoDel's defaults.
//!
//! [`Config`] is what was said, [`ValidConfig`] what a shedder can be made of. Nothing here decides
//! about a call.

use crate::{
    resilience::{ConfigError, concurrency_limit::CLASSES},
    types::Duration,
};

/// Into how many steps the shedding of a class is divided.
pub const STEPS: u32 = 10;

/// When calls are shed, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// A queue whose delay never comes below it in an interval stands; above zero, up to 10 s.
    /// Default 5 ms, CoDel's.
    pub target: Duration,
    /// How long a delay must stay above the target; at least the target, up to 1 min. Default
    /// 100 ms, CoDel's.
    pub interval: Duration,
    /// How many classes calls have, 1 to 8: 0 is the most important one. Default 4.
    pub classes: u8,
    /// How many of the most important classes are never shed; up to `classes`. Default 0.
    pub never_shed: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            target: Duration::from_millis(5),
            interval: Duration::from_millis(100),
            classes: 4,
            never_shed: 0,
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
    /// use quorate::resilience::load_shed::Config;
    ///
    /// assert!(Config { classes: 3, never_shed: 1, ..Config::default() }.validate().is_ok());
    /// assert!(Config { classes: 0, ..Config::default() }.validate().is_err());
    /// ```
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        ConfigError::zero(self.target.is_zero(), "target")?;
        ConfigError::range(self.target <= Duration::from_secs(10), "target", "1 ns to 10 s")?;
        let intervals = self.target..=Duration::from_mins(1);
        ConfigError::range(intervals.contains(&self.interval), "interval", "target to 1 min")?;
        let inside = (1..=CLASSES).contains(&usize::from(self.classes));
        ConfigError::range(inside, "classes", "1 to 8")?;
        ConfigError::range(self.never_shed <= self.classes, "never_shed", "0 to classes")?;
        Ok(ValidConfig(self))
    }
}

/// A [`Config`] that works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// The pressure at which all is shed that may be.
    pub(super) fn pressure_max(&self) -> u32 {
        u32::from(self.0.classes - self.0.never_shed) * STEPS
    }
}
