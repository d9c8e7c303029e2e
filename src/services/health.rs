//! `grpc.health.v1`: serving while a leader is known, not serving without one or while stopping.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::pb::cluster::v1::NodeStatus;

/// The operator's view, which is served without a leader as well.
const OPERATOR_SERVICE: &str = "quorate.cluster.v1.ClusterService";

/// What clients may ask the health of, besides the server as a whole.
pub(crate) const SERVICES: [&str; 6] = [
    OPERATOR_SERVICE,
    "quorate.discovery.v1.DiscoveryService",
    "quorate.event.v1.EventService",
    "quorate.kv.v1.KvService",
    "quorate.lock.v1.LockService",
    "quorate.session.v1.SessionService",
];

/// Keeps the health service true.
#[derive(Clone, Debug)]
pub struct Health {
    reporter: HealthReporter,
}

impl Health {
    pub(crate) const fn new(reporter: HealthReporter) -> Self {
        Self { reporter }
    }

    /// Follows the node until `stopping` is cancelled or the node is gone, then reports that
    /// nothing is served. Cancel `stopping` some time before the streams, so that clients leave
    /// by themselves.
    pub async fn follow(
        self,
        mut status: watch::Receiver<NodeStatus>,
        stopping: CancellationToken,
    ) {
        loop {
            let serving = {
                let status = status.borrow_and_update();
                status.leader_id != 0 && !status.draining
            };
            self.report(serving, true).await;
            tokio::select! {
                biased;
                () = stopping.cancelled() => break,
                changed = status.changed() => if changed.is_err() { break },
            }
        }
        self.report(false, false).await;
    }

    async fn report(&self, serving: bool, operable: bool) {
        let status = |serving| {
            if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
        };
        // The empty name is the server as a whole.
        self.reporter.set_service_status("", status(serving)).await;
        for service in SERVICES {
            let serving = serving || (operable && service == OPERATOR_SERVICE);
            self.reporter.set_service_status(service, status(serving)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Request;
    use tonic_health::{
        pb::{HealthCheckRequest, health_server::Health as _},
        server::HealthService,
    };

    use super::*;

    async fn is_serving(service: &HealthService, name: &str) -> bool {
        let request = HealthCheckRequest { service: name.to_owned() };
        let answer = service.check(Request::new(request)).await.unwrap().into_inner();
        answer.status == ServingStatus::Serving as i32
    }

    /// Waits until the services of data are as said, and tells of the operator's.
    async fn operable_once(service: &HealthService, serving: bool) -> bool {
        let wait = async {
            while is_serving(service, "").await != serving
                || is_serving(service, "quorate.kv.v1.KvService").await != serving
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(core::time::Duration::from_secs(10), wait)
            .await
            .expect("it comes about");
        is_serving(service, OPERATOR_SERVICE).await
    }

    #[tokio::test]
    async fn health_follows_the_leader_and_the_stop() {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        let (sender, status) = watch::channel(NodeStatus::default());
        let stopping = CancellationToken::new();
        let health = Health::new(reporter);
        health.report(true, true).await;
        let following = tokio::spawn(health.follow(status, stopping.clone()));
        assert!(operable_once(&service, false).await, "no leader, but one may look");
        sender.send_replace(NodeStatus { leader_id: 2, ..Default::default() });
        assert!(operable_once(&service, true).await);
        stopping.cancel();
        assert!(!operable_once(&service, false).await);
        following.await.unwrap();
    }
}
