//! Snapshots come back as they were, and damage is never taken for state.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    machine::{
        snapshot::{CHUNK_BYTES_MAX, SnapshotError, SnapshotLoader, SnapshotWriter},
        store::Store as _,
        testing::{Harness, MapStore, delete},
    },
    pb::{command::v1::command::Op, kv::v1::PutRequest},
};

fn chunks(store: &MapStore) -> Vec<Bytes> {
    SnapshotWriter::new(store.snapshot()).collect::<Result<_, _>>().unwrap()
}

fn load(bytes: &[u8], cut: usize) -> Result<Arc<MapStore>, SnapshotError> {
    let store = Arc::new(MapStore::default());
    let mut loader = SnapshotLoader::new(store.as_ref());
    for chunk in bytes.chunks(cut) {
        loader.feed(chunk)?;
    }
    loader.finish()?;
    Ok(store)
}

/// A small state with all that the keyspace keeps.
fn small() -> Harness {
    let mut harness = Harness::new();
    harness.put("a", "1");
    harness.put("b\0", "2");
    harness.outcome(delete("a", ""));
    harness.outcome(Op::Put(PutRequest {
        key: "c".into(),
        value: "3".into(),
        request_id: "67e55044-10b1-426f-9247-bb680e5fe0c8".into(),
        ..PutRequest::default()
    }));
    harness
}

#[test]
fn a_state_comes_back_row_by_row() {
    let mut harness = small();
    for key in 0..5 {
        harness.put(&format!("big{key}"), &"x".repeat(300 << 10));
    }
    let chunks = chunks(&harness.store);
    assert!(chunks.len() > 5 && chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES_MAX));
    let bytes = chunks.concat();
    for cut in [1_000, CHUNK_BYTES_MAX, usize::MAX] {
        assert_eq!(load(&bytes, cut).unwrap().rows(), harness.store.rows());
    }
    let store = MapStore::default();
    let mut loader = SnapshotLoader::new(&store);
    loader.feed(&bytes).unwrap();
    assert_eq!(loader.finish().unwrap(), *harness.machine.head());
}

#[test]
fn a_snapshot_is_of_one_moment() {
    let mut harness = small();
    let before = harness.store.rows();
    let writer = SnapshotWriter::new(harness.store.snapshot());
    harness.put("a", "later");
    let bytes = writer.collect::<Result<Vec<_>, _>>().unwrap().concat();
    assert_eq!(load(&bytes, usize::MAX).unwrap().rows(), before);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let bytes = chunks(&small().store).concat();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(load(&damaged, usize::MAX).is_err(), "byte {at}");
        assert!(load(&bytes[..at], at.max(1)).is_err(), "cut at {at}");
    }
    let longer = [&bytes[..], b"x"].concat();
    assert!(matches!(load(&longer, usize::MAX), Err(SnapshotError::Corrupt { .. })));
}

#[test]
fn another_format_is_named() {
    let mut bytes = chunks(&small().store).concat();
    bytes[11] = 9;
    let error = load(&bytes, usize::MAX).unwrap_err();
    assert_eq!(error.to_string(), "the snapshot has format 9, this program knows format 1");
    let error = load(b"GIF89a, certainly not a snapshot", usize::MAX).unwrap_err();
    assert!(error.to_string().contains("does not start like a snapshot"));
}

#[test]
fn a_state_before_the_first_entry_is_no_snapshot() {
    let bytes = chunks(&MapStore::default()).concat();
    assert!(load(&bytes, usize::MAX).is_err());
}

/// The format may not move by accident. When it moves on purpose, raise its version and put the
/// text that the failure prints into the file.
#[test]
fn the_format_is_the_golden_one() {
    let bytes = chunks(&small().store).concat();
    let text = crate::machine::testing::hex_lines(&bytes);
    let golden = include_str!("../../../tests/golden/snapshot-v1.hex");
    assert_eq!(text, golden, "the snapshot is now\n{text}");
}
