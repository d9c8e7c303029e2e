//! Snapshots: whole, broken off, gone on with and damaged.

use std::{
    fs,
    path::Path,
    sync::{
        Condvar,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use tokio::{io::copy_bidirectional, net, task::JoinSet};
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::*;
use crate::{
    machine::store::StoreError,
    node::SnapshotSource,
    pb::raft::v1::{InstallSnapshotRequest, InstallSnapshotResponse},
};

/// An index that the recorder refuses to install.
const REFUSED: u64 = 0;

fn source(
    index: u64,
    chunks: impl Fn() -> crate::node::SnapshotChunks + Send + Sync + 'static,
) -> SnapshotSource {
    let (index, last_term) = (LogIndex::new(index), Term::new(6));
    SnapshotSource { term: TERM, index, last_term, chunks: Box::new(chunks) }
}

fn snapshot(index: u64, chunks: Vec<Result<Bytes, String>>) -> SnapshotSource {
    source(index, move || {
        Box::new(chunks.clone().into_iter().map(|chunk| chunk.map_err(StoreError)))
    })
}

async fn snapshot_end(node: &mut Node) -> Option<LogIndex> {
    node.wait("end of the snapshot", |event| match event {
        Event::SnapshotSent(installed) => Some(installed),
        _ => None,
    })
    .await
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// The file of these chunks: each behind its length.
fn file_of<'a>(chunks: impl IntoIterator<Item = &'a Bytes>) -> Vec<u8> {
    let length = |chunk: &Bytes| u32::try_from(chunk.len()).unwrap().to_le_bytes();
    chunks.into_iter().flat_map(|chunk| [&length(chunk)[..], chunk].concat()).collect()
}

fn counter(node: &Node, name: &str) -> u64 {
    let text = node.transport.shared.options.metrics.encode();
    let start = format!("quorate_snapshot_{name}_total ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

#[tokio::test]
async fn a_snapshot_arrives_whole_and_leaves_no_file_behind() {
    let (mut one, two) = pair().await;
    let chunks = [vec![1; 700_000], vec![2; 3], vec![3; 100_000]].map(Bytes::from);
    let file = file_of(&chunks);
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(50, chunks.map(Ok).into()));
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(50)));
    let (offer, content) = two.recorder.snapshots.lock().unwrap().pop().expect("one snapshot");
    assert_eq!((offer.from, offer.term, offer.last_term), (ONE, TERM, Term::new(6)));
    assert!(content == file, "the chunks are in the file, each behind its length");
    until("removal", || is_empty(two.incoming_dir.path())).await;
    for (node, name, value) in [
        (&one, "sent_chunks", 3),
        (&one, "sent_bytes", 800_003),
        (&one, "resumed", 0),
        (&two, "received_chunks", 3),
        (&two, "received_bytes", 800_003),
    ] {
        assert_eq!(counter(node, name), value, "{name}");
    }
}

#[tokio::test]
async fn a_snapshot_that_fails_at_either_end_is_reported() {
    let (mut one, two) = pair().await;
    let chunks = vec![Ok("a".into()), Err("a block is damaged".to_owned()), Ok("b".into())];
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(50, chunks));
    assert_eq!(snapshot_end(&mut one).await, None);
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(REFUSED, vec![Ok("refused".into())]));
    assert_eq!(snapshot_end(&mut one).await, None);
    assert!(two.recorder.snapshots.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_panic_while_installing_is_reported_and_the_next_snapshot_is_taken() {
    let (mut one, two) = pair().await;
    let source = snapshot(UNINSTALLABLE.value(), vec![Ok("a".into())]);
    one.transport.send_snapshot(TWO, SYSTEM, source);
    assert_eq!(snapshot_end(&mut one).await, None);
    until("removal", || is_empty(two.incoming_dir.path())).await;
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(67, vec![Ok("b".into())]));
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(67)));
}

/// Chunks that stop coming at one of them until they are let go.
#[derive(Debug, Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn pass(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

const CHUNKS: usize = 40;
/// The gate is before this chunk.
const GATE: usize = 20;

/// A snapshot with a gate in the middle, and how often its chunks were begun.
fn gated() -> (SnapshotSource, Arc<Gate>, Arc<AtomicU32>, Vec<u8>) {
    let chunks: Vec<Bytes> =
        (0..CHUNKS).map(|n| vec![u8::try_from(n).unwrap(); 100_000].into()).collect();
    let file = file_of(&chunks);
    let (gate, begun) = (Arc::new(Gate::default()), Arc::new(AtomicU32::new(0)));
    let (gate_of_chunks, begun_of_chunks) = (Arc::clone(&gate), Arc::clone(&begun));
    let source = source(50, move || {
        begun_of_chunks.fetch_add(1, Ordering::Relaxed);
        let gate = Arc::clone(&gate_of_chunks);
        let chunks = chunks.clone().into_iter().enumerate();
        Box::new(chunks.map(move |(number, chunk)| {
            if number == GATE {
                gate.pass();
            }
            Ok(chunk)
        }))
    });
    (source, gate, begun, file)
}

/// Passes connections on, and can break all of them.
struct Proxy {
    address: SocketAddr,
    cut: tokio::sync::watch::Sender<u32>,
    _task: JoinSet<()>,
}

impl Proxy {
    async fn to(target: SocketAddr) -> Self {
        let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = tokio::sync::watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut inner, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                open.spawn(async move {
                    let Ok(mut outer) = net::TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut inner, &mut outer) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, _task: task }
    }
}

/// Two nodes, the first of which reaches the second through a proxy.
async fn proxied_pair() -> (Node, Node, Proxy) {
    let (first, second) = (listener(), listener());
    let own = first.local_addr().unwrap();
    let proxy = Proxy::to(second.local_addr().unwrap()).await;
    let addresses = [own, proxy.address];
    let mut one = Node::start(directory(ONE, 1, &addresses), first);
    let mut two = Node::start(directory(TWO, 1, &addresses), second);
    one.connected(TWO).await;
    two.connected(ONE).await;
    (one, two, proxy)
}

#[tokio::test]
async fn a_stream_that_breaks_is_gone_on_with_where_the_receiver_stands() {
    let (mut one, two, proxy) = proxied_pair().await;
    let (source, gate, begun, file) = gated();
    one.transport.send_snapshot(TWO, SYSTEM, source);
    for round in 1..=3 {
        // The last chunk before the gate is held back, because it could be the last one of all.
        until("chunks", || counter(&two, "received_chunks") == GATE as u64 - 1).await;
        proxy.cut.send_replace(round);
        until("another stream", || counter(&one, "resumed") >= u64::from(round)).await;
    }
    gate.open();
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(50)));
    assert!(two.recorder.snapshots.lock().unwrap().pop().expect("one snapshot").1 == file);
    assert_eq!(begun.load(Ordering::Relaxed), 1, "one view, read once");
    assert_eq!(counter(&two, "received_chunks"), CHUNKS as u64, "no chunk was kept twice");
    until("removal", || is_empty(two.incoming_dir.path())).await;
}

#[tokio::test]
async fn a_receiver_that_was_restarted_gets_the_same_view_from_its_start() {
    let (mut one, mut two, proxy) = proxied_pair().await;
    let (source, gate, begun, file) = gated();
    one.transport.send_snapshot(TWO, SYSTEM, source);
    until("chunks", || counter(&two, "received_chunks") == GATE as u64 - 1).await;
    let (dir, address) = (two.incoming_dir.path().to_owned(), two.address);
    assert!(!is_empty(&dir), "chunks are kept");
    two.kill();
    let addresses = [one.address, proxy.address];
    let mut again = None;
    until("free port", || {
        again = TcpListener::bind(address).ok();
        again.is_some()
    })
    .await;
    let two = Node::start(directory(TWO, 1, &addresses), again.unwrap());
    gate.open();
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(50)));
    assert!(two.recorder.snapshots.lock().unwrap().pop().expect("one snapshot").1 == file);
    assert_eq!(begun.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn one_snapshot_at_a_time_goes_to_a_peer_and_its_end_is_reported() {
    let (mut one, two) = pair().await;
    let (source, gate, _, file) = gated();
    one.transport.send_snapshot(TWO, SYSTEM, source);
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(60, vec![Ok("later".into())]));
    gate.open();
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(50)));
    let taken: Vec<_> = std::mem::take(&mut *two.recorder.snapshots.lock().unwrap());
    assert!(taken.len() == 1 && taken[0].1 == file);
    // Then the next one may go.
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(60, vec![Ok("later".into())]));
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(60)));
}

#[tokio::test]
async fn a_limited_rate_changes_nothing_about_what_arrives() {
    let (first, second) = (listener(), listener());
    let addresses = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let mut one = Node::start_with(directory(ONE, 1, &addresses), first, 4 << 20, None);
    let two = Node::start(directory(TWO, 1, &addresses), second);
    one.connected(TWO).await;
    let chunks: Vec<Bytes> = (0..9).map(|n| vec![n; 256 << 10].into()).collect();
    let file = file_of(&chunks);
    one.transport.send_snapshot(TWO, SYSTEM, snapshot(50, chunks.into_iter().map(Ok).collect()));
    assert_eq!(snapshot_end(&mut one).await, Some(LogIndex::new(50)));
    assert!(two.recorder.snapshots.lock().unwrap().pop().expect("one snapshot").1 == file);
}

fn head() -> InstallSnapshotRequest {
    InstallSnapshotRequest {
        identity: Some(identity_of_two()),
        group_id: 1,
        leader_id: 2,
        last_included_index: 5,
        snapshot_id: 77,
        ..Default::default()
    }
}

fn chunk(sequence: u64) -> InstallSnapshotRequest {
    InstallSnapshotRequest {
        sequence,
        data: "chunk".into(),
        crc32c: crc32c::crc32c(b"chunk"),
        done: sequence == 2,
        ..Default::default()
    }
}

/// What node one answers, in the name of node two; the last answer or failure at the end.
async fn offer(
    one: &Node,
    messages: Vec<InstallSnapshotRequest>,
) -> (u64, Result<InstallSnapshotResponse, Status>) {
    let mut client = client(connect(&one.address.to_string(), None).await.unwrap());
    let answers = client.install_snapshot(tokio_stream::iter(messages)).await.unwrap();
    let answers: Vec<_> = timeout(DEADLINE, answers.into_inner().collect()).await.expect("an end");
    let wanted = answers.iter().flatten().find(|answer| !answer.done);
    let wanted = wanted.map_or(0, |answer| answer.next_sequence);
    (wanted, answers.into_iter().next_back().expect("an answer"))
}

#[tokio::test]
async fn a_damaged_or_missing_chunk_is_asked_for_again() {
    let (one, _two) = pair().await;
    let damaged = InstallSnapshotRequest { data: "chunc".into(), ..chunk(1) };
    let cases = [
        (vec![head(), chunk(0), damaged, chunk(2)], 0, Code::DataLoss, "damaged"),
        (vec![head(), chunk(2)], 1, Code::DataLoss, "chunk 2 came where 1 was due"),
        (vec![head(), chunk(1)], 1, Code::Aborted, "ends early"),
    ];
    for (messages, expected, code, words) in cases {
        let (wanted, end) = offer(&one, messages).await;
        let status = end.expect_err("it is not whole");
        assert_eq!((wanted, status.code()), (expected, code), "{words}");
        assert!(status.message().contains(words), "{status}");
    }
    assert!(one.recorder.snapshots.lock().unwrap().is_empty());
    let (wanted, end) = offer(&one, vec![head(), chunk(2)]).await;
    assert!(wanted == 2 && end.expect("an answer").installed);
    let (offer, content) = one.recorder.snapshots.lock().unwrap().pop().expect("one snapshot");
    assert_eq!(offer.index, LogIndex::new(5));
    assert_eq!(content, file_of(&[const { Bytes::from_static(b"chunk") }; 3]));
}

#[tokio::test]
async fn another_view_starts_anew_and_a_stranger_is_refused() {
    let (one, _two) = pair().await;
    let (_, end) = offer(&one, vec![head(), chunk(0)]).await;
    assert_eq!(end.expect_err("it breaks off").code(), Code::Aborted);
    let other = InstallSnapshotRequest { snapshot_id: 78, ..head() };
    let (wanted, end) = offer(&one, vec![other, chunk(0), chunk(1), chunk(2)]).await;
    assert!(wanted == 0 && end.expect("an answer").installed);
    for (stranger, words) in [
        (InstallSnapshotRequest { identity: None, ..head() }, "identity"),
        (InstallSnapshotRequest { leader_id: 3, ..head() }, "in the name of node 3"),
    ] {
        let (_, end) = offer(&one, vec![stranger, chunk(0)]).await;
        let answer = end.expect("an answer");
        assert!(!answer.installed && answer.reason.contains(words), "{answer:?}");
        assert_eq!(answer.term, TERM.value());
    }
    until("removal", || is_empty(one.incoming_dir.path())).await;
}
