//! What a restored state keeps, and what it never does again.

use std::sync::Arc;

use super::*;
use crate::{
    machine::{
        Machine, Space, View,
        keyspace::{self, Current},
        store::{Reader as _, Row},
        tables::{Key, Table},
        testing::{Harness, MapStore, put, range},
    },
    pb::{
        command::v1::{FoundCluster, Reason, RegisterMember, command::Op, outcome},
        discovery::v1::RegisterRequest,
        event::v1::{AppendRequest, Event},
        lock::v1::{AcquireRequest, ReleaseRequest},
        session::v1::OpenSessionRequest,
    },
    raft::Payload,
    types::SessionId,
};

const CLUSTER: &str = "6f1d7b1e-0000-4000-8000-000000000001";
const OTHER: &str = "6f1d7b1e-0000-4000-8000-000000000002";

/// A clock of these days, in milliseconds: far beyond every revision.
const TODAY_MS: u64 = 1_800_000_000_000;

fn found(id: &str) -> Op {
    let member = RegisterMember { node_id: 1, incarnation: id.into(), ..Default::default() };
    Op::FoundCluster(FoundCluster { cluster_id: id.into(), members: vec![member] })
}

fn acquire(name: &str, wait: bool) -> Op {
    let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let wait = if wait { span(60) } else { span(0) };
    let ttl = span(20);
    Op::Acquire(AcquireRequest { name: name.into(), ttl, wait, ..Default::default() })
}

fn append() -> Op {
    let events = vec![Event { r#type: "T".into(), ..Event::default() }];
    Op::Append(AppendRequest { stream: "s".into(), events, ..Default::default() })
}

fn register(service: &str) -> Op {
    Op::Register(RegisterRequest {
        service: service.into(),
        instance_id: "one".into(),
        address: "10.0.0.1:80".into(),
        ttl: Some(prost_types::Duration { seconds: 15, nanos: 0 }),
        ..RegisterRequest::default()
    })
}

/// A cluster's state with something of everything.
fn old() -> Harness {
    let mut h = Harness::new();
    h.apply(found(CLUSTER));
    h.put("a", "1");
    h.put("a", "2");
    h.apply(Op::OpenSession(OpenSessionRequest::default()));
    token(&mut h, "held");
    h.apply(acquire("held", true));
    h.apply(register("web"));
    h.apply(register("quorate"));
    h.apply(append());
    h
}

fn token(h: &mut Harness, name: &str) -> u64 {
    match h.outcome(acquire(name, false)).result {
        Some(outcome::Result::Acquire(grant)) => grant.fencing_token,
        other => panic!("not granted: {other:?}"),
    }
}

fn opened(h: &mut Harness) -> SessionId {
    match h.outcome(Op::OpenSession(OpenSessionRequest::default())).result {
        Some(outcome::Result::OpenSession(opened)) => SessionId::new(opened.session_id),
        other => panic!("not opened: {other:?}"),
    }
}

fn position(h: &mut Harness) -> u64 {
    match h.outcome(append()).result {
        Some(outcome::Result::Append(appended)) => appended.last_position,
        other => panic!("not appended: {other:?}"),
    }
}

/// Another cluster's node over the rows of a backup, before its first entry.
fn restored(from: &Harness) -> Harness {
    let store = Arc::new(MapStore::default());
    let rows = from.store.rows().iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect();
    store.commit(crate::machine::store::Batch { rows }).unwrap();
    restore(store.as_ref(), "digest").unwrap();
    let machine = Machine::open(Arc::clone(&store) as Arc<dyn Store>, MachineConfig::default());
    Harness { machine: machine.unwrap(), store, now_ms: TODAY_MS, term: from.term + 1 }
}

/// The same after the entries that every new cluster begins with.
fn begun(from: &Harness) -> Harness {
    let mut h = restored(from);
    h.apply_payload(Payload::Noop);
    h.apply(found(OTHER));
    h
}

#[test]
fn nothing_that_the_old_cluster_gave_out_after_the_backup_is_given_out_again() {
    let mut old = old();
    let mut new = begun(&old);
    for turn in 0..50 {
        // The old cluster goes on for a while.
        let (name, value) = (format!("lock{turn}"), "x".to_owned());
        let (before, after) = (token(&mut old, &name), token(&mut new, &name));
        assert!(after > before + LEAP_WITHOUT_CLOCK, "{after} after {before}");
        assert!(opened(&mut new).value() > opened(&mut old).value() + LEAP_WITHOUT_CLOCK);
        assert!(new.put("k", &value) > old.put("k", &value) + LEAP_WITHOUT_CLOCK);
    }
    assert!(token(&mut new, "last") < 1 << 53, "a number that JavaScript can hold");
}

#[test]
fn a_backup_that_is_restored_again_later_stands_above_the_first_restore() {
    let old = old();
    let mut first = begun(&old);
    let last = (0..50).map(|turn| token(&mut first, &format!("l{turn}"))).max().unwrap();
    let session = opened(&mut first);
    let again = |from: &Harness| {
        let mut h = restored(from);
        h.now_ms = TODAY_MS + 1_000;
        h.apply_payload(Payload::Noop);
        h
    };
    let mut second = again(&old);
    assert!(token(&mut second, "l") > last);
    assert!(opened(&mut second) > session);
    let mut third = again(&first);
    assert!(token(&mut third, "l") > last);
    assert!(opened(&mut third) > session);
}

#[test]
fn a_clock_that_stands_still_does_not_take_tokens_back() {
    let first = begun(&old());
    let mut second = restored(&first);
    second.now_ms = 5;
    second.apply_payload(Payload::Noop);
    let mut first = first;
    let (session, other) = (opened(&mut first), opened(&mut second));
    assert!(other.value() > session.value() + LEAP_WITHOUT_CLOCK / 2);
    assert!(token(&mut second, "l") > token(&mut first, "l") + LEAP_WITHOUT_CLOCK / 2);
}

#[test]
fn keys_events_and_leases_are_there_and_events_go_on_without_a_gap() {
    let mut old = old();
    let mut new = begun(&old);
    let read = new.view().range(&range("a", "", 0)).unwrap().unwrap();
    assert_eq!(read.kvs[0].value, "2");
    assert_eq!(
        new.view().instance("web", "one").unwrap().map(|one| one.address).as_deref(),
        Some("10.0.0.1:80")
    );
    assert_eq!(position(&mut new), position(&mut old));
    let held = new.refused(acquire("held", false));
    assert_eq!(held.reason(), Reason::LockHeld);
    let kept: Vec<_> = new.view().sessions().unwrap();
    assert!(kept.iter().all(|session| session.remaining == session.ttl));
    assert_eq!(kept.len(), 3, "opened, holding, web");
}

#[test]
fn what_was_the_old_clusters_own_is_gone() {
    let new = restored(&old());
    let view = new.view();
    assert_eq!(view.cluster_id().unwrap(), None);
    assert!(view.members().unwrap().is_empty());
    assert_eq!(view.restored_from().unwrap().as_deref(), Some("digest"));
    assert!(view.instance("quorate", "one").unwrap().is_none());
    assert_eq!(new.machine.head().membership, Membership::default());
    let mut new = begun(&old());
    assert_eq!(new.view().cluster_id().unwrap().map(|id| id.to_string()).as_deref(), Some(OTHER));
    assert_eq!(new.view().members().unwrap().len(), 1);
    // Nobody is in line: the lock is free once its holder lets go.
    let hold = new.refused(acquire("held", false));
    let fencing_token = hold.metadata["fencing_token"].parse().unwrap();
    let release = ReleaseRequest { name: "held".into(), fencing_token, ..Default::default() };
    new.outcome(Op::Release(release));
    token(&mut new, "held");
}

#[test]
fn a_watcher_of_the_old_cluster_is_told_that_history_is_gone() {
    let old = old();
    let newest = old.machine.head().revision;
    let new = begun(&old);
    let changes = |view: &View, from| view.changes(Space::User, from, 1_000).unwrap();
    for from in [Revision::new(2), newest, newest.next(), Revision::new(newest.value() + 500)] {
        let refused = changes(&new.view(), from).expect_err("history is gone");
        assert_eq!(refused.reason(), Reason::Compacted, "{from:?}");
    }
    let next = new.machine.head().compact_revision.next();
    changes(&new.view(), next).expect("what comes is there");
}

#[test]
fn every_node_restores_the_same_rows_and_history_is_swept() {
    let old = old();
    assert_eq!(restored(&old).store.rows(), restored(&old).store.rows());
    let mut new = begun(&old);
    for turn in 0..20 {
        new.apply(put("k", &turn.to_string()));
    }
    let newest = old.machine.head().revision;
    let range = keyspace::change_range(Revision::new(1), newest);
    let left = new.store.scan(&range.start, range.end.as_deref()).count();
    let of_old = |row: &Row| Current::decode(&row.1).unwrap().place.revision <= newest;
    let range = Key::of(Table::Current).prefix();
    let rows = new.store.scan(&range.start, range.end.as_deref()).map(Result::unwrap);
    assert_eq!(left, rows.filter(of_old).count(), "what makes up the state is left, and no more");
    assert!(left > 0, "the old cluster left rows");
}
