//! A balancer for gRPC calls: a [`tower::Service`] that any tonic client can stand on.
//!
//! A [`Resolver`] tells endpoints, and through [`tower::discover`] the balancer's task learns what
//! changes. It keeps one connection to each, watches its health, takes out what fails and hands the
//! rest to a [`Policy`], whose picker is published as an immutable snapshot. Callers load that
//! snapshot, pick and send: no lock, no queue, no task between them and the connection.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use quorate::client::balance::{Balance, PeakEwma, Static};
//! use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
//!
//! let endpoints = Static::parse(["127.0.0.1:50051", "127.0.0.1:50052"])?;
//! let balance = Balance::builder().policy(PeakEwma).resolve(endpoints);
//! let mut client = HealthClient::new(balance);
//! client.check(HealthCheckRequest::default()).await?;
//! # Ok(())
//! # }
//! ```

mod builder;
mod connection;
mod endpoint;
mod health;
mod hints;
mod load;
mod member;
mod metrics;
pub mod policy;
mod report;
mod resolve;
mod service;
mod snapshot;
mod subchannel;
#[cfg(test)]
mod tests;
mod view;
mod worker;

pub use builder::{Builder, SlowStart};
pub(crate) use connection::KEEPALIVE_INTERVAL;
pub use connection::{CallError, Connect, Connection, Http2};
pub use endpoint::Endpoint;
pub(crate) use hints::Hints;
pub use hints::{Avoid, HashKey, Prefer, ServedBy, WaitForReady};
pub use load::Load;
pub use metrics::Metrics;
pub use policy::{
    LeastRequests, Maglev, PeakEwma, PickFirst, Policy, Random, RingHash, RoundRobin, Weighted,
    ZoneAware,
};
pub use resolve::{Discovered, Dns, Registry, Resolver, Static, Subset};
pub use service::{Balance, Picked};
pub use subchannel::Connectivity;
pub use view::{EndpointView, View};

pub use crate::layers::{BoxError, BoxFuture, NotSent};

use tonic::Status;

fn deadline_exceeded() -> Status {
    Status::deadline_exceeded("the call's deadline passed")
}
