//! Snapshots between nodes (Raft §7), on connections of their own that exist only meanwhile.
//!
//! The sender makes chunks as fast as the stream takes them and no faster. The receiver checks
//! order and CRC of every chunk and offers only whole files to the node; a transfer that breaks is
//! removed and begun anew.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tokio::{
    fs::File,
    io::{AsyncWriteExt as _, BufWriter},
    sync::mpsc,
    task::spawn_blocking,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};
use uuid::Uuid;

use crate::{
    node::{SnapshotOffer, SnapshotSource},
    pb::raft::v1::{InstallSnapshotRequest, InstallSnapshotResponse},
    raft::Membership,
    types::{GroupId, LogIndex, LogTime, NodeId, Term},
};

use super::{
    channel::{client, connect},
    inbound,
    inbox::Inbox,
    lanes::text,
    transport::Shared,
};

/// Chunks that are made ahead of the stream.
const CHUNKS_AHEAD: usize = 4;

/// How the names of files under way end.
const EXTENSION: &str = "incoming";

/// Sends a snapshot and reports how it ended. One that is under way to the same peer is given up.
pub(super) fn start(shared: &Arc<Shared>, to: NodeId, group: GroupId, source: SnapshotSource) {
    let started = shared.started.load();
    let Some(started) = started.as_ref() else { return };
    let Some(link) = shared.link(to) else {
        started.inbox.snapshot_sent(to, None);
        return;
    };
    let (inbox, index) = (Arc::clone(&started.inbox), source.index);
    let context = Arc::clone(shared);
    let task = async move {
        let node = context.directory.node_id;
        let installed = match send(&context, to, group, source).await {
            Ok(()) => {
                info!(%node, peer = %to, %index, "snapshot installed at peer");
                Some(index)
            }
            Err(reason) => {
                warn!(%node, peer = %to, %index, reason, "snapshot not installed at peer");
                None
            }
        };
        inbox.snapshot_sent(to, installed);
    };
    let stop = shared.stop.clone();
    let task = async move { stop.run_until_cancelled(task).await };
    let task = shared.tasks.spawn_on(task, &started.runtime);
    link.replace_snapshot(task.abort_handle());
}

async fn send(
    shared: &Shared,
    to: NodeId,
    group: GroupId,
    source: SnapshotSource,
) -> Result<(), String> {
    let peers = shared.directory.peers();
    let peer = peers.get(&to).ok_or("its address is not known")?;
    let channel = connect(&peer.peer_address).await?;
    let head = InstallSnapshotRequest {
        identity: Some(shared.directory.identity(to)),
        group_id: group.value(),
        term: source.term.value(),
        leader_id: shared.directory.node_id.value(),
        last_included_index: source.index.value(),
        last_included_term: source.last_term.value(),
        ..Default::default()
    };
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let maker = spawn_blocking(move || make_chunks(source, head, &sender));
    let answer = client(channel).install_snapshot(ReceiverStream::new(chunks)).await;
    // The peer only sees that the stream ended early; the maker knows why.
    maker.await.map_err(|error| format!("the snapshot could not be read: {error}"))??;
    let answer = answer.map_err(|status| text(&status))?.into_inner();
    if answer.installed { Ok(()) } else { Err(answer.reason) }
}

/// Runs on a blocking thread. Ends early and quietly when the stream is gone.
fn make_chunks(
    source: SnapshotSource,
    head: InstallSnapshotRequest,
    stream: &mpsc::Sender<InstallSnapshotRequest>,
) -> Result<(), String> {
    let mut chunks = source.chunks.peekable();
    let mut message = head;
    loop {
        message.data = match chunks.next() {
            Some(chunk) => chunk.map_err(|error| format!("the snapshot breaks off: {error}"))?,
            None => Bytes::new(),
        };
        message.crc32c = crc32c::crc32c(&message.data);
        message.done = chunks.peek().is_none();
        let sequence = message.sequence + 1;
        let done = message.done;
        if stream.blocking_send(message).is_err() || done {
            return Ok(());
        }
        message = InstallSnapshotRequest { sequence, ..Default::default() };
    }
}

/// Receives a snapshot and waits until the node has installed it. Why not is in the answer.
pub(super) async fn receive(
    shared: &Arc<Shared>,
    inbox: Arc<dyn Inbox>,
    mut chunks: Streaming<InstallSnapshotRequest>,
) -> InstallSnapshotResponse {
    let first = inbound::next(shared, &mut chunks).await.unwrap_or_default();
    let identity = first.identity.clone().unwrap_or_default();
    let status = Arc::clone(&inbox);
    let outcome = take(shared, inbox, first, &mut chunks).await;
    if let Err(reason) = &outcome {
        let (node, peer) = (shared.directory.node_id, identity.from_node);
        warn!(%node, peer, reason, "snapshot refused");
    }
    InstallSnapshotResponse {
        identity: Some(shared.directory.identity(NodeId::new(identity.from_node))),
        term: status.status().term,
        installed: outcome.is_ok(),
        reason: outcome.err().unwrap_or_default(),
    }
}

async fn take(
    shared: &Arc<Shared>,
    inbox: Arc<dyn Inbox>,
    first: InstallSnapshotRequest,
    chunks: &mut Streaming<InstallSnapshotRequest>,
) -> Result<(), String> {
    let from = shared.directory.check(first.identity.as_ref())?;
    if first.leader_id != from.value() {
        return Err(format!("node {from} speaks in the name of node {}", first.leader_id));
    }
    let mut offer = SnapshotOffer {
        from,
        term: Term::new(first.term),
        index: LogIndex::new(first.last_included_index),
        last_term: Term::new(first.last_included_term),
        time: LogTime::ZERO,
        membership: Membership::default(),
        file: PathBuf::new(),
    };
    let incoming =
        Incoming::new(&shared.options.incoming_dir).map_err(|error| error.to_string())?;
    offer.file.clone_from(&incoming.0);
    shared
        .stop
        .run_until_cancelled(write_chunks(&incoming.0, first, chunks))
        .await
        .unwrap_or_else(|| Err("the node is stopping".to_owned()))?;

    // A task of its own: the file stays until the node is done with it, even if the caller leaves.
    let install = async move {
        let outcome = inbox.snapshot_received(offer).await;
        drop(incoming);
        outcome
    };
    match shared.tasks.spawn(install).await {
        Ok(outcome) => outcome,
        Err(error) => Err(format!("installing failed: {error}")),
    }
}

async fn write_chunks(
    path: &Path,
    first: InstallSnapshotRequest,
    chunks: &mut Streaming<InstallSnapshotRequest>,
) -> Result<(), String> {
    let on_disk = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = BufWriter::new(File::create(path).await.map_err(on_disk)?);
    let mut chunk = first;
    let mut sequence = 0;
    loop {
        if chunk.sequence != sequence {
            return Err(format!("chunk {} came where {sequence} was due", chunk.sequence));
        }
        if crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(format!("chunk {sequence} was damaged on its way"));
        }
        if !chunk.data.is_empty() {
            let length = u32::try_from(chunk.data.len()).expect("messages are far smaller");
            file.write_all(&length.to_le_bytes()).await.map_err(on_disk)?;
            file.write_all(&chunk.data).await.map_err(on_disk)?;
        }
        if chunk.done {
            return file.flush().await.map_err(on_disk);
        }
        chunk = match chunks.message().await {
            Ok(Some(next)) => next,
            Ok(None) => return Err(format!("the snapshot ends early, after chunk {sequence}")),
            Err(status) => return Err(text(&status)),
        };
        sequence += 1;
    }
}

/// A file that is removed when its transfer ends, well or not.
#[derive(Debug)]
struct Incoming(PathBuf);

impl Incoming {
    fn new(dir: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self(dir.join(format!("{}.{EXTENSION}", Uuid::new_v4()))))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Where it cannot be removed now, the next start does it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes what an earlier process left half received.
pub(super) fn remove_leftovers(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            let _ = fs::remove_file(path);
        }
    }
}
