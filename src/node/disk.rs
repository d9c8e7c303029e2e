//! How long the log's disk takes: a leader whose disk makes no progress stops leading.
//!
//! Counts what was handed to the writer and not synced yet; it touches no disk.

use std::collections::VecDeque;

use crate::types::{Duration, Instant};

/// Watches how long the log's disk takes (rule 21).
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// When each batch that is not synced yet was handed over.
    waiting: VecDeque<Instant>,
    stalled: bool,
}

impl Disk {
    /// How many batches wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A batch was handed over.
    pub(crate) fn handed_over(&mut self, now: Instant) {
        self.waiting.push_back(now);
    }

    /// So many of the oldest batches are durable.
    pub(crate) fn synced(&mut self, batches: u64) {
        for _ in 0..batches {
            self.waiting.pop_front();
        }
    }

    /// Whether the disk has stalled since the last look, or has come back.
    pub(crate) fn check(&mut self, now: Instant, timeout: Duration) -> Option<bool> {
        let stalled = self.waiting.front().is_some_and(|since| now.since(*since) >= timeout);
        let changed = stalled != self.stalled;
        self.stalled = stalled;
        if changed {
            tracing::warn!(stalled, "the log's disk");
        }
        changed.then_some(stalled)
    }
}
