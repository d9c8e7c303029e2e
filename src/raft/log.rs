//! The part of the log that is kept in memory: entries after the point where it was cut.
//!
//! Looking up a term is constant, finding where a term begins or ends is logarithmic in the number
//! of terms; nothing walks the whole log. It never decides what may be cut or replaced.

use std::collections::VecDeque;

use crate::{
    raft::{Entry, LogStart, Payload, Restored},
    types::{LogIndex, LogTime, Planted, Term, planted},
};

/// What an entry costs beyond its content, in bytes, so that empty entries are not free.
pub(crate) const ENTRY_OVERHEAD_BYTES: usize = 32;

/// What an entry counts for wherever entries are limited in bytes.
pub(crate) fn cost_bytes(entry: &Entry) -> usize {
    entry.payload.len() + ENTRY_OVERHEAD_BYTES
}

/// The log from `start` on.
#[derive(Debug)]
pub(crate) struct Log {
    start: LogStart,
    entries: VecDeque<Entry>,
    /// The first kept index of each term, ascending.
    terms: VecDeque<(LogIndex, Term)>,
    /// Where memberships stand, ascending.
    memberships: VecDeque<LogIndex>,
}

impl Log {
    /// Takes up what the disk gave back; entries that do not connect to the start are dropped.
    pub(crate) fn restore(restored: &mut Restored) -> Self {
        let start = LogStart {
            index: restored.purged_index,
            term: restored.purged_term,
            time: restored.last_time,
        };
        let mut log = Self {
            start,
            entries: VecDeque::new(),
            terms: VecDeque::new(),
            memberships: VecDeque::new(),
        };
        let entries = std::mem::take(&mut restored.entries);
        let at_start = entries.iter().find(|entry| entry.index == start.index);
        if at_start.is_some_and(|entry| entry.term != start.term) {
            return log;
        }
        for entry in entries.into_iter().filter(|entry| entry.index > start.index) {
            log.append(entry);
        }
        log
    }

    /// Where the log starts: the last entry that is not kept.
    pub(crate) const fn start(&self) -> LogStart {
        self.start
    }

    /// The first index that is kept, whether or not an entry is there yet.
    pub(crate) const fn first_index(&self) -> LogIndex {
        self.start.index.next()
    }

    pub(crate) fn last_index(&self) -> LogIndex {
        self.entries.back().map_or(self.start.index, |entry| entry.index)
    }

    pub(crate) fn last_term(&self) -> Term {
        self.entries.back().map_or(self.start.term, |entry| entry.term)
    }

    pub(crate) fn last_time(&self) -> LogTime {
        self.entries.back().map_or(self.start.time, |entry| entry.time)
    }

    /// The term at an index; `None` where the log was cut or has not come to it.
    pub(crate) fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        self.get(index).map(|entry| entry.term)
    }

    pub(crate) fn get(&self, index: LogIndex) -> Option<&Entry> {
        if index <= self.start.index {
            return None;
        }
        self.entries.get(self.offset(index))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Entries from `from` through `through` as far as both limits allow, but at least one.
    pub(crate) fn slice(
        &self,
        from: LogIndex,
        through: LogIndex,
        bytes_max: usize,
        entries_max: usize,
    ) -> Vec<Entry> {
        debug_assert!(from > self.start.index);
        let mut bytes = 0;
        let available = usize::try_from(through.next().since(from)).unwrap_or(usize::MAX);
        let mut slice = Vec::with_capacity(available.min(entries_max).min(256));
        for entry in self.entries.range(self.offset(from).min(self.entries.len())..) {
            bytes += cost_bytes(entry);
            let full = bytes > bytes_max || slice.len() == entries_max;
            if entry.index > through || (full && !slice.is_empty()) {
                break;
            }
            slice.push(entry.clone());
        }
        slice
    }

    /// Adds an entry at the end.
    pub(crate) fn append(&mut self, entry: Entry) {
        assert_eq!(entry.index, self.last_index().next(), "entries are consecutive");
        assert!(entry.term >= self.last_term(), "terms never go back along the log");
        if self.entries.is_empty() || entry.term > self.last_term() {
            self.terms.push_back((entry.index, entry.term));
        }
        if matches!(entry.payload, Payload::Membership(_)) {
            self.memberships.push_back(entry.index);
        }
        self.entries.push_back(entry);
    }

    /// Drops the entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        assert!(index > self.start.index, "what was cut off cannot be truncated");
        self.entries.truncate(self.offset(index));
        self.terms.truncate(self.terms.partition_point(|&(first, _)| first < index));
        self.memberships.truncate(self.memberships.partition_point(|&at| at < index));
    }

    /// Forgets the entries through `index`, which is in the log.
    pub(crate) fn purge(&mut self, index: LogIndex) {
        let Some(last) = self.get(index) else { return };
        let start = LogStart { index, term: last.term, time: last.time };
        self.entries.drain(..=self.offset(index));
        self.start = start;
        let runs = self.terms.partition_point(|&(first, _)| first <= index);
        let open = runs.checked_sub(1).map(|run| self.terms[run].1);
        self.terms.drain(..runs);
        if let (Some(term), Some(first)) = (open, self.entries.front())
            && first.term == term
        {
            self.terms.push_front((first.index, term));
        }
        self.memberships.drain(..self.memberships.partition_point(|&at| at <= index));
    }

    /// Starts anew after a snapshot. Entries after it stay where the log holds the snapshot's last
    /// entry, and only there. Returns whether it does.
    pub(crate) fn reset(&mut self, start: LogStart) -> bool {
        let same = self.term(start.index) == Some(start.term);
        let inside = start.index > self.start.index && start.index <= self.last_index();
        let kept = inside && (same || planted(Planted::SnapshotKeepsSuffix));
        if kept {
            self.purge(start.index);
        } else {
            self.entries.clear();
            self.terms.clear();
            self.memberships.clear();
        }
        self.start = start;
        kept
    }

    /// The first kept index of the term that the entry at `index` is of.
    pub(crate) fn first_of_term(&self, index: LogIndex) -> LogIndex {
        let runs = self.terms.partition_point(|&(first, _)| first <= index);
        runs.checked_sub(1).map_or(index, |run| self.terms[run].0)
    }

    /// The last index at or below `index` whose term is at most `term`; the start where there is
    /// none.
    pub(crate) fn last_at_most(&self, term: Term, index: LogIndex) -> LogIndex {
        let runs = self.terms.partition_point(|&(_, t)| t <= term);
        let end = self.terms.get(runs).map_or(self.last_index(), |&(first, _)| first.previous());
        end.min(index).max(self.start.index)
    }

    /// Where memberships stand after `after` and through `through`.
    pub(crate) fn memberships(
        &self,
        after: LogIndex,
        through: LogIndex,
    ) -> impl Iterator<Item = LogIndex> {
        let found = self.memberships.iter().copied();
        found.filter(move |&index| index > after && index <= through)
    }

    fn offset(&self, index: LogIndex) -> usize {
        usize::try_from(index.since(self.start.index) - 1).expect("the log fits in memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(start: u64, terms: &[u64]) -> Log {
        let at = LogIndex::new(start);
        let entry = |(i, &term): (usize, &u64)| Entry {
            index: at.forward(i as u64 + 1),
            term: Term::new(term),
            time: LogTime::ZERO,
            payload: Payload::Command(vec![0; 8].into()),
        };
        let mut restored = Restored {
            purged_index: at,
            purged_term: Term::new(u64::from(start > 0)),
            entries: terms.iter().enumerate().map(entry).collect(),
            ..Restored::default()
        };
        Log::restore(&mut restored)
    }

    fn i(index: u64) -> LogIndex {
        LogIndex::new(index)
    }

    #[test]
    fn terms_are_found_from_both_ends() {
        let log = log(0, &[1, 1, 4, 4, 6]);
        assert_eq!(log.first_of_term(i(4)), i(3));
        assert_eq!(log.first_of_term(i(2)), i(1));
        assert_eq!(log.last_at_most(Term::new(5), i(9)), i(4));
        assert_eq!(log.last_at_most(Term::new(4), i(3)), i(3));
        assert_eq!(log.last_at_most(Term::new(0), i(5)), i(0));
        assert_eq!(log.last_at_most(Term::new(9), i(9)), i(5));
    }

    #[test]
    fn a_purge_keeps_the_term_of_the_last_entry_that_it_forgets() {
        let mut log = log(0, &[1, 1, 4, 4, 6]);
        log.purge(i(3));
        assert_eq!((log.first_index(), log.last_index()), (i(4), i(5)));
        assert_eq!([log.term(i(2)), log.term(i(3))], [None, Some(Term::new(4))]);
        assert_eq!(log.first_of_term(i(4)), i(4));
        log.purge(i(5));
        assert_eq!((log.last_index(), log.last_term()), (i(5), Term::new(6)));
        assert_eq!(log.first_of_term(i(5)), i(5));
    }

    #[test]
    fn a_truncation_forgets_the_terms_that_it_removes() {
        let mut log = log(2, &[1, 4, 4, 6]);
        log.truncate_from(i(4));
        assert_eq!((log.last_index(), log.last_term()), (i(3), Term::new(1)));
        assert_eq!(log.last_at_most(Term::new(9), i(9)), i(3));
    }

    #[test]
    fn a_slice_keeps_to_its_limits_but_never_comes_back_empty() {
        let log = log(0, &[1; 10]);
        let each = 8 + ENTRY_OVERHEAD_BYTES;
        let lengths = |bytes, entries| log.slice(i(3), i(9), bytes, entries).len();
        assert_eq!(lengths(1, 100), 1);
        assert_eq!(lengths(3 * each, 100), 3);
        assert_eq!(lengths(usize::MAX, 2), 2);
        assert_eq!(lengths(usize::MAX, 100), 7);
        assert!(log.slice(i(11), i(20), 100, 100).is_empty());
    }

    #[test]
    fn a_reset_keeps_what_follows_only_where_the_snapshot_connects() {
        let start =
            |index, term| LogStart { index: i(index), term: Term::new(term), time: LogTime::ZERO };
        let mut connected = log(0, &[1, 1, 4, 4, 6]);
        assert!(connected.reset(start(3, 4)));
        assert_eq!(connected.last_index(), i(5));
        let mut apart = log(0, &[1, 1, 4, 4, 6]);
        assert!(!apart.reset(start(3, 5)));
        assert_eq!((apart.last_index(), apart.last_term()), (i(3), Term::new(5)));
    }

    #[test]
    fn a_restored_log_drops_what_does_not_connect_to_its_start() {
        let whole = log(0, &[1, 1, 2, 2]);
        let restore = |purged_term| {
            let mut restored = Restored {
                purged_index: i(2),
                purged_term: Term::new(purged_term),
                entries: whole.iter().cloned().collect(),
                ..Restored::default()
            };
            Log::restore(&mut restored).last_index()
        };
        assert_eq!(restore(1), i(4));
        assert_eq!(restore(2), i(2));
    }
}
