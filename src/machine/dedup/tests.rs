//! Request ids: at most once, and never silently again.

use uuid::Uuid;

use crate::{
    machine::{
        dedup::{REQUEST_WINDOW, RequestId},
        tables::{Key, Table},
        testing::{Harness, range},
    },
    pb::{
        command::v1::{
            Outcome, Reason,
            command::Op,
            outcome::Result::{OpenSession, Put},
        },
        kv::v1::{HeldLock, PutRequest},
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
    types::SessionId,
};

fn put(value: &str, request_id: &str) -> Op {
    Op::Put(PutRequest {
        key: "a".into(),
        value: value.to_owned().into(),
        request_id: request_id.into(),
        ..PutRequest::default()
    })
}

fn uuid(number: u128) -> String {
    Uuid::from_u128(number).to_string()
}

fn revision(outcome: &Outcome) -> u64 {
    match &outcome.result {
        Some(Put(response)) => response.revision,
        other => panic!("not put: {other:?}"),
    }
}

fn value(harness: &Harness) -> String {
    let kv = harness.view().range(&range("a", "", 0)).unwrap().unwrap().kvs.pop().unwrap();
    String::from_utf8(kv.value.to_vec()).unwrap()
}

fn remembered(harness: &Harness) -> usize {
    let range = Key::of(Table::Request).prefix();
    harness.store.rows().keys().filter(|key| range.contains(key)).count()
}

#[test]
fn a_retry_is_answered_as_the_first_time() {
    let mut harness = Harness::new();
    let first = harness.outcome(put("1", &uuid(1)));
    harness.put("a", "2");
    assert_eq!(harness.outcome(put("1", &uuid(1))), first);
    assert_eq!(revision(&first), 1);
    assert_eq!(value(&harness), "2");
    // The same UUID in another spelling is the same request.
    assert_eq!(harness.outcome(put("1", &Uuid::from_u128(1).simple().to_string())), first);
}

#[test]
fn the_same_id_with_another_body_is_refused() {
    let mut harness = Harness::new();
    harness.outcome(put("1", &uuid(1)));
    assert_eq!(harness.refused(put("2", &uuid(1))).reason(), Reason::RequestIdReused);
    let delete = crate::machine::testing::delete("a", "");
    let Op::DeleteRange(mut delete) = delete else { panic!() };
    delete.request_id = uuid(1);
    assert_eq!(harness.refused(Op::DeleteRange(delete)).reason(), Reason::RequestIdReused);
    assert_eq!(value(&harness), "1");
}

#[test]
fn a_refused_request_may_be_tried_again() {
    let mut harness = Harness::new();
    let Op::Put(mut request) = put("1", &uuid(1)) else { panic!() };
    request.require_lock = Some(HeldLock { name: "l".into(), fencing_token: 1 });
    assert_eq!(harness.refused(Op::Put(request)).reason(), Reason::WrongFencingToken);
    assert_eq!(remembered(&harness), 0);
    assert_eq!(revision(&harness.outcome(put("1", &uuid(1)))), 1);
}

#[test]
fn requests_are_forgotten_behind_the_window_a_few_at_a_time() {
    let mut harness = Harness::new();
    for number in 1..=20 {
        harness.outcome(put("1", &uuid(number)));
    }
    let window = u64::try_from(REQUEST_WINDOW.as_millis()).unwrap();
    harness.now_ms += window;
    harness.outcome(put("1", &uuid(21)));
    assert_eq!(remembered(&harness), 21, "the window's last moment counts");
    harness.now_ms += 1;
    harness.outcome(put("1", &uuid(22)));
    assert_eq!(remembered(&harness), 22 - 4);
    for number in 23..40 {
        harness.outcome(put("1", &uuid(number)));
    }
    assert_eq!(remembered(&harness), 39 - 20);
    let before = harness.machine.head().revision.value();
    assert_eq!(revision(&harness.outcome(put("1", &uuid(1)))), before + 1, "it runs again");
    assert_eq!(revision(&harness.outcome(put("1", &uuid(30)))), 30, "it does not");
}

#[test]
fn ids_are_parsed() {
    let id = RequestId::parse("5:9:7").unwrap();
    let session = SessionId::new(5);
    assert_eq!(id, RequestId::Sequence { session, sequence: 9, low_water: 7 });
    let id = RequestId::parse("00000000-0000-0000-0000-000000000001").unwrap();
    assert_eq!(id, RequestId::Uuid(Uuid::from_u128(1)));
}

#[test]
fn a_session_that_is_not_there_never_runs_a_request() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    let refused = harness.refused(put("2", "99:1:1"));
    assert_eq!(refused.reason(), Reason::SessionExpired);
    assert_eq!(value(&harness), "1");
}

fn open_session(harness: &mut Harness) -> u64 {
    match harness.outcome(Op::OpenSession(OpenSessionRequest::default())).result {
        Some(OpenSession(response)) => response.session_id,
        other => panic!("not opened: {other:?}"),
    }
}

fn rows(harness: &Harness, table: Table) -> usize {
    let range = Key::of(table).prefix();
    harness.store.rows().keys().filter(|key| range.contains(key)).count()
}

#[test]
fn a_sequence_is_answered_until_the_low_water_mark_passes_it() {
    let mut harness = Harness::new();
    let session = open_session(&mut harness);
    let first = harness.outcome(put("1", &format!("{session}:1:1")));
    let second = harness.outcome(put("2", &format!("{session}:2:1")));
    assert_eq!(harness.outcome(put("1", &format!("{session}:1:1"))), first);
    // A retry may carry a higher mark than the first try: the body is the same.
    assert_eq!(harness.outcome(put("2", &format!("{session}:2:2"))), second);
    assert_eq!(
        harness.refused(put("9", &format!("{session}:2:2"))).reason(),
        Reason::RequestIdReused
    );

    harness.outcome(put("3", &format!("{session}:3:2")));
    assert_eq!(rows(&harness, Table::Sequence), 2);
    let forgotten = harness.refused(put("1", &format!("{session}:1:1")));
    assert_eq!(forgotten.reason(), Reason::SequenceForgotten);
    assert_eq!(forgotten.metadata["low_water_mark"], "2");
    assert_eq!(value(&harness), "3");
    // A mark never goes back.
    harness.outcome(put("4", &format!("{session}:4:1")));
    assert_eq!(
        harness.refused(put("1", &format!("{session}:1:1"))).reason(),
        Reason::SequenceForgotten
    );
}

#[test]
fn an_ended_session_refuses_its_sequences_and_leaves_nothing_behind() {
    let mut harness = Harness::new();
    let session = open_session(&mut harness);
    harness.outcome(put("1", &format!("{session}:5:3")));
    harness.put("a", "2");
    let close = CloseSessionRequest { session_id: session, ..CloseSessionRequest::default() };
    harness.outcome(Op::CloseSession(close));
    let refused = harness.refused(put("1", &format!("{session}:5:3")));
    assert_eq!(refused.reason(), Reason::SessionExpired);
    assert_eq!(value(&harness), "2");
    assert_eq!((rows(&harness, Table::Sequence), rows(&harness, Table::LowWater)), (0, 0));
}
