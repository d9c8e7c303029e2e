//! What the threads of a node and its handles share.

use core::fmt;
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    mpsc::{Sender, SyncSender, TrySendError},
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{
    machine::{View, store::Store},
    node::{
        Directory, Feed, Tuning, applier::ApplierJob, clock::Clock, pending::Pending,
        places::Places, replica::Event, space::Seen,
    },
    observe::Metrics,
    pb::cluster::v1::{Alarm, NodeStatus, Role},
    raft::{HardMark, LogMark, RoleKind, Status},
    storage::DataDir,
};

/// How many events wait beside a full queue before what peers pass on is dropped.
const OVERFLOW_MAX: usize = 16_384;

/// What the driver takes in.
#[derive(Debug)]
pub(crate) enum DriverInput {
    /// For the replica.
    Event(Event),
    /// The disk has everything of `batches` more batches.
    Synced { hard: HardMark, log: LogMark, batches: u64 },
    /// Ends the thread.
    Stop,
}

/// Shared by the threads of a node, its handles and its mailbox.
pub(crate) struct Shared {
    pub(crate) directory: Arc<Directory>,
    pub(crate) data: Arc<DataDir>,
    pub(crate) tuning: Tuning,
    pub(crate) metrics: Metrics,
    pub(crate) feed: Arc<Feed>,
    pub(crate) pending: Pending,
    pub(crate) places: Places,
    pub(crate) clock: Clock,
    pub(crate) boot: u64,
    pub(crate) store: ArcSwap<Arc<dyn Store>>,
    pub(crate) driver: SyncSender<DriverInput>,
    pub(crate) overflow: Mutex<Vec<Event>>,
    pub(crate) applier: Sender<ApplierJob>,
    pub(crate) sequence: AtomicU64,
    pub(crate) open_calls: AtomicUsize,
    pub(crate) waiters: AtomicUsize,
    pub(crate) draining: AtomicBool,
    pub(crate) space: Seen,
    /// Held while a received snapshot becomes the state.
    pub(crate) installing: tokio::sync::Mutex<()>,
    pub(crate) status: Mutex<Status>,
    pub(crate) status_changes: watch::Sender<NodeStatus>,
    pub(crate) fatal: watch::Sender<Option<String>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("node", &self.directory.node_id).finish_non_exhaustive()
    }
}

impl Shared {
    /// Hands an event to the driver; `false` where its queue is full or it has stopped.
    pub(crate) fn offer(&self, event: Event) -> bool {
        self.driver.try_send(DriverInput::Event(event)).is_ok()
    }

    /// Hands over an event that nothing makes up for. Where the queue is full it waits beside it,
    /// and the caller does not: the driver, which has all the queue to take, looks there each turn.
    /// What a node says of its own calls and connections is bounded by these; what peers pass on is
    /// dropped beyond [`OVERFLOW_MAX`], and its callers' deadlines make up for it.
    pub(crate) fn insist(&self, event: Event) {
        if let Err(TrySendError::Full(DriverInput::Event(event))) =
            self.driver.try_send(DriverInput::Event(event))
        {
            let peers = matches!(event, Event::Forwarded { .. } | Event::Answered { .. });
            let mut overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
            if !peers || overflow.len() < OVERFLOW_MAX {
                overflow.push(event);
            }
        }
    }

    /// What waits beside the queue.
    pub(crate) fn take_overflow(&self) -> Vec<Event> {
        core::mem::take(&mut *self.overflow.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The node cannot go on.
    pub(crate) fn fail(&self, words: String) {
        tracing::error!(node = self.directory.node_id.value(), error = words, "cannot go on");
        self.fatal.send_if_modified(|fatal| {
            let first = fatal.is_none();
            fatal.get_or_insert(words);
            first
        });
    }

    /// This node's state now.
    pub(crate) fn view(&self) -> View {
        View::new(self.store.load().snapshot())
    }

    /// The leader that this node knows, and how many committed entries it has yet to apply.
    pub(crate) fn standing(&self) -> (Option<crate::types::NodeId>, u64) {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let lag = status.commit.value().saturating_sub(self.feed.head().index.value());
        (status.leader, lag)
    }

    /// How this node stands.
    pub(crate) fn node_status(&self) -> NodeStatus {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let head = self.feed.head();
        let role = match status.role {
            RoleKind::Follower => Role::Follower,
            RoleKind::PreCandidate => Role::PreCandidate,
            RoleKind::Candidate => Role::Candidate,
            RoleKind::Leader => Role::Leader,
        };
        NodeStatus {
            node_id: self.directory.node_id.value(),
            client_address: self.directory.client_address.clone(),
            peer_address: self.directory.peer_address.clone(),
            reachable: true,
            role: role.into(),
            term: status.term.value(),
            leader_id: status.leader.map_or(0, crate::types::NodeId::value),
            first_index: status.first.value(),
            last_index: status.last.value(),
            commit_index: status.commit.value(),
            applied_index: head.index.value(),
            revision: head.revision.value(),
            position: head.position.value(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            error: String::new(),
            draining: self.draining.load(Ordering::Relaxed),
            disk_free_bytes: self.space.free(),
            disk_min_free_bytes: self.tuning.min_free_disk,
            alarms: self.space.shortage().map(|_| Alarm::NoSpace.into()).into_iter().collect(),
        }
    }
}
