//! Calls and answers as a person says them, and which answer belongs to which call.

use crate::sim::history::{Answer, Call, Versioned};

/// A time as `12.345678s`.
pub(crate) fn time(nanos: u64) -> String {
    format!("{}.{:06}s", nanos / 1_000_000_000, nanos % 1_000_000_000 / 1_000)
}

/// A value in quotes, or `nothing`.
pub(crate) fn value(value: Option<&str>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |value| format!("{value:?}"))
}

fn versioned(read: Option<&Versioned>) -> String {
    match read {
        Some(Versioned { value, mod_revision: Some(at) }) => format!("{value:?} of revision {at}"),
        read => value(read.map(|read| read.value.as_str())),
    }
}

fn at(revision: Option<u64>) -> String {
    revision.map_or_else(String::new, |revision| format!(" at revision {revision}"))
}

/// A call.
pub(crate) fn call(call: &Call) -> String {
    match call {
        Call::Get { key, stale: false } => format!("get {key}"),
        Call::Get { key, stale: true } => format!("stale get {key}"),
        Call::Put { key, value, require_lock: None } => format!("put {key} = {value:?}"),
        Call::Put { key, value, require_lock: Some((lock, token)) } => {
            format!("put {key} = {value:?} under lock {lock} with token {token}")
        }
        Call::Delete { key } => format!("delete {key}"),
        Call::Cas { key, expected, value: new } => {
            format!("cas {key}: {} -> {new:?}", value(expected.as_deref()))
        }
        Call::Txn { compares, changes, reads } => {
            let compares: Vec<_> = compares
                .iter()
                .map(|one| format!("{} is {}", one.key, value(one.value.as_deref())))
                .collect();
            let changes: Vec<_> = changes
                .iter()
                .map(|one| match &one.value {
                    Some(value) => format!("{} = {value:?}", one.key),
                    None => format!("delete {}", one.key),
                })
                .collect();
            format!(
                "txn if [{}] then [{}] reading [{}]",
                compares.join(", "),
                changes.join(", "),
                reads.join(", ")
            )
        }
        Call::OpenSession { ttl_ms } => format!("open a session of {ttl_ms} ms"),
        Call::RenewSession { session } => format!("renew session {session}"),
        Call::CloseSession { session } => format!("close session {session}"),
        Call::Acquire { lock, owner, ttl_ms, session, .. } => match session {
            Some(session) => format!("acquire {lock} as {owner:?} in session {session}"),
            None => format!("acquire {lock} as {owner:?} for {ttl_ms} ms"),
        },
        Call::RenewLock { lock, fencing_token, .. } => {
            format!("renew {lock} with token {fencing_token}")
        }
        Call::Release { lock, fencing_token } => {
            format!("release {lock} with token {fencing_token}")
        }
        Call::Describe { lock } => format!("describe {lock}"),
        Call::GuardedWrite { lock, fencing_token, .. } => {
            format!("write to what {lock} guards with token {fencing_token}")
        }
        Call::Enqueue { queue, value } => format!("enqueue {value:?} to {queue}"),
        Call::Dequeue { queue } => format!("dequeue from {queue}"),
        Call::Register { service, instance, ttl_ms } => {
            format!("register {instance} of {service} for {ttl_ms} ms")
        }
        Call::Deregister { service, instance } => format!("deregister {instance} of {service}"),
        Call::Resolve { service } => format!("resolve {service}"),
        Call::Append { stream, data, expected_version } => {
            let expected = expected_version
                .map_or_else(String::new, |version| format!(", expecting version {version}"));
            format!("append {data:?} to {stream}{expected}")
        }
        Call::ReadStream { stream, from } if stream.is_empty() => {
            format!("read all streams from position {from}")
        }
        Call::ReadStream { stream, from } => format!("read {stream} from version {from}"),
        Call::Compact { revision } => format!("compact through revision {revision}"),
    }
}

/// An answer.
pub(crate) fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Got { value, revision } => {
            format!("{}{}", versioned(value.as_ref()), at(*revision))
        }
        Answer::Done { revision } => format!("done{}", at(*revision)),
        Answer::Deleted { existed: true, revision } => format!("deleted{}", at(*revision)),
        Answer::Deleted { existed: false, revision } => {
            format!("there was nothing to delete{}", at(*revision))
        }
        Answer::Swapped { swapped: true, revision } => format!("swapped{}", at(*revision)),
        Answer::Swapped { swapped: false, revision } => format!("not as expected{}", at(*revision)),
        Answer::Txn { succeeded, reads, revision } => {
            let reads: Vec<_> = reads.iter().map(|read| versioned(read.as_ref())).collect();
            let done = if *succeeded { "succeeded" } else { "compares failed" };
            format!("{done}, read [{}]{}", reads.join(", "), at(*revision))
        }
        Answer::Opened { session, revision } => format!("session {session}{}", at(*revision)),
        Answer::Renewed => "renewed".to_owned(),
        Answer::Acquired { fencing_token, session } => {
            format!("acquired with token {fencing_token} in session {session}")
        }
        Answer::Described { holder: None, revision } => format!("free{}", at(*revision)),
        Answer::Described { holder: Some(held), revision } => {
            format!("held by {:?} with token {}{}", held.owner, held.fencing_token, at(*revision))
        }
        Answer::Guarded { accepted: true } => "accepted".to_owned(),
        Answer::Guarded { accepted: false } => "turned away".to_owned(),
        Answer::Dequeued { value: taken } => value(taken.as_deref()),
        Answer::Registered { revision } => format!("registered{}", at(*revision)),
        Answer::Resolved { instances, revision } => {
            format!("[{}]{}", instances.join(", "), at(*revision))
        }
        Answer::Appended { first_version, first_position, .. } => {
            format!("appended from version {first_version}, position {first_position}")
        }
        Answer::Events { events } => {
            let places: Vec<_> =
                events.iter().map(|event| format!("{}:{}", event.version, event.data)).collect();
            format!("events [{}]", places.join(", "))
        }
    }
}

/// What a call is about: the keys, the lock, the session, the queue, the service, the stream.
pub(crate) fn names(call: &Call) -> Vec<String> {
    let mut names: Vec<String> = touched(call).map(|key| format!("key {key}")).collect();
    match call {
        Call::Put { require_lock: Some((lock, _)), .. }
        | Call::Acquire { lock, .. }
        | Call::RenewLock { lock, .. }
        | Call::Release { lock, .. }
        | Call::Describe { lock }
        | Call::GuardedWrite { lock, .. } => names.push(format!("lock {lock}")),
        _ => {}
    }
    match call {
        Call::RenewSession { session }
        | Call::CloseSession { session }
        | Call::RenewLock { session, .. }
        | Call::Acquire { session: Some(session), .. } => names.push(format!("session {session}")),
        Call::Enqueue { queue, .. } | Call::Dequeue { queue } => {
            names.push(format!("queue {queue}"));
        }
        Call::Register { service, .. }
        | Call::Deregister { service, .. }
        | Call::Resolve { service } => names.push(format!("service {service}")),
        Call::Append { stream, .. } | Call::ReadStream { stream, .. } => {
            names.push(format!("stream {stream}"));
        }
        _ => {}
    }
    names
}

/// The keys that a call touches.
pub(crate) fn touched(call: &Call) -> impl Iterator<Item = &str> {
    let (one, txn) = match call {
        Call::Get { key, .. }
        | Call::Put { key, .. }
        | Call::Delete { key }
        | Call::Cas { key, .. } => (Some(key.as_str()), None),
        Call::Txn { compares, changes, reads } => (None, Some((compares, changes, reads))),
        _ => (None, None),
    };
    one.into_iter().chain(txn.into_iter().flat_map(|(compares, changes, reads)| {
        let compares = compares.iter().map(|one| one.key.as_str());
        let changes = changes.iter().map(|one| one.key.as_str());
        compares.chain(changes).chain(reads.iter().map(String::as_str))
    }))
}

/// Whether an answer is of the kind that belongs to a call.
pub(crate) const fn fits(call: &Call, answer: &Answer) -> bool {
    match call {
        Call::Get { .. } => matches!(answer, Answer::Got { .. }),
        Call::Put { .. }
        | Call::CloseSession { .. }
        | Call::Release { .. }
        | Call::Deregister { .. }
        | Call::Compact { .. }
        | Call::Enqueue { .. } => matches!(answer, Answer::Done { .. }),
        Call::Delete { .. } => matches!(answer, Answer::Deleted { .. }),
        Call::Cas { .. } => matches!(answer, Answer::Swapped { .. }),
        Call::Txn { reads: asked, .. } => match answer {
            Answer::Txn { reads, .. } => reads.len() == asked.len(),
            _ => false,
        },
        Call::OpenSession { .. } => matches!(answer, Answer::Opened { .. }),
        Call::RenewSession { .. } | Call::RenewLock { .. } => matches!(answer, Answer::Renewed),
        Call::Acquire { .. } => matches!(answer, Answer::Acquired { .. }),
        Call::Describe { .. } => matches!(answer, Answer::Described { .. }),
        Call::GuardedWrite { .. } => matches!(answer, Answer::Guarded { .. }),
        Call::Dequeue { .. } => matches!(answer, Answer::Dequeued { .. }),
        Call::Register { .. } => matches!(answer, Answer::Registered { .. }),
        Call::Resolve { .. } => matches!(answer, Answer::Resolved { .. }),
        Call::Append { .. } => matches!(answer, Answer::Appended { .. }),
        Call::ReadStream { .. } => matches!(answer, Answer::Events { .. }),
    }
}
