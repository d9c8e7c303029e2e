//! Snapshots on their way out (Raft §7), on connections of their own that exist only meanwhile.
//!
//! One view of the state is kept for as long as the transfer moves. What the receiver has not
//! confirmed is kept too, so that a stream that breaks goes on, on another connection, at the chunk
//! where the receiver stands. Chunks are made as fast as the receiver and the rate take them and no
//! faster; writes never wait for them.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tokio::{
    select,
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::{
    host,
    node::{SnapshotChunks, SnapshotSource},
    pb::raft::v1::{InstallSnapshotRequest, InstallSnapshotResponse},
    types::{Duration, GroupId, NodeId, Rng},
};

use super::{
    channel::{Backoff, client, connect},
    faults::{Fate, Kind, Line, Way},
    lanes::text,
    transport::Shared,
};

/// Chunks that are made ahead of the stream.
const CHUNKS_AHEAD: usize = 4;

/// Chunks that may be sent and not confirmed; they are kept in memory, 8 MiB in all.
const WINDOW: usize = 32;

/// How long the receiver may say nothing while something is expected of it.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How long a transfer that broke is tried again without moving on. As long is the view of the
/// state kept, and with it the pages of the store that were replaced since.
const RESUME_MAX: Duration = Duration::from_secs(60);

/// How long the receiver may take to install a snapshot that it has whole, though it says that it
/// still does.
const INSTALL_MAX: Duration = Duration::from_secs(600);

/// Sends a snapshot and reports how it ended. While one is under way to the same peer, another one
/// is dropped: the end of the first is reported, and whoever asked sees from it how to go on.
pub(super) fn start(shared: &Arc<Shared>, to: NodeId, group: GroupId, source: SnapshotSource) {
    let started = shared.started.load();
    let Some(started) = started.as_ref() else { return };
    let Some(link) = shared.link(to) else {
        started.inbox.snapshot_sent(to, None);
        return;
    };
    let node = shared.directory.node_id;
    let Some(turn) = link.snapshot_turn() else {
        info!(%node, peer = %to, index = %source.index, "a snapshot is under way to this peer");
        return;
    };
    let (inbox, context) = (Arc::clone(&started.inbox), Arc::clone(shared));
    let task = async move {
        let index = source.index;
        let outcome = Outgoing::new(&context, to, group, source).run().await;
        // Before the report: it may be answered with the next snapshot.
        drop(turn);
        let installed = match outcome {
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
    shared.tasks.spawn_on(task, &started.runtime);
}

/// A chunk, and whether it is the last one.
#[derive(Clone, Debug)]
struct Chunk {
    data: Bytes,
    last: bool,
}

/// Why an attempt ended.
enum End {
    /// The receiver has said how it ends.
    Answered(Result<(), String>),
    /// The stream broke, why ever; another one may go on.
    Broken(String),
}

impl From<String> for End {
    fn from(reason: String) -> Self {
        Self::Broken(reason)
    }
}

/// A snapshot that is being sent.
struct Outgoing<'a> {
    shared: &'a Shared,
    to: NodeId,
    head: InstallSnapshotRequest,
    source: SnapshotSource,
    made: mpsc::Receiver<Result<Chunk, String>>,
    /// What is not confirmed, the first with the number `confirmed`.
    kept: VecDeque<Chunk>,
    confirmed: u64,
    /// The number of the chunk to send next.
    next: u64,
    /// Whether the last chunk is in `kept`, or was.
    all_made: bool,
    /// When the next chunk may go, once it is paid for.
    due: Option<Instant>,
    /// Whether the lab loses it.
    lost: bool,
    /// Since when nothing has moved, if it broke.
    stuck_since: Option<Instant>,
    /// Since when the receiver has all of it.
    whole_since: Option<Instant>,
}

impl<'a> Outgoing<'a> {
    fn new(shared: &'a Shared, to: NodeId, group: GroupId, source: SnapshotSource) -> Self {
        let head = InstallSnapshotRequest {
            identity: Some(shared.directory.identity(to)),
            group_id: group.value(),
            term: source.term.value(),
            leader_id: shared.directory.node_id.value(),
            last_included_index: source.index.value(),
            last_included_term: source.last_term.value(),
            snapshot_id: host::seed(),
            ..Default::default()
        };
        Self {
            shared,
            to,
            head,
            made: make((source.chunks)()),
            source,
            kept: VecDeque::new(),
            confirmed: 0,
            next: 0,
            all_made: false,
            due: None,
            lost: false,
            stuck_since: None,
            whole_since: None,
        }
    }

    /// Sends it, on as many connections as it takes.
    ///
    /// # Errors
    /// A sentence that says why it is not installed.
    async fn run(mut self) -> Result<(), String> {
        let mut pauses = Backoff::new(Rng::new(self.head.snapshot_id));
        loop {
            let reason = match self.attempt().await {
                Err(End::Answered(outcome)) => return outcome,
                Err(End::Broken(reason)) => reason,
                Ok(never) => match never {},
            };
            let since = *self.stuck_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= RESUME_MAX {
                return Err(format!("given up at chunk {}: {reason}", self.confirmed));
            }
            info!(
                node = %self.shared.directory.node_id, peer = %self.to, chunk = self.confirmed,
                reason, "a snapshot's stream broke"
            );
            sleep_until(Instant::now() + pauses.pause()).await;
        }
    }

    /// Sends on one connection until the receiver ends it or it breaks.
    async fn attempt(&mut self) -> Result<std::convert::Infallible, End> {
        let peers = self.shared.directory.peers();
        let peer = peers.get(&self.to).ok_or_else(|| "its address is not known".to_owned())?;
        let tls = self.shared.options.tls.as_ref();
        let channel = connect(&peer.peer_address, tls).await?;
        let (stream, requests) = mpsc::channel(1);
        // There is room for one.
        let _ = stream.try_send(self.head.clone());
        let call = async {
            let mut client = client(channel);
            let answers = client.install_snapshot(ReceiverStream::new(requests)).await;
            Ok(answers.map_err(|status| text(&status))?.into_inner())
        };
        let mut answers = patient(call).await?;
        let first = next_answer(self.shared, self.to, &mut answers).await?;
        self.resume(&first)?;
        loop {
            let may_send = self.may_send();
            select! {
                biased;
                answer = next_answer(self.shared, self.to, &mut answers) => self.confirm(&answer?)?,
                sent = self.send_next(&stream), if may_send => sent?,
            }
        }
    }

    /// Goes back or forth to where the receiver stands.
    fn resume(&mut self, answer: &InstallSnapshotResponse) -> Result<(), End> {
        ended(answer)?;
        let wanted = answer.next_sequence;
        let kept = self.confirmed..=self.confirmed + self.kept.len() as u64;
        if !kept.contains(&wanted) {
            if wanted != 0 {
                let reason = format!("it wants chunk {wanted}, which was given up");
                return Err(End::Answered(Err(reason)));
            }
            // It has nothing, though it had: it was restarted. The view is still the same.
            self.made = make((self.source.chunks)());
            self.kept.clear();
            (self.confirmed, self.all_made, self.whole_since) = (0, false, None);
        }
        self.next = wanted;
        self.confirm(answer)?;
        if wanted > 0 {
            self.shared.options.metrics.record_snapshot_resumed();
        }
        let (node, index) = (self.shared.directory.node_id, self.source.index);
        info!(%node, peer = %self.to, %index, chunk = wanted, "a snapshot's stream begins");
        Ok(())
    }

    /// Forgets what the receiver has kept.
    fn confirm(&mut self, answer: &InstallSnapshotResponse) -> Result<(), End> {
        ended(answer)?;
        let wanted = answer.next_sequence;
        if wanted > self.next {
            let reason = format!("it confirms chunk {wanted}, which was not sent");
            return Err(End::Answered(Err(reason)));
        }
        // Installing is moving on as well.
        if wanted > self.confirmed || (self.all_made && self.kept.is_empty()) {
            self.stuck_since = None;
        }
        while self.confirmed < wanted {
            self.kept.pop_front();
            self.confirmed += 1;
        }
        if self.all_made && self.kept.is_empty() {
            let since = *self.whole_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= INSTALL_MAX {
                let reason = format!("it has not installed it after {INSTALL_MAX:?}");
                return Err(End::Answered(Err(reason)));
            }
        }
        Ok(())
    }

    fn may_send(&self) -> bool {
        let unsent = self.next < self.confirmed + self.kept.len() as u64;
        unsent || (!self.all_made && self.kept.len() < WINDOW)
    }

    /// Sends the next chunk when the rate and the stream allow it. Nothing is lost where this is
    /// dropped half way.
    async fn send_next(
        &mut self,
        stream: &mpsc::Sender<InstallSnapshotRequest>,
    ) -> Result<(), End> {
        let at = usize::try_from(self.next - self.confirmed).expect("a window fits");
        if at == self.kept.len() {
            let made = self.made.recv().await;
            let made = made.unwrap_or_else(|| Err("the snapshot could not be read".to_owned()));
            let chunk = made.map_err(|reason| End::Answered(Err(reason)))?;
            self.all_made = chunk.last;
            self.kept.push_back(chunk);
        }
        let Chunk { data, last } = self.kept[at].clone();
        if self.due.is_none() {
            self.due = Some(Instant::now() + self.shared.pace_snapshot(data.len()));
            self.judge_next();
        }
        if let Some(due) = self.due {
            sleep_until(due).await;
        }
        let Ok(place) = stream.reserve().await else {
            // The answers say why.
            return std::future::pending().await;
        };
        if !self.lost {
            self.shared.options.metrics.record_snapshot_chunk_sent(data.len());
            place.send(InstallSnapshotRequest {
                sequence: self.next,
                crc32c: crc32c::crc32c(&data),
                data,
                done: last,
                ..Default::default()
            });
        }
        self.next += 1;
        self.due = None;
        Ok(())
    }

    /// Lets the lab, where there is one, delay the next chunk or lose it.
    fn judge_next(&mut self) {
        self.lost = false;
        let Some(lab) = &self.shared.options.lab else { return };
        match lab.judge(Line::to(self.to, Kind::Snapshot)) {
            Fate::Passes => {}
            Fate::Lost => self.lost = true,
            Fate::Held { copies, .. } => self.due = self.due.max(Some(lab.deadline(copies[0]))),
        }
    }
}

/// Ends an attempt where the receiver has ended it.
fn ended(answer: &InstallSnapshotResponse) -> Result<(), End> {
    match answer {
        InstallSnapshotResponse { done: false, .. } => Ok(()),
        InstallSnapshotResponse { installed: true, .. } => Err(End::Answered(Ok(()))),
        refused => Err(End::Answered(Err(refused.reason.clone()))),
    }
}

/// The receiver's next answer that the lab, where there is one, does not lose.
async fn next_answer(
    shared: &Shared,
    from: NodeId,
    answers: &mut Streaming<InstallSnapshotResponse>,
) -> Result<InstallSnapshotResponse, String> {
    let answer = async {
        loop {
            let message = select! {
                () = shared.cut(from, Way::To) => return Err("the lab cut the link".to_owned()),
                message = answers.message() => message,
            };
            match message {
                Ok(Some(answer)) => {
                    if shared.hold(Line::from(from, Kind::SnapshotAnswer)).await {
                        return Ok(answer);
                    }
                }
                Ok(None) => return Err("the stream ended".to_owned()),
                Err(status) => return Err(text(&status)),
            }
        }
    };
    patient(answer).await
}

async fn patient<T>(answer: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    timeout(SILENCE_MAX, answer).await.unwrap_or_else(|_| Err("it says nothing".to_owned()))
}

/// Makes chunks on a blocking thread, until the last one or nobody takes them any more.
fn make(chunks: SnapshotChunks) -> mpsc::Receiver<Result<Chunk, String>> {
    let (sender, made) = mpsc::channel(CHUNKS_AHEAD);
    let mut chunks = chunks.peekable();
    let numbered = std::iter::from_fn(move || {
        let chunk = chunks.next()?;
        let last = chunks.peek().is_none();
        let chunk = chunk.map(|data| Chunk { data, last });
        Some(chunk.map_err(|error| format!("the snapshot breaks off: {error}")))
    });
    host::produce(numbered, sender);
    made
}
