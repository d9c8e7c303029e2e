//! Limits of requests, checked before a command is proposed and again when it is applied.
//!
//! Only what the request itself shows: whether a session lives or a lock is held is the state's
//! to say.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    machine::{
        cluster,
        dedup::RequestId,
        discovery, events, lock,
        outcome::{invalid, refusal},
        put_stream, retention, session,
    },
    pb::{
        command::v1::{Reason, Refusal, command::Op},
        kv::v1::{
            Compare, DeleteRangeRequest, HeldLock, PutRequest, RangeRequest, RequestOp,
            StreamedPut, TxnRequest,
            compare::{Operator, Target},
            request_op::Request,
        },
    },
    types::KeyRange,
};

/// The longest key, in bytes.
pub(crate) const KEY_BYTES_MAX: usize = 8_192;

/// The largest value, in bytes.
pub(crate) const VALUE_BYTES_MAX: usize = 1 << 20;

/// The largest command, in bytes: four values and what surrounds them.
pub(crate) const COMMAND_BYTES_MAX: usize = (4 << 20) + (64 << 10);

/// The largest result of a command, in bytes: it is kept for retries.
pub(crate) const RESULT_BYTES_MAX: usize = 2 << 20;

/// The most comparisons, and the most operations of one list, of a transaction.
pub(crate) const TXN_OPS_MAX: usize = 128;

/// The most keys that one deletion deletes.
pub(crate) const WRITES_MAX: usize = 10_000;

/// The most keys that one range returns.
pub(crate) const RANGE_KEYS_MAX: usize = 10_000;

/// The longest name of a lock, in bytes.
pub(crate) const LOCK_NAME_BYTES_MAX: usize = 512;

/// Checks a command against the limits that the protos state.
///
/// # Errors
/// The refusal that the request deserves.
pub fn validate(op: &Op) -> Result<(), Refusal> {
    let bytes = op.encoded_len();
    if bytes > COMMAND_BYTES_MAX {
        return Err(too_large("the request", bytes, COMMAND_BYTES_MAX));
    }
    request_id(op)?;
    match op {
        Op::Put(request) => put(request),
        Op::PutBatch(batch) => put_stream::validate_batch(batch),
        Op::DeleteRange(request) => delete_range(request),
        Op::Txn(request) => txn(request),
        Op::OpenSession(request) => session::validate_open(request),
        Op::CloseSession(request) => session::validate_close(request),
        Op::Acquire(request) => lock::validate_acquire(request),
        Op::Release(request) => lock::validate_release(request),
        Op::Register(request) => discovery::validate_register(request),
        Op::Deregister(request) => discovery::validate_deregister(request),
        Op::SetInstanceState(request) => discovery::validate_set_state(request),
        Op::Append(request) => events::validate_append(request),
        Op::SetStreamLimits(request) => retention::validate_limits(request),
        Op::TrimStream(request) => retention::validate_trim(request),
        Op::DeleteStream(request) => retention::validate_delete(request),
        Op::FoundCluster(command) => cluster::validate_found(command),
        Op::RegisterMember(command) => cluster::validate_register(command),
        Op::Compact(_)
        | Op::CancelAcquire(_)
        | Op::ExpireSessions(_)
        | Op::CheckpointSessions(_)
        | Op::AdvanceTime(_) => Ok(()),
    }
}

/// Checks a range against the limits that the protos state.
///
/// # Errors
/// The refusal that the request deserves.
pub fn validate_range(request: &RangeRequest) -> Result<(), Refusal> {
    range("range", &request.key, &request.range_end)
}

/// Checks one put of a put stream against the limits that the protos state.
///
/// # Errors
/// The refusal that the put deserves.
pub fn validate_streamed_put(put: &StreamedPut) -> Result<(), Refusal> {
    key("key", &put.key)?;
    value(&put.value)
}

fn request_id(op: &Op) -> Result<(), Refusal> {
    let id = super::apply::request_id(op);
    if id.is_empty() {
        return Ok(());
    }
    match (RequestId::parse(id)?, op) {
        (RequestId::Sequence { .. }, Op::OpenSession(_) | Op::CloseSession(_)) => {
            Err(invalid("request_id of a session's opening or closing must be a UUID"))
        }
        _ => Ok(()),
    }
}

fn put(request: &PutRequest) -> Result<(), Refusal> {
    key("key", &request.key)?;
    value(&request.value)?;
    held_lock(request.require_lock.as_ref())
}

fn delete_range(request: &DeleteRangeRequest) -> Result<(), Refusal> {
    range("range", &request.key, &request.range_end)?;
    held_lock(request.require_lock.as_ref())
}

fn txn(request: &TxnRequest) -> Result<(), Refusal> {
    let lists = [request.compare.len(), request.success.len(), request.failure.len()];
    if let Some(count) = lists.into_iter().find(|&count| count > TXN_OPS_MAX) {
        return Err(invalid(format!(
            "a transaction's list holds {count} elements; the limit is {TXN_OPS_MAX}"
        )));
    }
    request.compare.iter().try_for_each(compare)?;
    txn_ops(&request.success)?;
    txn_ops(&request.failure)
}

fn compare(compare: &Compare) -> Result<(), Refusal> {
    match &compare.target {
        None => Err(invalid("a comparison has no target")),
        Some(Target::HeldLock(lock)) => held_lock(Some(lock)),
        Some(_) => {
            if compare.operator() == Operator::Unspecified {
                return Err(invalid("a comparison has no operator"));
            }
            range("compare", &compare.key, &compare.range_end)
        }
    }
}

/// Checks one list: each operation, and that no key is written twice.
fn txn_ops(ops: &[RequestOp]) -> Result<(), Refusal> {
    let mut puts: BTreeSet<&Bytes> = BTreeSet::new();
    let mut deletes = Vec::new();
    for op in ops {
        let (id, locked, stale) = match &op.request {
            None => return Err(invalid("a transaction's operation is empty")),
            Some(Request::Range(request)) => {
                validate_range(request)?;
                ("", false, request.stale)
            }
            Some(Request::Put(request)) => {
                put(request)?;
                if !puts.insert(&request.key) {
                    return Err(invalid("a transaction writes one key twice"));
                }
                (request.request_id.as_str(), request.require_lock.is_some(), false)
            }
            Some(Request::DeleteRange(request)) => {
                delete_range(request)?;
                deletes.push(KeyRange::from_wire(&request.key, &request.range_end));
                (request.request_id.as_str(), request.require_lock.is_some(), false)
            }
        };
        if !id.is_empty() || locked || stale {
            return Err(invalid(
                "request_id, require_lock and stale must be empty inside a transaction: \
                 set request_id on the transaction, compare held_lock",
            ));
        }
    }
    let overlap = deletes.iter().any(|range| puts.iter().any(|key| range.contains(key)));
    if overlap {
        return Err(invalid("a transaction writes one key twice: a put lies in a deleted range"));
    }
    Ok(())
}

fn key(what: &str, key: &[u8]) -> Result<(), Refusal> {
    match key.len() {
        0 => Err(invalid(format!("the {what} is empty"))),
        bytes if bytes > KEY_BYTES_MAX => {
            Err(invalid(format!("the {what} has {bytes} bytes; the limit is {KEY_BYTES_MAX}")))
        }
        _ => Ok(()),
    }
}

fn value(value: &[u8]) -> Result<(), Refusal> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(too_large("the value", value.len(), VALUE_BYTES_MAX));
    }
    Ok(())
}

fn range(what: &str, start: &[u8], end: &[u8]) -> Result<(), Refusal> {
    key(&format!("{what}'s key"), start)?;
    if end.is_empty() { Ok(()) } else { key(&format!("{what}'s end"), end) }
}

fn held_lock(lock: Option<&HeldLock>) -> Result<(), Refusal> {
    match lock {
        Some(lock) if lock.name.is_empty() || lock.name.len() > LOCK_NAME_BYTES_MAX => {
            Err(invalid(format!("a lock's name must have 1 to {LOCK_NAME_BYTES_MAX} bytes")))
        }
        Some(lock) if lock.fencing_token == 0 => Err(invalid("a fencing token is never 0")),
        _ => Ok(()),
    }
}

/// The refusal of something that has too many bytes.
pub(crate) fn too_large(what: &str, bytes: usize, limit: usize) -> Refusal {
    refusal(Reason::TooLarge, format!("{what} has {bytes} bytes; the limit is {limit}"))
        .with("bytes", bytes)
        .with("limit", limit)
}

#[cfg(test)]
mod tests;
