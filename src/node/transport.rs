//! The wall between a node and the network: a node sends through [`Transport`], and the network
//! delivers into [`Mailbox`]. Neither side ever waits for the other.

use core::fmt;
use std::{path::PathBuf, sync::Arc};

use bytes::Bytes;

use crate::{
    machine::store::StoreError,
    node::{replica::Event, shared::Shared},
    pb::raft::v1::{ForwardRequest, ForwardResponse},
    raft::{Membership, Message},
    types::{GroupId, LogIndex, LogTime, NodeId, Term},
};

/// A snapshot to send: where it stands and its chunks.
pub struct SnapshotSource {
    /// The sender's term.
    pub term: Term,
    /// The last index that it covers.
    pub index: LogIndex,
    /// That entry's term.
    pub last_term: Term,
    /// Starts over with the chunks; each time the same ones.
    pub chunks: Box<dyn Fn() -> SnapshotChunks + Send + Sync>,
}

/// The chunks of a snapshot, made as they are asked for; pulled on a blocking thread.
pub type SnapshotChunks = Box<dyn Iterator<Item = Result<Bytes, StoreError>> + Send>;

impl fmt::Debug for SnapshotSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotSource").field("index", &self.index).finish_non_exhaustive()
    }
}

/// The way out. Calls never block and never fail: what cannot be sent is dropped, and Raft or the
/// caller's deadline makes up for it. Lanes are bounded.
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Sends a message of a group on the lane of its kind: `Heartbeat`s and `VoteRequest`s on
    /// the control lane, `AppendRequest`s on the append lane. A `VoteResponse` answers the parked
    /// call that its `call` names; `AppendResponse` and `HeartbeatResponse` go down the stream
    /// that the receiver opened here.
    fn send(&self, to: NodeId, group: GroupId, message: Message);

    /// Streams a snapshot to a member on the snapshot lane, then reports
    /// [`Mailbox::snapshot_sent`].
    fn send_snapshot(&self, to: NodeId, group: GroupId, snapshot: SnapshotSource);

    /// Passes requests on to the leader. `false` where they were certainly not sent.
    fn forward(&self, to: NodeId, request: ForwardRequest) -> bool;

    /// Answers what `to` passed on, down the stream that it opened here.
    fn answer(&self, to: NodeId, response: ForwardResponse);
}

/// A snapshot that arrived whole and verified (chunk CRCs) in a file of concatenated chunks, each
/// with its length (4 bytes, little endian) before it.
#[derive(Debug)]
pub struct SnapshotOffer {
    /// The leader.
    pub from: NodeId,
    /// Its term.
    pub term: Term,
    /// The last index that it covers.
    pub index: LogIndex,
    /// That entry's term.
    pub last_term: Term,
    /// The log time of that entry (from the snapshot's head; zero where the transport does not
    /// know).
    pub time: LogTime,
    /// The membership in it (likewise).
    pub membership: Membership,
    /// The file.
    pub file: PathBuf,
}

/// The way in. Clonable; no call waits. Messages are dropped where the queue is full, and Raft
/// makes up for it; what nothing makes up for is handed over later.
#[derive(Clone, Debug)]
pub struct Mailbox {
    pub(crate) shared: Arc<Shared>,
}

impl Mailbox {
    /// A member's message arrived, its identity checked. Dropped where the queue is full.
    pub fn deliver(&self, from: NodeId, group: GroupId, message: Message) {
        if group == GroupId::SYSTEM {
            self.shared.offer(Event::Message { from, message });
        }
    }

    /// The control connection to a member stands.
    pub fn connected(&self, peer: NodeId) {
        self.shared.insist(Event::Connected { peer });
    }

    /// The control connection to a member broke (not: could not be made).
    pub fn disconnected(&self, peer: NodeId) {
        self.shared.insist(Event::Disconnected { peer });
    }

    /// A snapshot that was being sent has ended.
    pub fn snapshot_sent(&self, peer: NodeId, installed: Option<LogIndex>) {
        if installed.is_some() {
            self.shared.metrics.record_snapshot_sent();
        }
        self.shared.insist(Event::SnapshotSent { peer, installed });
    }

    /// A snapshot arrived. Waits until it is installed or not needed.
    ///
    /// # Errors
    /// A sentence that says why it was not taken.
    pub async fn snapshot_received(&self, offer: SnapshotOffer) -> Result<(), String> {
        crate::node::install::receive(&self.shared, offer).await
    }

    /// A follower passes requests on. Refusals come back through [`Transport::answer`].
    pub fn forwarded(&self, from: NodeId, request: ForwardRequest) {
        self.shared.insist(Event::Forwarded { from, request });
    }

    /// The leader answers what this node passed on.
    pub fn answered(&self, from: NodeId, response: ForwardResponse) {
        self.shared.insist(Event::Answered { from, response });
    }

    /// The stream on which this node passed requests on broke: what was sent and not answered is
    /// unknown.
    pub fn forward_broken(&self, leader: NodeId) {
        self.shared.insist(Event::ForwardBroken { leader });
    }
}
