//! Floor 2: where wire types end.
//!
//! One file a proto that needs turning into a type of ours; `status` is the one place where a
//! refusal becomes a gRPC status and back.

#[cfg(test)]
mod fuzz;
pub mod raft;
pub mod status;
