//! The calls that shares are taken of: the last so many, or those of a time just past.
//!
//! Both keep the sum up to date, so that a share costs nothing to read. All room is taken at the
//! start. Nothing here decides what a share means.

use crate::{resilience::circuit_breaker::config, types::Instant};

/// What a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All calls.
    pub calls: u32,
    /// Those that failed.
    pub failures: u32,
    /// Those that were slow, failed or not.
    pub slow: u32,
}

impl Tally {
    const fn one(failed: bool, slow: bool) -> Self {
        Self { calls: 1, failures: failed as u32, slow: slow as u32 }
    }

    const fn add(&mut self, other: Self) {
        self.calls = self.calls.saturating_add(other.calls);
        self.failures = self.failures.saturating_add(other.failures);
        self.slow = self.slow.saturating_add(other.slow);
    }

    const fn subtract(&mut self, other: Self) {
        self.calls = self.calls.saturating_sub(other.calls);
        self.failures = self.failures.saturating_sub(other.failures);
        self.slow = self.slow.saturating_sub(other.slow);
    }
}

#[derive(Debug)]
pub(super) enum Window {
    Calls(Calls),
    Time(Time),
}

/// The last calls, a byte each.
#[derive(Debug)]
pub(super) struct Calls {
    slots: Box<[u8]>,
    next: usize,
    sum: Tally,
}

/// The calls of the last parts of time.
#[derive(Debug)]
pub(super) struct Time {
    slots: Box<[Tally]>,
    /// The length of a part, in nanoseconds.
    part: u64,
    /// The number of the part that is now, from the start of time.
    current: u64,
    sum: Tally,
}

const USED: u8 = 1;
const FAILED: u8 = 2;
const SLOW: u8 = 4;

impl Window {
    pub(super) fn new(window: config::Window) -> Self {
        match window {
            config::Window::Calls(calls) => {
                let slots = vec![0; calls as usize].into_boxed_slice();
                Self::Calls(Calls { slots, next: 0, sum: Tally::default() })
            }
            config::Window::Time { span, buckets } => {
                let slots = vec![Tally::default(); buckets as usize].into_boxed_slice();
                let span = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
                let part = (span / u64::from(buckets)).max(1);
                Self::Time(Time { slots, part, current: 0, sum: Tally::default() })
            }
        }
    }

    pub(super) fn push(&mut self, failed: bool, slow: bool, now: Instant) {
        match self {
            Self::Calls(calls) => calls.push(failed, slow),
            Self::Time(time) => {
                time.advance(now);
                let slot = time.slot(time.current);
                time.slots[slot].add(Tally::one(failed, slow));
                time.sum.add(Tally::one(failed, slow));
            }
        }
    }

    /// What it holds at `now`.
    pub(super) fn tally(&mut self, now: Instant) -> Tally {
        match self {
            Self::Calls(calls) => calls.sum,
            Self::Time(time) => {
                time.advance(now);
                time.sum
            }
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Self::Calls(calls) => {
                calls.slots.fill(0);
                (calls.next, calls.sum) = (0, Tally::default());
            }
            Self::Time(time) => {
                time.slots.fill(Tally::default());
                time.sum = Tally::default();
            }
        }
    }
}

impl Calls {
    fn push(&mut self, failed: bool, slow: bool) {
        let old = self.slots[self.next];
        if old & USED != 0 {
            self.sum.subtract(Tally::one(old & FAILED != 0, old & SLOW != 0));
        }
        self.slots[self.next] = USED | (u8::from(failed) * FAILED) | (u8::from(slow) * SLOW);
        self.sum.add(Tally::one(failed, slow));
        self.next = (self.next + 1) % self.slots.len();
    }
}

impl Time {
    /// Forgets the parts that are over. A time that lies before the current part changes nothing:
    /// calls that end at the same time report in any order.
    fn advance(&mut self, now: Instant) {
        let part = now.as_nanos() / self.part;
        let passed = part.saturating_sub(self.current).min(self.slots.len() as u64);
        for step in 0..passed {
            let slot = self.slot(part - step);
            self.sum.subtract(self.slots[slot]);
            self.slots[slot] = Tally::default();
        }
        self.current = self.current.max(part);
    }

    const fn slot(&self, part: u64) -> usize {
        (part % self.slots.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Duration;

    fn at(millis: u64) -> Instant {
        Instant::ZERO.after(Duration::from_millis(millis))
    }

    #[test]
    fn a_window_of_calls_forgets_the_oldest() {
        let mut window = Window::new(config::Window::Calls(3));
        for (failed, slow) in [(true, false), (true, true), (false, true), (false, false)] {
            window.push(failed, slow, at(0));
        }
        assert_eq!(window.tally(at(99_999)), Tally { calls: 3, failures: 1, slow: 2 });
        window.clear();
        assert_eq!(window.tally(at(0)), Tally::default());
    }

    #[test]
    fn a_window_of_time_forgets_part_by_part() {
        let span = Duration::from_millis(100);
        let mut window = Window::new(config::Window::Time { span, buckets: 10 });
        window.push(true, false, at(5));
        window.push(true, false, at(15));
        assert_eq!(window.tally(at(99)).failures, 2);
        assert_eq!(window.tally(at(100)).failures, 1, "the first part is over");
        assert_eq!(window.tally(at(110)).failures, 0);
        window.push(false, false, at(1_000_000));
        window.push(false, false, at(5));
        assert_eq!(window.tally(at(1_000_000)).calls, 2, "one that reports late counts now");
    }

    proptest! {
        #[test]
        fn both_agree_with_a_list_of_all_calls(
            size in 1_u32..20,
            buckets in 1_u32..20,
            part_ms in 1_u64..20,
            calls in prop::collection::vec((0_u64..40, any::<bool>(), any::<bool>()), 1..200),
        ) {
            let span = Duration::from_millis(part_ms * u64::from(buckets));
            let mut last = Window::new(config::Window::Calls(size));
            let mut recent = Window::new(config::Window::Time { span, buckets });
            let (mut all, mut now) = (Vec::new(), 0);
            let sum = |calls: &mut dyn Iterator<Item = &(u64, bool, bool)>| {
                let mut sum = Tally::default();
                calls.for_each(|call| sum.add(Tally::one(call.1, call.2)));
                sum
            };
            for (later, failed, slow) in calls {
                now += later;
                all.push((now, failed, slow));
                last.push(failed, slow, at(now));
                recent.push(failed, slow, at(now));
                let expected = sum(&mut all.iter().rev().take(size as usize));
                prop_assert_eq!(last.tally(at(now)), expected);
                let oldest = (now / part_ms).saturating_sub(u64::from(buckets) - 1);
                let expected = sum(&mut all.iter().filter(|call| call.0 / part_ms >= oldest));
                prop_assert_eq!(recent.tally(at(now)), expected);
            }
        }
    }
}
