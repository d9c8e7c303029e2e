//! SKELETON: who this node is and whom it knows.

use std::collections::BTreeMap;

use arc_swap::ArcSwap;

use crate::{
    pb::raft::v1::Identity,
    types::{ClusterId, Incarnation, NodeId},
};

/// A member as this node knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where peers reach it: `host:port`.
    pub peer_address: String,
    /// Where clients reach it; empty until it is known.
    pub client_address: String,
    /// The incarnation of its disk; `None` until it is registered.
    pub incarnation: Option<Incarnation>,
}

/// Who this node is and whom it knows. Shared by driver, transport and services.
#[derive(Debug)]
pub struct Directory {
    /// This node.
    pub node_id: NodeId,
    /// Its disk's incarnation.
    pub incarnation: Incarnation,
    /// Where clients reach this node.
    pub client_address: String,
    /// Where peers reach this node.
    pub peer_address: String,
    cluster_id: ArcSwap<Option<ClusterId>>,
    peers: ArcSwap<BTreeMap<NodeId, Peer>>,
}

impl Directory {
    /// Starts from what the command line and the disk say.
    #[must_use]
    pub fn new(
        node_id: NodeId,
        incarnation: Incarnation,
        client_address: String,
        peer_address: String,
        cluster_id: Option<ClusterId>,
        peers: BTreeMap<NodeId, Peer>,
    ) -> Self {
        Self {
            node_id,
            incarnation,
            client_address,
            peer_address,
            cluster_id: ArcSwap::from_pointee(cluster_id),
            peers: ArcSwap::from_pointee(peers),
        }
    }

    /// The cluster's id, once known.
    #[must_use]
    pub fn cluster_id(&self) -> Option<ClusterId> {
        **self.cluster_id.load()
    }

    /// Sets the cluster's id, once.
    pub fn found(&self, cluster_id: ClusterId) {
        self.cluster_id.store(std::sync::Arc::new(Some(cluster_id)));
    }

    /// The members, this node included.
    #[must_use]
    pub fn peers(&self) -> std::sync::Arc<BTreeMap<NodeId, Peer>> {
        self.peers.load_full()
    }

    /// Records what is known of a member.
    pub fn learn(&self, node: NodeId, change: impl Fn(&mut Peer)) {
        self.peers.rcu(|peers| {
            let mut peers = BTreeMap::clone(peers);
            change(peers.entry(node).or_default());
            peers
        });
    }

    /// The identity to put into a message for `to`.
    #[must_use]
    pub fn identity(&self, to: NodeId) -> Identity {
        Identity {
            cluster_id: self.cluster_id().map(|id| id.to_string()).unwrap_or_default(),
            from_node: self.node_id.value(),
            to_node: to.value(),
            incarnation: self.incarnation.to_string(),
        }
    }

    /// Checks the identity in a message.
    ///
    /// # Errors
    /// A sentence that says what does not fit and what to do.
    pub fn check(&self, _identity: Option<&Identity>) -> Result<NodeId, String> {
        unimplemented!("node writes this")
    }
}
