//! Floor 5: the gRPC services, and the transport between nodes.
//!
//! One file a service. A handler checks the request, asks the node's handle and maps the answer; it
//! keeps no state. Deadlines, load limits and draining stand before all of them, in [`Limits`] and
//! the gate behind [`client_side`].

mod backup;
mod call;
mod cluster;
mod deadline;
mod discovery;
mod elsewhere;
mod event;
mod gate;
mod health;
mod kv;
mod lab;
mod leader;
mod lock;
mod overload;
pub mod peer;
mod put_stream;
pub(crate) mod reflection;
mod routes;
mod session;
mod snapshot;

pub use cluster::Peers;
pub(crate) use deadline::arrive;
pub use elsewhere::{Asking, Elsewhere};
pub use gate::Limits;
pub use health::Health;
pub use leader::LeaderHint;
pub use overload::OverloadControl;
pub use routes::{ClientSide, client_side};
