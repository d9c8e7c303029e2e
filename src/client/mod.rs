//! The client: typed handles over any node of a cluster, with deadlines and safe retries.
//!
//! A call goes through a balancer ([`balance`]) over the nodes that the registry knows: changes to
//! the leader, reads to all. What was certainly not proposed is sent again, at another node or the
//! one that the answer names; what may have been proposed is sent again only where a request id
//! makes that safe, and always with the same id. Streams take themselves up again where they stood. What has to be kept alive keeps itself: a [`LockGuard`], a [`SessionGuard`] and a
//! [`Registration`] each have a task that renews it, and end it when they are dropped.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), quorate::client::Error> {
//! # let cluster = quorate::testing::Cluster::start(1).await;
//! # let endpoints = cluster.endpoints();
//! use quorate::client::Client;
//!
//! let client = Client::builder().endpoints(endpoints).build()?;
//! client.kv().set("greeting", "hello").await?;
//! let greeting = client.kv().get("greeting").await?.expect("it was just written");
//! assert_eq!(greeting.value.as_ref(), b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Dropping a future
//!
//! Every method says what it means to drop its future before it is done, as `select!` and timeouts
//! do:
//!
//! * **Cancel-safe**: nothing is changed and nothing is lost; call it again. So it is with reads,
//!   with what waits for something to happen, and with the streams of watches and events.
//! * **Not cancel-safe**: a change may take effect or not, as after a deadline. It never takes
//!   effect twice: it carries a request id. Who has to know sends the request again with a
//!   `request_id` of their own, the same both times, and gets the answer of the first.

mod backup;
pub mod balance;
mod builder;
mod call;
mod cluster;
mod discovery;
mod error;
mod events;
mod keep;
mod kv;
mod lab;
mod lease;
mod lock_guard;
mod locks;
mod put_stream;
mod reconcile;
mod registration;
mod request;
mod resume;
mod retries;
mod router;
mod session_guard;
mod sessions;
#[cfg(test)]
mod tests;
mod tls;

pub use backup::SnapshotParts;
pub use builder::{Builder, Client};
pub use cluster::Cluster;
pub use discovery::{Discovery, InstanceWatch};
pub use error::Error;
pub use events::{EventRead, EventSubscription, Events};
pub use kv::{Kv, KvWatch, prefix_end};
pub use lab::Lab;
pub use lease::Loss;
pub use lock_guard::{LockGuard, LockRequest};
pub use locks::{LockWatch, Locks};
pub use put_stream::{PutAck, PutAcks, PutStream};
pub use registration::{Registration, RegistrationRequest, Standing};
pub use resume::Resuming;
pub use retries::RetryStats;
pub use session_guard::{SessionGuard, SessionRequest};
pub use sessions::Sessions;
pub use tls::Tls;
