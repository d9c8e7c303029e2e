//! What hedging did, as plain counters.
//!
//! They only grow. Nothing here decides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::types::Duration;

/// What a layer of hedging did since it was made, its clones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls, also those that are not repeatable.
    pub calls: u64,
    /// Calls of which a second copy was sent.
    pub hedged: u64,
    /// Copies after the first of a call.
    pub copies: u64,
    /// Calls that were answered by a later copy than the first.
    pub won: u64,
    /// Copies that were dropped because another one was answered.
    pub dropped: u64,
    /// Calls whose next copy the budget did not allow.
    pub denied: u64,
    /// How long a call may take now before a copy of it is sent.
    pub delay: Duration,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) calls: AtomicU64,
    pub(super) hedged: AtomicU64,
    pub(super) copies: AtomicU64,
    pub(super) won: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) denied: AtomicU64,
    /// Whether the budget was empty when it was last asked: that is logged once.
    pub(super) dry: AtomicBool,
}

impl Counters {
    pub(super) fn read(&self, delay: Duration) -> Stats {
        Stats {
            calls: self.calls.load(Relaxed),
            hedged: self.hedged.load(Relaxed),
            copies: self.copies.load(Relaxed),
            won: self.won.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            denied: self.denied.load(Relaxed),
            delay,
        }
    }
}
