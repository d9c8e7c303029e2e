//! The data directory: who may use it, and what is refused in which words.

use std::fs;

use quorate::{
    machine::store::{Batch, Store},
    storage::{Bootstrap, DataDir, Error, WalOptions},
    types::{ClusterId, GroupId, LogIndex, LogTime, NodeId, Term},
};

const ONE: NodeId = NodeId::new(1);
const OPTIONS: WalOptions = WalOptions { segment_bytes: 64 << 10, spare_segments_max: 1 };
const CLUSTER: &str = "6f1c2b9e-8f2d-4e0a-9a56-0c4d5e6f7a8b";
const OTHER_CLUSTER: &str = "7f1c2b9e-8f2d-4e0a-9a56-0c4d5e6f7a8b";

fn refusal(path: &std::path::Path, node: NodeId, bootstrap: Bootstrap) -> Error {
    DataDir::open(path, node, bootstrap).map(|_| ()).expect_err("it is refused")
}

fn put(store: &dyn Store, key: &'static str) {
    let rows = vec![(key.into(), Some("".into()))];
    store.commit(Batch { rows }).expect("commits");
}

#[test]
fn an_empty_directory_is_taken_only_with_bootstrap() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("n1");
    let error = refusal(&path, ONE, Bootstrap::No);
    assert!(matches!(error, Error::Empty { .. }), "{error}");
    assert!(error.to_string().contains("--bootstrap"), "{error}");
    let data = DataDir::open(&path, ONE, Bootstrap::Yes).expect("it is meant");
    assert!(data.is_fresh());
    let identity = data.identity();
    drop(data);
    let data = DataDir::open(&path, ONE, Bootstrap::No).expect("it is the node's now");
    assert!(!data.is_fresh());
    assert_eq!(data.identity(), identity, "the incarnation stays");
}

#[test]
fn a_second_process_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = DataDir::open(directory.path(), ONE, Bootstrap::Yes).expect("it is free");
    let error = refusal(directory.path(), ONE, Bootstrap::Yes);
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(first);
    DataDir::open(directory.path(), ONE, Bootstrap::No).expect("it is free again");
}

#[test]
fn another_nodes_disk_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(DataDir::open(directory.path(), ONE, Bootstrap::Yes).expect("it is free"));
    let error = refusal(directory.path(), NodeId::new(2), Bootstrap::Yes);
    assert!(error.to_string().contains("belongs to node 1, not to node 2"), "{error}");
}

#[test]
fn rule_20_a_disk_that_was_wiped_in_part_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = DataDir::open(directory.path(), ONE, Bootstrap::Yes).expect("it is free");
    drop(data.open_wal(OPTIONS).expect("the log begins"));
    drop(data);
    let identity = fs::read(directory.path().join("identity")).expect("reads");
    fs::remove_file(directory.path().join("identity")).expect("is there");
    let error = refusal(directory.path(), ONE, Bootstrap::Yes);
    assert!(matches!(error, Error::NoIdentity { found: "a log", .. }), "{error}");

    fs::write(directory.path().join("identity"), identity).expect("writes");
    fs::remove_dir_all(directory.path().join("wal")).expect("is there");
    let data = DataDir::open(directory.path(), ONE, Bootstrap::No).expect("the identity is there");
    let error = data.open_wal(OPTIONS).map(|_| ()).expect_err("the log is gone");
    assert!(matches!(error, Error::Missing { .. }), "{error}");
}

#[test]
fn the_cluster_is_noted_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = DataDir::open(directory.path(), ONE, Bootstrap::Yes).expect("it is free");
    assert_eq!(data.identity().cluster_id, None);
    let cluster = ClusterId::parse(CLUSTER).expect("a UUID");
    data.clone().set_cluster_id(cluster).expect("it is the first");
    data.set_cluster_id(cluster).expect("it is the same");
    let other = ClusterId::parse(OTHER_CLUSTER).expect("a UUID");
    let error = data.set_cluster_id(other).expect_err("it belongs to one already");
    assert!(matches!(error, Error::OtherCluster { .. }), "{error}");
    drop(data);
    let data = DataDir::open(directory.path(), ONE, Bootstrap::No).expect("it is the node's");
    assert_eq!(data.identity().cluster_id, Some(cluster));
}

#[test]
fn a_damaged_or_newer_identity_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    drop(DataDir::open(directory.path(), ONE, Bootstrap::Yes).expect("it is free"));
    let path = directory.path().join("identity");
    let text = fs::read_to_string(&path).expect("reads");
    fs::write(&path, text.replace("node_id = 1", "node_id = 2")).expect("writes");
    let error = refusal(directory.path(), NodeId::new(2), Bootstrap::No);
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    fs::write(&path, text.replace("format = 1", "format = 2")).expect("writes");
    let error = refusal(directory.path(), ONE, Bootstrap::No);
    assert!(matches!(error, Error::UnknownVersion { version: 2, .. }), "{error}");
}

#[test]
fn the_log_is_the_same_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = DataDir::open(directory.path(), ONE, Bootstrap::Yes).expect("it is free");
    let (mut wal, groups) = data.open_wal(OPTIONS).expect("the log begins");
    assert!(groups.is_empty());
    wal.purge(GroupId::SYSTEM, LogIndex::new(7), Term::new(2), LogTime::from_millis(5))
        .expect("the disk is well");
    wal.sync().expect("the disk is well");
    drop(wal);
    let (_, groups) = data.open_wal(OPTIONS).expect("the log opens");
    assert_eq!(groups[&GroupId::SYSTEM].purged_index, LogIndex::new(7));
}

#[test]
fn a_new_state_takes_over_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = DataDir::open(directory.path(), ONE, Bootstrap::Yes).expect("it is free");
    let old = data.open_state().expect("an empty state");
    put(old.as_ref(), "old");
    let view = old.snapshot();

    // Abandoned half way: the old state stays.
    let (half, pending) = data.begin_state().expect("a new store");
    put(half.as_ref(), "half");
    drop((half, pending));

    let (new, pending) = data.begin_state().expect("a new store");
    assert_eq!(new.scan(b"", None).count(), 0, "nothing is left of the one before");
    put(new.as_ref(), "new");
    data.switch_state(pending).expect("the disk is well");
    drop(old);
    assert!(view.get(b"old").expect("reads").is_some(), "views of the old state stay");
    put(new.as_ref(), "later");
    new.persist().expect("the disk is well");
    drop((view, new, data));

    let data = DataDir::open(directory.path(), ONE, Bootstrap::No).expect("it is the node's");
    let state = data.open_state().expect("the new state");
    let keys: Vec<_> = state.scan(b"", None).map(|row| row.expect("reads").0).collect();
    assert_eq!(keys, ["later", "new"]);
}
