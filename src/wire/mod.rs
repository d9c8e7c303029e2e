//! Floor 2: where wire types end.
//!
//! One file a proto that needs turning into a type of ours; `status` is the one place where a
//! refusal becomes a gRPC status and back.

#[cfg(test)]
mod fuzz;
pub mod raft;
pub mod status;

/// The metadata of an answer that has the leader's client address, `host:port`, as the answering
/// node knows it. Absent where it knows no leader.
pub const LEADER_KEY: &str = "quorate-leader";
