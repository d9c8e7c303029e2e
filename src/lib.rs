//! Quorate: a coordination and event-streaming server on one Raft log.

pub mod machine;
pub mod node;
pub mod pb;
pub mod raft;
pub mod types;
