//! A batch is the same as its puts one by one; nothing twice, nothing out of order.

use super::*;
use crate::{
    machine::{
        MachineConfig,
        testing::{Harness, Map, put, range},
    },
    pb::{
        command::v1::{command::Op, outcome},
        kv::v1::StreamedPut,
        session::v1::OpenSessionRequest,
    },
};

fn batch(id: u8, first_sequence: u64, puts: &[(&str, &str)]) -> PutBatch {
    let puts = puts.iter().map(|(key, value)| StreamedPut {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        session_id: 0,
    });
    PutBatch { stream_id: vec![id; ID_BYTES].into(), first_sequence, puts: puts.collect() }
}

fn done(h: &mut Harness, batch: PutBatch) -> PutBatchDone {
    match h.outcome(Op::PutBatch(batch)).result {
        Some(outcome::Result::PutBatch(done)) => done,
        other => panic!("not done: {other:?}"),
    }
}

fn numbers(done: PutBatchDone) -> [u64; 4] {
    [done.first_sequence, done.last_sequence, done.first_revision, done.last_revision]
}

/// The rows but for those of the streams themselves.
fn keys(h: &Harness) -> Map {
    let streams = Key::of(Table::PutStream).prefix();
    let mut rows = h.state();
    rows.retain(|key, _| !key.starts_with(&streams.start));
    rows
}

#[test]
fn a_batch_is_the_same_as_its_puts_one_by_one() {
    let puts = [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4"), ("c", "5")];
    let (mut one, mut all) = (Harness::new(), Harness::new());
    let mut changes = Vec::new();
    for (key, value) in puts {
        changes.extend(one.apply(put(key, value)).changes);
    }
    let applied = all.apply(Op::PutBatch(batch(7, 1, &puts)));
    assert_eq!(applied.changes, changes, "watchers see the same");
    assert_eq!(keys(&all), keys(&one));
    assert_eq!(all.machine.head().revision, one.machine.head().revision);
}

#[test]
fn each_put_has_a_revision_of_its_own_and_the_outcome_tells_first_and_last() {
    let mut h = Harness::new();
    h.put("x", "0");
    assert_eq!(
        numbers(done(&mut h, batch(1, 1, &[("a", "1"), ("a", "2"), ("b", "3")]))),
        [1, 3, 2, 4]
    );
    assert_eq!(numbers(done(&mut h, batch(1, 4, &[("a", "4")]))), [4, 4, 5, 5]);
    let read = h.view().range(&range("a", "", 2)).unwrap().unwrap();
    assert_eq!(read.kvs[0].value, "1", "each version has its place in history");
}

#[test]
fn what_was_applied_before_is_passed_over() {
    let mut h = Harness::new();
    done(&mut h, batch(1, 1, &[("a", "1"), ("b", "2")]));
    h.put("x", "0");
    let again = done(&mut h, batch(1, 1, &[("a", "1"), ("b", "2")]));
    assert_eq!(numbers(again), [3, 2, 0, 2], "nothing took effect");
    let half = done(&mut h, batch(1, 2, &[("b", "2"), ("c", "3")]));
    assert_eq!(numbers(half), [3, 3, 4, 4]);
    let read = h.view().range(&range("b", "", 0)).unwrap().unwrap();
    assert_eq!(read.kvs[0].version, 1, "written once");
}

#[test]
fn what_comes_too_early_is_refused_and_changes_nothing() {
    let mut h = Harness::new();
    let refusal = h.refused(Op::PutBatch(batch(1, 2, &[("a", "1")])));
    assert_eq!(refusal.reason(), Reason::PutStreamGap);
    assert_eq!(refusal.metadata["expected_sequence"], "1");
    done(&mut h, batch(1, 1, &[("a", "1")]));
    let before = h.state();
    let refusal = h.refused(Op::PutBatch(batch(1, 3, &[("c", "3")])));
    assert_eq!(refusal.metadata["expected_sequence"], "2");
    assert_eq!(h.state(), before);
}

#[test]
fn a_put_bound_to_a_session_that_is_gone_refuses_the_whole_batch() {
    let mut h = Harness::new();
    h.apply(Op::OpenSession(OpenSessionRequest::default()));
    let session = h.index().value();
    let bound = |session_id| {
        let mut batch = batch(1, 1, &[("a", "1"), ("b", "2")]);
        batch.puts[1].session_id = session_id;
        Op::PutBatch(batch)
    };
    let before = h.state();
    let refusal = h.refused(bound(session + 100));
    assert_eq!(refusal.reason(), Reason::SessionNotFound);
    assert_eq!(refusal.metadata["sequence"], "2");
    assert_eq!(h.state(), before);
    h.apply(bound(session));
    let read = h.view().range(&range("b", "", 0)).unwrap().unwrap();
    assert_eq!(read.kvs[0].session_id, session);
}

#[test]
fn malformed_batches_are_refused() {
    let good = batch(1, 1, &[("a", "1")]);
    let refused = |change: &dyn Fn(&mut PutBatch)| {
        let mut batch = good.clone();
        change(&mut batch);
        validate_batch(&batch).unwrap_err().reason()
    };
    assert!(validate_batch(&good).is_ok());
    assert_eq!(refused(&|batch| batch.stream_id = "x".into()), Reason::InvalidArgument);
    assert_eq!(refused(&|batch| batch.puts.clear()), Reason::InvalidArgument);
    assert_eq!(refused(&|batch| batch.first_sequence = 0), Reason::InvalidArgument);
    assert_eq!(refused(&|batch| batch.first_sequence = u64::MAX), Reason::InvalidArgument);
    assert_eq!(refused(&|batch| batch.puts[0].key = Bytes::new()), Reason::InvalidArgument);
    assert_eq!(
        refused(&|batch| batch.puts[0].value = vec![0; (1 << 20) + 1].into()),
        Reason::TooLarge
    );
}

#[test]
fn the_streams_used_last_are_remembered() {
    let mut h = Harness::new();
    let id = |number: u64| {
        let mut id = vec![0; 8];
        id.extend_from_slice(&number.to_be_bytes());
        Bytes::from(id)
    };
    let of = |stream: u64, first_sequence| PutBatch {
        stream_id: id(stream),
        ..batch(0, first_sequence, &[("k", "v")])
    };
    done(&mut h, of(0, 1));
    done(&mut h, of(1, 1));
    for stream in 2..STREAMS_MAX {
        done(&mut h, of(stream, 1));
    }
    done(&mut h, of(0, 2));
    done(&mut h, of(STREAMS_MAX, 1));
    assert_eq!(numbers(done(&mut h, of(0, 3)))[..2], [3, 3], "it was used since");
    let refusal = h.refused(Op::PutBatch(of(1, 2)));
    assert_eq!(refusal.metadata["expected_sequence"], "1", "it was used longest ago");
    let prefix = Key::of(Table::PutStream).u8(1).prefix();
    let rows = h.state().keys().filter(|key| key.starts_with(&prefix.start)).count() as u64;
    assert_eq!(rows, STREAMS_MAX);
}

#[test]
fn compaction_keeps_up_with_batches() {
    let mut h = Harness::with(MachineConfig { retained_revisions: 10 });
    let puts: Vec<(String, String)> =
        (0..200).map(|number| (format!("k{}", number % 5), number.to_string())).collect();
    let puts: Vec<(&str, &str)> = puts.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    for round in 0..10 {
        done(&mut h, batch(1, 1 + round * 200, &puts));
    }
    let changes = Key::of(Table::Change).prefix();
    let kept = h.state().keys().filter(|key| key.starts_with(&changes.start)).count();
    assert!(kept < 500, "{kept} of 2000 changes are kept");
}
