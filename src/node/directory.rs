//! Who this node is and whom it knows: identities, addresses and disks.
//!
//! Addresses are not identity: a member is known by its id and the incarnation of its disk, which
//! is registered through the log.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{
    pb::{command::v1::RegisterMember, raft::v1::Identity},
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
    restored_from: OnceLock<String>,
    peers: ArcSwap<BTreeMap<NodeId, Peer>>,
    registered: AtomicBool,
    changes: watch::Sender<()>,
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
            restored_from: OnceLock::new(),
            peers: ArcSwap::from_pointee(peers),
            registered: AtomicBool::new(false),
            changes: watch::Sender::new(()),
        }
    }

    /// Whether the log says that this node is on this disk. Until then nobody could tell if the
    /// disk was wiped.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire)
    }

    /// The cluster's id, once known.
    #[must_use]
    pub fn cluster_id(&self) -> Option<ClusterId> {
        **self.cluster_id.load()
    }

    /// Sets the cluster's id, once.
    pub fn found(&self, cluster_id: ClusterId) {
        self.cluster_id.store(Arc::new(Some(cluster_id)));
    }

    /// The digest of the backup that this node's state was restored from; empty where it was not.
    #[must_use]
    pub fn restored_from(&self) -> &str {
        self.restored_from.get().map_or("", String::as_str)
    }

    /// Sets that digest, before the node speaks to anybody.
    pub fn restore_from(&self, digest: String) {
        // A state is restored once in its life.
        let _ = self.restored_from.set(digest);
    }

    /// The members, this node included.
    #[must_use]
    pub fn peers(&self) -> Arc<BTreeMap<NodeId, Peer>> {
        self.peers.load_full()
    }

    /// Where clients reach a member; `None` until it is known.
    #[must_use]
    pub fn client_address_of(&self, node: NodeId) -> Option<String> {
        if node == self.node_id {
            return Some(self.client_address.clone()).filter(|address| !address.is_empty());
        }
        let peers = self.peers.load();
        let address = &peers.get(&node)?.client_address;
        (!address.is_empty()).then(|| address.clone())
    }

    /// Tells each time that something was learnt of a member.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Records what is known of a member.
    pub fn learn(&self, node: NodeId, change: impl Fn(&mut Peer)) {
        self.peers.rcu(|peers| {
            let mut peers = BTreeMap::clone(peers);
            change(peers.entry(node).or_default());
            peers
        });
        self.changes.send_replace(());
    }

    /// Takes over what the log says of the members' disks and client addresses.
    pub fn registered(&self, members: &[RegisterMember]) {
        let me = members.iter().find(|member| member.node_id == self.node_id.value());
        let known = me.is_some_and(|me| me.incarnation == self.incarnation.to_string());
        self.registered.store(known, Ordering::Release);
        for member in members {
            self.learn(NodeId::new(member.node_id), |peer| {
                peer.incarnation = Incarnation::parse(&member.incarnation).or(peer.incarnation);
                if !member.client_address.is_empty() {
                    peer.client_address.clone_from(&member.client_address);
                }
            });
        }
    }

    /// The identity to put into a message for `to`.
    #[must_use]
    pub fn identity(&self, to: NodeId) -> Identity {
        Identity {
            cluster_id: self.cluster_id().map(|id| id.to_string()).unwrap_or_default(),
            from_node: self.node_id.value(),
            to_node: to.value(),
            incarnation: self.incarnation.to_string(),
            restored_from: self.restored_from().to_owned(),
        }
    }

    /// Checks the identity in a message: the sender is a member, speaks to this node, belongs to
    /// this cluster and is on the disk that the log knows. A side that does not know its cluster
    /// yet must have begun with the same state, empty or from the same backup; then it is taken at
    /// its word, and membership and disk still decide.
    ///
    /// # Errors
    /// A sentence that says what does not fit and what to do.
    pub fn check(&self, identity: Option<&Identity>) -> Result<NodeId, String> {
        let identity = identity
            .ok_or("the message carries no identity: only members of the cluster speak here")?;
        let from = NodeId::new(identity.from_node);
        if identity.to_node != self.node_id.value() {
            return Err(format!(
                "the message is meant for node {}, this is node {}: check the peer addresses in \
                 --initial-cluster",
                identity.to_node, self.node_id
            ));
        }
        let peers = self.peers.load();
        let Some(peer) = peers.get(&from) else {
            return Err(format!("node {from} is not a member of this cluster"));
        };
        if from == self.node_id {
            return Err(format!("node {from} is this node itself: two nodes were given one id"));
        }
        let theirs = ClusterId::parse(&identity.cluster_id);
        match (self.cluster_id(), theirs) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                return Err(format!(
                    "node {from} belongs to cluster {theirs}, this is cluster {ours}: one of the two \
                     has a foreign data directory; start that one with its own --data-dir"
                ));
            }
            (_, None) if !identity.cluster_id.is_empty() => {
                return Err(format!("the cluster id of node {from} is not a UUID"));
            }
            (Some(_), Some(_)) => {}
            _ => self.check_beginning(from, &identity.restored_from)?,
        }
        let Some(incarnation) = Incarnation::parse(&identity.incarnation) else {
            return Err(format!("the incarnation of node {from}'s disk is not a UUID"));
        };
        match peer.incarnation {
            Some(known) if known != incarnation => Err(format!(
                "node {from} is registered with disk {known} and came back with disk {incarnation}: \
                 its data directory was wiped or replaced; bring the old directory back"
            )),
            _ => Ok(from),
        }
    }

    /// Nodes that began with different states must never hear of each other: their logs agree on
    /// numbers alone.
    fn check_beginning(&self, from: NodeId, theirs: &str) -> Result<(), String> {
        let (me, ours) = (self.node_id, self.restored_from());
        let advice = "give every founding node an empty directory and the same --restore file";
        match (ours, theirs) {
            _ if ours == theirs => Ok(()),
            ("", _) => Err(format!(
                "node {from} was restored from backup {theirs}, node {me} was not: {advice}"
            )),
            (_, "") => Err(format!(
                "node {me} was restored from backup {ours}, node {from} was not: {advice}"
            )),
            _ => Err(format!(
                "node {from} was restored from backup {theirs}, node {me} from another one, {ours}: \
                 {advice}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn directory(cluster: Option<u128>) -> Directory {
        let known = |disk: Option<u128>| Peer {
            incarnation: disk.map(|disk| Incarnation::new(Uuid::from_u128(disk))),
            ..Peer::default()
        };
        let peers = BTreeMap::from([
            (NodeId::new(1), known(Some(11))),
            (NodeId::new(2), known(Some(12))),
            (NodeId::new(3), known(None)),
        ]);
        let cluster = cluster.map(|id| ClusterId::new(Uuid::from_u128(id)));
        let disk = Incarnation::new(Uuid::from_u128(11));
        Directory::new(NodeId::new(1), disk, String::new(), String::new(), cluster, peers)
    }

    fn identity(from: u64, disk: u128, cluster: &str) -> Identity {
        Identity {
            cluster_id: cluster.into(),
            from_node: from,
            to_node: 1,
            incarnation: Uuid::from_u128(disk).to_string(),
            ..Identity::default()
        }
    }

    #[test]
    fn nodes_that_were_restored_from_different_files_do_not_found_a_cluster_together() {
        let restored = |cluster: Option<u128>, from: &str| {
            let directory = directory(cluster);
            directory.restore_from(from.to_owned());
            directory
        };
        let asks = |directory: &Directory, cluster: &str, from: &str| {
            let restored_from = from.to_owned();
            directory.check(Some(&Identity { restored_from, ..identity(3, 13, cluster) }))
        };
        assert!(asks(&restored(None, "aa"), "", "aa").is_ok());
        let words = asks(&restored(None, "aa"), "", "bb").expect_err("another file");
        assert!(words.contains("backup bb") && words.contains("another one, aa"), "{words}");
        let words = asks(&restored(None, "aa"), "", "").expect_err("not restored");
        assert!(
            words.contains("node 1 was restored") && words.contains("node 3 was not"),
            "{words}"
        );
        let words = asks(&directory(None), "", "bb").expect_err("not restored here");
        assert!(
            words.contains("node 3 was restored") && words.contains("node 1 was not"),
            "{words}"
        );

        let ours = Uuid::from_u128(7).to_string();
        assert!(asks(&restored(None, "aa"), &ours, "").is_err(), "the old cluster, still alive");
        assert!(asks(&directory(Some(7)), "", "aa").is_err(), "a stray founder");
        assert!(asks(&restored(Some(7), "aa"), "", "aa").is_ok(), "a founder that comes late");
        assert!(asks(&restored(Some(7), "aa"), &ours, "").is_ok(), "ids agree: that is enough");
    }

    #[test]
    fn rule_20_a_wiped_disk_is_not_taken_for_the_one_before_it() {
        let directory = directory(Some(7));
        assert!(directory.check(Some(&identity(2, 12, ""))).is_ok());
        let words = directory.check(Some(&identity(2, 99, ""))).expect_err("another disk");
        assert!(words.contains("wiped or replaced"), "{words}");
        assert!(directory.check(Some(&identity(3, 99, ""))).is_ok(), "not registered yet");
    }

    #[test]
    fn a_node_is_registered_once_the_log_names_its_disk() {
        let directory = directory(None);
        assert!(!directory.is_registered(), "its own word is not enough");
        let member = |node_id, disk: u128| RegisterMember {
            node_id,
            incarnation: Uuid::from_u128(disk).to_string(),
            ..RegisterMember::default()
        };
        directory.registered(&[member(2, 12)]);
        assert!(!directory.is_registered());
        directory.registered(&[member(1, 99), member(2, 12)]);
        assert!(!directory.is_registered(), "another disk");
        directory.registered(&[member(1, 11), member(2, 12)]);
        assert!(directory.is_registered());
    }

    #[test]
    fn strangers_and_foreign_clusters_are_refused() {
        let directory = directory(Some(7));
        let ours = Uuid::from_u128(7).to_string();
        assert!(directory.check(Some(&identity(2, 12, &ours))).is_ok());
        assert!(directory.check(None).is_err());
        assert!(directory.check(Some(&identity(9, 1, &ours))).is_err());
        assert!(directory.check(Some(&identity(1, 11, &ours))).is_err(), "itself");
        let foreign = Uuid::from_u128(8).to_string();
        assert!(directory.check(Some(&identity(2, 12, &foreign))).is_err());
        assert!(directory.check(Some(&identity(2, 12, "nonsense"))).is_err());
        let astray = Identity { to_node: 2, ..identity(2, 12, &ours) };
        assert!(directory.check(Some(&astray)).is_err());
    }
}
