//! Messages in short, and in words: what tests inject, and what scenarios show.

use std::collections::BTreeSet;

use quorate::{
    raft::{
        Append, AppendRequest, AppendResponse, AppendResult, Entry, HardState, Heartbeat,
        HeartbeatResponse, Membership, Message, Payload, TimeoutNow, VoteRequest, VoteResponse,
    },
    types::{LogIndex, NodeId},
};

use crate::network::{i, t};

pub(crate) fn vote(term: u64, last_index: u64, last_term: u64) -> VoteRequest {
    VoteRequest {
        term: t(term),
        last_index: i(last_index),
        last_term: t(last_term),
        pre_vote: false,
        leader_lost: false,
        transfer: false,
        call: 0,
    }
}

pub(crate) fn pre_vote(term: u64, last_index: u64, last_term: u64) -> VoteRequest {
    VoteRequest { pre_vote: true, ..vote(term, last_index, last_term) }
}

pub(crate) fn granted(term: u64) -> Message {
    answer(term, true, false)
}

pub(crate) fn pre_granted(term: u64) -> Message {
    answer(term, true, true)
}

pub(crate) fn refused(term: u64) -> Message {
    answer(term, false, false)
}

pub(crate) fn pre_refused(term: u64) -> Message {
    answer(term, false, true)
}

fn answer(term: u64, granted: bool, pre_vote: bool) -> Message {
    let reason = if granted { "" } else { "a test says so" };
    Message::VoteResponse(VoteResponse { term: t(term), granted, pre_vote, reason, call: 0 })
}

pub(crate) fn append(
    term: u64,
    prev: (u64, u64),
    entries: Vec<Entry>,
    commit: u64,
) -> AppendRequest {
    AppendRequest {
        term: t(term),
        prev_index: i(prev.0),
        prev_term: t(prev.1),
        entries,
        commit: i(commit),
        round: 0,
    }
}

pub(crate) fn matched(term: u64, index: u64) -> Message {
    let result = AppendResult::Matched { match_index: i(index) };
    Message::AppendResponse(AppendResponse { term: t(term), round: 0, result })
}

pub(crate) fn heartbeat(term: u64, commit: u64) -> Message {
    Message::Heartbeat(Heartbeat { term: t(term), commit: i(commit), round: 0 })
}

pub(crate) fn heartbeat_response(term: u64, round: u64) -> Message {
    Message::HeartbeatResponse(HeartbeatResponse { term: t(term), round })
}

pub(crate) fn timeout_now(term: u64) -> Message {
    Message::TimeoutNow(TimeoutNow { term: t(term) })
}

/// A message as scenarios show it.
pub(crate) fn in_words(message: &Message) -> String {
    match message {
        Message::VoteRequest(r) => {
            let kind = if r.pre_vote { "pre-vote" } else { "vote" };
            let why = if r.leader_lost { ", lost the leader" } else { "" };
            let why = if r.transfer { ", the leader asked me to" } else { why };
            format!("{kind} in {:?}? log ends at {:?} {:?}{why}", r.term, r.last_index, r.last_term)
        }
        Message::VoteResponse(r) => {
            let kind = if r.pre_vote { "pre-vote" } else { "vote" };
            if r.granted {
                format!("{kind} granted for {:?}", r.term)
            } else {
                format!("{kind} refused in {:?}: {}", r.term, r.reason)
            }
        }
        Message::AppendRequest(r) => {
            let entries: Vec<String> = r.entries.iter().map(entry_in_words).collect();
            let after = format!("after {:?} {:?}", r.prev_index, r.prev_term);
            let commit = r.commit;
            format!("append in {:?} {after} [{}], commit {commit:?}", r.term, entries.join(", "))
        }
        Message::AppendResponse(r) => match r.result {
            AppendResult::Matched { match_index } => format!("matched through {match_index:?}"),
            AppendResult::Conflict { rejected, term, index } if term.is_zero() => {
                format!("conflict at {rejected:?}: my log ends before {index:?}")
            }
            AppendResult::Conflict { rejected, term, index } => {
                format!("conflict at {rejected:?}: mine is {term:?}, from {index:?} on")
            }
            AppendResult::Stale => format!("refused: it is {:?}", r.term),
        },
        Message::TimeoutNow(r) => format!("campaign now, says the leader of {:?}", r.term),
        Message::Heartbeat(r) => {
            format!("heartbeat in {:?}, round {}, commit {:?}", r.term, r.round, r.commit)
        }
        Message::HeartbeatResponse(r) => format!("heard round {} in {:?}", r.round, r.term),
    }
}

/// Whether a message beats all the time.
pub(crate) const fn beats(message: &Message) -> bool {
    matches!(message, Message::Heartbeat(_) | Message::HeartbeatResponse(_))
}

/// A write as scenarios show it.
pub(crate) fn write_in_words(before: HardState, write: &Append) -> String {
    let mut words = Vec::new();
    if (before.term, before.vote) != (write.hard.term, write.hard.vote) {
        let vote =
            write.hard.vote.map_or("no vote".to_owned(), |vote| format!("vote for {vote:?}"));
        words.push(format!("{:?} {vote}", write.hard.term));
    }
    words.extend(write.reset_to.map(|start| format!("log starts after {:?}", start.index)));
    words.extend(write.truncate_from.map(|from| format!("cut from {from:?}")));
    words.extend(write.entries.iter().map(entry_in_words));
    if words.is_empty() {
        words.push(format!("{:?}", write.log_mark));
    }
    words.join(", ")
}

pub(crate) fn entry_in_words(entry: &Entry) -> String {
    let what = match &entry.payload {
        Payload::Noop => "noop".to_owned(),
        Payload::Command(data) => String::from_utf8_lossy(data).into_owned(),
        Payload::Membership(new) => membership(new),
    };
    format!("{:?} {:?} {what}", entry.index, entry.term)
}

/// A membership as scenarios show it.
pub(crate) fn membership(membership: &Membership) -> String {
    let list = |ids: &BTreeSet<NodeId>| {
        ids.iter().map(|id| format!("{id:?}")).collect::<Vec<_>>().join(" ")
    };
    let mut words = format!("voters {}", list(&membership.voters));
    if membership.is_joint() {
        words += &format!(" and the old ones {}", list(&membership.outgoing));
    }
    if !membership.learners.is_empty() {
        words += &format!(", learners {}", list(&membership.learners));
    }
    words
}

/// A run of indexes.
pub(crate) fn through(from: LogIndex, to: LogIndex) -> String {
    if from == to { format!("{to:?}") } else { format!("{from:?}..{to:?}") }
}
