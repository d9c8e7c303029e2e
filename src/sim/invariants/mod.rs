//! What holds across nodes after every step; what holds in one is in `raft/invariants.rs`.
//!
//! Each rule has a name, by which a shrunk plan is known to break the same one.

mod durable;
mod matching;
mod raft;
mod state;

pub(crate) use durable::{DurableChange, DurableLog};
pub(crate) use raft::Grown;

use core::fmt;
use std::collections::BTreeMap;

use crate::types::{LogIndex, NodeId, Term};

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The rule's name.
    pub rule: String,
    /// What was seen.
    pub words: String,
}

impl Broken {
    pub(crate) fn new(rule: &str, words: impl Into<String>) -> Self {
        Self { rule: rule.to_owned(), words: words.into() }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.words)
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<Term, NodeId>,
    /// Every committed entry: its term, and a hash of what it holds.
    committed: BTreeMap<LogIndex, (Term, u64)>,
    /// Every entry that was appended: the term before it, where known, and a hash of its content.
    seen: BTreeMap<(LogIndex, Term), (Option<Term>, u64)>,
    /// The state after an entry, wherever a node stopped to look.
    states: BTreeMap<LogIndex, u64>,
    locks: state::Locks,
}
