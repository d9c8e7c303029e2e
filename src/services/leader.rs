//! Where the leader is: told with every answer, so that a client need not be refused to learn it.
//!
//! The address is looked up when the leader changes or what is known of the nodes does, never for
//! an answer: that takes what lies ready, without a lock.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    node::{Directory, Handle},
    types::NodeId,
    wire::LEADER_KEY,
};

const LEADER: HeaderName = HeaderName::from_static(LEADER_KEY);

/// The leader's client address, as this node knows it.
#[derive(Clone, Debug, Default)]
pub struct LeaderHint(Arc<ArcSwapOption<HeaderValue>>);

impl LeaderHint {
    /// Keeps the hint true for as long as the node runs.
    pub async fn follow(self, node: Handle) {
        let (mut status, mut addresses) = (node.watch_status(), node.directory().watch());
        loop {
            let leader = NodeId::new(status.borrow_and_update().leader_id);
            addresses.borrow_and_update();
            self.0.store(hint(node.directory(), leader).map(Arc::new));
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

    #[test]
    fn the_hint_is_the_address_that_clients_reach_the_leader_at() {
        let disk = Incarnation::new(Uuid::nil());
        let (own, peer) = ("h1:7401".to_owned(), "h1:7411".to_owned());
        let directory = Directory::new(
            NodeId::new(1),
            disk,
            own,
            peer,
            None,
            std::collections::BTreeMap::new(),
        );
        let address = |leader| {
            let hint = hint(&directory, NodeId::new(leader))?;
            Some(hint.to_str().expect("an address is text").to_owned())
        };
        let mut changes = directory.watch();
        assert_eq!(address(0), None, "nobody leads");
        assert_eq!(address(1).as_deref(), Some("h1:7401"), "itself");
        assert_eq!(address(2), None, "not known");
        directory.learn(NodeId::new(2), |peer| peer.client_address = "h2:7402".to_owned());
        assert!(changes.has_changed().expect("the directory is there"));
        changes.mark_unchanged();
        assert_eq!(address(2).as_deref(), Some("h2:7402"));
        directory.learn(NodeId::new(2), |peer| peer.client_address = "h2:9".to_owned());
        assert!(changes.has_changed().expect("the directory is there"));
        assert_eq!(address(2).as_deref(), Some("h2:9"));
    }
}
