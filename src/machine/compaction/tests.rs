//! Compaction: answers at once, rows little by little.

use crate::{
    machine::{
        MachineConfig, Space,
        tables::{Key, Table},
        testing::{Harness, delete, put, range},
    },
    pb::{
        command::v1::{Reason, command::Op},
        kv::v1::{CompactRequest, PutRequest, RequestOp, TxnRequest, request_op},
    },
    raft::Payload,
    types::Revision,
};

fn compact(revision: u64) -> Op {
    Op::Compact(CompactRequest { revision, ..CompactRequest::default() })
}

fn rows(harness: &Harness, table: Table) -> usize {
    let range = Key::of(table).prefix();
    harness.store.rows().keys().filter(|key| range.contains(key)).count()
}

fn idle(harness: &mut Harness, entries: usize) {
    for _ in 0..entries {
        harness.apply_payload(Payload::Noop);
    }
}

#[test]
fn reads_below_are_refused_at_once_and_those_above_stay_true() {
    let mut harness = Harness::new();
    for value in ["1", "2", "3", "4"] {
        harness.put("a", value);
    }
    harness.outcome(compact(3));
    let view = harness.view();
    let at = |revision| view.range(&range("a", "", revision)).unwrap();
    let refused = at(2).unwrap_err();
    assert_eq!(refused.reason(), Reason::Compacted);
    assert_eq!(refused.metadata["compact_revision"], "3");
    for (revision, value) in [(3, "3"), (4, "4"), (0, "4")] {
        assert_eq!(at(revision).unwrap().kvs[0].value, value);
    }
    let from = |revision| view.changes(Space::User, Revision::new(revision), 1_000).unwrap();
    assert_eq!(from(3).unwrap_err().reason(), Reason::Compacted);
    let (changes, _) = from(4).unwrap();
    assert_eq!(changes[0].prev.as_ref().unwrap().value, "3");
}

#[test]
fn what_was_compacted_or_lies_ahead_is_refused() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    harness.put("a", "2");
    assert_eq!(harness.refused(compact(0)).reason(), Reason::Compacted);
    assert_eq!(harness.refused(compact(3)).reason(), Reason::FutureRevision);
    harness.outcome(compact(2));
    assert_eq!(harness.refused(compact(2)).reason(), Reason::Compacted);
    assert_eq!(harness.machine.head().compact_revision, Revision::new(2));
}

#[test]
fn the_sweep_leaves_one_version_of_each_live_key_and_nothing_of_the_dead() {
    let mut harness = Harness::new();
    for round in 0..40 {
        for key in ["a", "b", "c", "d"] {
            harness.put(key, &round.to_string());
        }
    }
    harness.outcome(delete("d", ""));
    let newest = harness.machine.head().revision;
    harness.outcome(compact(newest.value()));
    let first = rows(&harness, Table::Version);
    assert!(first > 3, "one entry does not sweep everything");
    idle(&mut harness, 1);
    assert!(rows(&harness, Table::Version) < first, "each entry sweeps");
    idle(&mut harness, 10);
    assert_eq!(rows(&harness, Table::Version), 3);
    assert_eq!(rows(&harness, Table::Change), 3, "the three versions themselves");
    let found = harness.view().range(&range("a", "\0", newest.value())).unwrap().unwrap();
    assert_eq!(found.count, 3);
    assert_eq!(harness.put("d", "again"), newest.value() + 1);
}

#[test]
fn a_revision_of_many_changes_is_swept_in_parts() {
    let mut harness = Harness::new();
    for key in 0..300 {
        harness.put(&format!("{key:03}"), "");
    }
    harness.outcome(delete("0", "\0"));
    harness.outcome(compact(301));
    idle(&mut harness, 40);
    assert_eq!((rows(&harness, Table::Version), rows(&harness, Table::Change)), (0, 0));
}

#[test]
fn a_revision_whose_changes_stay_does_not_hold_the_sweep_up() {
    let mut harness = Harness::new();
    let put = |number: u32| {
        let key = format!("{number:03}").into();
        let put = PutRequest { key, value: "1".into(), ..PutRequest::default() };
        RequestOp { request: Some(request_op::Request::Put(put)) }
    };
    let success = (0..128).map(put).collect();
    harness.outcome(Op::Txn(TxnRequest { success, ..TxnRequest::default() }));
    assert_eq!(harness.put("000", "2"), 2, "all of the transaction is one revision");
    harness.outcome(compact(2));
    idle(&mut harness, 20);
    assert_eq!((rows(&harness, Table::Version), rows(&harness, Table::Change)), (128, 128));
}

#[test]
fn an_entry_reads_a_bounded_number_of_bytes_for_the_sweep() {
    let mut harness = Harness::new();
    let value = "x".repeat(1 << 20);
    for _ in 0..12 {
        harness.put("a", &value);
    }
    harness.outcome(compact(12));
    assert!(rows(&harness, Table::Change) > 1, "it takes more than one entry");
    idle(&mut harness, 4);
    assert_eq!((rows(&harness, Table::Version), rows(&harness, Table::Change)), (1, 1));
}

#[test]
fn history_is_compacted_by_itself() {
    let mut harness = Harness::with(MachineConfig { retained_revisions: 20 });
    for value in 0..22 {
        harness.put("a", &value.to_string());
    }
    assert_eq!(harness.machine.head().compact_revision, Revision::ZERO);
    harness.put("a", "more");
    assert_eq!(harness.machine.head().compact_revision, Revision::new(3));
    for value in 0..1_000 {
        harness.put("a", &value.to_string());
    }
    let head = harness.machine.head();
    assert!(head.revision.value() - head.compact_revision.value() <= 22);
    assert!(rows(&harness, Table::Version) <= 24, "the sweep keeps up");
}

#[test]
fn without_a_number_to_keep_nothing_is_compacted() {
    let mut harness = Harness::with(MachineConfig { retained_revisions: 0 });
    for value in 0..50 {
        harness.apply(put("a", &value.to_string()));
    }
    assert_eq!(harness.machine.head().compact_revision, Revision::ZERO);
}
