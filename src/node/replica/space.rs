//! Whose disk is short of room, as far as this replica knows, and what it then refuses.
//!
//! A follower that is short tells its leader every second for as long as it is; the leader proposes
//! nothing that grows while anybody is. A node that falls silent is forgotten after a while: it
//! takes nothing in either, and says so again when it is back. What is refused was not proposed.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::grows,
    node::{
        replica::{Jobs, Replica},
        space::Shortage,
    },
    pb::{
        command::v1::{Command, Refusal},
        raft::v1::{ForwardRequest, forward_request::Space},
    },
    raft::RoleKind,
    types::{Duration, Instant, NodeId},
};

/// For how long a node's word counts; it says so every second.
const WORD_LASTS: Duration = Duration::from_secs(5);

/// Who is short of room.
#[derive(Debug, Default)]
pub(super) struct Shortages {
    own: Option<Shortage>,
    /// What others said, and when.
    heard: BTreeMap<NodeId, (Shortage, Instant)>,
}

impl Shortages {
    fn any(&self) -> Option<&Shortage> {
        self.own.as_ref().or_else(|| self.heard.values().map(|(shortage, _)| shortage).next())
    }

    /// The refusal of a command that would make the state larger, while anybody is short.
    pub(super) fn refuse(&self, command: &Bytes) -> Option<Refusal> {
        let shortage = self.any()?;
        let op = Command::decode(command.clone()).ok()?.op?;
        grows(&op).then(|| shortage.refusal())
    }

    /// Forgets those who have not said it again.
    pub(super) fn forget_silent(&mut self, now: Instant) {
        if !self.heard.is_empty() {
            self.heard.retain(|_, (_, at)| now < at.after(WORD_LASTS));
        }
    }
}

impl Replica {
    /// The guard has looked at this node's disk.
    pub(super) fn space_seen(&mut self, own: Option<Shortage>, jobs: &mut Jobs) {
        self.shortages.own = own;
        let Some(leader) = self.status.leader else { return };
        if self.status.role == RoleKind::Leader {
            return;
        }
        let space = match own {
            Some(Shortage { free, reusable, needed, .. }) => {
                Space { free_bytes: free, reusable_bytes: reusable, needed_bytes: needed }
            }
            None => Space::default(),
        };
        let request = ForwardRequest { space: Some(space), ..ForwardRequest::default() };
        jobs.forwards.push((leader, request));
    }

    /// A follower tells how much room it has.
    pub(super) fn space_heard(&mut self, now: Instant, node: NodeId, space: &Space) {
        if space.needed_bytes == 0 {
            if self.shortages.heard.remove(&node).is_some() {
                tracing::info!(peer = node.value(), "a node has room again");
            }
            return;
        }
        let shortage = Shortage {
            node,
            free: space.free_bytes,
            reusable: space.reusable_bytes,
            needed: space.needed_bytes,
        };
        if self.shortages.heard.insert(node, (shortage, now)).is_none() {
            let (free, needed) = (shortage.free, shortage.needed);
            tracing::warn!(peer = node.value(), free, needed, "a node has too little room");
        }
    }
}
