//! An installation that is killed at each of its steps, in a process of its own: what it leaves is
//! the old state or the new one, whole, and the node catches up from there.

use std::{env, fs, os::unix::process::ExitStatusExt as _, path::Path, process::Command};

use bytes::Bytes;
use prost::Message as _;
use tokio::time::timeout;

use super::*;
use crate::{
    machine::{COMMAND_VERSION, Machine, MachineConfig, SnapshotWriter, View},
    node::{self, Directory, NodeOptions, Running, SnapshotSource, Transport, Tuning},
    observe::Metrics,
    pb::{
        command::v1::{Command as LogCommand, command::Op},
        kv::v1::PutRequest,
        raft::v1::{ForwardRequest, ForwardResponse},
    },
    raft::{Append, Entry, HardMark, HardState, LogMark, Membership, Message, Payload},
    storage::{Bootstrap, DIES_AT, DataDir, WalOptions, store::MemoryStore},
    types::{Duration, GroupId, LogIndex, LogTime},
};

const ME: NodeId = NodeId::new(1);
const TERM: Term = Term::new(3);
/// The state before, and the log beyond it.
const OLD: u64 = 10;
const OLD_LOG: u64 = 14;
/// The state in the snapshot.
const NEW: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(20);

/// The variables that tell the child what to do.
const STEP: &str = "QUORATE_TEST_STEP";
const DIR: &str = "QUORATE_TEST_DIR";

const STEPS: [Step; 9] = [
    Step::Begun,
    Step::Loading,
    Step::Loaded,
    Step::Durable,
    Step::Renamed,
    Step::Switched,
    Step::Opened,
    Step::LogWritten,
    Step::LogSynced,
];

#[derive(Debug)]
struct Mute;

impl Transport for Mute {
    fn send(&self, _: NodeId, _: GroupId, _: Message) {}
    fn send_snapshot(&self, _: NodeId, _: GroupId, _: SnapshotSource) {}
    fn forward(&self, _: NodeId, _: ForwardRequest) -> bool {
        false
    }
    fn answer(&self, _: NodeId, _: ForwardResponse) {}
}

fn entries(last: u64) -> Vec<Entry> {
    let entry = |index| {
        let request = PutRequest {
            key: format!("key/{:02}", index % 40).into(),
            // More than a chunk in all, so that there is a half of it.
            value: Bytes::from(vec![u8::try_from(index).expect("small"); 20_000]),
            ..PutRequest::default()
        };
        let command =
            LogCommand { version: COMMAND_VERSION, origin: None, op: Some(Op::Put(request)) };
        Entry {
            index: LogIndex::new(index),
            term: TERM,
            time: LogTime::from_millis(1_000 + index),
            payload: Payload::Command(command.encode_to_vec().into()),
        }
    };
    (1..=last).map(entry).collect()
}

fn rows(store: &dyn Store) -> Vec<(Bytes, Bytes)> {
    store.scan(b"", None).map(|row| row.expect("reads")).collect()
}

/// The state after so many entries.
fn state(last: u64) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut machine = Machine::open(Arc::clone(&store), MachineConfig::default()).expect("opens");
    machine.apply(&entries(last)).expect("applies");
    store
}

/// A node's directory with the old state and a longer log, and a snapshot of the new state.
fn prepare_dir(dir: &Path) {
    let data = DataDir::open(&dir.join("node"), ME, Bootstrap::Yes).expect("it is free");
    let store = data.open_state().expect("an empty state");
    let mut machine = Machine::open(Arc::clone(&store), MachineConfig::default()).expect("opens");
    machine.apply(&entries(OLD)).expect("applies");
    store.persist().expect("the disk is well");
    let (mut wal, _) = data.open_wal(WalOptions::default()).expect("the log begins");
    let append = Append {
        hard: HardState { term: TERM, vote: None, commit: LogIndex::new(OLD) },
        reset_to: None,
        truncate_from: None,
        entries: entries(OLD_LOG),
        hard_mark: HardMark { term: TERM, vote: None },
        log_mark: LogMark { leader_term: TERM, index: LogIndex::new(OLD_LOG) },
    };
    wal.append(GroupId::SYSTEM, &append).expect("the disk is well");
    wal.sync().expect("the disk is well");
    let mut file = Vec::new();
    for chunk in SnapshotWriter::new(state(NEW).snapshot()) {
        let chunk = chunk.expect("reads");
        file.extend(u32::try_from(chunk.len()).expect("small").to_le_bytes());
        file.extend(chunk);
    }
    fs::write(dir.join("snapshot"), file).expect("writes");
}

fn start(dir: &Path) -> Running {
    let data = DataDir::open(&dir.join("node"), ME, Bootstrap::No).expect("it opens");
    let disk = data.identity().incarnation;
    let (client, peer) = ("127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned());
    let directory = Directory::new(ME, disk, client, peer, None, Default::default());
    node::start(NodeOptions {
        directory: Arc::new(directory),
        data,
        membership: Membership::of((1..=3).map(NodeId::new)),
        restore: None,
        transport: Arc::new(Mute),
        tuning: Tuning::default(),
        metrics: Metrics::new(),
    })
    .expect("it starts")
}

fn offer(dir: &Path) -> SnapshotOffer {
    SnapshotOffer {
        from: NodeId::new(2),
        term: TERM,
        index: LogIndex::new(NEW),
        last_term: TERM,
        time: LogTime::ZERO,
        membership: Membership::default(),
        file: dir.join("snapshot"),
    }
}

/// Not a test of its own: the process that dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test of every step, which tells it where to die"]
async fn dies_at_a_step() {
    let step = env::var(STEP).expect("the parent says where");
    let step = STEPS.into_iter().find(|known| format!("{known:?}") == step).expect("it is one");
    let dir = env::var(DIR).expect("the parent says in which directory");
    DIES_AT.set(step).expect("it is set once");
    let node = start(Path::new(&dir));
    let taken = node.handle().mailbox().snapshot_received(offer(Path::new(&dir))).await;
    taken.expect("it is installed");
    // The log is written by a thread of its own.
    timeout(DEADLINE, core::future::pending::<()>()).await.expect("the step is reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_step_leaves_the_old_state_or_the_new_one_whole() {
    let (old, new) = (rows(&*state(OLD)), rows(&*state(NEW)));
    for step in STEPS {
        let dir = tempfile::tempdir().expect("a directory");
        prepare_dir(dir.path());
        let child = Command::new(env::current_exe().expect("this program"))
            .args(["node::install::tests::dies_at_a_step", "--exact", "--ignored"])
            .env(STEP, format!("{step:?}"))
            .env(DIR, dir.path())
            .output()
            .expect("it runs");
        let words = String::from_utf8_lossy(&child.stderr);
        let aborted = child.status.signal() == Some(rustix::process::Signal::ABORT.as_raw());
        assert!(aborted, "{step:?}: {:?} {words}", child.status);

        let data = DataDir::open(&dir.path().join("node"), ME, Bootstrap::No).expect("it opens");
        let found = rows(&*data.open_state().expect("the state opens"));
        let expected = if step < Step::Renamed { &old } else { &new };
        assert!(found == *expected, "{step:?}: {} rows", found.len());
        let files = fs::read_dir(dir.path().join("node/state")).expect("reads").count();
        assert_eq!(files, 1, "{step:?}: what was half done is gone");
        drop(data);

        catches_up(dir.path(), step).await;
        // And again, after an orderly stop.
        catches_up(dir.path(), step).await;
        let data = DataDir::open(&dir.path().join("node"), ME, Bootstrap::No).expect("it opens");
        assert!(rows(&*data.open_state().expect("the state opens")) == new, "{step:?}");
        let (_, groups) = data.open_wal(WalOptions::default()).expect("the log opens");
        let log = &groups[&GroupId::SYSTEM];
        assert_eq!((log.purged_index, log.purged_term), (LogIndex::new(NEW), TERM), "{step:?}");
        assert!(log.entries.is_empty(), "{step:?}: the old log is gone");
    }
}

/// A node that starts there has the new state once the snapshot is offered.
async fn catches_up(dir: &Path, step: Step) {
    let node = start(dir);
    let taken = node.handle().mailbox().snapshot_received(offer(dir)).await;
    assert_eq!(taken, Ok(()), "{step:?}");
    let head = node.handle().view().head().expect("reads");
    assert_eq!((head.index, head.term), (LogIndex::new(NEW), TERM), "{step:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    prepare_dir(dir.path());
    let whole = fs::read(dir.path().join("snapshot")).expect("reads");
    let node = start(dir.path());
    let mailbox = node.handle().mailbox();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let cases = [
        (flipped, "the hash does not fit"),
        (whole[..whole.len() / 2].to_vec(), ""),
        (Vec::new(), "it ends early"),
    ];
    for (file, words) in cases {
        fs::write(dir.path().join("snapshot"), file).expect("writes");
        let refusal = mailbox.snapshot_received(offer(dir.path())).await.expect_err("refused");
        assert!(refusal.contains(words), "{refusal}");
        assert_eq!(node.handle().view().head().expect("reads").index, LogIndex::new(OLD));
    }
    fs::write(dir.path().join("snapshot"), &whole).expect("writes");
    let other = SnapshotOffer { index: LogIndex::new(NEW + 1), ..offer(dir.path()) };
    let refusal = mailbox.snapshot_received(other).await.expect_err("it says another index");
    assert!(refusal.contains("but holds"), "{refusal}");
    assert_eq!(mailbox.snapshot_received(offer(dir.path())).await, Ok(()));
    drop(mailbox);
    node.stop().await;
    let data = DataDir::open(&dir.path().join("node"), ME, Bootstrap::No).expect("it opens");
    let store = data.open_state().expect("the state opens");
    assert_eq!(View::new(store.snapshot()).head().expect("reads").index, LogIndex::new(NEW));
}
