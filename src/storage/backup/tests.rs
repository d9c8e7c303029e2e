//! A backup comes back whole, damage anywhere in it is named, and a half one is never in its place.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use crate::{
    machine::{
        Machine, MachineConfig, SnapshotWriter, View,
        store::{Batch, Reader as _, Store as _},
    },
    pb::{
        cluster::v1::{SnapshotHeader, SnapshotSummary},
        command::v1::{Command, command::Op},
        kv::v1::PutRequest,
    },
    raft::{Entry, Payload},
    storage::{
        backup::{BackupError, BackupFile, digest_of, load, verify},
        store::MemoryStore,
    },
    types::{LogIndex, LogTime, Term},
};
use prost::Message as _;

/// A state with a few keys.
fn state() -> std::sync::Arc<MemoryStore> {
    let store = std::sync::Arc::new(MemoryStore::new());
    let mut machine = Machine::open(store.clone(), MachineConfig::default()).unwrap();
    let put = |index: u64| {
        let request = PutRequest {
            key: format!("key{index}").into_bytes().into(),
            value: "value".into(),
            ..PutRequest::default()
        };
        let command = Command { version: 1, origin: None, op: Some(Op::Put(request)) };
        Entry {
            index: LogIndex::new(index),
            term: Term::new(3),
            time: LogTime::from_millis(1_700_000_000_000),
            payload: Payload::Command(command.encode_to_vec().into()),
        }
    };
    machine.apply(&(1..=3).map(put).collect::<Vec<_>>()).unwrap();
    store
}

fn header() -> SnapshotHeader {
    SnapshotHeader {
        cluster_id: "6f1c2b9e-8f2d-4e0a-9a56-0c4d5e6f7a8b".to_owned(),
        applied_index: 3,
        term: 3,
        time: Some(LogTime::from_millis(1_700_000_000_000).to_timestamp()),
        revision: 3,
        position: 0,
        version: "0.1.0".to_owned(),
    }
}

fn save(path: &Path, header: &SnapshotHeader) -> Result<SnapshotSummary, BackupError> {
    let mut file = BackupFile::create(path, header, false)?;
    for chunk in SnapshotWriter::new(state().snapshot()) {
        // In small pieces, so that there are several.
        for piece in chunk.unwrap().chunks(100) {
            file.chunk(piece)?;
        }
    }
    file.finish()
}

#[test]
fn a_backup_comes_back_row_by_row_and_says_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let summary = save(&path, &header()).unwrap();
    assert_eq!((summary.keys, summary.events), (3, 0));
    assert_eq!(summary.header, Some(header()));
    assert_eq!(summary.file_bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(summary.digest, digest_of(&path).unwrap().to_string());
    assert_eq!(verify(&path).unwrap(), summary);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");

    let store = MemoryStore::new();
    load(&path, &store).unwrap();
    let rows = |store: &MemoryStore| store.scan(&[], None).collect::<Result<Vec<_>, _>>().unwrap();
    assert_eq!(rows(&store), rows(&state()));
}

#[test]
fn only_its_owner_may_read_a_backup_before_and_after_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let modes = || {
        let entries = fs::read_dir(dir.path()).unwrap().map(Result::unwrap);
        let modes = entries.map(|entry| entry.metadata().unwrap().permissions().mode() & 0o777);
        modes.collect::<Vec<_>>()
    };
    let path = dir.path().join("backup");
    let partial = BackupFile::create(&path, &header(), false).unwrap();
    assert_eq!(modes(), [0o600]);
    drop(partial);
    save(&path, &header()).unwrap();
    assert_eq!(modes(), [0o600]);
}

#[test]
fn equal_states_give_equal_files() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let digests = [save(&one, &header()).unwrap().digest, save(&two, &header()).unwrap().digest];
    assert_eq!(digests[0], digests[1]);
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn damage_of_any_byte_and_any_cut_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    save(&path, &header()).unwrap();
    let good = fs::read(&path).unwrap();
    assert!(good.len() > 500, "there is something to damage");
    let refused = |bytes: &[u8], how: String| {
        fs::write(&path, bytes).unwrap();
        let error = load(&path, &MemoryStore::new()).expect_err(&how).to_string();
        assert!(error.contains("backup") && error.contains("at byte") || error.contains("format"));
        assert!(!error.contains('\n'), "{error}");
    };
    for at in 0..good.len() {
        for flip in [0x01, 0x80] {
            let mut bad = good.clone();
            bad[at] ^= flip;
            refused(&bad, format!("byte {at} was flipped by {flip:#x}"));
        }
        refused(&good[..at], format!("cut to {at} bytes"));
    }
    refused(&[&good[..], b"x"].concat(), "a byte follows".to_owned());
    let doubled = [&good[..], &good[..]].concat();
    refused(&doubled, "written twice".to_owned());
    fs::write(&path, &good).unwrap();
    load(&path, &MemoryStore::new()).expect("the tests damage what was good");
}

#[test]
fn chunks_in_another_order_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    save(&path, &header()).unwrap();
    let good = fs::read(&path).unwrap();
    let start = good.windows(5).position(|at| at == b"C\0\0\0\x64").expect("a chunk of 100 bytes");
    let (first, second) = (start..start + 109, start + 109..start + 218);
    assert_eq!(&good[second.clone()][..5], b"C\0\0\0\x64");
    let swapped = [&good[..start], &good[second], &good[first], &good[start + 218..]].concat();
    assert_eq!(swapped.len(), good.len());
    fs::write(&path, swapped).unwrap();
    load(&path, &MemoryStore::new()).expect_err("every chunk is whole, and they are wrong");
}

#[test]
fn an_unknown_format_is_refused_by_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    save(&path, &header()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[11] = 2;
    fs::write(&path, bytes).unwrap();
    let words = verify(&path).expect_err("a newer one").to_string();
    assert!(words.contains("format 2") && words.contains("format 1"), "{words}");
}

#[test]
fn a_header_that_lies_is_refused_and_nothing_is_left_in_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let error = save(&path, &SnapshotHeader { revision: 9, ..header() }).expect_err("it lies");
    assert!(error.to_string().contains("header"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_there_is_not_written_over_unless_it_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    fs::write(&path, "precious").unwrap();
    let error = save(&path, &header()).expect_err("taken");
    assert!(matches!(error, BackupError::Exists { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let broken_off = BackupFile::create(&path, &header(), true).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    drop(broken_off.remover());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "whoever gave up removed it");
    drop(broken_off);
    assert_eq!(fs::read(&path).unwrap(), b"precious", "nothing was finished");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    assert!(BackupFile::check(dir.path(), true).is_err(), "a directory is no file");
}

#[test]
fn an_empty_state_is_no_backup() {
    let store = MemoryStore::new();
    store.commit(Batch::default()).unwrap();
    assert_eq!(View::new(store.snapshot()).head().unwrap().index, LogIndex::ZERO);
    let dir = tempfile::tempdir().unwrap();
    let mut file =
        BackupFile::create(&dir.path().join("b"), &SnapshotHeader::default(), false).unwrap();
    for chunk in SnapshotWriter::new(store.snapshot()) {
        file.chunk(&chunk.unwrap()).unwrap();
    }
    assert!(file.finish().is_err());
}
