//! `grpc.health.v1` on both listeners, fed from what `/readyz` says.
//!
//! The empty name is liveness: serving as long as the process answers, with or without a quorum.
//! The services' names are readiness.

use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{server::admin::Health, types::Duration};

/// How often readiness is looked at; changes of role wake nobody for this.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Keeps the reporter's answers for `services` true until `stop`; then they are not serving.
pub(crate) async fn report(
    health: Health,
    reporter: HealthReporter,
    services: &'static [&'static str],
    stop: CancellationToken,
) {
    set(&reporter, services, ServingStatus::NotServing).await;
    let mut shown = false;
    let mut ticks = interval(LOOK_INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let ready = health.readiness().ready;
        if ready != shown {
            shown = ready;
            let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            set(&reporter, services, status).await;
        }
    }
    set(&reporter, services, ServingStatus::NotServing).await;
}

async fn set(reporter: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services {
        reporter.set_service_status(*service, status).await;
    }
}
