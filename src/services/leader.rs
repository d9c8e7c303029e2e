//! Where the leader is: told with every answer, so that a client need not be refused to learn it.
//!
//! The address is looked up when the leader changes or what is known of the nodes does, never for
//! an answer: that takes what lies ready, without a lock.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::watch;

use crate::{node::Directory, pb::cluster::v1::NodeStatus, types::NodeId, wire::LEADER_KEY};

const LEADER: HeaderName = HeaderName::from_static(LEADER_KEY);

/// The leader's client address, as this node knows it.
#[derive(Clone, Debug, Default)]
pub struct LeaderHint(Arc<ArcSwapOption<HeaderValue>>);

impl LeaderHint {
    /// Keeps the hint true for as long as the node runs, or knows anything new.
    pub async fn follow(self, mut status: watch::Receiver<NodeStatus>, directory: Arc<Directory>) {
        let mut addresses = directory.watch();
        loop {
            let leader = NodeId::new(status.borrow_and_update().leader_id);
            addresses.borrow_and_update();
            self.0.store(hint(&directory, leader).map(Arc::new));
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                changed = addresses.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Adds the hint to the headers of an answer; nothing where no leader is known.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if let Some(leader) = self.0.load().as_deref() {
            headers.insert(LEADER, leader.clone());
        }
    }
}

fn hint(directory: &Directory, leader: NodeId) -> Option<HeaderValue> {
    HeaderValue::from_str(&directory.client_address_of(leader)?).ok()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::types::Incarnation;

    fn directory() -> Directory {
        let disk = Incarnation::new(Uuid::nil());
        let (own, peer) = ("h1:7401".to_owned(), "h1:7411".to_owned());
        Directory::new(NodeId::new(1), disk, own, peer, None, std::collections::BTreeMap::new())
    }

    fn moved(directory: &Directory, node: u64, address: &str) {
        let node = NodeId::new(node);
        directory.learn(node, |peer| address.clone_into(&mut peer.client_address));
    }

    /// Waits until answers name this address, or none.
    async fn told(hint: &LeaderHint, address: Option<&str>) {
        let wait = async {
            loop {
                let mut headers = HeaderMap::new();
                hint.tell(&mut headers);
                let told = headers.get(LEADER).map(|told| told.to_str().expect("text"));
                if told == address {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        let limit = core::time::Duration::from_secs(10);
        tokio::time::timeout(limit, wait).await.expect("it comes about");
    }

    #[tokio::test]
    async fn the_hint_follows_the_leader_and_its_address() {
        let (directory, hint) = (Arc::new(directory()), LeaderHint::default());
        let (status, changes) = watch::channel(NodeStatus::default());
        let leads = |leader_id| {
            status.send_replace(NodeStatus { leader_id, ..NodeStatus::default() });
        };
        let following = tokio::spawn(hint.clone().follow(changes, Arc::clone(&directory)));
        told(&hint, None).await;
        leads(1);
        told(&hint, Some("h1:7401")).await;
        leads(2);
        told(&hint, None).await;
        moved(&directory, 2, "h2:7402");
        told(&hint, Some("h2:7402")).await;
        moved(&directory, 2, "h2:9");
        told(&hint, Some("h2:9")).await;
        moved(&directory, 1, "h1:old");
        leads(1);
        told(&hint, Some("h1:7401")).await;
        leads(0);
        told(&hint, None).await;
        drop(status);
        following.await.expect("it ends with the node");
    }
}
