//! What came of a tree of tasks: why it was cancelled, what failed first, how many tasks ended how.
//! Only figures and words; nothing here runs anything.

use std::{borrow::Cow, fmt, sync::Arc};

use thiserror::Error;

use crate::layers::BoxError;

/// How many names of uncancellable sections an outcome keeps.
const NAMES_MAX: usize = 16;

/// Why a scope was cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// Somebody asked for it, in these words.
    Asked(Cow<'static, str>),
    /// Its deadline passed.
    Deadline,
    /// It was dropped, or the future that joined it.
    Dropped,
    /// The task of this name failed.
    Failed(&'static str),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(words) => f.write_str(words),
            Self::Deadline => f.write_str("the deadline passed"),
            Self::Dropped => f.write_str("the scope was dropped"),
            Self::Failed(task) => write!(f, "task {task} failed"),
        }
    }
}

/// A task that failed.
#[derive(Debug, Error)]
#[error("task {task}: {cause}")]
pub struct Failure {
    /// The name that it was spawned with, or that of an uncancellable section nobody waited for.
    pub task: &'static str,
    /// How it failed.
    pub cause: Cause,
}

/// How a task failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Cause {
    /// It returned an error.
    #[error(transparent)]
    Error(BoxError),
    /// It panicked, with these words.
    #[error("panicked: {0}")]
    Panicked(String),
    /// The cleanup of this name took longer than the limit and was dropped.
    #[error("cleanup {0} took too long")]
    CleanupLate(&'static str),
    /// The cleanup of this name panicked.
    #[error("cleanup {0} panicked: {1}")]
    CleanupPanicked(&'static str, String),
}

/// How many tasks ended how, since the scope was made; those of the scopes below it included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Came to their ends, also where they were cancelled and heeded it.
    pub done: u64,
    /// Returned an error.
    pub failed: u64,
    /// Panicked.
    pub panicked: u64,
    /// Were dropped where they stood, as [`super::Scope::spawn`] says.
    pub cancelled: u64,
    /// Did not end within the grace and were dropped.
    pub aborted: u64,
    /// Were spawned when the scope was cancelled or closed already, and never began.
    pub not_started: u64,
    /// Cleanups that ran to their ends.
    pub cleanups: u64,
    /// Cleanups that panicked or took too long.
    pub cleanups_failed: u64,
    /// Uncancellable sections that ended after the scope was cancelled.
    pub uncancellable: u64,
}

/// What came of a scope and everything below it.
#[derive(Debug)]
#[must_use = "it tells what failed"]
#[non_exhaustive]
pub struct Outcome {
    /// Why the scope was cancelled, first of all reasons; its own, or else that of a scope above it.
    pub cancelled: Option<Reason>,
    /// The first failure of a task, but for those below a scope that is contained.
    pub failure: Option<Arc<Failure>>,
    /// How the tasks ended.
    pub counts: Counts,
    /// The names of the first 16 uncancellable sections that ended after the scope was cancelled.
    pub uncancellable: Vec<&'static str>,
}

impl Outcome {
    /// Whether every task came to its end by itself and none failed.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        self.cancelled.is_none() && self.failure.is_none()
    }
}

/// How one task ended.
#[derive(Debug)]
pub(super) enum Ended {
    Done,
    Failed(BoxError),
    Panicked(String),
    Cancelled,
    Aborted,
    NotStarted,
}

/// What a scope remembers of its tasks.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) counts: Counts,
    pub(super) uncancellable: Vec<&'static str>,
    pub(super) failure: Option<Arc<Failure>>,
}

impl Tally {
    pub(super) const fn ended(&mut self, ended: &Ended) {
        let counts = &mut self.counts;
        let count = match ended {
            Ended::Done => &mut counts.done,
            Ended::Failed(_) => &mut counts.failed,
            Ended::Panicked(_) => &mut counts.panicked,
            Ended::Cancelled => &mut counts.cancelled,
            Ended::Aborted => &mut counts.aborted,
            Ended::NotStarted => &mut counts.not_started,
        };
        *count += 1;
    }

    pub(super) fn waited_for(&mut self, section: &'static str) {
        self.counts.uncancellable += 1;
        if self.uncancellable.len() < NAMES_MAX {
            self.uncancellable.push(section);
        }
    }
}
