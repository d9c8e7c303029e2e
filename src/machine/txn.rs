//! Transactions: compare, then one list of operations or the other, in one revision.
//!
//! Reads inside see the writes before them. That no key is written twice is checked beforehand
//! (`validate.rs`); a refused operation takes the whole transaction back.

use core::cmp::Ordering;

use crate::{
    machine::{effect::Space, keyspace, lock, outcome::Decision, read, store::StoreError, tx::Tx},
    pb::kv::v1::{
        Compare, KeyValue, RequestOp, ResponseOp, TxnRequest, TxnResponse,
        compare::{Operator, Target},
        request_op::Request,
        response_op::Response,
    },
    types::KeyRange,
};

/// `kv.v1.KvService/Txn`.
pub(crate) fn txn(tx: &mut Tx<'_>, request: &TxnRequest) -> Decision<TxnResponse> {
    let mut succeeded = true;
    for compare in &request.compare {
        succeeded = succeeded && passes(tx, compare)?;
    }
    let ops = if succeeded { &request.success } else { &request.failure };
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        match run(tx, op)? {
            Ok(response) => responses.push(ResponseOp { response: Some(response) }),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(Ok(TxnResponse { succeeded, responses, revision: tx.head.revision.value() }))
}

fn run(tx: &mut Tx<'_>, op: &RequestOp) -> Decision<Response> {
    Ok(match op.request.as_ref().expect("validation requires an operation") {
        Request::Range(request) => read::range(tx, &tx.head, request)?.map(Response::Range),
        Request::Put(request) => keyspace::put(tx, request)?.map(Response::Put),
        Request::DeleteRange(request) => {
            keyspace::delete_range(tx, request)?.map(Response::DeleteRange)
        }
    })
}

fn passes(tx: &Tx<'_>, compare: &Compare) -> Result<bool, StoreError> {
    if let Some(Target::HeldLock(held)) = &compare.target {
        return lock::is_held(tx, &held.name, held.fencing_token);
    }
    if compare.range_end.is_empty() {
        return Ok(holds(compare, tx.row(Space::User, &compare.key)?.as_ref()));
    }
    let range = KeyRange::from_wire(&compare.key, &compare.range_end);
    let mut empty = true;
    if !range.is_empty() {
        for row in keyspace::rows(tx, Space::User, &range) {
            empty = false;
            if !holds(compare, Some(&row?)) {
                return Ok(false);
            }
        }
    }
    // As in etcd, a range without keys compares like a key that is missing.
    Ok(!empty || holds(compare, None))
}

fn holds(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    let number = |field: fn(&KeyValue) -> u64, with: &u64| kv.map_or(0, field).cmp(with);
    let ordering = match compare.target.as_ref().expect("validation requires a target") {
        Target::Version(with) => number(|kv| kv.version, with),
        Target::CreateRevision(with) => number(|kv| kv.create_revision, with),
        Target::ModRevision(with) => number(|kv| kv.mod_revision, with),
        Target::SessionId(with) => number(|kv| kv.session_id, with),
        Target::Value(with) => match kv {
            Some(kv) => kv.value.cmp(with),
            None => return false,
        },
        Target::HeldLock(_) => return false,
    };
    match compare.operator() {
        Operator::Equal => ordering == Ordering::Equal,
        Operator::NotEqual => ordering != Ordering::Equal,
        Operator::Greater => ordering == Ordering::Greater,
        Operator::Less => ordering == Ordering::Less,
        Operator::Unspecified => false,
    }
}

#[cfg(test)]
mod tests;
