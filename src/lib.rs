//! Quorate: a coordination and event-streaming server on one Raft log.
//!
//! Most users of the library want [`client`], or [`testing`] for a cluster inside a test of their
//! own. `ARCHITECTURE.md` says what the other modules are for and which may use which.

pub mod cli;
pub mod client;
#[cfg(test)]
mod fuzz;
pub mod host;
pub mod lab;
pub mod layers;
pub mod machine;
pub mod net;
pub mod node;
pub mod observe;
pub mod pb;
pub mod raft;
pub mod resilience;
pub mod server;
pub mod services;
pub mod sim;
pub mod storage;
pub mod streaming;
pub mod testing;
pub mod types;
pub mod wire;

/// The README's examples are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;

/// So are those of the docs.
#[cfg(doctest)]
#[doc = include_str!("../docs/balancing.md")]
pub struct Balancing;

#[cfg(doctest)]
#[doc = include_str!("../docs/resilience.md")]
pub struct Resilience;
