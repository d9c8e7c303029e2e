//! What a disk was told to keep and said to have kept, counted beside the log itself: the yardstick
//! for "durable on a quorum", crashed disks counted.

use std::collections::BTreeMap;

use crate::{
    node::replica::WalJob,
    raft::{HardState, LogStart, Restored},
    types::{LogIndex, Term},
};

/// A write, without what its entries hold.
#[derive(Clone, Debug)]
pub(crate) enum DurableChange {
    Append {
        hard: HardState,
        reset_to: Option<LogStart>,
        truncate_from: Option<LogIndex>,
        entries: Vec<(LogIndex, Term)>,
    },
    Purge(LogIndex),
}

impl DurableChange {
    pub(crate) fn of(job: &WalJob) -> Self {
        match job {
            WalJob::Append(append) => Self::Append {
                hard: append.hard,
                reset_to: append.reset_to,
                truncate_from: append.truncate_from,
                entries: append.entries.iter().map(|entry| (entry.index, entry.term)).collect(),
            },
            WalJob::Purge(start) => Self::Purge(start.index),
        }
    }
}

/// What a disk holds durably.
#[derive(Clone, Debug, Default)]
pub(crate) struct DurableLog {
    pub(crate) hard: HardState,
    /// Everything up to here was in the state when it was cut.
    pub(crate) start: LogIndex,
    pub(crate) entries: BTreeMap<LogIndex, Term>,
    /// The disk is lost, and counts as it stood.
    is_lost: bool,
}

impl DurableLog {
    /// A write was synced.
    pub(crate) fn change(&mut self, change: DurableChange) {
        if self.is_lost {
            return;
        }
        match change {
            DurableChange::Append { hard, reset_to, truncate_from, entries } => {
                self.hard = hard;
                if let Some(LogStart { index, term, .. }) = reset_to {
                    let connects = index <= self.start || self.entries.get(&index) == Some(&term);
                    let behind = self.entries.split_off(&index.next());
                    self.entries = if connects { behind } else { BTreeMap::new() };
                    self.start = index;
                }
                if let Some(from) = truncate_from {
                    self.entries.split_off(&from);
                }
                self.entries.extend(entries);
            }
            DurableChange::Purge(index) => {
                self.start = self.start.max(index);
                self.entries = self.entries.split_off(&index.next());
            }
        }
    }

    /// A process found this on the disk; all of it is durable now.
    pub(crate) fn restored(&mut self, restored: &Restored) {
        if self.is_lost {
            return;
        }
        self.hard = restored.hard;
        self.start = restored.purged_index;
        let entries = restored.entries.iter().map(|entry| (entry.index, entry.term));
        self.entries = entries.filter(|(index, _)| *index > restored.purged_index).collect();
    }

    /// From here on it counts as it stands.
    pub(crate) const fn lost(&mut self) {
        self.is_lost = true;
    }

    /// Whether it counts as it stood before it was lost.
    pub(crate) const fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether it has an entry, in the log or in the state behind it.
    pub(crate) fn has(&self, index: LogIndex, term: Term) -> bool {
        index <= self.start || self.entries.get(&index) == Some(&term)
    }
}
