//! Between a history's calls and the node's: commands, their outcomes, and reads of a state.

use prost_types::Duration;

use crate::{
    machine::View,
    pb::{
        command::v1::{command::Op, outcome::Result as Done},
        discovery::v1::{DeregisterRequest, RegisterRequest, ResolveRequest},
        event::v1::{AppendRequest, Event as NewEvent, ExpectedState, append_request::Expected},
        kv::v1::{
            CompactRequest, Compare, DeleteRangeRequest, HeldLock, KeyValue, PutRequest,
            RangeRequest, RequestOp, ResponseOp, TxnRequest, compare, request_op, response_op,
        },
        lock::v1::{AcquireRequest, ReleaseRequest},
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
    sim::history::{Answer, Call, Change, Event, Held, Versioned},
};

/// The most events that a read of a stream takes.
const EVENTS_MAX: usize = 10_000;
/// The most bytes of them.
const EVENTS_BYTES_MAX: usize = 1 << 20;

/// Whether a call is answered without asking anybody.
pub(super) const fn is_stale(call: &Call) -> bool {
    matches!(call, Call::Get { stale: true, .. })
}

/// The command that carries a call out; `None` for reads and renewals.
pub(super) fn op(call: &Call, request_id: &str) -> Option<Op> {
    let request_id = request_id.to_owned();
    Some(match call.clone() {
        Call::Put { key, value, require_lock } => Op::Put(PutRequest {
            key: key.into(),
            value: value.into(),
            require_lock: require_lock
                .map(|(name, fencing_token)| HeldLock { name, fencing_token }),
            request_id,
            ..PutRequest::default()
        }),
        Call::Delete { key } => {
            let key = key.into();
            Op::DeleteRange(DeleteRangeRequest { key, request_id, ..DeleteRangeRequest::default() })
        }
        Call::Cas { key, expected, value } => {
            let compare = vec![compare(&key, expected)];
            let success = vec![put(&key, value)];
            Op::Txn(TxnRequest { compare, success, failure: Vec::new(), request_id })
        }
        Call::Txn { compares, changes, reads } => {
            let compare = compares.into_iter().map(|c| compare(&c.key, c.value)).collect();
            let changes = changes.into_iter().map(|Change { key, value }| match value {
                Some(value) => put(&key, value),
                None => delete(&key),
            });
            let failure: Vec<RequestOp> = reads.iter().map(|key| range(key)).collect();
            let success = changes.chain(failure.iter().cloned()).collect();
            Op::Txn(TxnRequest { compare, success, failure, request_id })
        }
        Call::OpenSession { ttl_ms } => {
            let ttl = Some(span(ttl_ms));
            Op::OpenSession(OpenSessionRequest { ttl, request_id, ..OpenSessionRequest::default() })
        }
        Call::CloseSession { session } => {
            Op::CloseSession(CloseSessionRequest { session_id: session, request_id })
        }
        Call::Acquire { lock, owner, ttl_ms, wait_ms, session } => Op::Acquire(AcquireRequest {
            name: lock,
            ttl: session.is_none().then(|| span(ttl_ms)),
            wait: Some(span(wait_ms)),
            session_id: session.unwrap_or(0),
            owner,
            request_id,
        }),
        Call::Release { lock, fencing_token } => {
            Op::Release(ReleaseRequest { name: lock, fencing_token, request_id })
        }
        Call::Register { service, instance, ttl_ms } => Op::Register(RegisterRequest {
            service,
            instance_id: instance,
            address: "127.0.0.1:1".into(),
            ttl: Some(span(ttl_ms)),
            request_id,
            ..RegisterRequest::default()
        }),
        Call::Deregister { service, instance } => {
            Op::Deregister(DeregisterRequest { service, instance_id: instance, request_id })
        }
        Call::Append { stream, data, expected_version } => {
            let events = data.into_iter().map(|data| NewEvent {
                r#type: "t".into(),
                data: data.into(),
                ..NewEvent::default()
            });
            let expected = expected_version.map(|version| match version {
                0 => Expected::ExpectedState(ExpectedState::NoStream.into()),
                version => Expected::ExpectedVersion(version),
            });
            Op::Append(AppendRequest { stream, events: events.collect(), expected, request_id })
        }
        Call::Compact { revision } => Op::Compact(CompactRequest { revision, request_id }),
        Call::Get { .. }
        | Call::RenewSession { .. }
        | Call::RenewLock { .. }
        | Call::Describe { .. }
        | Call::GuardedWrite { .. }
        | Call::Enqueue { .. }
        | Call::Dequeue { .. }
        | Call::Resolve { .. }
        | Call::ReadStream { .. } => return None,
    })
}

fn span(millis: u64) -> Duration {
    Duration {
        seconds: (millis / 1_000).cast_signed(),
        nanos: i32::try_from(millis % 1_000 * 1_000_000).expect("less than a second"),
    }
}

fn compare(key: &str, value: Option<String>) -> Compare {
    let target = match value {
        Some(value) => compare::Target::Value(value.into()),
        None => compare::Target::Version(0),
    };
    Compare {
        key: key.to_owned().into(),
        operator: compare::Operator::Equal.into(),
        target: Some(target),
        ..Compare::default()
    }
}

fn put(key: &str, value: String) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), value: value.into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::Put(put)) }
}

fn delete(key: &str) -> RequestOp {
    let delete = DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::DeleteRange(delete)) }
}

fn range(key: &str) -> RequestOp {
    let range = RangeRequest { key: key.to_owned().into(), ..Default::default() };
    RequestOp { request: Some(request_op::Request::Range(range)) }
}

/// What a client makes of a command's result.
pub(super) fn answer(call: &Call, result: &Done) -> Answer {
    let done = |revision: u64| Answer::Done { revision: Some(revision) };
    match result {
        Done::Put(put) => done(put.revision),
        Done::DeleteRange(delete) => {
            Answer::Deleted { existed: delete.deleted > 0, revision: Some(delete.revision) }
        }
        Done::Txn(txn) if matches!(call, Call::Cas { .. }) => {
            Answer::Swapped { swapped: txn.succeeded, revision: Some(txn.revision) }
        }
        Done::Txn(txn) => Answer::Txn {
            succeeded: txn.succeeded,
            reads: txn.responses.iter().filter_map(read_of).collect(),
            revision: Some(txn.revision),
        },
        Done::Compact(compact) => done(compact.revision),
        Done::OpenSession(opened) => {
            Answer::Opened { session: opened.session_id, revision: Some(opened.revision) }
        }
        Done::CloseSession(closed) => done(closed.revision),
        Done::Acquire(grant) => {
            Answer::Acquired { fencing_token: grant.fencing_token, session: grant.session_id }
        }
        Done::Release(release) => done(release.revision),
        Done::Register(registered) => Answer::Registered { revision: Some(registered.revision) },
        Done::Deregister(gone) => done(gone.revision),
        Done::Append(appended) => Answer::Appended {
            first_version: appended.first_version,
            first_position: appended.first_position,
            duplicate: appended.duplicate,
        },
        other => unreachable!("no call of a workload is answered with {other:?}"),
    }
}

fn read_of(response: &ResponseOp) -> Option<Option<Versioned>> {
    match response.response.as_ref()? {
        response_op::Response::Range(range) => Some(range.kvs.first().map(versioned)),
        _ => None,
    }
}

fn versioned(kv: &KeyValue) -> Versioned {
    Versioned { value: text(&kv.value), mod_revision: Some(kv.mod_revision) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a client reads in a node's state.
pub(super) fn read(view: &View, call: &Call) -> Answer {
    let readable = "memory is readable";
    match call {
        Call::Get { key, .. } => {
            let request = RangeRequest { key: key.clone().into(), ..RangeRequest::default() };
            let range = view.range(&request).expect(readable).expect("a plain read is served");
            let revision = Some(range.revision);
            Answer::Got { value: range.kvs.first().map(versioned), revision }
        }
        Call::Describe { lock } => {
            let described = view.lock(lock).expect(readable);
            let holder = described.lock.and_then(|lock| lock.holder);
            let holder = holder
                .map(|holder| Held { owner: holder.owner, fencing_token: holder.fencing_token });
            Answer::Described { holder, revision: Some(described.revision) }
        }
        Call::Resolve { service } => {
            let request = ResolveRequest { service: service.clone(), ..ResolveRequest::default() };
            let resolved = view.resolve(&request).expect(readable);
            let names = resolved.instances.into_iter().map(|instance| instance.instance_id);
            let mut instances: Vec<String> = names.collect();
            instances.sort();
            Answer::Resolved { instances, revision: Some(resolved.revision) }
        }
        Call::ReadStream { stream, from } => {
            let events = view.events(stream, *from, EVENTS_MAX, EVENTS_BYTES_MAX).expect(readable);
            let events = events.into_iter().map(|event| Event {
                data: text(&event.data),
                stream: event.stream,
                version: event.version,
                position: event.position,
            });
            Answer::Events { events: events.collect() }
        }
        other => unreachable!("{other:?} is not read"),
    }
}
