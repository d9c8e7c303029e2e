//! One lock with fencing tokens and a TTL.
//!
//! A holder's time runs out by itself: from then on the lock may be found free, or granted to
//! another. An acquire of unknown outcome may hold the lock with a token that nobody knows, and
//! may be taken back by the cluster at any time.

use std::collections::BTreeSet;

use crate::sim::{
    checker::{
        model::{Entry, Model, Names, expiry_min, known},
        ops::Op,
    },
    history::{Answer, Call},
};

/// One lock.
#[derive(Debug, Default)]
pub(crate) struct Lock {
    owners: Names,
    /// Tokens that an acquire was answered.
    answered: BTreeSet<u64>,
}

/// Where a lock stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LockState {
    /// The largest token so far.
    floor: u64,
    holder: Option<Holder>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holder {
    /// `None` where nobody was told.
    token: Option<u64>,
    owner: u32,
    session: Option<u64>,
    /// It may have expired from then on, in nanoseconds.
    free_from: u64,
}

/// An operation on a lock. Times are nanoseconds: the call's, after which something happened, and
/// the return's, before which it did.
#[derive(Debug)]
pub(crate) enum LockOp {
    Acquire {
        owner: u32,
        session: Option<u64>,
        token: Option<u64>,
        free_from: u64,
        until: u64,
    },
    Renew {
        token: u64,
        called: u64,
        ttl_ms: u64,
    },
    RenewSession {
        session: u64,
        called: u64,
        ttl_ms: u64,
    },
    Release {
        token: u64,
    },
    CloseSession {
        session: u64,
    },
    Describe {
        holder: Option<(u32, u64)>,
        until: u64,
    },
    /// Something that only goes on while the token holds the lock.
    Held {
        token: u64,
    },
}

impl Lock {
    fn op(&mut self, op: &Op<'_>, ops: &[&Op<'_>]) -> Option<LockOp> {
        Some(match (op.call, known(op)) {
            (Call::Acquire { owner, ttl_ms, session, .. }, answer) => {
                let owner = self.owners.number(owner);
                let (token, session_held) = match answer {
                    Some(Answer::Acquired { fencing_token, session }) => {
                        (Some(*fencing_token), Some(*session))
                    }
                    _ => (None, *session),
                };
                self.answered.extend(token);
                // A given session may be near its end; a grant that nobody got is taken back.
                let free_from = match (token, session) {
                    (Some(_), None) => expiry_min(op.call_time, *ttl_ms),
                    _ => 0,
                };
                let until = op.return_time;
                LockOp::Acquire { owner, session: session_held, token, free_from, until }
            }
            (Call::RenewLock { fencing_token, .. }, Some(_)) => {
                let ttl_ms = ttl_of_token(*fencing_token, ops);
                LockOp::Renew { token: *fencing_token, called: op.call_time, ttl_ms }
            }
            (Call::RenewSession { session }, Some(_)) => {
                let ttl_ms = ttl_of_session(*session, ops);
                LockOp::RenewSession { session: *session, called: op.call_time, ttl_ms }
            }
            (Call::Release { fencing_token, .. }, _) => LockOp::Release { token: *fencing_token },
            (Call::CloseSession { session }, _) => LockOp::CloseSession { session: *session },
            (Call::Describe { .. }, Some(Answer::Described { holder, .. })) => {
                let holder = holder
                    .as_ref()
                    .map(|held| (self.owners.number(&held.owner), held.fencing_token));
                LockOp::Describe { holder, until: op.return_time }
            }
            (Call::Put { require_lock: Some((_, token)), .. }, _) => LockOp::Held { token: *token },
            _ => return None,
        })
    }
}

impl Lock {
    /// Grants that nobody was answered and somebody saw. An acquire that was tried more than once
    /// may be granted, taken back because its caller had given that attempt up, and granted anew.
    fn taken_back(&mut self, ops: &[&Op<'_>]) -> Vec<Entry<LockOp>> {
        let mut seen = BTreeSet::new();
        let mut entries = Vec::new();
        for op in ops {
            let Some(Answer::Described { holder: Some(held), .. }) = known(op) else { continue };
            let new = !self.answered.contains(&held.fencing_token);
            if !new || !seen.insert(held.fencing_token) {
                continue;
            }
            let asked = ops.iter().filter(|asked| {
                matches!(asked.call, Call::Acquire { owner, .. } if *owner == held.owner)
                    && asked.called < op.returned
            });
            // The last one asked is the one that may still be open.
            if let Some(asked) = asked.max_by_key(|asked| asked.called) {
                let owner = self.owners.number(&held.owner);
                let (session, token, free_from, until) = (None, None, 0, u64::MAX);
                let op = LockOp::Acquire { owner, session, token, free_from, until };
                let (id, called) = (asked.id, asked.called);
                entries.push(Entry { id, op, called, returned: usize::MAX });
            }
        }
        entries
    }
}

/// The TTL of a grant; 0 where it is not known.
fn ttl_of_token(token: u64, ops: &[&Op<'_>]) -> u64 {
    let ttl = |op: &&Op<'_>| match (op.call, known(op)) {
        (Call::Acquire { ttl_ms, session, .. }, Some(Answer::Acquired { fencing_token, .. }))
            if *fencing_token == token =>
        {
            Some(session.map_or(*ttl_ms, |session| ttl_of_session(session, ops)))
        }
        _ => None,
    };
    ops.iter().find_map(ttl).unwrap_or(0)
}

/// The TTL of a session that a client opened, or that a grant brought; 0 where it is not known.
fn ttl_of_session(session: u64, ops: &[&Op<'_>]) -> u64 {
    let ttl = |op: &&Op<'_>| match (op.call, known(op)) {
        (Call::OpenSession { ttl_ms }, Some(Answer::Opened { session: opened, .. }))
            if *opened == session =>
        {
            Some(*ttl_ms)
        }
        (
            Call::Acquire { ttl_ms, session: None, .. },
            Some(Answer::Acquired { session: own, .. }),
        ) if *own == session => Some(*ttl_ms),
        _ => None,
    };
    ops.iter().find_map(ttl).unwrap_or(0)
}

impl Lock {
    /// Whether a holder has a token, or may have it.
    fn has(&self, state: &LockState, token: u64) -> bool {
        state.holder.as_ref().is_some_and(|holder| match holder.token {
            Some(held) => held == token,
            None => token > state.floor && !self.answered.contains(&token),
        })
    }

    fn with_token(&self, state: &LockState, token: u64) -> Option<LockState> {
        if !self.has(state, token) {
            return None;
        }
        let mut state = state.clone();
        state.floor = state.floor.max(token);
        let holder = state.holder.as_mut().expect("it has the token");
        holder.token = Some(token);
        Some(state)
    }
}

impl Model for Lock {
    type State = LockState;
    type Op = LockOp;

    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<LockOp>>) {
        let mut model = Self::default();
        let mut entries: Vec<_> =
            ops.iter().filter_map(|op| Some(Entry::new(op, model.op(op, ops)?))).collect();
        entries.extend(model.taken_back(ops));
        (model, entries)
    }

    fn start(&self) -> LockState {
        LockState { floor: 0, holder: None }
    }

    fn step(&self, state: &LockState, op: &LockOp, next: &mut Vec<LockState>) {
        let held = |session: u64| state.holder.as_ref().is_some_and(|h| h.session == Some(session));
        match *op {
            LockOp::Acquire { owner, session, token, free_from, until } => {
                let free = state.holder.as_ref().is_none_or(|holder| holder.free_from <= until);
                if free && token.is_none_or(|token| token > state.floor) {
                    let holder = Some(Holder { token, owner, session, free_from });
                    next.push(LockState { floor: state.floor.max(token.unwrap_or(0)), holder });
                }
            }
            LockOp::Renew { token, called, ttl_ms } => {
                if let Some(mut after) = self.with_token(state, token) {
                    let holder = after.holder.as_mut().expect("it has the token");
                    if ttl_ms > 0 {
                        holder.free_from = holder.free_from.max(expiry_min(called, ttl_ms));
                    }
                    next.push(after);
                }
            }
            LockOp::RenewSession { session, called, ttl_ms } => {
                let mut after = state.clone();
                if let Some(holder) = &mut after.holder
                    && held(session)
                    && ttl_ms > 0
                {
                    holder.free_from = holder.free_from.max(expiry_min(called, ttl_ms));
                }
                next.push(after);
            }
            LockOp::Release { token } => {
                next.extend(
                    self.with_token(state, token).map(|state| LockState { holder: None, ..state }),
                );
            }
            LockOp::CloseSession { session } => {
                let mut after = state.clone();
                after.holder.take_if(|_| held(session));
                next.push(after);
            }
            LockOp::Describe { holder: None, until } => {
                if state.holder.as_ref().is_none_or(|holder| holder.free_from <= until) {
                    next.push(LockState { floor: state.floor, holder: None });
                }
            }
            LockOp::Describe { holder: Some((owner, token)), .. } => {
                let same = |state: &LockState| {
                    state.holder.as_ref().is_some_and(|holder| holder.owner == owner)
                };
                next.extend(self.with_token(state, token).filter(same));
            }
            LockOp::Held { token } => next.extend(self.with_token(state, token)),
        }
    }

    fn legal(&self, state: &LockState, op: &LockOp) -> String {
        let held = match &state.holder {
            None => "free".to_owned(),
            Some(Holder { token: None, owner, .. }) => {
                format!("held by {:?} with a token that nobody was told", self.owners.text(*owner))
            }
            Some(Holder { token: Some(token), owner, .. }) => {
                format!("held by {:?} with token {token}", self.owners.text(*owner))
            }
        };
        match op {
            LockOp::Acquire { .. } if state.holder.is_none() => {
                format!("acquired with a token above {}", state.floor)
            }
            LockOp::Acquire { .. } => format!("a refusal, for it was {held}"),
            LockOp::Describe { .. } => held,
            LockOp::Renew { token, .. } | LockOp::Release { token } | LockOp::Held { token }
                if !self.has(state, *token) =>
            {
                format!("a refusal, for it was {held}")
            }
            _ => "done".into(),
        }
    }
}
