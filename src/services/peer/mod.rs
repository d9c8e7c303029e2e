//! How nodes talk to each other: `raft.v1` over tonic.
//!
//! [`PeerTransport`] is the node's way out and keeps connections to every peer, each kind of
//! traffic on one of its own, so that a snapshot never delays a heartbeat. [`PeerService`] is the
//! way in; it delivers into an [`Inbox`], which is the node. Nothing here decides anything about
//! Raft: what cannot be sent is dropped, and what arrives from a stranger is answered and changes
//! nothing.

mod batch;
mod calls;
mod channel;
pub(crate) mod faults;
mod inbound;
mod inbox;
mod lab;
mod lanes;
mod link;
mod pass_in;
mod pass_out;
mod rate;
mod service;
mod snapshot_in;
mod snapshot_out;
mod transport;

#[cfg(test)]
mod tests;

pub use channel::server_builder;
pub use inbox::Inbox;
pub use lab::LinkLab;
pub use service::PeerService;
pub use transport::{PeerOptions, PeerTransport};
