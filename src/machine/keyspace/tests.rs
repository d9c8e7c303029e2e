//! The revision rules, read back through the view and the effects.

use crate::{
    machine::{
        ChangeKind, Space, View,
        testing::{Harness, delete, put, range},
        validate::WRITES_MAX,
    },
    pb::{
        command::v1::{
            Reason,
            command::Op,
            outcome::Result::{DeleteRange, Put},
        },
        kv::v1::{DeleteRangeRequest, HeldLock, KeyValue, PutRequest, RangeRequest, RangeResponse},
    },
    raft::Payload,
    types::Revision,
};

fn read(view: &View, request: &RangeRequest) -> RangeResponse {
    view.range(request).unwrap().unwrap()
}

fn values(response: &RangeResponse) -> Vec<(&str, &str)> {
    let text = |bytes| core::str::from_utf8(bytes).unwrap();
    response.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect()
}

fn one(harness: &Harness, key: &str, revision: u64) -> Option<KeyValue> {
    read(&harness.view(), &range(key, "", revision)).kvs.pop()
}

#[test]
fn a_put_counts_versions_and_keeps_the_creation() {
    let mut harness = Harness::new();
    assert_eq!(harness.put("a", "1"), 1);
    assert_eq!(harness.put("b", "1"), 2);
    assert_eq!(harness.put("a", "2"), 3);
    let kv = one(&harness, "a", 0).unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (1, 3, 2));

    harness.outcome(delete("a", ""));
    assert_eq!(one(&harness, "a", 0), None);
    assert_eq!(harness.put("a", "3"), 5);
    let kv = one(&harness, "a", 0).unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
}

#[test]
fn a_deletion_of_nothing_takes_no_revision() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    let Some(DeleteRange(response)) = harness.outcome(delete("b", "c")).result else { panic!() };
    assert_eq!((response.deleted, response.revision), (0, 1));
    assert_eq!(harness.put("a", "2"), 2);
}

#[test]
fn a_range_deletion_is_one_revision_and_returns_what_it_deleted() {
    let mut harness = Harness::new();
    for key in ["a", "b", "c"] {
        harness.put(key, key);
    }
    let op = Op::DeleteRange(DeleteRangeRequest {
        key: "a".into(),
        range_end: "c".into(),
        prev_kv: true,
        ..DeleteRangeRequest::default()
    });
    let applied = harness.apply(op);
    let revisions: Vec<_> = applied.changes.iter().map(|change| change.kv.mod_revision).collect();
    assert_eq!(revisions, [4, 4]);
    assert!(applied.changes.iter().all(|change| change.kind == ChangeKind::Delete));
    let Some(DeleteRange(response)) = &applied.outcomes[0].1.result else { panic!() };
    assert_eq!((response.deleted, response.revision), (2, 4));
    assert_eq!(response.prev_kvs[1].value, "b");
    assert_eq!(values(&read(&harness.view(), &range("\0", "\0", 0))), [("c", "c")]);
}

#[test]
fn a_range_reads_any_kept_revision() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    harness.put("a\0", "2");
    harness.outcome(delete("a", ""));
    harness.put("b", "4");
    let at = |revision| {
        let response = read(&harness.view(), &range("a", "c", revision));
        values(&response).iter().map(|(_, value)| *value).collect::<String>()
    };
    assert_eq!([at(1), at(2), at(3), at(4), at(0)], ["1", "12", "2", "24", "24"]);
    assert_eq!(one(&harness, "a", 2).unwrap().value, "1");
    assert_eq!(one(&harness, "a", 3), None);
    let refused = harness.view().range(&range("a", "", 5)).unwrap().unwrap_err();
    assert_eq!(refused.reason(), Reason::FutureRevision);
}

#[test]
fn a_limit_cuts_the_list_and_not_the_count() {
    let mut harness = Harness::new();
    for key in ["a", "b", "c"] {
        harness.put(key, key);
    }
    let mut request = RangeRequest { limit: 2, ..range("a", "\0", 0) };
    let response = read(&harness.view(), &request);
    assert_eq!((response.kvs.len(), response.count, response.more), (2, 3, true));
    request.limit = 3;
    assert!(!read(&harness.view(), &request).more);
    request.keys_only = true;
    assert_eq!(values(&read(&harness.view(), &request))[0], ("a", ""));
    request.count_only = true;
    let response = read(&harness.view(), &request);
    assert_eq!((response.kvs.len(), response.count, response.more), (0, 3, false));
}

#[test]
fn a_range_is_cut_before_it_outgrows_a_message() {
    let mut harness = Harness::new();
    let value = "x".repeat(1 << 20);
    for key in ["a", "b", "c", "d"] {
        harness.put(key, &value);
    }
    let response = read(&harness.view(), &range("a", "\0", 0));
    assert_eq!((response.kvs.len(), response.count, response.more), (2, 4, true));
}

#[test]
fn changes_are_whole_revisions_with_what_was_before() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    harness.put("a", "2");
    harness.put("b", "3");
    harness.outcome(delete("a", "\0"));
    let view = harness.view();
    let all = |from, bytes_max| {
        let found = view.changes(Space::User, Revision::new(from), bytes_max);
        let (changes, covered) = found.unwrap().unwrap();
        let revisions: Vec<_> = changes.iter().map(|change| change.kv.mod_revision).collect();
        (changes, revisions, covered.value())
    };
    let (changes, revisions, covered) = all(1, usize::MAX);
    assert_eq!((revisions, covered), (vec![1, 2, 3, 4, 4], 4));
    assert_eq!(changes[0].prev, None);
    assert_eq!(changes[1].prev.as_ref().unwrap().value, "1");
    assert_eq!(changes[3].kind, ChangeKind::Delete);
    assert_eq!(changes[3].prev.as_ref().unwrap().value, "2");
    assert_eq!(changes[3].kv.value, "");

    let (_, revisions, covered) = all(3, 1);
    assert_eq!((revisions, covered), (vec![3], 3));
    let (_, revisions, covered) = all(4, 1);
    assert_eq!((revisions, covered), (vec![4, 4], 4));
    let (_, revisions, covered) = all(5, 1);
    assert_eq!((revisions, covered), (vec![], 4));
    let (changes, covered) = view.changes(Space::Locks, Revision::new(1), 1).unwrap().unwrap();
    assert_eq!((changes, covered.value()), (vec![], 1));
}

#[test]
fn the_effects_are_what_history_says() {
    let mut harness = Harness::new();
    let mut live = Vec::new();
    for op in [put("a", "1"), put("b", "1"), put("a", "2"), delete("a", "\0"), put("a", "3")] {
        live.extend(harness.apply(op).changes);
    }
    let view = harness.view();
    let (history, _) = view.changes(Space::User, Revision::new(1), usize::MAX).unwrap().unwrap();
    for change in &mut live {
        assert_eq!(change.prev, None, "what it replaced is read where somebody wants it");
        change.prev = view.replaced(change).unwrap();
    }
    assert_eq!(live, history);
}

#[test]
fn a_write_under_a_lock_or_a_session_that_is_not_there_changes_nothing() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    let lock = HeldLock { name: "l".into(), fencing_token: 9 };
    let request = PutRequest { key: "a".into(), ..PutRequest::default() };
    let locked = PutRequest { require_lock: Some(lock.clone()), ..request.clone() };
    assert_eq!(harness.refused(Op::Put(locked)).reason(), Reason::WrongFencingToken);
    let bound = PutRequest { session_id: 99, ..request };
    assert_eq!(harness.refused(Op::Put(bound)).reason(), Reason::SessionNotFound);
    let op = Op::DeleteRange(DeleteRangeRequest {
        key: "a".into(),
        require_lock: Some(lock),
        ..DeleteRangeRequest::default()
    });
    assert_eq!(harness.refused(op).reason(), Reason::WrongFencingToken);
    assert_eq!(one(&harness, "a", 0).unwrap().value, "1");
    assert_eq!(harness.machine.head().revision, Revision::new(1));
}

#[test]
fn what_cannot_be_read_changes_nothing() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    let applied = harness.apply_payload(Payload::Command((&b"\xff\xff\xff"[..]).into()));
    assert!(applied.outcomes.is_empty() && applied.changes.is_empty());
    let unknown = crate::pb::command::v1::Command {
        version: 2,
        origin: Some(harness.next_origin()),
        op: Some(put("a", "2")),
    };
    let applied =
        harness.apply_payload(Payload::Command(prost::Message::encode_to_vec(&unknown).into()));
    let Some(crate::pb::command::v1::outcome::Result::Refusal(refusal)) =
        &applied.outcomes[0].1.result
    else {
        panic!()
    };
    assert_eq!(refusal.reason(), Reason::InvalidArgument);
    assert_eq!(one(&harness, "a", 0).unwrap().value, "1");
    assert_eq!(harness.index().value(), 3);
}

#[test]
fn a_result_that_is_too_large_takes_the_command_back() {
    let mut harness = Harness::new();
    for key in ["a", "b", "c"] {
        harness.put(key, &"x".repeat(1 << 20));
    }
    let before = harness.state();
    let request = DeleteRangeRequest {
        key: "a".into(),
        range_end: "\0".into(),
        prev_kv: true,
        ..DeleteRangeRequest::default()
    };
    assert_eq!(harness.refused(Op::DeleteRange(request.clone())).reason(), Reason::TooLarge);
    assert_eq!(harness.state(), before);
    let request = DeleteRangeRequest { prev_kv: false, ..request };
    harness.outcome(Op::DeleteRange(request));
    assert_eq!(read(&harness.view(), &range("a", "\0", 0)).count, 0);
}

#[test]
fn one_deletion_deletes_no_more_than_its_limit() {
    let mut harness = Harness::new();
    for key in 0..=WRITES_MAX {
        harness.put(&format!("{key:05}"), "");
    }
    assert_eq!(harness.refused(delete("0", "\0")).reason(), Reason::TooLarge);
    harness.outcome(delete("00001", "\0"));
    assert_eq!(read(&harness.view(), &range("\0", "\0", 0)).count, 1);
}

#[test]
fn a_put_returns_what_it_replaced_where_asked() {
    let mut harness = Harness::new();
    let mut put = |value: &'static str, prev_kv| {
        let request =
            PutRequest { key: "a".into(), value: value.into(), prev_kv, ..Default::default() };
        match harness.outcome(Op::Put(request)).result {
            Some(Put(response)) => response.prev_kv.map(|kv| kv.value),
            other => panic!("not put: {other:?}"),
        }
    };
    assert_eq!(put("1", true), None);
    assert_eq!(put("2", true), Some("1".into()));
    assert_eq!(put("3", false), None);
}
