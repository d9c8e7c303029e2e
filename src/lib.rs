//! Quorate: a coordination and event-streaming server on one Raft log.

pub mod cli;
pub mod client;
pub mod lab;
pub mod machine;
pub mod node;
pub mod observe;
pub mod pb;
pub mod raft;
pub mod server;
pub mod services;
pub mod storage;
pub mod streaming;
pub mod testing;
pub mod types;
pub mod wire;
