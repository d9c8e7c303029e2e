//! What the path of a call counts about a host.
//!
//! Atomics behind `&self`, without time and without a lock: a call records once, when it ends; the
//! detector swaps the counts out at each sweep, which stands for A50's two buckets.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The calls of one host since the last sweep, and its failures in a row.
///
/// It is shared between the calls and the [`Detector`](super::Detector) that made it.
///
/// The default one never reaches a threshold, for what no detector watches.
#[derive(Debug, Default)]
pub struct Tally {
    successes: AtomicU64,
    failures: AtomicU64,
    run: AtomicU32,
    /// The run reached the threshold, and the detector has not seen it yet. A success afterwards
    /// does not take it back.
    tripped: AtomicBool,
    /// Zero for none.
    threshold: u32,
}

/// What one interval brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) successes: u64,
    pub(super) failures: u64,
}

impl Tally {
    pub(super) const fn new(threshold: u32) -> Self {
        Self {
            successes: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            run: AtomicU32::new(0),
            tripped: AtomicBool::new(false),
            threshold,
        }
    }

    /// Counts a call that has ended. Leave out what says nothing about the host, as a call that
    /// its caller gave up.
    ///
    /// `true` says that the failures in a row have just reached the threshold: the caller wakes
    /// whoever owns the detector, which then calls [`enforce`](super::Detector::enforce).
    pub fn record(&self, success: bool) -> bool {
        if success {
            self.successes.fetch_add(1, Relaxed);
            // Most successes follow one: do not take the line for nothing.
            if self.run.load(Relaxed) != 0 {
                self.run.store(0, Relaxed);
            }
            return false;
        }
        self.failures.fetch_add(1, Relaxed);
        let run = self.run.fetch_add(1, Relaxed).wrapping_add(1);
        let reached = run == self.threshold;
        if reached {
            self.tripped.store(true, Relaxed);
        }
        reached
    }

    /// The failures in a row until now.
    #[must_use]
    pub fn run(&self) -> u32 {
        self.run.load(Relaxed)
    }

    /// Takes the counts and begins new ones.
    pub(super) fn take(&self) -> Counts {
        Counts {
            successes: self.successes.swap(0, Relaxed),
            failures: self.failures.swap(0, Relaxed),
        }
    }

    /// Whether the run reached the threshold since this was last asked. The run then begins anew,
    /// as in Envoy, so that a host that could not be ejected may trip again.
    pub(super) fn take_tripped(&self) -> bool {
        // A load is enough for the many that did not.
        let tripped = self.tripped.load(Relaxed) && self.tripped.swap(false, Relaxed);
        if tripped {
            self.run.store(0, Relaxed);
        }
        tripped
    }

    /// Forgets the failures in a row: a host that returns begins anew, as in Envoy.
    pub(super) fn reset_run(&self) {
        self.run.store(0, Relaxed);
        self.tripped.store(false, Relaxed);
    }
}
