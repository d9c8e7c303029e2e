//! How a node stops so that nobody notices: said to drain, leadership handed over, streams ended with
//! a status that says where to go, requests finished, and only then not to be found any more. Bounded:
//! what is left is given up.

use tokio::time::{Instant, sleep_until, timeout};

use crate::{pb::cluster::v1::Role, server::Server, types::Duration};

/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How long saying that this node drains may take.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// How long clients that were told so may take to begin their next calls elsewhere, at least.
const NOTICE: Duration = Duration::from_millis(200);

/// How long taking the registration back may take.
const DEREGISTER_LIMIT: Duration = Duration::from_secs(1);

/// How long handing leadership over may take.
const HANDOVER_LIMIT: Duration = Duration::from_secs(3);

/// How long requests may go on once the streams have ended.
const REQUESTS_LIMIT: Duration = Duration::from_secs(3);

/// How long connections may take to close once nothing runs on them.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// Whether other nodes go on when this one stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This node stops alone: leadership is handed over first.
    Node,
    /// The whole cluster stops: there is nobody to hand anything to.
    Cluster,
}

impl Server {
    /// Drains the node and stops it, within 10 seconds. Returns whether all of it came to its end;
    /// where not, what was left is given up, as in a crash.
    pub async fn stop(self, scope: Scope) -> bool {
        timeout(LIMIT, self.drain(scope)).await.is_ok()
    }

    async fn drain(mut self, scope: Scope) {
        tracing::info!(?scope, "draining");
        self.health.drain();
        self.handle().set_draining();
        self.leaving.cancel();
        if scope == Scope::Node {
            self.registration.drain(TELL_LIMIT).await;
            let noticed = Instant::now() + NOTICE;
            self.hand_over().await;
            sleep_until(noticed).await;
        }

        self.ending.streams.cancel();
        self.closing.cancel();
        if timeout(REQUESTS_LIMIT, &mut self.clients).await.is_err() {
            tracing::warn!("requests are given up: their outcome is unknown to the callers");
            self.ending.requests.cancel();
            let _given_up = timeout(CLOSE_LIMIT, &mut self.clients).await;
        }

        if scope == Scope::Node {
            self.registration.remove(DEREGISTER_LIMIT).await;
        }
        self.transport.shutdown().await;
        self.ended.cancel();
        let _given_up = timeout(CLOSE_LIMIT, &mut self.peers).await;
        self.running.stop().await;
        self.spans.close().await;
        tracing::info!("stopped");
    }

    async fn hand_over(&self) {
        let handle = self.handle();
        let alone = handle.directory().peers().len() <= 1;
        if alone || handle.status().role() != Role::Leader {
            return;
        }
        let deadline = Instant::now() + HANDOVER_LIMIT;
        match timeout(HANDOVER_LIMIT, handle.transfer(None, Some(deadline))).await {
            Ok(Ok((leader, term))) => tracing::info!(%leader, %term, "leadership handed over"),
            Ok(Err(refused)) => tracing::warn!(error = refused.message, "leadership is left"),
            Err(_) => tracing::warn!("leadership is left: nobody took it in time"),
        }
    }
}
