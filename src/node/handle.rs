//! SKELETON: the way into a node, for the services and for a node's own tasks.

use std::sync::Arc;

use tokio::{sync::watch, time::Instant as Deadline};

use crate::{
    machine::View,
    node::{Directory, Feed, Mailbox},
    pb::{
        cluster::v1::NodeStatus,
        command::v1::{Outcome, Refusal, command},
        lock::v1::{AcquireRequest, AcquireResponse},
    },
    types::{Duration, NodeId, SessionId, Term},
};

/// A node that runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    directory: Arc<Directory>,
    feed: Arc<Feed>,
}

#[allow(unused_variables, clippy::unused_async)]
impl Handle {
    /// Proposes a command here or at the leader and waits until this node has applied it. The
    /// outcome may hold a refusal by the state machine.
    ///
    /// # Errors
    /// A refusal by the node: not proposed, or unknown. The reason says which.
    pub async fn propose(
        &self,
        op: command::Op,
        deadline: Option<Deadline>,
    ) -> Result<Outcome, Refusal> {
        unimplemented!()
    }

    /// Acquires a lock, parked here while it waits. Dropping the future takes the waiter out of
    /// the line, or releases a grant that it did not see.
    ///
    /// # Errors
    /// As [`Handle::propose`], and the state machine's refusals.
    pub async fn acquire(
        &self,
        request: AcquireRequest,
        deadline: Option<Deadline>,
    ) -> Result<AcquireResponse, Refusal> {
        unimplemented!()
    }

    /// Waits until this node's state holds everything acknowledged before the call (ReadIndex).
    ///
    /// # Errors
    /// Where no leader confirms it in time.
    pub async fn read_barrier(&self, deadline: Option<Deadline>) -> Result<(), Refusal> {
        unimplemented!()
    }

    /// This node's state now, without asking anybody.
    #[must_use]
    pub fn view(&self) -> View {
        unimplemented!()
    }

    /// Renews a session with the leader; answered after a quorum round begun after the call.
    /// Returns the TTL, to be counted from before the call.
    ///
    /// # Errors
    /// Where the session is gone, or no leader confirms in time.
    pub async fn renew(
        &self,
        session: SessionId,
        deadline: Option<Deadline>,
    ) -> Result<Duration, Refusal> {
        unimplemented!()
    }

    /// Hands leadership over.
    ///
    /// # Errors
    /// Where the target does not take over.
    pub async fn transfer(
        &self,
        target: Option<NodeId>,
        deadline: Option<Deadline>,
    ) -> Result<(NodeId, Term), Refusal> {
        unimplemented!()
    }

    /// How this node stands.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        unimplemented!()
    }

    /// How this node stands, each time that role, leader or term change.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<NodeStatus> {
        unimplemented!()
    }

    /// What was applied, for those who watch.
    #[must_use]
    pub fn feed(&self) -> &Arc<Feed> {
        &self.inner.feed
    }

    /// Who this node is and whom it knows.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.inner.directory
    }

    /// Where the transport delivers what arrives.
    #[must_use]
    pub fn mailbox(&self) -> Mailbox {
        unimplemented!()
    }
}
