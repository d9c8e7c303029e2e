//! How often the calls of a client are sent again, all of them together.
//!
//! A call by itself goes on until its limit. Many of them would keep a cluster down that cannot bear
//! the calls themselves, so what they send beyond their first attempts comes out of one budget. While
//! that is empty a call waits, and is not failed. Nothing here sends or waits.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crate::{
    layers::Clock,
    resilience::retry_budget::{Config, RetryBudget, Share, ValidConfig},
    types::Duration,
};

/// The budget of a client, unless said otherwise. Its least number is more than the calls of a busy
/// client need while a cluster elects, and is there again after two seconds: before the calls that
/// wait for it reach their limit.
pub(super) const BUDGET: Config =
    Config::Share(Share { ratio: 0.2, per_second_min: 250, window: Duration::from_secs(2) });

/// What a client sent beyond the first attempts of its calls, its clones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryStats {
    /// Requests that were sent again.
    pub sent: u64,
    /// How often a request was held back because the budget was empty.
    pub held_back: u64,
}

/// The budget of a client's calls, and what came of it.
#[derive(Debug)]
pub(super) struct Retries {
    budget: Option<RetryBudget>,
    clock: Clock,
    /// Whether the budget was empty when it was last asked: that is logged once.
    is_empty: AtomicBool,
    sent: AtomicU64,
    held_back: AtomicU64,
}

impl Retries {
    /// Without a budget nothing is held back.
    pub(super) fn new(budget: Option<ValidConfig>) -> Self {
        Self {
            budget: budget.map(RetryBudget::new),
            clock: Clock::start(),
            is_empty: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
        }
    }

    /// A call begins, and pays for its share of what is sent again.
    pub(super) fn called(&self) {
        if let Some(budget) = &self.budget {
            budget.called(self.clock.now());
        }
    }

    /// Whether a request may be sent again now; takes that out of the budget.
    pub(super) fn allows(&self) -> bool {
        let now = self.clock.now();
        if self.budget.as_ref().is_none_or(|budget| budget.withdraw(now)) {
            self.sent.fetch_add(1, Relaxed);
            self.is_empty.store(false, Relaxed);
            return true;
        }
        self.held_back.fetch_add(1, Relaxed);
        if !self.is_empty.swap(true, Relaxed) {
            tracing::warn!("too many calls fail: what is to be sent again waits for the budget");
        }
        false
    }

    pub(super) fn stats(&self) -> RetryStats {
        RetryStats { sent: self.sent.load(Relaxed), held_back: self.held_back.load(Relaxed) }
    }
}
