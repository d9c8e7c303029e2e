//! Snapshots on their way in (Raft §7).
//!
//! Chunks are checked for order and CRC and kept in a file until all are there; only then does the
//! node hear of them. A stream that breaks leaves its chunks for the next one of the same snapshot,
//! for a bounded time. Nothing is kept across a restart: what an earlier process left is removed.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    fs::File,
    io::{AsyncWriteExt as _, BufWriter},
    select,
    sync::{Mutex as AsyncMutex, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::{
    host,
    node::SnapshotOffer,
    pb::raft::v1::{InstallSnapshotRequest, InstallSnapshotResponse},
    raft::Membership,
    types::{Duration, LogIndex, LogTime, NodeId, Term},
};

use super::{
    faults::{Kind, Line, Way},
    inbound,
    inbox::Inbox,
    lanes::text,
    link::lock,
    transport::Shared,
};

/// Answers that may wait for the sender. They are cumulative, so one lost is made up for.
pub(super) const ANSWERS_MAX: usize = 16;

/// How long chunks are kept for a sender that does not come back; longer than it tries.
const KEPT_MAX: Duration = Duration::from_secs(90);

/// How often the sender hears that the snapshot is still being installed.
const BEAT: Duration = Duration::from_secs(5);

/// How the names of files under way end.
const EXTENSION: &str = "incoming";

type Answers = mpsc::Sender<Result<InstallSnapshotResponse, Status>>;

/// Receives a snapshot, or goes on with one, and waits until the node has installed it. Why not is
/// in the last answer; a stream that another one may go on with ends as a failure instead.
pub(super) async fn receive(
    shared: Arc<Shared>,
    inbox: Arc<dyn Inbox>,
    mut chunks: Streaming<InstallSnapshotRequest>,
    answers: Answers,
) {
    let head = inbound::next(&shared, None, &mut chunks).await.unwrap_or_default();
    let from = head.identity.as_ref().map_or(0, |identity| identity.from_node);
    let back = Back { shared: &shared, inbox: &*inbox, to: NodeId::new(from), answers: &answers };
    let outcome = take(&back, Arc::clone(&inbox), &head, &mut chunks).await;
    let last = match outcome {
        Ok(()) => Ok(InstallSnapshotResponse { installed: true, done: true, ..back.answer(0) }),
        Err(End::Refused(reason)) => {
            warn!(node = %shared.directory.node_id, peer = from, reason, "snapshot refused");
            Ok(InstallSnapshotResponse { reason, done: true, ..back.answer(0) })
        }
        Err(End::Broken(status)) => Err(status),
    };
    if shared.hold(Line::to(NodeId::new(from), Kind::SnapshotAnswer)).await {
        // Where the sender is gone already there is nobody to tell.
        let _ = answers.send(last).await;
    }
}

/// The way back to the sender.
struct Back<'a> {
    shared: &'a Arc<Shared>,
    inbox: &'a dyn Inbox,
    to: NodeId,
    answers: &'a Answers,
}

impl Back<'_> {
    fn answer(&self, next_sequence: u64) -> InstallSnapshotResponse {
        InstallSnapshotResponse {
            identity: Some(self.shared.directory.identity(self.to)),
            term: self.inbox.status().term,
            next_sequence,
            ..Default::default()
        }
    }

    /// Says which chunk is wanted next. Never waits.
    fn want(&self, sequence: u64) {
        let answer = self.answer(sequence);
        match &self.shared.options.lab {
            None => {
                let _ = self.answers.try_send(Ok(answer));
            }
            Some(lab) => {
                let (line, answers) =
                    (Line::to(self.to, Kind::SnapshotAnswer), self.answers.clone());
                lab.carry(line, move || answers.try_send(Ok(answer.clone())).is_ok());
            }
        }
    }
}

/// Why a stream ends without an installed snapshot.
enum End {
    /// For good.
    Refused(String),
    /// Another stream may go on.
    Broken(Status),
}

impl From<String> for End {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

async fn take(
    back: &Back<'_>,
    inbox: Arc<dyn Inbox>,
    head: &InstallSnapshotRequest,
    chunks: &mut Streaming<InstallSnapshotRequest>,
) -> Result<(), End> {
    let shared = back.shared;
    let from = shared.directory.check(head.identity.as_ref())?;
    if head.leader_id != from.value() {
        let reason = format!("node {from} speaks in the name of node {}", head.leader_id);
        return Err(reason.into());
    }
    let key = Key {
        index: LogIndex::new(head.last_included_index),
        last_term: Term::new(head.last_included_term),
        from,
        snapshot_id: head.snapshot_id,
    };
    if !key.index.is_zero() && inbox.status().applied_index >= key.index.value() {
        return Ok(()); // Not needed, or installed while the last stream broke.
    }
    let dir = &shared.options.incoming_dir;
    let arrival = shared.arrivals.enter(key, Term::new(head.term), dir)?;
    let (turn, ended) = arrival.next_turn();
    let kept = keep_chunks(back, &arrival, &ended, chunks);
    let kept = shared.stop.run_until_cancelled(kept).await;
    match kept.unwrap_or_else(|| Err(End::Broken(Status::unavailable("the node is stopping")))) {
        Ok(()) => {}
        Err(End::Broken(status)) => {
            forget_later(shared, &arrival, turn);
            return Err(End::Broken(status));
        }
        refused @ Err(End::Refused(_)) => {
            shared.arrivals.leave(&arrival);
            return refused;
        }
    }
    arrival.install_once(shared, inbox);
    arrival.installed(back).await
}

/// Takes chunks from where the stream before this one ended, until all are in the file.
async fn keep_chunks(
    back: &Back<'_>,
    arrival: &Arrival,
    ended: &CancellationToken,
    chunks: &mut Streaming<InstallSnapshotRequest>,
) -> Result<(), End> {
    let path = &arrival.file.0;
    let on_disk = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    // The stream before this one lets go between two chunks.
    let mut spool = arrival.spool.lock().await;
    if spool.file.is_none() && !spool.whole {
        spool.file = Some(BufWriter::new(File::create(path).await.map_err(on_disk)?));
    }
    back.want(spool.next);
    while !spool.whole {
        let chunk = match ended.run_until_cancelled(next_chunk(back, chunks)).await {
            Some(Ok(Some(chunk))) => chunk,
            Some(Ok(None)) => {
                let words = format!("the stream ends early, before chunk {}", spool.next);
                return Err(End::Broken(Status::aborted(words)));
            }
            Some(Err(status)) => return Err(End::Broken(Status::aborted(text(&status)))),
            None => return Err(End::Broken(Status::aborted("another stream took over"))),
        };
        check(&chunk, spool.next).map_err(|words| End::Broken(Status::data_loss(words)))?;
        let length = u32::try_from(chunk.data.len()).expect("messages are far smaller");
        // Not interrupted: the file and the number of chunks in it stay together.
        let file = spool.file.as_mut().expect("it was opened above");
        if length > 0 {
            file.write_all(&length.to_le_bytes()).await.map_err(on_disk)?;
            file.write_all(&chunk.data).await.map_err(on_disk)?;
        }
        if chunk.done {
            file.flush().await.map_err(on_disk)?;
            spool.whole = true;
            spool.file = None;
        }
        spool.next += 1;
        back.shared.options.metrics.record_snapshot_chunk_received(chunk.data.len());
        back.want(spool.next);
    }
    Ok(())
}

/// The sender's next chunk that the lab, where there is one, does not lose.
async fn next_chunk(
    back: &Back<'_>,
    chunks: &mut Streaming<InstallSnapshotRequest>,
) -> Result<Option<InstallSnapshotRequest>, Status> {
    loop {
        let chunk = select! {
            () = back.shared.cut(back.to, Way::From) => {
                return Err(Status::unavailable("the lab cut the link"));
            }
            chunk = chunks.message() => chunk?,
        };
        if chunk.is_none() || back.shared.hold(Line::from(back.to, Kind::Snapshot)).await {
            return Ok(chunk);
        }
    }
}

fn check(chunk: &InstallSnapshotRequest, due: u64) -> Result<(), String> {
    if chunk.sequence != due {
        return Err(format!("chunk {} came where {due} was due", chunk.sequence));
    }
    if crc32c::crc32c(&chunk.data) != chunk.crc32c {
        return Err(format!("chunk {due} was damaged on its way"));
    }
    Ok(())
}

/// Removes the chunks if no other stream comes for them in time.
fn forget_later(shared: &Arc<Shared>, arrival: &Arc<Arrival>, turn: u64) {
    let (context, arrival) = (Arc::clone(shared), Arc::downgrade(arrival));
    let until = Instant::now() + KEPT_MAX;
    let forget = async move {
        if context.stop.run_until_cancelled(sleep_until(until)).await.is_none() {
            return;
        }
        if let Some(arrival) = arrival.upgrade()
            && arrival.turns.load(Ordering::Acquire) == turn
        {
            info!(node = %context.directory.node_id, "a snapshot's sender did not come back");
            context.arrivals.leave(&arrival);
        }
    };
    shared.tasks.spawn(forget);
}

/// Which snapshot, the later ones greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    index: LogIndex,
    last_term: Term,
    from: NodeId,
    snapshot_id: u64,
}

/// The snapshot that is on its way here, if any. There is one at a time: an old leader and a new
/// one may both send one, and one is enough.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Mutex<Option<Arc<Arrival>>>);

impl Arrivals {
    /// Whether a snapshot is on its way, or being installed.
    pub(super) fn is_busy(&self) -> bool {
        lock(&self.0).as_ref().is_some_and(|arrival| arrival.is_busy())
    }

    /// The arrival of this snapshot, with what is kept of it; one that it replaces is given up.
    fn enter(&self, key: Key, term: Term, dir: &Path) -> Result<Arc<Arrival>, String> {
        let mut current = lock(&self.0);
        if let Some(arrival) = &*current {
            if arrival.key == key {
                return Ok(Arc::clone(arrival));
            }
            let Key { index, from, .. } = arrival.key;
            // A sender knows best which of its own counts.
            if from != key.from && index >= key.index && arrival.is_busy() {
                return Err(format!("a snapshot up to {index} is on its way from node {from}"));
            }
            lock(&arrival.turn).cancel();
        }
        let file = Incoming::new(dir).map_err(|error| error.to_string())?;
        let arrival = Arc::new(Arrival {
            key,
            term,
            file,
            spool: AsyncMutex::default(),
            turns: AtomicU64::new(0),
            turn: Mutex::default(),
            outcome: watch::Sender::new(None),
        });
        *current = Some(Arc::clone(&arrival));
        Ok(arrival)
    }

    fn leave(&self, arrival: &Arc<Arrival>) {
        let mut current = lock(&self.0);
        if current.as_ref().is_some_and(|other| Arc::ptr_eq(other, arrival)) {
            *current = None;
        }
    }
}

/// A snapshot that is on its way here, over all its streams.
#[derive(Debug)]
struct Arrival {
    key: Key,
    term: Term,
    file: Incoming,
    /// Held by the stream that counts.
    spool: AsyncMutex<Spool>,
    turns: AtomicU64,
    /// Ends the stream that counts, for the one after it.
    turn: Mutex<CancellationToken>,
    /// How installing ended; `Some(None)` while it goes on.
    outcome: watch::Sender<Option<Option<Result<(), String>>>>,
}

#[derive(Debug, Default)]
struct Spool {
    file: Option<BufWriter<File>>,
    /// The chunk that is due.
    next: u64,
    whole: bool,
}

impl Arrival {
    /// Ends the stream before; gives the number of this turn and what ends it.
    fn next_turn(&self) -> (u64, CancellationToken) {
        let mut turn = lock(&self.turn);
        turn.cancel();
        *turn = CancellationToken::new();
        (self.turns.fetch_add(1, Ordering::AcqRel) + 1, turn.clone())
    }

    fn is_busy(&self) -> bool {
        self.spool.try_lock().is_err() || self.outcome.borrow().is_some()
    }

    /// Hands the whole snapshot to the node, in a task of its own: the file stays until the node is
    /// done with it, even if the stream breaks.
    fn install_once(self: &Arc<Self>, shared: &Arc<Shared>, inbox: Arc<dyn Inbox>) {
        let begun = self.outcome.send_if_modified(|outcome| {
            let first = outcome.is_none();
            outcome.get_or_insert(None);
            first
        });
        if !begun {
            return;
        }
        let offer = SnapshotOffer {
            from: self.key.from,
            term: self.term,
            index: self.key.index,
            last_term: self.key.last_term,
            time: LogTime::ZERO,
            membership: Membership::default(),
            file: self.file.0.clone(),
        };
        let installing = Installing {
            arrival: Arc::clone(self),
            shared: Arc::clone(shared),
            outcome: Err("installing it was broken off".to_owned()),
        };
        shared.tasks.spawn(async move { installing.end(inbox.snapshot_received(offer).await) });
    }

    /// Waits until it is installed, and lets the sender know now and then that it is being waited.
    async fn installed(&self, back: &Back<'_>) -> Result<(), End> {
        let chunks = self.spool.lock().await.next;
        let mut outcome = self.outcome.subscribe();
        loop {
            let done = timeout(BEAT, outcome.wait_for(|outcome| matches!(outcome, Some(Some(_)))));
            match back.shared.stop.run_until_cancelled(done).await {
                Some(Ok(Ok(outcome))) => {
                    let outcome = outcome.clone().flatten().expect("it was waited for");
                    return outcome.map_err(End::Refused);
                }
                Some(Ok(Err(_))) => return Err("installing failed".to_owned().into()),
                Some(Err(_)) => back.want(chunks),
                None => return Err(End::Broken(Status::unavailable("the node is stopping"))),
            }
        }
    }
}

/// Tells how installing ended when it is dropped, also where a panic ended it.
struct Installing {
    arrival: Arc<Arrival>,
    shared: Arc<Shared>,
    outcome: Result<(), String>,
}

impl Installing {
    fn end(mut self, outcome: Result<(), String>) {
        self.outcome = outcome;
    }
}

impl Drop for Installing {
    fn drop(&mut self) {
        self.shared.arrivals.leave(&self.arrival);
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        self.arrival.outcome.send_replace(Some(Some(outcome)));
    }
}

/// A file that is removed when its transfer ends, well or not.
#[derive(Debug)]
struct Incoming(PathBuf);

impl Incoming {
    fn new(dir: &Path) -> std::io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self(dir.join(format!("{}.{EXTENSION}", host::random()))))
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
