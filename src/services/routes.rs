//! Everything that clients reach on one port: the services, health and reflection, behind the gate.

use core::fmt;
use std::sync::Arc;

use axum::middleware::from_fn_with_state;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    node::Handle,
    pb::{
        cluster::v1::cluster_service_server::ClusterServiceServer,
        discovery::v1::discovery_service_server::DiscoveryServiceServer,
        event::v1::event_service_server::EventServiceServer,
        kv::v1::kv_service_server::KvServiceServer, lab::v1::lab_service_server::LabServiceServer,
        lock::v1::lock_service_server::LockServiceServer,
        session::v1::session_service_server::SessionServiceServer,
    },
    services::{
        call::Context,
        cluster::{Cluster, Peers},
        discovery::Discovery,
        elsewhere::Elsewhere,
        event::EventStreams,
        gate::{self, Gate, Limits},
        health::{self, Health},
        kv::Kv,
        lab::{self, Lab},
        leader::LeaderHint,
        lock::Locks,
        peer::LinkLab,
        reflection,
        session::Sessions,
    },
};

/// What clients reach.
pub struct ClientSide {
    /// For tonic's server, or axum's.
    pub routes: Routes,
    /// To be kept true by [`Health::follow`].
    pub health: Health,
    /// To be kept true by [`LeaderHint::follow`].
    pub leader: LeaderHint,
}

impl fmt::Debug for ClientSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSide").field("health", &self.health).finish_non_exhaustive()
    }
}

/// Puts the services of a node behind the gate. Cancelling `drain` ends all streams and refuses new
/// calls; calls under way end by themselves. With a `lab`, clients may add faults to it; without one
/// that service is not there. Reads that this node cannot serve go `elsewhere`, where there is one.
#[must_use]
pub fn client_side<P: Peers>(
    node: Handle,
    peers: Arc<P>,
    drain: CancellationToken,
    limits: Limits,
    lab: Option<Arc<LinkLab>>,
    elsewhere: Option<Arc<dyn Elsewhere>>,
) -> ClientSide {
    let leader = LeaderHint::default();
    let metrics = node.metrics().clone();
    let gate = Arc::new(Gate::new(limits, drain.clone(), leader.clone(), metrics));
    let context = Context { node, drain, elsewhere };
    let (reporter, health_service) = tonic_health::server::health_reporter();

    macro_rules! server {
        ($server:ident, $service:expr) => {
            $server::new($service)
                .max_decoding_message_size(limits.message_bytes_max)
                .max_encoding_message_size(usize::MAX)
        };
    }
    let faults = lab.map(|lab| Lab::new(context.node.directory().node_id, lab));
    let mut routes = Routes::new(server!(KvServiceServer, Kv(context.clone())))
        .add_service(server!(LockServiceServer, Locks(context.clone())))
        .add_service(server!(DiscoveryServiceServer, Discovery(context.clone())))
        .add_service(server!(EventServiceServer, EventStreams(context.clone())))
        .add_service(server!(SessionServiceServer, Sessions(context.clone())))
        .add_service(server!(ClusterServiceServer, Cluster::new(context, peers)))
        .add_service(health_service);
    let mut services = health::SERVICES.to_vec();
    if let Some(faults) = faults {
        routes = routes.add_service(LabServiceServer::new(faults));
        services.push(lab::SERVICE);
    }
    let router = reflection::add(routes, &services).into_axum_router();
    let router = router.layer(from_fn_with_state(gate, gate::pass));
    ClientSide { routes: Routes::from(router).prepare(), health: Health::new(reporter), leader }
}
