//! What is kept for one peer: a bounded queue for each lane, there only while its connection is.
//!
//! Messages that were queued for a connection die with it, so a peer that comes back is not met
//! with what was meant minutes ago.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::transport::Channel;

use crate::{
    pb::raft::v1::ForwardRequest,
    raft::Message,
    types::{GroupId, NodeId},
};

/// Heartbeats that may wait for a peer. They are small and soon stale.
pub(super) const HEARTBEATS_MAX: usize = 64;
/// Appends that may wait for a peer. The core bounds what is in flight in bytes.
pub(super) const APPENDS_MAX: usize = 256;
/// Forwarded requests that may wait for a peer.
pub(super) const FORWARDS_MAX: usize = 4096;
/// Unary calls to a peer that may be under way: votes and orders to campaign.
const CALLS_MAX: usize = 16;

/// The connections to one peer.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) peer: NodeId,
    pub(super) heartbeats: Slot<(GroupId, Message)>,
    pub(super) appends: Slot<(GroupId, Message)>,
    pub(super) forwards: Slot<ForwardRequest>,
    /// Permits for unary calls.
    pub(super) calls: Arc<Semaphore>,
    /// The control connection, for unary calls.
    control: Mutex<Option<Channel>>,
    /// Ends the pauses between attempts: the peer was heard of.
    pub(super) nudge: Notify,
    /// A permit for the one snapshot that may be on its way to it.
    snapshot: Arc<Semaphore>,
}

impl Link {
    pub(super) fn new(peer: NodeId) -> Self {
        Self {
            peer,
            heartbeats: Slot::default(),
            appends: Slot::default(),
            forwards: Slot::default(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            control: Mutex::default(),
            nudge: Notify::new(),
            snapshot: Arc::new(Semaphore::new(1)),
        }
    }

    /// The control connection while it stands.
    pub(super) fn control(&self) -> Option<Channel> {
        lock(&self.control).clone()
    }

    pub(super) fn set_control(&self, channel: Option<Channel>) {
        *lock(&self.control) = channel;
    }

    /// The right to send a snapshot, unless one is on its way.
    pub(super) fn snapshot_turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.snapshot).try_acquire_owned().ok()
    }
}

/// The sending end of a lane's queue, while the lane's connection stands.
pub(super) struct Slot<T>(Mutex<Option<mpsc::Sender<T>>>);

impl<T> Slot<T> {
    /// Opens the lane: from now on items go into this queue.
    pub(super) fn open(&self, queue: mpsc::Sender<T>) {
        *lock(&self.0) = Some(queue);
    }

    /// Takes the queue away. Once this returns nothing more goes into it.
    pub(super) fn close(&self) {
        *lock(&self.0) = None;
    }

    /// Whether the lane's connection stands.
    pub(super) fn is_open(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Queues an item, unless there is no connection or its queue is full.
    pub(super) fn offer(&self, item: T) -> bool {
        lock(&self.0).as_ref().is_some_and(|sender| sender.try_send(item).is_ok())
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&lock(&self.0).is_some()).finish()
    }
}

/// Nothing in this module leaves a lock's content half changed, so a panic elsewhere does no harm.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
