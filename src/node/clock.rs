//! The one place that asks the operating system for the time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::{Duration, Instant, LogTime};

/// The system's clocks: a monotonic one counted from its making, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: std::time::Instant,
    #[cfg(test)]
    simulated: bool,
}

impl Clock {
    /// Starts counting.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub(crate) fn start() -> Self {
        #[cfg(test)]
        if crate::host::simulated::is_on() {
            return Self { start: tokio::time::Instant::now().into_std(), simulated: true };
        }
        Self {
            start: std::time::Instant::now(),
            #[cfg(test)]
            simulated: false,
        }
    }

    /// The monotonic time. Never zero, so that nothing lies before the start.
    #[must_use]
    pub(crate) fn now(&self) -> Instant {
        let span = self.elapsed();
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Instant::from_nanos(nanos.saturating_add(1))
    }

    fn elapsed(&self) -> Duration {
        #[cfg(test)]
        if self.simulated {
            return tokio::time::Instant::now().into_std().saturating_duration_since(self.start);
        }
        self.start.elapsed()
    }

    /// A time of the operating system as one of this clock; times before the start are the start.
    #[must_use]
    pub(crate) fn at(&self, time: std::time::Instant) -> Instant {
        let span = time.saturating_duration_since(self.start);
        Instant::from_nanos(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The wall clock, as entries carry it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub(crate) fn wall(&self) -> LogTime {
        #[cfg(test)]
        if self.simulated {
            let since = turmoil::since_epoch().unwrap_or_default();
            return LogTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        LogTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}
