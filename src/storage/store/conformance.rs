//! What every store must do, as one body of tests that runs on all of them.
//!
//! Each function takes an empty store and panics where a promise of
//! [`Store`](crate::machine::store::Store) is broken.

use bytes::Bytes;

use crate::{
    machine::store::{Batch, Row, Store},
    types::Rng,
};

/// Runs all that needs no reopening; `make` gives an empty store each time.
///
/// # Panics
/// Where the store breaks a promise.
pub fn all<S: Store>(mut make: impl FnMut() -> S) {
    a_batch_is_read_back(&make());
    the_last_change_of_a_key_wins(&make());
    scans_keep_to_their_bounds(&make());
    a_snapshot_does_not_move(&make());
    a_scan_does_not_see_later_batches(&make());
    it_agrees_with_a_map(&make());
}

fn batch(rows: &[(&str, Option<&str>)]) -> Batch {
    let row = |&(key, value): &(&str, Option<&str>)| {
        (
            Bytes::copy_from_slice(key.as_bytes()),
            value.map(|v| Bytes::copy_from_slice(v.as_bytes())),
        )
    };
    Batch { rows: rows.iter().map(row).collect() }
}

fn keys(rows: impl Iterator<Item = Result<Row, crate::machine::store::StoreError>>) -> Vec<String> {
    rows.map(|row| row.expect("the store reads"))
        .map(|(key, _)| String::from_utf8_lossy(&key).into_owned())
        .collect()
}

fn a_batch_is_read_back(store: &impl Store) {
    assert_eq!(store.get(b"a").expect("reads"), None);
    store.commit(batch(&[("a", Some("1")), ("b", Some("")), ("c", None)])).expect("commits");
    assert_eq!(store.get(b"a").expect("reads").as_deref(), Some(&b"1"[..]));
    assert_eq!(store.get(b"b").expect("reads").as_deref(), Some(&b""[..]));
    assert_eq!(store.get(b"c").expect("reads"), None);
    store.commit(batch(&[("a", None)])).expect("commits");
    assert_eq!(store.get(b"a").expect("reads"), None);
    store.commit(Batch::default()).expect("an empty batch is nothing");
    store.persist().expect("persists");
    assert_eq!(keys(store.scan(b"", None)), ["b"]);
}

fn the_last_change_of_a_key_wins(store: &impl Store) {
    store.commit(batch(&[("a", Some("1")), ("a", None), ("a", Some("2"))])).expect("commits");
    assert_eq!(store.get(b"a").expect("reads").as_deref(), Some(&b"2"[..]));
    store.commit(batch(&[("a", Some("3")), ("a", None)])).expect("commits");
    assert_eq!(store.get(b"a").expect("reads"), None);
}

fn scans_keep_to_their_bounds(store: &impl Store) {
    let rows = ["a", "a\0", "b", "ba", "c"].map(|key| (key, Some("")));
    store.commit(batch(&rows)).expect("commits");
    assert_eq!(keys(store.scan(b"", None)), ["a", "a\0", "b", "ba", "c"]);
    assert_eq!(keys(store.scan(b"a\0", Some(b"c"))), ["a\0", "b", "ba"]);
    assert_eq!(keys(store.scan_back(b"a\0", Some(b"c"))), ["ba", "b", "a\0"]);
    assert_eq!(keys(store.scan_back(b"b", None)), ["c", "ba", "b"]);
    assert_eq!(keys(store.scan(b"b", Some(b"b"))), [""; 0]);
    assert_eq!(keys(store.scan(b"c", Some(b"a"))), [""; 0]);
    assert_eq!(keys(store.scan_back(b"c", Some(b"a"))), [""; 0]);
    assert_eq!(keys(store.snapshot().scan(b"c", Some(b"a"))), [""; 0]);
    assert_eq!(keys(store.snapshot().scan_back(b"aa", Some(b"bb"))), ["ba", "b"]);
}

fn a_snapshot_does_not_move(store: &impl Store) {
    store.commit(batch(&[("a", Some("1")), ("b", Some("1"))])).expect("commits");
    let before = store.snapshot();
    store.commit(batch(&[("a", Some("2")), ("b", None), ("c", Some("2"))])).expect("commits");
    store.persist().expect("persists");
    assert_eq!(before.get(b"a").expect("reads").as_deref(), Some(&b"1"[..]));
    assert_eq!(keys(before.scan(b"", None)), ["a", "b"]);
    assert_eq!(keys(before.scan_back(b"", Some(b"c"))), ["b", "a"]);
    assert_eq!(keys(store.snapshot().scan(b"", None)), ["a", "c"]);
    let between = store.snapshot();
    store.commit(batch(&[("a", None), ("b", Some("3")), ("c", Some("3"))])).expect("commits");
    assert_eq!(keys(between.scan(b"", None)), ["a", "c"]);
    assert_eq!(keys(between.scan_back(b"", None)), ["c", "a"]);
    assert_eq!(between.get(b"c").expect("reads").as_deref(), Some(&b"2"[..]));
    assert_eq!(keys(store.scan_back(b"", None)), ["c", "b"]);
}

fn a_scan_does_not_see_later_batches(store: &impl Store) {
    store.commit(batch(&[("a", Some("1")), ("b", Some("1")), ("c", Some("1"))])).expect("commits");
    let mut scan = store.scan(b"", None);
    assert!(scan.next().is_some());
    store.commit(batch(&[("b", None), ("d", Some("2"))])).expect("commits");
    assert_eq!(keys(scan), ["b", "c"]);
}

fn it_agrees_with_a_map(store: &impl Store) {
    let mut model = std::collections::BTreeMap::<Bytes, Bytes>::new();
    let mut rng = Rng::new(41);
    let mut kept = Vec::new();
    for _ in 0..200 {
        let mut batch = Batch::default();
        for _ in 0..rng.below(20) {
            let key = Bytes::from(format!("{:03}", rng.below(300)));
            let value = vec![b'x'; rng.below(600) as usize];
            let value = (rng.below(4) > 0).then(|| Bytes::from(value));
            match &value {
                Some(value) => model.insert(key.clone(), value.clone()),
                None => model.remove(&key),
            };
            batch.rows.push((key, value));
        }
        store.commit(batch).expect("commits");
        if rng.below(20) == 0 {
            store.persist().expect("persists");
        }
        if rng.below(30) == 0 {
            let rows: Result<Vec<Row>, _> = store.scan(b"", None).collect();
            kept.push((store.snapshot(), rows.expect("the store reads")));
        }
    }
    for (snapshot, expected) in kept {
        let rows: Result<Vec<Row>, _> = snapshot.scan(b"", None).collect();
        assert_eq!(rows.expect("the store reads"), expected, "a snapshot has moved");
        let back: Result<Vec<Row>, _> = snapshot.scan_back(b"", None).collect();
        let expected: Vec<Row> = expected.into_iter().rev().collect();
        assert_eq!(back.expect("the store reads"), expected, "both ways are one");
    }
    let rows: Result<Vec<Row>, _> = store.scan(b"", None).collect();
    assert_eq!(rows.expect("the store reads"), model.clone().into_iter().collect::<Vec<_>>());
    let rows: Result<Vec<Row>, _> = store.scan_back(b"100", Some(b"200")).collect();
    let expected = model.range(Bytes::from("100")..Bytes::from("200")).rev();
    let expected: Vec<Row> = expected.map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(rows.expect("the store reads"), expected);
}
