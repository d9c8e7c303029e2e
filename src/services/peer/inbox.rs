//! Where the transport delivers what arrives: the node, or a test's recorder in its place.

use crate::{
    node::{Handle, Mailbox, SnapshotOffer},
    pb::{
        cluster::v1::NodeStatus,
        raft::v1::{ForwardRequest, ForwardResponse},
    },
    raft::Message,
    types::{GroupId, LogIndex, NodeId},
};

/// The way into a node, as the transport sees it: [`Mailbox`] and the node's status.
#[tonic::async_trait]
pub trait Inbox: Send + Sync + 'static {
    /// As [`Mailbox::deliver`].
    fn deliver(&self, from: NodeId, group: GroupId, message: Message);
    /// As [`Mailbox::connected`].
    fn connected(&self, peer: NodeId);
    /// As [`Mailbox::disconnected`].
    fn disconnected(&self, peer: NodeId);
    /// As [`Mailbox::snapshot_sent`].
    fn snapshot_sent(&self, peer: NodeId, installed: Option<LogIndex>);
    /// As [`Mailbox::snapshot_received`].
    ///
    /// # Errors
    /// A sentence that says why the snapshot was not taken.
    async fn snapshot_received(&self, offer: SnapshotOffer) -> Result<(), String>;
    /// As [`Mailbox::forwarded`].
    fn forwarded(&self, from: NodeId, request: ForwardRequest);
    /// As [`Mailbox::answered`].
    fn answered(&self, from: NodeId, response: ForwardResponse);
    /// As [`Mailbox::forward_broken`].
    fn forward_broken(&self, leader: NodeId);
    /// As [`Handle::status`].
    fn status(&self) -> NodeStatus;
}

/// A node's inbox.
#[derive(Debug)]
pub(super) struct NodeInbox {
    handle: Handle,
    mailbox: Mailbox,
}

impl NodeInbox {
    pub(super) fn new(handle: &Handle) -> Self {
        Self { handle: handle.clone(), mailbox: handle.mailbox() }
    }
}

#[tonic::async_trait]
impl Inbox for NodeInbox {
    fn deliver(&self, from: NodeId, group: GroupId, message: Message) {
        self.mailbox.deliver(from, group, message);
    }

    fn connected(&self, peer: NodeId) {
        self.mailbox.connected(peer);
    }

    fn disconnected(&self, peer: NodeId) {
        self.mailbox.disconnected(peer);
    }

    fn snapshot_sent(&self, peer: NodeId, installed: Option<LogIndex>) {
        self.mailbox.snapshot_sent(peer, installed);
    }

    async fn snapshot_received(&self, offer: SnapshotOffer) -> Result<(), String> {
        self.mailbox.snapshot_received(offer).await
    }

    fn forwarded(&self, from: NodeId, request: ForwardRequest) {
        self.mailbox.forwarded(from, request);
    }

    fn answered(&self, from: NodeId, response: ForwardResponse) {
        self.mailbox.answered(from, response);
    }

    fn forward_broken(&self, leader: NodeId) {
        self.mailbox.forward_broken(leader);
    }

    fn status(&self) -> NodeStatus {
        self.handle.status()
    }
}
