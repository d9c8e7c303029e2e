//! What deadlines did, as plain counters.
//!
//! They only grow. Nothing here decides.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a layer of deadlines did since it was made, its clones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls that had a deadline.
    pub calls: u64,
    /// Those whose deadline had passed before anything was done.
    pub refused: u64,
    /// Those that got no answer in time.
    pub expired: u64,
    /// Those whose answer had begun and did not end in time.
    pub expired_streams: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) calls: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) expired_streams: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> Stats {
        Stats {
            calls: self.calls.load(Relaxed),
            refused: self.refused.load(Relaxed),
            expired: self.expired.load(Relaxed),
            expired_streams: self.expired_streams.load(Relaxed),
        }
    }
}
