//! Floor 1: the replicated state machine and the store trait it needs.
//!
//! Deterministic: the same entries give the same state, byte for byte, on every node. Time comes
//! from the log only.

mod apply;
mod outcome;
pub mod store;
mod view;

pub use apply::{Applied, Change, ChangeKind, Head, Machine, MachineConfig, SessionEffect, Space};
pub use outcome::refusal;
pub use view::{SessionInfo, View};
