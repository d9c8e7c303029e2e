//! Log entries, what must be durable beside them, and the marks that say how far that is.

use core::fmt;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::types::{LogIndex, LogTime, NodeId, Term};

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log.
    pub index: LogIndex,
    /// The term of the leader that proposed it.
    pub term: Term,
    /// The proposer's clock, never earlier than the entry before.
    pub time: LogTime,
    /// What it holds.
    pub payload: Payload,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: a new leader's first entry (Raft §8).
    Noop,
    /// An encoded `quorate.command.v1.Command`; the core does not look inside.
    Command(Bytes),
    /// A membership that takes effect when it is applied.
    Membership(Membership),
}

impl Payload {
    /// How many bytes of content it carries.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Noop => 0,
            Self::Command(data) => data.len(),
            Self::Membership(membership) => {
                8 * (membership.voters.len()
                    + membership.outgoing.len()
                    + membership.learners.len())
            }
        }
    }

    /// Whether it carries no content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Who belongs to a group. While a change is under way it is joint: both majorities decide
/// (Raft §6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The voters; of the new configuration while the membership is joint.
    pub voters: BTreeSet<NodeId>,
    /// The voters of the old configuration; empty unless the membership is joint.
    pub outgoing: BTreeSet<NodeId>,
    /// Those that replicate and do not vote.
    pub learners: BTreeSet<NodeId>,
}

impl Membership {
    /// A plain membership of voters.
    #[must_use]
    pub fn of(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Everyone in the group, each once, in the order of ids.
    #[must_use]
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }

    /// Whether a node belongs to the group, voting or not.
    #[must_use]
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// Whether a change is under way that both majorities decide.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether a node votes in either configuration.
    #[must_use]
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }
}

/// Where a log starts: the last entry that it no longer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStart {
    /// Its index; zero for a whole log.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Its log time.
    pub time: LogTime,
}

/// What a node must have on disk before it answers (Raft figure 2, persistent state), and the
/// commit index that it knew, up to which a restart applies before it campaigns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// The candidate voted for in that term.
    pub vote: Option<NodeId>,
    /// The commit index known when this was written.
    pub commit: LogIndex,
}

/// How far the term and vote are durable; ordered.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HardMark {
    /// The term.
    pub term: Term,
    /// The vote in it; voting comes after not having voted.
    pub vote: Option<NodeId>,
}

/// How far the log is durable; ordered by the accepted leader's term, then the index, so that a
/// late completion of a truncated entry counts for nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogMark {
    /// The term of the leader whose log this log has accepted as its own.
    pub leader_term: Term,
    /// The last index that is durable under that leader.
    pub index: LogIndex,
}

impl fmt::Debug for HardMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vote {
            Some(vote) => write!(f, "{:?}/{vote:?}", self.term),
            None => write!(f, "{:?}/-", self.term),
        }
    }
}

impl fmt::Debug for LogMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{:?}", self.index, self.leader_term)
    }
}
