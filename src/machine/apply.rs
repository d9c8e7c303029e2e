//! The state machine: entries in, effects out, one atomic batch a run.
//!
//! The same entries give the same state, byte for byte, however they are cut into runs. An entry
//! that cannot be read, or that asks for something unknown, changes nothing and is refused.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::{
        cluster, compaction, dedup, discovery,
        effect::Applied,
        events,
        head::{self, Counters, Head},
        keyspace, lock,
        outcome::{Decision, invalid, refusal},
        put_stream, restore, retention, session,
        store::{Store, StoreError},
        timers, tx,
        tx::{Finished, Tx},
        txn,
        validate::{RESULT_BYTES_MAX, validate},
    },
    pb::command::v1::{Command, Done, Origin, Outcome, Reason, Refusal, command::Op},
    raft::{Entry, Payload},
    types::{LogTime, Planted, planted},
};

/// The version of the command format.
pub const COMMAND_VERSION: u32 = 1;

/// How the state machine is set up. It decides what entries do, so it must be the same on every
/// node of a cluster.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// How many revisions of history automatic compaction keeps; 0 never compacts by itself.
    pub retained_revisions: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self { retained_revisions: 100_000 }
    }
}

/// The state machine.
#[derive(Debug)]
pub struct Machine {
    store: Arc<dyn Store>,
    config: MachineConfig,
    head: Head,
    counters: Counters,
    requests: dedup::Requests,
    next_timer: Option<LogTime>,
}

impl Machine {
    /// Opens the state in a store; an empty store is the state before the first entry.
    ///
    /// # Errors
    /// Where the store cannot be read or holds an unknown format.
    pub fn open(store: Arc<dyn Store>, config: MachineConfig) -> Result<Self, StoreError> {
        let (head, counters) = head::load(store.as_ref())?;
        let next_timer =
            tx::first_timer(store.as_ref(), LogTime::ZERO)?.map(|timer| timer.deadline);
        let requests = dedup::Requests::load(store.as_ref())?;
        Ok(Self { store, config, head, counters, requests, next_timer })
    }

    /// Where the state stands.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The store that the state lives in.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the next timer is now, as in [`Applied::next_timer`].
    #[must_use]
    pub fn next_timer(&self) -> Option<LogTime> {
        self.next_timer
    }

    /// Applies consecutive entries in one atomic batch. Entries at or below the head are skipped.
    ///
    /// # Errors
    /// Where the store fails: the node must stop.
    ///
    /// # Panics
    /// Where an entry is missing between the head and the run.
    pub fn apply(&mut self, entries: &[Entry]) -> Result<Applied, StoreError> {
        let first = entries.partition_point(|entry| entry.index <= self.head.index);
        let entries = &entries[first..];
        if entries.is_empty() {
            let (head, next_timer) = (self.head.clone(), self.next_timer);
            return Ok(Applied { head, next_timer, ..Applied::default() });
        }
        let requests = core::mem::take(&mut self.requests);
        let head = self.head.clone();
        let mut tx = Tx::new(self.store.as_ref(), &self.config, head, self.counters, requests);
        tx.expect_timers_from(self.next_timer);
        tx.reserve(entries.len());
        for entry in entries {
            assert_eq!(entry.index, tx.head.index.next(), "entries are applied without a gap");
            apply_entry(&mut tx, entry)?;
        }
        let Finished { batch, mut applied, counters, requests, timers_moved, timers_from } =
            tx.finish();
        self.store.commit(batch)?;
        if timers_moved {
            let timer = match timers_from {
                Some(from) => tx::first_timer(self.store.as_ref(), from)?,
                None => None,
            };
            self.next_timer = timer.map(|timer| timer.deadline);
        }
        applied.next_timer = self.next_timer;
        self.head = applied.head.clone();
        self.counters = counters;
        self.requests = requests;
        Ok(applied)
    }
}

fn apply_entry(tx: &mut Tx<'_>, entry: &Entry) -> Result<(), StoreError> {
    tx.now = entry.time.max(tx.now);
    tx.index = entry.index;
    tx.term = entry.term;
    tx.head.index = entry.index;
    tx.head.term = entry.term;
    tx.head.time = tx.now;
    if tx.counters.restored {
        restore::leap(tx);
    }
    tx.begin();
    timers::fire(tx)?;
    tx.begin();
    match &entry.payload {
        Payload::Noop => {}
        Payload::Membership(membership) => tx.head.membership = membership.clone(),
        Payload::Command(data) => apply_command(tx, data)?,
    }
    compaction::step(tx)
}

fn apply_command(tx: &mut Tx<'_>, data: &Bytes) -> Result<(), StoreError> {
    let command = match Command::decode(data.clone()) {
        Ok(command) => command,
        Err(error) => {
            tracing::error!(index = %tx.index, %error, "a command cannot be read and is passed over");
            return Ok(());
        }
    };
    let origin = command.origin.unwrap_or_default();
    let decision = match command.op {
        _ if command.version != COMMAND_VERSION => {
            Err(invalid(format!("command version {} is not known", command.version)))
        }
        None => Err(invalid("the command is not known")),
        Some(op) => decide(tx, &origin, &op)?,
    };
    match decision {
        Ok(Some(outcome)) => tx.complete(&origin, outcome),
        Ok(None) => {}
        Err(refusal) => {
            tx.rollback();
            tx.complete(&origin, refusal);
        }
    }
    Ok(())
}

/// Carries a command out, or answers as the first time where it was carried out before. `None`
/// is parked.
fn decide(tx: &mut Tx<'_>, origin: &Origin, op: &Op) -> Decision<Option<Outcome>> {
    if let Err(refusal) = validate(op) {
        return Ok(Err(refusal));
    }
    let request_id = request_id(op);
    if request_id.is_empty() {
        return Ok(bounded(execute(tx, origin, op)?));
    }
    let fingerprint = dedup::fingerprint(op);
    match dedup::recall(tx, request_id, fingerprint)? {
        Ok(None) => {}
        Ok(Some(_)) if planted(Planted::RetryAppliedTwice) => {}
        known => {
            if let Ok(Some(outcome)) = &known {
                lock::deliver_again(tx, origin, outcome)?;
            }
            return Ok(known);
        }
    }
    let decision = bounded(execute(tx, origin, op)?);
    if let Ok(Some(outcome)) = &decision {
        dedup::remember(tx, request_id, fingerprint, outcome)?;
    }
    Ok(decision)
}

/// A result that is too large to be answered and kept is refused, and with it the command.
fn bounded(decision: Result<Option<Outcome>, Refusal>) -> Result<Option<Outcome>, Refusal> {
    let Ok(Some(outcome)) = &decision else { return decision };
    let bytes = outcome.encoded_len();
    if bytes <= RESULT_BYTES_MAX {
        return decision;
    }
    let message = format!(
        "the result has {bytes} bytes; the limit is {RESULT_BYTES_MAX}: ask for less in one request"
    );
    Err(refusal(Reason::TooLarge, message).with("bytes", bytes).with("limit", RESULT_BYTES_MAX))
}

fn execute(tx: &mut Tx<'_>, origin: &Origin, op: &Op) -> Decision<Option<Outcome>> {
    match op {
        Op::Put(request) => done(keyspace::put(tx, request)),
        Op::PutBatch(batch) => done(put_stream::put_batch(tx, batch)),
        Op::DeleteRange(request) => done(keyspace::delete_range(tx, request)),
        Op::Txn(request) => done(txn::txn(tx, request)),
        Op::Compact(request) => done(compaction::compact(tx, request)),
        Op::OpenSession(request) => done(session::open(tx, request)),
        Op::CloseSession(request) => done(session::close(tx, request)),
        Op::Acquire(request) => {
            let decision = lock::acquire(tx, origin, request)?;
            Ok(decision.map(|response| response.map(Outcome::from)))
        }
        Op::Release(request) => done(lock::release(tx, request)),
        Op::CancelAcquire(request) => done(lock::cancel(tx, request)),
        Op::Register(request) => done(discovery::register(tx, request)),
        Op::Deregister(request) => done(discovery::deregister(tx, request)),
        Op::SetInstanceState(request) => done(discovery::set_state(tx, request)),
        Op::Append(request) => done(events::append(tx, request)),
        Op::ExpireSessions(request) => done(session::expire(tx, request)),
        Op::CheckpointSessions(request) => done(session::checkpoint(tx, request)),
        Op::AdvanceTime(_) => Ok(Ok(Some(Done {}.into()))),
        Op::FoundCluster(request) => done(cluster::found(tx, request)),
        Op::RegisterMember(request) => done(cluster::register_member(tx, request)),
        Op::SetStreamLimits(request) => done(retention::set_limits(tx, request)),
        Op::TrimStream(request) => done(retention::trim(tx, request)),
        Op::DeleteStream(request) => done(retention::delete(tx, request)),
    }
}

fn done<T: Into<Outcome>>(decision: Decision<T>) -> Decision<Option<Outcome>> {
    Ok(decision?.map(|response| Some(response.into())))
}

/// The request id of a command; empty where it has none.
pub(crate) fn request_id(op: &Op) -> &str {
    match op {
        Op::Put(request) => &request.request_id,
        Op::DeleteRange(request) => &request.request_id,
        Op::Txn(request) => &request.request_id,
        Op::Compact(request) => &request.request_id,
        Op::OpenSession(request) => &request.request_id,
        Op::CloseSession(request) => &request.request_id,
        Op::Acquire(request) => &request.request_id,
        Op::Release(request) => &request.request_id,
        Op::Register(request) => &request.request_id,
        Op::Deregister(request) => &request.request_id,
        Op::SetInstanceState(request) => &request.request_id,
        Op::Append(request) => &request.request_id,
        Op::SetStreamLimits(request) => &request.request_id,
        Op::TrimStream(request) => &request.request_id,
        Op::DeleteStream(request) => &request.request_id,
        Op::PutBatch(_)
        | Op::CancelAcquire(_)
        | Op::ExpireSessions(_)
        | Op::CheckpointSessions(_)
        | Op::AdvanceTime(_)
        | Op::FoundCluster(_)
        | Op::RegisterMember(_) => "",
    }
}

#[cfg(test)]
mod tests;
