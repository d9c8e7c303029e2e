//! What the log knows of one group, and how its records change it: the same steps while writing
//! and while reading back.

use std::collections::VecDeque;

use crate::{
    raft::{Entry, HardMark, HardState, LogMark, LogStart},
    types::{LogIndex, LogTime, Planted, Term, planted},
};

/// What a group's log holds after a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Term, vote and the commit index that was known.
    pub hard: HardState,
    /// The term of the leader whose log this is.
    pub leader_term: Term,
    /// The last entry that is no longer kept.
    pub purged_index: LogIndex,
    /// Its term.
    pub purged_term: Term,
    /// Its log time.
    pub purged_time: LogTime,
    /// The entries after it, without a gap.
    pub entries: Vec<Entry>,
}

impl RecoveredGroup {
    /// The index of the last entry; the purged one's where there is none.
    #[must_use]
    pub fn last_index(&self) -> LogIndex {
        self.entries.last().map_or(self.purged_index, |entry| entry.index)
    }

    /// How far terms and votes are durable.
    #[must_use]
    pub fn hard_mark(&self) -> HardMark {
        HardMark { term: self.hard.term, vote: self.hard.vote }
    }

    /// How far the log is durable.
    #[must_use]
    pub fn log_mark(&self) -> LogMark {
        LogMark { leader_term: self.leader_term, index: self.last_index() }
    }
}

/// Where a group stands, without its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupState {
    pub(super) hard: HardState,
    pub(super) leader_term: Term,
    pub(super) start: LogStart,
    pub(super) last: LogIndex,
}

impl GroupState {
    /// Takes an append into account; `None` where its entries do not follow.
    #[must_use]
    pub(super) fn append(
        mut self,
        (hard, leader_term): (HardState, Term),
        truncate_from: Option<LogIndex>,
        restart: Option<LogStart>,
        entries: &[Entry],
    ) -> Option<Self> {
        (self.hard, self.leader_term) = (hard, leader_term);
        if let Some(start) = restart {
            (self.start, self.last) = (start, start.index);
        }
        if let Some(from) = truncate_from {
            if from <= self.start.index {
                return None;
            }
            self.last = self.last.min(from.previous());
        }
        for entry in entries {
            if entry.index != self.last.next() {
                return None;
            }
            self.last = entry.index;
        }
        Some(self)
    }

    /// Forgets entries; going back changes nothing.
    pub(super) fn purge(&mut self, start: LogStart) {
        if start.index > self.start.index {
            self.start = start;
            self.last = self.last.max(start.index);
        }
    }
}

/// A group that is being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) state: GroupState,
    /// Where each term begins, as first index and term, of the entries that are kept.
    terms: VecDeque<(LogIndex, Term)>,
}

impl Group {
    pub(super) fn recovered(log: &GroupLog) -> Self {
        let mut group = Self { state: log.state, terms: VecDeque::new() };
        log.entries.iter().for_each(|entry| group.note_term(entry));
        group
    }

    /// Whether the log holds the entry that a snapshot ends with, so that it goes on behind it.
    pub(super) fn connects(&self, start: LogStart) -> bool {
        let runs = self.terms.partition_point(|&(first, _)| first <= start.index);
        let inside = start.index > self.state.start.index && start.index <= self.state.last;
        let same = runs > 0 && self.terms[runs - 1].1 == start.term;
        inside && (same || planted(Planted::SnapshotKeepsSuffix))
    }

    /// Takes an append into account.
    ///
    /// # Panics
    /// Where it does not follow: the core never hands out such a one.
    pub(super) fn append(
        &mut self,
        hard: (HardState, Term),
        truncate_from: Option<LogIndex>,
        restart: Option<LogStart>,
        entries: &[Entry],
    ) {
        self.state = self
            .state
            .append(hard, truncate_from, restart, entries)
            .expect("the core appends where its log ends and truncates behind its start");
        if restart.is_some() {
            self.terms.clear();
        }
        if let Some(from) = truncate_from {
            while self.terms.back().is_some_and(|&(first, _)| first >= from) {
                self.terms.pop_back();
            }
        }
        entries.iter().for_each(|entry| self.note_term(entry));
    }

    pub(super) fn purge(&mut self, start: LogStart) {
        self.state.purge(start);
        // The run that the first kept entry is in stays.
        while self.terms.get(1).is_some_and(|&(first, _)| first <= self.state.start.index.next()) {
            self.terms.pop_front();
        }
    }

    fn note_term(&mut self, entry: &Entry) {
        if self.terms.back().is_none_or(|&(_, term)| term != entry.term) {
            self.terms.push_back((entry.index, entry.term));
        }
    }
}

/// A group that is being read back.
#[derive(Debug, Default)]
pub(super) struct GroupLog {
    pub(super) state: GroupState,
    /// Entries up to here lie in segments that are gone; the start must reach it in the end.
    absent: LogIndex,
    entries: VecDeque<Entry>,
}

impl GroupLog {
    /// A group as the oldest segment opens with it.
    pub(super) fn opened(state: GroupState) -> Self {
        Self { state, absent: state.last, entries: VecDeque::new() }
    }

    /// Repeats an append; `false` where it does not follow.
    #[must_use]
    pub(super) fn append(
        &mut self,
        hard: (HardState, Term),
        truncate_from: Option<LogIndex>,
        restart: Option<LogStart>,
        entries: Vec<Entry>,
    ) -> bool {
        let Some(state) = self.state.append(hard, truncate_from, restart, &entries) else {
            return false;
        };
        if let Some(start) = restart {
            self.absent = start.index;
            self.entries.clear();
        }
        if let Some(from) = truncate_from {
            self.absent = self.absent.min(from.previous());
            while self.entries.back().is_some_and(|entry| entry.index >= from) {
                self.entries.pop_back();
            }
        }
        self.entries.extend(entries);
        self.state = state;
        true
    }

    pub(super) fn purge(&mut self, start: LogStart) {
        self.state.purge(start);
        while self.entries.front().is_some_and(|entry| entry.index <= start.index) {
            self.entries.pop_front();
        }
    }

    /// The entries that must be there and are not, as first and last index.
    pub(super) fn missing(&self) -> Option<(LogIndex, LogIndex)> {
        let first = self.state.start.index.next();
        (first <= self.absent).then_some((first, self.absent))
    }

    pub(super) fn finish(self) -> RecoveredGroup {
        RecoveredGroup {
            hard: self.state.hard,
            leader_term: self.state.leader_term,
            purged_index: self.state.start.index,
            purged_term: self.state.start.term,
            purged_time: self.state.start.time,
            entries: self.entries.into(),
        }
    }
}
