//! The time as the deterministic machines know it, told from tokio's clock: a test that pauses that
//! one has it in its hand.

use crate::types::Instant;

/// The time since a start. Cheap to copy; copies agree.
#[derive(Clone, Copy, Debug)]
pub struct Clock(tokio::time::Instant);

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Self {
        Self(tokio::time::Instant::now())
    }

    /// The time since the start.
    #[must_use]
    pub fn now(self) -> Instant {
        Instant::ZERO.after(self.0.elapsed())
    }

    /// A point in time as tokio's timers take it. What lies too far ahead to be told is a year away.
    #[must_use]
    pub fn at(self, instant: Instant) -> tokio::time::Instant {
        const YEAR: crate::types::Duration = crate::types::Duration::from_secs(365 * 86_400);
        self.0 + instant.since(Instant::ZERO).min(self.0.elapsed() + YEAR)
    }

    /// A point in time of tokio's as this clock tells it; the start for what lies before it.
    #[must_use]
    pub fn of(self, at: tokio::time::Instant) -> Instant {
        Instant::ZERO.after(at.saturating_duration_since(self.0))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::start()
    }
}
