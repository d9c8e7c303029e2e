//! The operations of a history: each call with what became of it, in the order of the calls.
//!
//! What came before what is told by the order of lines, not by their times. Nothing here judges;
//! it only refuses a history that contradicts itself in its form.

use std::collections::BTreeMap;

use crate::sim::{
    checker::words,
    history::{Answer, Call, History, Line, Outcome},
};

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End<'a> {
    /// Carried out.
    Ok(&'a Answer),
    /// Not carried out, and never will be.
    Refused {
        /// Why.
        reason: &'a str,
        /// The actual version.
        actual: Option<u64>,
    },
    /// Nobody knows.
    Unknown,
}

/// A call with what became of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op<'a> {
    pub(crate) id: u64,
    pub(crate) client: u64,
    pub(crate) node: Option<u64>,
    pub(crate) call: &'a Call,
    pub(crate) end: End<'a>,
    /// The line of the call.
    pub(crate) called: usize,
    pub(crate) call_time: u64,
    /// The line of the return; `usize::MAX` where the outcome is not known.
    pub(crate) returned: usize,
    /// When it returned; `u64::MAX` where the outcome is not known.
    pub(crate) return_time: u64,
}

impl Op<'_> {
    /// Whether this one had returned when the other was called.
    pub(crate) const fn before(&self, other: &Op<'_>) -> bool {
        self.returned < other.called
    }

    /// Whether nobody knows what became of it.
    pub(crate) const fn is_unknown(&self) -> bool {
        matches!(self.end, End::Unknown)
    }

    /// The operation in words: who, where, what, when, and the answer.
    pub(crate) fn words(&self) -> String {
        let node = self.node.map_or_else(String::new, |node| format!(" at node {node}"));
        let end = match self.end {
            End::Ok(answer) => format!("answered {}", words::answer(answer)),
            End::Refused { reason, .. } => format!("was refused ({reason})"),
            End::Unknown => "has no known outcome".to_owned(),
        };
        let until = match self.return_time {
            u64::MAX => "open".to_owned(),
            time => words::time(time),
        };
        format!(
            "call {} of client {}{node}, {} {end} ({} to {until})",
            self.id,
            self.client,
            words::call(self.call),
            words::time(self.call_time),
        )
    }
}

/// Why a history cannot be judged: it contradicts itself in its form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Malformed {
    /// The line, counted from 0 without the header.
    pub line: usize,
    /// What is wrong with it.
    pub words: String,
}

/// Looks whether a history can be judged at all.
///
/// # Errors
/// Where a call's number is used twice, a call returns twice, an answer is none of its call, or
/// the time goes back.
pub fn check_form(history: &History) -> Result<(), Malformed> {
    read(history).map(|_| ())
}

/// The largest revision, token, version or position that is believed.
const NUMBER_MAX: u64 = 1 << 62;

/// The largest number of a line by which something is ordered.
fn largest(line: &Line) -> u64 {
    match line {
        Line::Call {
            call:
                Call::Put { require_lock: Some((_, number)), .. }
                | Call::RenewLock { fencing_token: number, .. }
                | Call::Release { fencing_token: number, .. }
                | Call::GuardedWrite { fencing_token: number, .. }
                | Call::Append { expected_version: Some(number), .. }
                | Call::ReadStream { from: number, .. }
                | Call::Compact { revision: number },
            ..
        } => *number,
        Line::Return { outcome: Outcome::Ok(answer), .. } => match answer {
            Answer::Got { revision, .. }
            | Answer::Done { revision }
            | Answer::Deleted { revision, .. }
            | Answer::Swapped { revision, .. }
            | Answer::Txn { revision, .. }
            | Answer::Opened { revision, .. }
            | Answer::Registered { revision }
            | Answer::Resolved { revision, .. } => revision.unwrap_or(0),
            Answer::Acquired { fencing_token, .. } => *fencing_token,
            Answer::Described { holder, revision } => {
                let token = holder.as_ref().map_or(0, |held| held.fencing_token);
                token.max(revision.unwrap_or(0))
            }
            Answer::Appended { first_version, first_position, .. } => {
                *first_version.max(first_position)
            }
            Answer::Events { events } => {
                events.iter().map(|event| event.version.max(event.position)).max().unwrap_or(0)
            }
            _ => 0,
        },
        Line::Return { outcome: Outcome::Refused { actual, .. }, .. } => actual.unwrap_or(0),
        Line::WatchBegins { after: number, .. }
        | Line::WatchTold { revision: number, .. }
        | Line::WatchProgress { revision: number, .. }
        | Line::WatchCompacted { through: number, .. }
        | Line::SubscriptionBegins { from: number, .. } => *number,
        Line::SubscriptionTold { event, .. } => event.version.max(event.position),
        _ => 0,
    }
}

/// The operations in the order of their calls.
pub(crate) fn read(history: &History) -> Result<Vec<Op<'_>>, Malformed> {
    let mut ops: Vec<Op<'_>> = Vec::new();
    let mut open: BTreeMap<u64, Option<usize>> = BTreeMap::new();
    let mut time_before = 0;
    for (at, line) in history.lines.iter().enumerate() {
        let wrong = |words: String| Malformed { line: at, words };
        if line.time() < time_before {
            return Err(wrong(format!("the time goes back from {time_before} to {}", line.time())));
        }
        time_before = line.time();
        if largest(line) > NUMBER_MAX {
            return Err(wrong(format!("a number is larger than {NUMBER_MAX}")));
        }
        match line {
            Line::Call { time, id, client, node, call } => {
                if open.insert(*id, Some(ops.len())).is_some() {
                    return Err(wrong(format!("call number {id} is used twice")));
                }
                ops.push(Op {
                    id: *id,
                    client: *client,
                    node: *node,
                    call,
                    end: End::Unknown,
                    called: at,
                    call_time: *time,
                    returned: usize::MAX,
                    return_time: u64::MAX,
                });
            }
            Line::Return { time, id, outcome } => {
                let Some(op) = open.get_mut(id).and_then(Option::take) else {
                    return Err(wrong(format!("a return of call {id}, which is not open")));
                };
                let op = &mut ops[op];
                op.end = match outcome {
                    Outcome::Ok(answer) if words::fits(op.call, answer) => End::Ok(answer),
                    Outcome::Ok(answer) => {
                        let (call, answer) = (words::call(op.call), words::answer(answer));
                        return Err(wrong(format!("{answer} is no answer of {call}")));
                    }
                    Outcome::Refused { reason, actual } => End::Refused { reason, actual: *actual },
                    Outcome::Unknown { .. } => continue,
                };
                (op.returned, op.return_time) = (at, *time);
            }
            _ => {}
        }
    }
    Ok(ops)
}
