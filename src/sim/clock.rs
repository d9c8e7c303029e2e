//! A node's clocks: one that only goes forwards, too fast or too slow, and one on the wall that is
//! wrong and jumps.

use crate::types::{Instant, LogTime};

/// Where wall clocks would stand at the start of a simulation, were they right.
const EPOCH_MS: i64 = 1_700_000_000_000;

/// One node's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    drift_ppm: i64,
    offset_ms: i64,
}

impl Clock {
    pub(crate) const fn new(drift_ppm: i64, skew_ms: i64) -> Self {
        Self { drift_ppm, offset_ms: skew_ms }
    }

    /// The wall clock jumps.
    pub(crate) const fn jump(&mut self, by_ms: i64) {
        self.offset_ms += by_ms;
    }

    /// What the node's monotonic clock shows.
    pub(crate) fn monotonic(self, now: Instant) -> Instant {
        let factor = i128::from(1_000_000 + self.drift_ppm);
        let nanos = i128::from(now.as_nanos()) * factor / 1_000_000;
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// When the monotonic clock will show this, or a moment later.
    pub(crate) fn reaches(self, shown: Instant) -> Instant {
        if shown == Instant::FAR {
            return shown;
        }
        let factor = i128::from(1_000_000 + self.drift_ppm);
        let nanos = (i128::from(shown.as_nanos()) * 1_000_000).div_euclid(factor) + 1;
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// What the wall clock shows.
    pub(crate) fn wall(self, now: Instant) -> LogTime {
        let shown = i64::try_from(self.monotonic(now).as_nanos() / 1_000_000).unwrap_or(i64::MAX);
        let millis = EPOCH_MS.saturating_add(shown).saturating_add(self.offset_ms);
        LogTime::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Duration;

    #[test]
    fn a_deadline_on_a_drifting_clock_is_reached_and_not_long_before() {
        for drift in [-20_000, 0, 7, 20_000] {
            let clock = Clock::new(drift, 0);
            for nanos in [0, 1, 999_999, 123_456_789_012] {
                let shown = Instant::from_nanos(nanos);
                let at = clock.reaches(shown);
                assert!(clock.monotonic(at) >= shown, "{drift} {nanos}");
                let early = Instant::from_nanos(at.as_nanos().saturating_sub(3));
                assert!(clock.monotonic(early) <= shown, "{drift} {nanos}");
            }
        }
    }

    #[test]
    fn a_jump_moves_the_wall_alone() {
        let mut clock = Clock::new(0, 500);
        let now = Instant::ZERO.after(Duration::from_secs(1));
        let before = clock.wall(now);
        clock.jump(-2_000);
        assert_eq!(clock.wall(now).as_millis(), before.as_millis() - 2_000);
        assert_eq!(clock.monotonic(now), now);
    }
}
