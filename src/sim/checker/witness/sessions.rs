//! Sessions: each number once, none used after its end, none lost before its time.
//!
//! What lives with a session, or brings one of its own, asks here until when it certainly lives.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{
        model::expiry_min,
        ops::{End, Op},
        witness::judge::Judge,
    },
    history::{Answer, Call},
};

/// What is known of one session.
#[derive(Debug, Default)]
struct Session {
    /// Who opened it.
    opener: Option<usize>,
    ttl_ms: Option<u64>,
    /// When renewals that were carried out were called, ascending; the opening is the first.
    renewals: Vec<u64>,
    /// Those that closed it, or may have.
    closes: Vec<usize>,
}

/// What is known of all sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_number: BTreeMap<u64, Session>,
}

impl Sessions {
    /// The earliest moment at which a session may have expired, as far as calls before a moment
    /// say; `None` where that is not known. In nanoseconds.
    pub(super) fn expiry_min(&self, session: u64, before: u64) -> Option<u64> {
        let session = self.by_number.get(&session)?;
        let renewals = session.renewals.partition_point(|called| *called < before);
        Some(expiry_min(*session.renewals.get(renewals.checked_sub(1)?)?, session.ttl_ms?))
    }

    /// Operations that closed a session, or may have.
    pub(super) fn closes(&self, session: u64) -> &[usize] {
        self.by_number.get(&session).map_or(&[], |session| &session.closes)
    }
}

/// Reasons of a refusal that say that a session or a hold is gone.
pub(super) fn says_gone(op: &Op<'_>) -> bool {
    let End::Refused { reason, .. } = op.end else { return false };
    matches!(reason, "SESSION_NOT_FOUND" | "WRONG_FENCING_TOKEN" | "LOCK_NOT_HELD")
}

/// Judges the sessions and gives what is known of them.
pub(super) fn judge(judge: &mut Judge<'_>) -> Sessions {
    let sessions = collect(judge);
    for at in 0..judge.ops.len() {
        let op = judge.ops[at];
        let Some(number) = used(&op) else { continue };
        let Some(session) = sessions.by_number.get(&number) else { continue };
        let closed_before = session.closes.iter().find(|close| {
            let close = &judge.ops[**close];
            matches!(close.end, End::Ok(_)) && close.before(&op)
        });
        if let (Some(close), End::Ok(_)) = (closed_before, op.end) {
            let why = format!("the session had ended: {}", judge.ops[*close].words());
            judge.find("session-ended", at, why, vec!["a refusal".into()]);
        }
        if says_gone(&op) && is_alive(judge, &sessions, number, &op) {
            let why = format!("session {number} was opened, not closed, and not yet out of time");
            judge.find("session-lost", at, why, vec!["done".into()]);
        }
    }
    sessions
}

/// Whether a session certainly lived until a refusal returned.
fn is_alive(judge: &Judge<'_>, sessions: &Sessions, number: u64, op: &Op<'_>) -> bool {
    let session = &sessions.by_number[&number];
    let opened = session.opener.is_some_and(|opener| judge.ops[opener].before(op));
    let closing = |close: &usize| {
        let close = &judge.ops[*close];
        close.id != op.id && close.called < op.returned && !matches!(close.end, End::Refused { .. })
    };
    let expiry = sessions.expiry_min(number, op.return_time);
    opened && !session.closes.iter().any(closing) && expiry.is_some_and(|at| at > op.return_time)
}

/// The session that a call uses as one that is there.
fn used(op: &Op<'_>) -> Option<u64> {
    match op.call {
        Call::RenewSession { session } | Call::Acquire { session: Some(session), .. } => {
            Some(*session)
        }
        // Closing twice is fine with some; a close that is refused is judged.
        Call::CloseSession { session } if matches!(op.end, End::Refused { .. }) => Some(*session),
        _ => None,
    }
}

fn collect(judge: &mut Judge<'_>) -> Sessions {
    let mut sessions = Sessions::default();
    for at in 0..judge.ops.len() {
        let op = judge.ops[at];
        let (opened, ttl_ms) = match (op.call, op.end) {
            (Call::OpenSession { ttl_ms }, End::Ok(Answer::Opened { session, .. })) => {
                (Some(*session), *ttl_ms)
            }
            (
                Call::Acquire { session: None, ttl_ms, .. },
                End::Ok(Answer::Acquired { session, .. }),
            ) => (Some(*session), *ttl_ms),
            _ => (None, 0),
        };
        if let Some(number) = opened {
            let session = sessions.by_number.entry(number).or_default();
            session.renewals.push(op.call_time);
            if let Some(other) = session.opener.replace(at) {
                let why = format!("session {number} was opened by {}", judge.ops[other].words());
                judge.find("session-unique", at, why, Vec::new());
            }
            session.ttl_ms = Some(ttl_ms);
        }
        match (op.call, op.end) {
            (Call::RenewSession { session } | Call::RenewLock { session, .. }, End::Ok(_)) => {
                sessions.by_number.entry(*session).or_default().renewals.push(op.call_time);
            }
            (Call::CloseSession { session }, _) if !matches!(op.end, End::Refused { .. }) => {
                sessions.by_number.entry(*session).or_default().closes.push(at);
            }
            _ => {}
        }
    }
    sessions
}
