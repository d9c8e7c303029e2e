//! What a member's disk holds, and how it comes back after a crash.

use quorate::{
    raft::{Append, Entry, HardState, LogStart, Membership, Payload},
    types::{LogIndex, LogTime, Term},
};

use crate::network::{i, t};

/// What a member's disk holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) start: LogStart,
    pub(crate) entries: Vec<Entry>,
    pub(crate) membership: Membership,
    /// The last entry that was applied.
    pub(crate) applied: LogStart,
    /// A snapshot that was received and is not installed yet.
    pub(crate) incoming: Option<Snapshot>,
    /// What was applied, in order; the whole state of this machine.
    pub(crate) state: Vec<(LogIndex, Term, Payload)>,
}

/// A snapshot: where it stands, the membership in it, and the state.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) start: LogStart,
    pub(crate) membership: Membership,
    pub(crate) state: Vec<(LogIndex, Term, Payload)>,
}

impl Disk {
    pub(crate) fn write(&mut self, write: &Append) {
        self.hard = write.hard;
        if let Some(start) = write.reset_to {
            let connects =
                self.entries.iter().any(|e| e.index == start.index && e.term == start.term);
            self.entries.retain(|entry| connects && entry.index > start.index);
            self.start = start;
        }
        if let Some(from) = write.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        for entry in &write.entries {
            let next = self.entries.last().map_or(self.start.index, |last| last.index).next();
            assert_eq!(entry.index, next, "the disk is written in order");
            self.entries.push(entry.clone());
        }
    }

    pub(crate) fn install(&mut self) {
        let snapshot = self.incoming.take().expect("it was received");
        self.applied = snapshot.start;
        self.membership = snapshot.membership;
        self.state = snapshot.state;
    }

    /// Finishes what a crash left half done: the log learnt of a snapshot and the state did not,
    /// or the other way round.
    pub(crate) fn recover(&mut self) {
        if self.start.index > self.applied.index {
            self.install();
        }
        self.incoming = None;
        let applied = self.applied;
        let connects = |entry: &Entry| (entry.index, entry.term) == (applied.index, applied.term);
        if applied.index > self.start.index && !self.entries.iter().any(connects) {
            self.entries.clear();
            self.start = applied;
        }
    }

    pub(crate) fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let LogStart { index: applied, .. } = self.applied;
            assert_eq!(entry.index, applied.next(), "entries are applied in order, once");
            let last = self.entries.last().map_or(self.start.index, |last| last.index);
            assert!(entry.index <= last, "what is applied is durable");
            self.applied = LogStart { index: entry.index, term: entry.term, time: entry.time };
            if let Payload::Membership(membership) = &entry.payload {
                self.membership = membership.clone();
            }
            self.state.push((entry.index, entry.term, entry.payload));
        }
    }
}

/// An entry whose command names its place and term.
pub(crate) fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index: i(index),
        term: t(term),
        time: LogTime::ZERO,
        payload: Payload::Command(format!("{index}.{term}").into()),
    }
}
