//! What retries did, as plain counters.
//!
//! They only grow. Nothing here decides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::resilience::retry::Why;

/// What a layer of retries did since it was made, its clones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls.
    pub calls: u64,
    /// Attempts after the first of a call.
    pub retries: u64,
    /// Calls that failed at first and then did not.
    pub recovered: u64,
    /// Calls whose body could not be kept: streams, and large ones.
    pub sent_once: u64,
    /// Failed calls that were not sent again.
    pub given_up: GivenUp,
}

/// Failed calls that were not sent again, by why; see [`Why`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenUp {
    /// They may have been carried out, and twice would do harm.
    pub not_repeatable: u64,
    /// The other side asked for it.
    pub pushed_back: u64,
    /// They were sent as often as allowed.
    pub attempts: u64,
    /// The next attempt could not end in time.
    pub deadline: u64,
    /// The budget was empty.
    pub budget: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) calls: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) recovered: AtomicU64,
    pub(super) sent_once: AtomicU64,
    given_up: [AtomicU64; 5],
    /// Whether the budget was empty when it was last asked: that is logged once.
    pub(super) dry: AtomicBool,
}

impl Counters {
    pub(super) const fn given_up(&self, why: Why) -> &AtomicU64 {
        &self.given_up[why as usize]
    }

    pub(super) fn read(&self) -> Stats {
        let given_up = |why| self.given_up(why).load(Relaxed);
        Stats {
            calls: self.calls.load(Relaxed),
            retries: self.retries.load(Relaxed),
            recovered: self.recovered.load(Relaxed),
            sent_once: self.sent_once.load(Relaxed),
            given_up: GivenUp {
                not_repeatable: given_up(Why::NotRepeatable),
                pushed_back: given_up(Why::PushedBack),
                attempts: given_up(Why::Attempts),
                deadline: given_up(Why::Deadline),
                budget: given_up(Why::Budget),
            },
        }
    }
}
