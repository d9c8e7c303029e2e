//! Sessions: a client's life as the cluster sees it. What is bound to a session goes with it, in
//! the same entry.
//!
//! The state knows when a session was opened and that it ended; how much of its TTL is left is the
//! leader's memory, which hears of every start through [`SessionEffect`]. An expiry is a command
//! like any other and is checked here: it carries the term and the epoch it was decided in
//! (raft-rules 24). Nothing here looks at a clock.

use std::collections::BTreeSet;

use crate::{
    machine::{
        SessionEffect, SessionInfo, View, dedup, discovery, keyspace, lock,
        outcome::{Decision, invalid, refusal},
        span,
        store::StoreError,
        tables::{Fields, Key, Table},
        tx::{self, Tx},
        validate::too_large,
    },
    pb::{
        command::v1::{CheckpointSessions, Done, ExpireSessions, Reason, Refusal},
        session::v1::{
            CloseSessionRequest, CloseSessionResponse, OpenSessionRequest, OpenSessionResponse,
        },
    },
    types::{Duration, Planted, SessionId, planted},
};

/// The longest label that a session, a holder or a waiter may carry, in bytes.
pub(crate) const OWNER_BYTES_MAX: usize = 256;

/// The TTL of a session that was opened for a place in a line: the node that parks the call
/// renews it, so that the place goes when the node does.
pub(crate) const WAITING_TTL: Duration = Duration::from_secs(10);

/// A session as it is kept.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SessionRow {
    /// The whole TTL, in milliseconds.
    #[prost(uint64, tag = "1")]
    pub(crate) ttl_ms: u64,
    /// What was left of it when that was last recorded, in milliseconds.
    #[prost(uint64, tag = "2")]
    pub(crate) remaining_ms: u64,
    /// Grows each time the TTL starts anew through the log; an expiry must carry it.
    #[prost(uint64, tag = "3")]
    pub(crate) epoch: u64,
    /// A label for people.
    #[prost(string, tag = "4")]
    pub(crate) owner: String,
    /// What it was opened for.
    #[prost(enumeration = "Kind", tag = "5")]
    pub(crate) kind: i32,
}

/// What a session was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    /// Never kept.
    Unspecified = 0,
    /// By a client, for what it binds to it.
    Explicit = 1,
    /// For one place in a lock's line. Nothing else can be bound to it.
    Waiting = 2,
    /// For one grant of a lock.
    Holding = 3,
    /// For one instance.
    Instance = 4,
}

impl SessionRow {
    /// The whole TTL.
    pub(crate) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }
}

fn key(session: SessionId) -> Key {
    Key::of(Table::Session).u64(session.value())
}

/// Why sessions end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Closed, or no longer needed.
    Closed,
    /// Not renewed in time.
    Expired,
}

pub(crate) fn validate_open(request: &OpenSessionRequest) -> Result<(), Refusal> {
    span::read_ttl(request.ttl.as_ref())?;
    validate_owner(&request.owner)
}

pub(crate) fn validate_close(request: &CloseSessionRequest) -> Result<(), Refusal> {
    if request.session_id == 0 {
        return Err(invalid("`session_id` is missing"));
    }
    Ok(())
}

pub(crate) fn validate_owner(owner: &str) -> Result<(), Refusal> {
    if owner.len() <= OWNER_BYTES_MAX {
        return Ok(());
    }
    Err(too_large("`owner`", owner.len(), OWNER_BYTES_MAX))
}

/// The refusal for a session that is not there.
pub(crate) fn not_found(session: SessionId) -> Refusal {
    let sentence = format!("session {} is gone or never was: open a new one", session.value());
    refusal(Reason::SessionNotFound, sentence).with("session_id", session.value())
}

/// Opens a session for a client.
pub(crate) fn open(tx: &mut Tx<'_>, request: &OpenSessionRequest) -> Decision<OpenSessionResponse> {
    let ttl = match span::read_ttl(request.ttl.as_ref()) {
        Ok(ttl) => ttl,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let session = start(tx, Kind::Explicit, ttl, &request.owner);
    let response = OpenSessionResponse {
        session_id: session.value(),
        ttl: Some(span::to_wire(ttl)),
        revision: tx.head.revision.value(),
    };
    Ok(Ok(response))
}

/// Closes a session of any kind and releases everything bound to it.
pub(crate) fn close(
    tx: &mut Tx<'_>,
    request: &CloseSessionRequest,
) -> Decision<CloseSessionResponse> {
    let session = SessionId::new(request.session_id);
    if load(tx, session)?.is_none() {
        return Ok(Err(not_found(session)));
    }
    end(tx, &[session], End::Closed)?;
    Ok(Ok(CloseSessionResponse { revision: tx.head.revision.value() }))
}

/// Ends the sessions that the leader found expired, as far as it still knew them right: in another
/// term, or with another epoch, nothing happens.
pub(crate) fn expire(tx: &mut Tx<'_>, command: &ExpireSessions) -> Decision<Done> {
    if command.term != tx.term.value() {
        return Ok(Ok(Done {}));
    }
    let mut expired = BTreeSet::new();
    for known in &command.sessions {
        let session = SessionId::new(known.session_id);
        let blind = planted(Planted::ExpiryWithoutEpoch);
        if load(tx, session)?.is_some_and(|row| row.epoch == known.epoch || blind) {
            expired.insert(session);
        }
    }
    let expired: Vec<_> = expired.into_iter().collect();
    end(tx, &expired, End::Expired)?;
    Ok(Ok(Done {}))
}

/// Records what is left of long TTLs, so that a new leader does not start them in full. The epoch
/// moves on, so an expiry that was decided before the checkpoint is void.
pub(crate) fn checkpoint(tx: &mut Tx<'_>, command: &CheckpointSessions) -> Decision<Done> {
    for left in &command.sessions {
        let session = SessionId::new(left.session_id);
        if let Some(mut row) = load(tx, session)? {
            row.remaining_ms = left.remaining_ms.min(row.ttl_ms);
            save_started(tx, session, row);
        }
    }
    Ok(Ok(Done {}))
}

/// Opens the session of this entry: its id is the entry's number, so an entry opens one at most.
pub(crate) fn start(tx: &mut Tx<'_>, kind: Kind, ttl: Duration, owner: &str) -> SessionId {
    let session = SessionId::new(tx.entry_number());
    let ttl_ms = span::millis(ttl);
    let row = SessionRow {
        ttl_ms,
        remaining_ms: ttl_ms,
        epoch: 0,
        owner: owner.to_owned(),
        kind: kind.into(),
    };
    save_started(tx, session, row);
    session
}

/// Turns the session of a waiter into that of a holder: its TTL counts from this entry.
pub(crate) fn start_holding(
    tx: &mut Tx<'_>,
    session: SessionId,
    ttl: Duration,
) -> Result<(), StoreError> {
    let mut row = load(tx, session)?.expect("a waiter leaves its line when its session ends");
    row.ttl_ms = span::millis(ttl);
    row.remaining_ms = row.ttl_ms;
    row.kind = Kind::Holding.into();
    save_started(tx, session, row);
    Ok(())
}

fn save_started(tx: &mut Tx<'_>, session: SessionId, mut row: SessionRow) {
    row.epoch += 1;
    tx.save(key(session), &row);
    tx.applied.sessions.push(SessionEffect::Started {
        session,
        ttl: Duration::from_millis(row.remaining_ms),
        full_ttl: row.ttl(),
        epoch: row.epoch,
    });
}

/// Carries the sessions of a restored state over: their TTLs start anew. Nobody waits for a lock
/// any more, since the nodes that parked the calls are gone, and sessions opened to wait end.
pub(crate) fn carry_over(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let rows: Vec<(SessionId, SessionRow)> = tx
        .scan_prefix(Key::of(Table::Session))
        .map(|row| {
            let (key, value) = row?;
            Ok((SessionId::new(Fields::of_key(&key).u64()?), tx::decode(value)?))
        })
        .collect::<Result<_, StoreError>>()?;
    for (session, _) in &rows {
        lock::leave_lines(tx, *session, End::Closed)?;
    }
    for (session, mut row) in rows {
        if row.kind() == Kind::Waiting {
            end(tx, &[session], End::Closed)?;
        } else {
            row.remaining_ms = row.ttl_ms;
            save_started(tx, session, row);
        }
    }
    Ok(())
}

/// A session of any kind.
pub(crate) fn load(tx: &Tx<'_>, session: SessionId) -> Result<Option<SessionRow>, StoreError> {
    tx.load(&key(session))
}

/// A session that locks, instances and keys may be bound to. The sessions of waiters are left
/// out: what ends a wait must never release anything else.
pub(crate) fn load_bindable(
    tx: &Tx<'_>,
    session: SessionId,
) -> Result<Option<SessionRow>, StoreError> {
    Ok(load(tx, session)?.filter(|row| row.kind() != Kind::Waiting))
}

/// Whether there is a session that something may be bound to.
pub(crate) fn exists(tx: &Tx<'_>, session: SessionId) -> Result<bool, StoreError> {
    Ok(load_bindable(tx, session)?.is_some())
}

/// Ends sessions and whatever is bound to them. All leave the lines they stand in before any
/// lock is handed over, so that no lock goes to a session that ends in the same entry, and one
/// entry grants a name once at most.
pub(crate) fn end(tx: &mut Tx<'_>, sessions: &[SessionId], why: End) -> Result<(), StoreError> {
    for &session in sessions {
        lock::leave_lines(tx, session, why)?;
    }
    for &session in sessions {
        lock::release_all(tx, session)?;
        discovery::remove_all(tx, session)?;
        keyspace::delete_session_keys(tx, session)?;
        dedup::forget_session(tx, session)?;
        tx.delete(key(session));
        tx.applied.sessions.push(SessionEffect::Closed { session });
    }
    Ok(())
}

impl View {
    /// All sessions, in the order of their ids.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, StoreError> {
        let range = Key::of(Table::Session).prefix();
        self.reader()
            .scan(&range.start, range.end.as_deref())
            .map(|row| {
                let (key, value) = row?;
                let session = SessionId::new(Fields::of_key(&key).u64()?);
                Ok(info(session, &tx::decode(value)?))
            })
            .collect()
    }

    /// One session; `None` where it is gone or never was.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn session(&self, session: SessionId) -> Result<Option<SessionInfo>, StoreError> {
        let row = tx::load(self.reader().as_ref(), &key(session))?;
        Ok(row.map(|row| info(session, &row)))
    }
}

fn info(session: SessionId, row: &SessionRow) -> SessionInfo {
    SessionInfo {
        session,
        ttl: row.ttl(),
        remaining: Duration::from_millis(row.remaining_ms),
        epoch: row.epoch,
    }
}

#[cfg(test)]
mod tests;
