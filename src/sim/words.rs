//! What nodes say to each other, in words: the lines of a trace.

use prost::Message as _;

use crate::{
    pb::command::v1::{Command, command::Op},
    raft::{AppendResult, Entry, Message, Payload},
};

/// A message of the core.
pub(crate) fn message(message: &Message) -> String {
    match message {
        Message::VoteRequest(r) => {
            let kind = if r.pre_vote { "would you vote for me" } else { "vote for me" };
            let why = match (r.leader_lost, r.transfer) {
                (_, true) => ", the leader told me to stand",
                (true, _) => ", I lost the leader",
                _ => "",
            };
            let (index, term) = (r.last_index, r.last_term);
            format!("{kind} in {:?}? my log ends at {index:?} of {term:?}{why}", r.term)
        }
        Message::VoteResponse(r) => {
            let kind = if r.pre_vote { "would vote" } else { "votes" };
            if r.granted {
                format!("{kind} for you in {:?}", r.term)
            } else {
                format!("no vote, it is {:?}: {}", r.term, r.reason)
            }
        }
        Message::AppendRequest(r) => {
            let (index, term) = (r.prev_index, r.prev_term);
            let entries = entries(&r.entries);
            format!(
                "append in {:?} after {index:?} of {term:?}: {entries}; commit {:?}, round {}",
                r.term, r.commit, r.round
            )
        }
        Message::AppendResponse(r) => match r.result {
            AppendResult::Matched { match_index } => {
                format!("has it durably up to {match_index:?}, in {:?}, round {}", r.term, r.round)
            }
            AppendResult::Conflict { rejected, term, index } if term.is_zero() => {
                format!("cannot append after {rejected:?}: my log ends before {index:?}")
            }
            AppendResult::Conflict { rejected, term, index } => {
                format!("cannot append after {rejected:?}: mine is of {term:?} from {index:?} on")
            }
            AppendResult::Stale => format!("refuses it: it is {:?}", r.term),
        },
        Message::Heartbeat(r) => {
            format!("leads in {:?}, commit {:?}, round {}", r.term, r.commit, r.round)
        }
        Message::HeartbeatResponse(r) => format!("heard round {} in {:?}", r.round, r.term),
        Message::TimeoutNow(r) => {
            format!("stand for election now, says the leader of {:?}", r.term)
        }
    }
}

fn entries(entries: &[Entry]) -> String {
    let Some(last) = entries.last() else { return "nothing new".to_owned() };
    let what: Vec<String> = entries.iter().map(payload).collect();
    format!("{:?} to {:?} ({})", entries[0].index, last.index, what.join(", "))
}

fn payload(entry: &Entry) -> String {
    match &entry.payload {
        Payload::Noop => "the term begins".to_owned(),
        Payload::Membership(_) => "a membership".to_owned(),
        Payload::Command(bytes) => {
            let op = Command::decode(bytes.clone()).ok().and_then(|command| command.op);
            op.map_or("an unreadable command".to_owned(), |op| name(&op))
        }
    }
}

/// The name of a command, with what it is about.
fn name(op: &Op) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match op {
        Op::Put(put) => format!("put {}", text(&put.key)),
        Op::DeleteRange(delete) => format!("delete {}", text(&delete.key)),
        Op::Acquire(acquire) => format!("acquire {} for {}", acquire.name, acquire.owner),
        Op::Release(release) => format!("release {} {}", release.name, release.fencing_token),
        Op::CancelAcquire(cancel) => format!("take back an acquire of {}", cancel.name),
        Op::Register(register) => format!("register {}", register.instance_id),
        Op::Append(append) => format!("append to stream {}", append.stream),
        Op::ExpireSessions(expire) => {
            let sessions = expire.sessions.iter().map(|session| session.session_id.to_string());
            format!("expire sessions {}", sessions.collect::<Vec<_>>().join(" "))
        }
        other => {
            let words = format!("{other:?}");
            words.split(['(', '{', ' ']).next().unwrap_or_default().to_lowercase()
        }
    }
}
