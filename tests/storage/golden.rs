//! The bytes of the formats, so that a change of one is seen. `UPDATE_EXPECT=1` writes them anew;
//! a released format gets a new version instead.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use quorate::{
    machine::{
        Machine, MachineConfig, SnapshotWriter,
        store::{Reader as _, Store as _},
    },
    pb::{
        cluster::v1::SnapshotHeader,
        command::v1::{Command, command::Op},
        kv::v1::PutRequest,
    },
    raft::{Append, Entry, HardState, LogMark, Membership, Payload},
    storage::{
        Identity, RecoveredGroup, Wal, WalOptions,
        backup::{self, BackupFile},
        files::MemoryFiles,
        store::MemoryStore,
    },
    types::{ClusterId, GroupId, Incarnation, LogIndex, LogTime, NodeId, Term},
};

const OPTIONS: WalOptions = WalOptions { segment_bytes: 4_096, spare_segments_max: 0 };
const SEGMENT: &str = "0000000000000001.wal";

fn golden(name: &str, found: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, found).expect("the golden file is writable");
    }
    fs::read(&path).expect("the golden file is there")
}

/// A log with every kind of record and payload.
fn write() -> (MemoryFiles, RecoveredGroup) {
    let files = MemoryFiles::new();
    let (mut wal, _) = Wal::open(files.clone(), OPTIONS).expect("an empty disk opens");
    let payloads = [
        Payload::Noop,
        Payload::Command(Bytes::from_static(b"command")),
        Payload::Membership(Membership {
            voters: BTreeSet::from([1, 2, 3].map(NodeId::new)),
            outgoing: BTreeSet::from([1, 2].map(NodeId::new)),
            learners: BTreeSet::from([NodeId::new(4)]),
        }),
        Payload::Command(Bytes::from_static(b"overwritten")),
    ];
    let entries = payloads.into_iter().zip(1..).map(|(payload, index)| Entry {
        index: LogIndex::new(index),
        term: Term::new(2),
        time: LogTime::from_millis(1_700_000_000_000 + index),
        payload,
    });
    let entries: Vec<Entry> = entries.collect();
    let hard = HardState { term: Term::new(2), vote: None, commit: LogIndex::new(1) };
    let log_mark = LogMark { leader_term: Term::new(2), index: LogIndex::new(4) };
    let group = RecoveredGroup { hard, ..RecoveredGroup::default() };
    let first = Append {
        hard,
        reset_to: None,
        truncate_from: None,
        entries: entries.clone(),
        hard_mark: group.hard_mark(),
        log_mark,
    };
    wal.append(GroupId::SYSTEM, &first).expect("the disk is well");
    wal.sync().expect("the disk is well");
    let hard = HardState { term: Term::new(3), vote: Some(NodeId::new(2)), commit: 3.into_index() };
    let second = Append { hard, truncate_from: Some(4.into_index()), entries: Vec::new(), ..first };
    wal.append(GroupId::SYSTEM, &second).expect("the disk is well");
    let purged = &entries[0];
    wal.purge(GroupId::SYSTEM, purged.index, purged.term, purged.time).expect("the disk is well");
    wal.close().expect("the disk is well");
    let expected = RecoveredGroup {
        hard,
        leader_term: Term::new(2),
        purged_index: purged.index,
        purged_term: purged.term,
        purged_time: purged.time,
        entries: entries[1..3].to_vec(),
    };
    (files, expected)
}

trait Index {
    fn into_index(self) -> LogIndex;
}

impl Index for u64 {
    fn into_index(self) -> LogIndex {
        LogIndex::new(self)
    }
}

#[test]
fn the_log_writes_and_reads_version_1() {
    let (files, expected) = write();
    let written = files.read(SEGMENT).expect("there is a segment");
    let golden = golden("wal-v1.bin", &written);
    assert!(written == golden, "the log's bytes have changed");
    let files = MemoryFiles::new();
    files.put(SEGMENT, &golden);
    let (_, groups) = Wal::open(files, OPTIONS).expect("version 1 opens");
    assert_eq!(groups, [(GroupId::SYSTEM, expected)].into());
}

#[test]
fn the_identity_writes_and_reads_version_1() {
    let identity = Identity {
        node_id: NodeId::new(3),
        incarnation: Incarnation::parse("0191d7a4-3c5e-7cc2-b1f0-6b8a5f1d2e3c").expect("a UUID"),
        cluster_id: ClusterId::parse("6f1c2b9e-8f2d-4e0a-9a56-0c4d5e6f7a8b"),
        log_begun: true,
    };
    let golden = golden("identity-v1.toml", identity.encode().as_bytes());
    let text = String::from_utf8(golden).expect("the identity is text");
    assert_eq!(identity.encode(), text);
    assert_eq!(Identity::decode(&text, "identity").expect("version 1 is known"), identity);
}

#[test]
fn a_backup_writes_and_reads_version_1() {
    let store = Arc::new(MemoryStore::new());
    let mut machine =
        Machine::open(store.clone(), MachineConfig::default()).expect("an empty state");
    let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
    let put = Op::Put(PutRequest { key, value, ..PutRequest::default() });
    let command = Command { version: 1, origin: None, op: Some(put) };
    let entry = Entry {
        index: LogIndex::new(1),
        term: Term::new(2),
        time: LogTime::from_millis(1_700_000_000_000),
        payload: Payload::Command(command.encode_to_vec().into()),
    };
    machine.apply(&[entry]).expect("applied");
    let header = SnapshotHeader {
        cluster_id: "6f1c2b9e-8f2d-4e0a-9a56-0c4d5e6f7a8b".to_owned(),
        applied_index: 1,
        term: 2,
        time: Some(LogTime::from_millis(1_700_000_000_000).to_timestamp()),
        revision: 1,
        position: 0,
        version: "0.1.0".to_owned(),
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("backup");
    let mut file = BackupFile::create(&path, &header, false).expect("created");
    for chunk in SnapshotWriter::new(store.snapshot()) {
        file.chunk(&chunk.expect("read")).expect("written");
    }
    file.finish().expect("whole");
    let golden = golden("backup-v1.bin", &fs::read(&path).expect("it is there"));
    assert!(fs::read(&path).expect("it is there") == golden, "the backup's bytes have changed");

    fs::write(&path, golden).expect("written");
    let read = MemoryStore::new();
    let loaded = backup::load(&path, &read).expect("version 1 is known");
    assert_eq!(loaded.header, header);
    let rows =
        |store: &MemoryStore| store.scan(&[], None).collect::<Result<Vec<_>, _>>().expect("read");
    assert_eq!(rows(&read), rows(&store));
}
