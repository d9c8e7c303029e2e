//! What members of a group say to each other, one struct a message.

use crate::{
    raft::Entry,
    types::{LogIndex, Term},
};

/// A message of one group. Sender and receiver stand beside it, in the input or the ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for a vote, or whether one would be given.
    VoteRequest(VoteRequest),
    /// Answers it.
    VoteResponse(VoteResponse),
    /// Replicates entries.
    AppendRequest(AppendRequest),
    /// Answers it.
    AppendResponse(AppendResponse),
    /// Keeps followers quiet and confirms leadership.
    Heartbeat(Heartbeat),
    /// Answers it.
    HeartbeatResponse(HeartbeatResponse),
    /// Tells the target of a transfer to campaign at once.
    TimeoutNow(TimeoutNow),
}

/// Raft figure 2, RequestVote; thesis §9.6 for the pre-vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// The candidate's term; for a pre-vote the term that it would campaign in.
    pub term: Term,
    /// The index of its last entry.
    pub last_index: LogIndex,
    /// The term of its last entry.
    pub last_term: Term,
    /// Whether it only asks.
    pub pre_vote: bool,
    /// Whether it lost its connection to the leader.
    pub leader_lost: bool,
    /// Whether the leader told it to campaign.
    pub transfer: bool,
    /// The transport's number of the call, which the answer carries back.
    pub call: u64,
}

/// Answers a [`VoteRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteResponse {
    /// The voter's term; a granted pre-vote echoes the requested term.
    pub term: Term,
    /// Whether the vote is given.
    pub granted: bool,
    /// Whether this answers a pre-vote.
    pub pre_vote: bool,
    /// Why it is not given; empty when it is.
    pub reason: &'static str,
    /// The number of the call that is answered.
    pub call: u64,
}

/// Raft figure 2, AppendEntries, with entries or as a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendRequest {
    /// The leader's term.
    pub term: Term,
    /// The index before the first entry.
    pub prev_index: LogIndex,
    /// Its term.
    pub prev_term: Term,
    /// The entries, with consecutive indexes.
    pub entries: Vec<Entry>,
    /// The leader's commit index.
    pub commit: LogIndex,
    /// The ReadIndex and liveness round that the answer confirms.
    pub round: u64,
}

/// Answers an [`AppendRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendResponse {
    /// The follower's term.
    pub term: Term,
    /// The round that is confirmed.
    pub round: u64,
    /// What came of it.
    pub result: AppendResult,
}

/// What came of an [`AppendRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendResult {
    /// The log matches the leader's and is durable up to `match_index`.
    Matched {
        /// The highest such index.
        match_index: LogIndex,
    },
    /// The entry before the first does not match (Raft §5.3, back-tracking by term).
    Conflict {
        /// The `prev_index` that was refused.
        rejected: LogIndex,
        /// The first index of the conflicting term, or one past the follower's log.
        index: LogIndex,
        /// The conflicting term; zero where the log is too short.
        term: Term,
    },
    /// The sender's term is old.
    Stale,
}

/// A heartbeat: no log check, so it never waits behind the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The leader's term.
    pub term: Term,
    /// The commit index, at most what the follower is known to match.
    pub commit: LogIndex,
    /// The round that the answer confirms.
    pub round: u64,
}

/// Answers a [`Heartbeat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatResponse {
    /// The follower's term.
    pub term: Term,
    /// The round that is confirmed.
    pub round: u64,
}

/// Thesis §3.10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeoutNow {
    /// The leader's term.
    pub term: Term,
}
