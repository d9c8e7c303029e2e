//! Every store keeps the same promises.

use quorate::{
    machine::store::{Batch, Reader as _, Store as _},
    storage::store::{MemoryStore, RedbStore, conformance},
};

#[test]
fn the_store_in_memory_keeps_its_promises() {
    conformance::all(MemoryStore::new);
}

#[test]
fn the_store_on_disk_keeps_its_promises() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut count = 0;
    conformance::all(|| {
        count += 1;
        RedbStore::open(&directory.path().join(count.to_string())).expect("an empty store opens")
    });
}

#[test]
fn the_store_on_disk_is_the_same_after_a_clean_stop() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rows");
    let store = RedbStore::open(&path).expect("an empty store opens");
    let rows = vec![("a".into(), Some("1".into())), ("b".into(), Some("2".into()))];
    store.commit(Batch { rows }).expect("commits");
    store.persist().expect("persists");
    drop(store);
    let store = RedbStore::open(&path).expect("opens again");
    assert_eq!(store.scan(b"", None).count(), 2);
    assert_eq!(store.get(b"b").expect("reads").as_deref(), Some(&b"2"[..]));
}

#[test]
fn rotten_bytes_are_refused_when_the_store_opens() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rows");
    let store = RedbStore::open(&path).expect("an empty store opens");
    let value = b"a value that is easy to find in the file";
    let rows = vec![("key".into(), Some((&value[..]).into()))];
    store.commit(Batch { rows }).expect("commits");
    store.persist().expect("persists");
    drop(store);
    let mut bytes = std::fs::read(&path).expect("reads");
    let at = bytes.windows(value.len()).position(|part| part == value).expect("is in the file");
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let error = RedbStore::open(&path).map(|_| ()).expect_err("rotten bytes are not served");
    assert!(error.to_string().contains("rows"), "the file is named: {error}");
}

#[test]
fn what_was_deleted_is_room_for_more() {
    const ROWS: u32 = 5_000;
    let directory = tempfile::tempdir().expect("a directory");
    let store = RedbStore::open(&directory.path().join("rows")).expect("an empty store opens");
    let key = |n: u32| bytes::Bytes::copy_from_slice(&n.to_be_bytes());
    let rows = |value: Option<&'static [u8]>| Batch {
        rows: (0..ROWS).map(|n| (key(n), value.map(bytes::Bytes::from_static))).collect(),
    };
    store.commit(rows(Some(&[7; 4_000]))).expect("commits");
    let before = store.reusable_bytes().expect("reads");
    store.commit(rows(None)).expect("commits");
    let after = store.reusable_bytes().expect("reads");
    let (taken, freed) = (u64::from(ROWS) * 4_000, after.saturating_sub(before));
    let shrunk = before.saturating_sub(after);
    assert!(freed >= taken / 2 || shrunk > 0, "{taken} bytes went, {freed} are room again");
    assert_eq!(store.scan(b"", None).count(), 0);
}
