//! Carries calls of a workload out with the client library, and says what became of each.
//!
//! A call that failed with an unknown outcome was tried at several nodes already, with one request
//! id. What `docs/errors.md` calls definite is refused; of anything else nobody knows.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use quorate::{
    client::{Client, Error},
    pb::{
        discovery::v1::{DeregisterRequest, RegisterRequest, ResolveRequest},
        event::v1::{AppendRequest, Event as NewEvent, ReadRequest, RecordedEvent, append_request},
        kv::v1::{
            CompactRequest, Compare as PbCompare, DeleteRangeRequest, HeldLock, KeyValue,
            PutRequest, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse,
            compare::{Operator, Target},
            request_op::Request,
            response_op::Response,
        },
        lock::v1::{AcquireRequest, DescribeRequest, ReleaseRequest, RenewRequest},
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
    sim::history::{Answer, Call, Change, Compare, Event, Held, Outcome, Versioned},
};
use tonic::Code;
use uuid::Uuid;

/// What locks guard, outside of the cluster: it refuses tokens below the largest that it has seen.
#[derive(Debug, Default)]
pub(crate) struct Guarded(Mutex<BTreeMap<String, u64>>);

impl Guarded {
    fn write(&self, lock: &str, token: u64) -> bool {
        let mut largest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let largest = largest.entry(lock.to_owned()).or_default();
        let accepted = token >= *largest;
        *largest = token.max(*largest);
        accepted
    }
}

/// Whether a call changes nothing: then a failure is one, and no riddle.
const fn is_read(call: &Call) -> bool {
    matches!(
        call,
        Call::Get { .. } | Call::Describe { .. } | Call::Resolve { .. } | Call::ReadStream { .. }
    )
}

/// Carries a call out. Stale reads are asked of `one`, a client that never leaves its node.
pub(crate) async fn carry_out(
    client: &Client,
    one: &Client,
    guarded: &Guarded,
    call: &Call,
) -> Outcome {
    let answer = match call {
        Call::Get { stale: true, .. } => read(one, call).await,
        call if is_read(call) => read(client, call).await,
        Call::GuardedWrite { lock, fencing_token, .. } => {
            Ok(Answer::Guarded { accepted: guarded.write(lock, *fencing_token) })
        }
        Call::OpenSession { .. }
        | Call::RenewSession { .. }
        | Call::CloseSession { .. }
        | Call::Acquire { .. }
        | Call::RenewLock { .. }
        | Call::Release { .. } => hold(client, call).await,
        call => change(client, call).await,
    };
    match answer {
        Ok(answer) => Outcome::Ok(answer),
        Err(error) => failure(&error, is_read(call)),
    }
}

fn failure(error: &Error, read: bool) -> Outcome {
    let code = error.code();
    let reason = match error.reason() {
        "" => format!("{code:?}"),
        reason => reason.to_owned(),
    };
    let without_reason = error.reason().is_empty();
    let open = error.outcome_unknown()
        || matches!(code, Code::DeadlineExceeded | Code::Unknown)
        || (without_reason && matches!(code, Code::Cancelled | Code::Internal | Code::Aborted))
        || error.reason() == "SESSION_EXPIRED";
    if open && !read {
        return Outcome::Unknown { reason: format!("{reason}: {error}") };
    }
    let actual = error.fact("actual_version").and_then(|version| version.parse().ok());
    Outcome::Refused { reason, actual }
}

async fn read(client: &Client, call: &Call) -> Result<Answer, Error> {
    Ok(match call {
        Call::Get { key, stale } => {
            let range = RangeRequest { stale: *stale, ..range(key) };
            let answer = client.kv().range(range).await?;
            let value = answer.kvs.into_iter().next().map(versioned);
            Answer::Got { value, revision: Some(answer.revision) }
        }
        Call::Describe { lock } => {
            let request = DescribeRequest { name: lock.clone(), stale: false };
            let answer = client.locks().describe(request).await?;
            let holder = answer.lock.and_then(|lock| lock.holder);
            let held = |holder: quorate::pb::lock::v1::Holder| Held {
                owner: holder.owner,
                fencing_token: holder.fencing_token,
            };
            Answer::Described { holder: holder.map(held), revision: Some(answer.revision) }
        }
        Call::Resolve { service } => {
            let request = ResolveRequest { service: service.clone(), ..Default::default() };
            let answer = client.discovery().resolve(request).await?;
            let mut instances: Vec<_> =
                answer.instances.into_iter().map(|instance| instance.instance_id).collect();
            instances.sort_unstable();
            Answer::Resolved { instances, revision: Some(answer.revision) }
        }
        Call::ReadStream { stream, from } => {
            let request = ReadRequest { stream: stream.clone(), from: *from, ..Default::default() };
            let mut reading = client.events().read(request);
            let mut events = Vec::new();
            while let Some(part) = reading.next().await? {
                events.extend(part.events.into_iter().map(event));
            }
            Answer::Events { events }
        }
        other => unreachable!("{other:?} is no read"),
    })
}

/// Sessions and locks.
async fn hold(client: &Client, call: &Call) -> Result<Answer, Error> {
    let (sessions, locks) = (client.sessions(), client.locks());
    Ok(match call.clone() {
        Call::OpenSession { ttl_ms } => {
            let request = OpenSessionRequest { ttl: span(ttl_ms), ..Default::default() };
            let answer = sessions.open(request).await?;
            Answer::Opened { session: answer.session_id, revision: Some(answer.revision) }
        }
        Call::RenewSession { session } => {
            sessions.keep_alive(session).await?;
            Answer::Renewed
        }
        Call::CloseSession { session } => {
            let request = CloseSessionRequest { session_id: session, ..Default::default() };
            Answer::Done { revision: Some(sessions.close(request).await?.revision) }
        }
        Call::Acquire { lock, owner, ttl_ms, wait_ms, session } => {
            let request = AcquireRequest {
                name: lock,
                owner,
                ttl: span(ttl_ms).filter(|_| session.is_none()),
                wait: span(wait_ms),
                session_id: session.unwrap_or_default(),
                ..Default::default()
            };
            let answer = locks.acquire(request).await?;
            Answer::Acquired { fencing_token: answer.fencing_token, session: answer.session_id }
        }
        Call::RenewLock { lock, fencing_token, .. } => {
            locks.renew(RenewRequest { name: lock, fencing_token }).await?;
            Answer::Renewed
        }
        Call::Release { lock, fencing_token } => {
            let request = ReleaseRequest { name: lock, fencing_token, ..Default::default() };
            Answer::Done { revision: Some(locks.release(request).await?.revision) }
        }
        other => unreachable!("{other:?} is about no lock"),
    })
}

/// Keys, instances, events.
async fn change(client: &Client, call: &Call) -> Result<Answer, Error> {
    let (kv, discovery) = (client.kv(), client.discovery());
    Ok(match call.clone() {
        Call::Put { key, value, require_lock } => {
            let require_lock =
                require_lock.map(|(name, fencing_token)| HeldLock { name, fencing_token });
            let request = PutRequest { require_lock, ..put(&key, &value) };
            Answer::Done { revision: Some(kv.put(request).await?.revision) }
        }
        Call::Delete { key } => {
            let answer = kv.delete_range(delete(&key)).await?;
            Answer::Deleted { existed: answer.deleted > 0, revision: Some(answer.revision) }
        }
        Call::Cas { key, expected, value } => {
            let request = TxnRequest {
                compare: vec![compare(&Compare { key: key.clone(), value: expected })],
                success: vec![op(Request::Put(put(&key, &value)))],
                ..Default::default()
            };
            let answer = kv.txn(request).await?;
            Answer::Swapped { swapped: answer.succeeded, revision: Some(answer.revision) }
        }
        Call::Txn { compares, changes, reads } => {
            let reads = || reads.iter().map(|key| op(Request::Range(range(key))));
            let request = TxnRequest {
                compare: compares.iter().map(compare).collect(),
                success: changes.iter().map(changed).chain(reads()).collect(),
                failure: reads().collect(),
                ..Default::default()
            };
            transacted(kv.txn(request).await?)
        }
        Call::Compact { revision } => {
            kv.compact(CompactRequest { revision, ..Default::default() }).await?;
            Answer::Done { revision: None }
        }
        Call::Register { service, instance, ttl_ms } => {
            let request = RegisterRequest {
                service,
                instance_id: instance,
                address: "127.0.0.1:9".to_owned(),
                ttl: span(ttl_ms),
                ..Default::default()
            };
            Answer::Registered { revision: Some(discovery.register(request).await?.revision) }
        }
        Call::Deregister { service, instance } => {
            let request =
                DeregisterRequest { service, instance_id: instance, ..Default::default() };
            Answer::Done { revision: Some(discovery.deregister(request).await?.revision) }
        }
        Call::Append { stream, data, expected_version } => {
            let request = AppendRequest {
                stream,
                events: data.into_iter().map(new_event).collect(),
                expected: expected_version.map(append_request::Expected::ExpectedVersion),
                ..Default::default()
            };
            let answer = client.events().append(request).await?;
            Answer::Appended {
                first_version: answer.first_version,
                first_position: answer.first_position,
                duplicate: answer.duplicate,
            }
        }
        other => unreachable!("{other:?} is not drawn here"),
    })
}

fn put(key: &str, value: &str) -> PutRequest {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    PutRequest { key, value, ..Default::default() }
}

fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn range(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

const fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn changed(change: &Change) -> RequestOp {
    op(match &change.value {
        Some(value) => Request::Put(put(&change.key, value)),
        None => Request::DeleteRange(delete(&change.key)),
    })
}

fn compare(compare: &Compare) -> PbCompare {
    let target = match &compare.value {
        Some(value) => Target::Value(value.clone().into()),
        None => Target::Version(0),
    };
    PbCompare {
        key: compare.key.clone().into(),
        operator: Operator::Equal.into(),
        target: Some(target),
        ..Default::default()
    }
}

fn transacted(answer: TxnResponse) -> Answer {
    let read = |response: ResponseOp| match response.response {
        Some(Response::Range(range)) => Some(range.kvs.into_iter().next().map(versioned)),
        _ => None,
    };
    Answer::Txn {
        succeeded: answer.succeeded,
        reads: answer.responses.into_iter().filter_map(read).collect(),
        revision: Some(answer.revision),
    }
}

fn new_event(data: String) -> NewEvent {
    NewEvent {
        id: Uuid::new_v4().to_string(),
        r#type: "Written".to_owned(),
        data: data.into(),
        ..Default::default()
    }
}

fn versioned(kv: KeyValue) -> Versioned {
    Versioned { value: text(&kv.value), mod_revision: Some(kv.mod_revision) }
}

/// A recorded event as a history has it.
pub(crate) fn event(event: RecordedEvent) -> Event {
    Event {
        stream: event.stream,
        version: event.version,
        position: event.position,
        data: text(&event.data),
    }
}

/// What the workload wrote is text.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn span(millis: u64) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(Duration::from_millis(millis)).ok()
}
