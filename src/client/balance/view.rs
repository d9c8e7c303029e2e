//! How a balancer stands, for people and support.

use serde::Serialize;

use crate::{
    client::balance::{
        Load,
        builder::Options,
        snapshot::{Known, Snapshot},
    },
    types::Instant,
};

/// How a balancer stood when it was asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// The policy's name.
    pub policy: &'static str,
    /// gRPC's connectivity state of all endpoints together.
    pub state: String,
    /// Why resolving failed last, where it did since the last answer.
    pub resolver_error: Option<String>,
    /// Whether too many endpoints are out, so that health and ejections are not heeded.
    pub panics: bool,
    /// The endpoints in the order in which they were told.
    pub endpoints: Vec<EndpointView>,
}

/// How one endpoint stood.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EndpointView {
    /// What it is known by.
    pub id: String,
    /// Where it listens.
    pub address: String,
    /// Its zone; empty is none.
    pub zone: String,
    /// Its share of the load.
    pub weight: u32,
    /// Whether it takes no new calls.
    pub draining: bool,
    /// gRPC's connectivity state.
    pub state: String,
    /// Whether its health check says that it serves, or none is made.
    pub healthy: bool,
    /// Whether it is taken out for failing.
    pub ejected: bool,
    /// How often it was taken out.
    pub ejections: u64,
    /// Calls under way.
    pub in_flight: u32,
    /// Calls it was given.
    pub picks: u64,
    /// Calls it answered, refusals included.
    pub successes: u64,
    /// Calls it failed.
    pub failures: u64,
    /// Its latency to the first byte of an answer as the policies see it, in milliseconds.
    pub latency_ms: f64,
    /// The share of its latest calls that it answered.
    pub success_rate: f64,
    /// Why the last attempt to connect failed, or the connection broke.
    pub error: Option<String>,
}

impl View {
    pub(super) fn of(options: &Options, snapshot: &Snapshot, now: Instant) -> Self {
        let endpoint = |known: &Known| {
            let Known { endpoint, load, state, healthy, ejected, ejections, error } = known;
            let load: &Load = load;
            EndpointView {
                id: endpoint.id().to_owned(),
                address: endpoint.address().to_owned(),
                zone: endpoint.zone().to_owned(),
                weight: endpoint.weight(),
                draining: endpoint.is_draining(),
                state: state.to_string(),
                healthy: *healthy,
                ejected: *ejected,
                ejections: *ejections,
                in_flight: load.in_flight(),
                picks: load.picks(),
                successes: load.successes(),
                failures: load.failures(),
                latency_ms: load.latency(now).as_secs_f64() * 1e3,
                success_rate: load.success_rate(now),
                error: error.as_deref().map(str::to_owned),
            }
        };
        Self {
            policy: options.policy.name(),
            state: snapshot.state.to_string(),
            resolver_error: snapshot.resolver_error.as_deref().map(str::to_owned),
            panics: snapshot.panics,
            endpoints: snapshot.members.iter().map(endpoint).collect(),
        }
    }
}
