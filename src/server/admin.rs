//! The admin listener: health and metrics over plain HTTP, for probes and scrapers.
//!
//! `/livez` says that the process answers and never depends on a quorum, because restarting a node
//! that lost its quorum only makes things worse. `/readyz`, or `/health`, says whether to send clients here.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};

use crate::{
    node::{Handle, LAG_ENTRIES_MAX},
    observe::CONTENT_TYPE,
    pb::cluster::v1::{NodeStatus, Role},
};

/// What is to be seen here, for a person who opens the address.
const PAGES: &str = "/livez    whether the process answers\n\
                     /readyz   whether clients should be sent here, and why not; also /health\n\
                     /metrics  for a scraper\n";

/// Whether clients should be sent to this node, and why not: the body of `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether clients should be sent here.
    pub ready: bool,
    /// Why not; empty when ready.
    pub reason: String,
    /// The node.
    pub node_id: u64,
    /// Whether it leads.
    pub leads: bool,
    /// The leader it knows; 0 is none.
    pub leader_id: u64,
    /// Its term.
    pub term: u64,
    /// Up to where it knows the log to be committed.
    pub commit_index: u64,
    /// Up to where it applied the log.
    pub applied_index: u64,
}

impl Readiness {
    fn of(status: &NodeStatus, registered: bool, draining: bool) -> Self {
        let lag = status.commit_index.saturating_sub(status.applied_index);
        let reason = if draining {
            "the node is stopping".to_owned()
        } else if status.leader_id == 0 {
            "no leader is known".to_owned()
        } else if !registered {
            "the cluster does not know this node's disk yet".to_owned()
        } else if lag > LAG_ENTRIES_MAX {
            format!("{lag} committed entries are yet to be applied")
        } else {
            String::new()
        };
        Self {
            ready: reason.is_empty(),
            reason,
            node_id: status.node_id,
            leads: status.role() == Role::Leader,
            leader_id: status.leader_id,
            term: status.term,
            commit_index: status.commit_index,
            applied_index: status.applied_index,
        }
    }
}

/// What the admin pages and the gRPC health service are made from. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    handle: Handle,
    draining: Arc<AtomicBool>,
}

impl Health {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, draining: Arc::default() }
    }

    /// From now on the node is not ready.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// How it stands now.
    pub(crate) fn readiness(&self) -> Readiness {
        let registered = self.handle.directory().is_registered();
        Readiness::of(&self.handle.status(), registered, self.draining.load(Ordering::Acquire))
    }
}

/// The pages.
pub(crate) fn router(health: Health) -> Router {
    Router::new()
        .route("/", get(async || PAGES))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/health", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> Response {
    let readiness = health.readiness();
    let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(&readiness).expect("plain fields become JSON");
    (code, [(header::CONTENT_TYPE, "application/json")], body + "\n").into_response()
}

async fn metrics(State(health): State<Health>) -> Response {
    health.handle.measure();
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], health.handle.metrics().encode()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> NodeStatus {
        NodeStatus {
            node_id: 2,
            leader_id: 1,
            commit_index: 5_000,
            applied_index: 4_990,
            ..NodeStatus::default()
        }
    }

    #[test]
    fn a_follower_with_a_leader_is_ready() {
        let readiness = Readiness::of(&status(), true, false);
        assert!(readiness.ready && !readiness.leads, "{readiness:?}");
    }

    #[test]
    fn what_makes_a_node_not_ready_is_said() {
        assert_eq!(Readiness::of(&status(), true, true).reason, "the node is stopping");
        let alone = NodeStatus { leader_id: 0, ..status() };
        assert_eq!(Readiness::of(&alone, true, false).reason, "no leader is known");
        let unknown = Readiness::of(&status(), false, false).reason;
        assert_eq!(unknown, "the cluster does not know this node's disk yet");
        let behind = NodeStatus { applied_index: 3_000, ..status() };
        assert!(Readiness::of(&behind, true, false).reason.starts_with("2000 committed entries"));
    }
}
