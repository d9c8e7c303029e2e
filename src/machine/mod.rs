//! Floor 1: the replicated state machine and the store trait it needs.
//!
//! Deterministic: the same entries give the same state, byte for byte, on every node. Time comes
//! from the log only.

mod apply;
mod census;
mod cluster;
mod compaction;
mod dedup;
mod discovery;
mod effect;
mod events;
#[cfg(test)]
mod format;
#[cfg(test)]
mod fuzz;
mod head;
mod keyspace;
mod lock;
mod outcome;
mod page;
mod put_stream;
mod read;
mod restore;
mod retention;
mod room;
mod session;
mod snapshot;
mod span;
pub mod store;
mod tables;
#[cfg(test)]
pub(crate) mod testing;
mod timers;
mod tx;
mod txn;
mod validate;
mod view;

pub use apply::{COMMAND_VERSION, Machine, MachineConfig};
pub use census::Census;
pub use dedup::RequestId;
pub(crate) use discovery::{NODE_SERVICE, decode_instance};
pub use effect::{Applied, Change, ChangeKind, SessionEffect, Space};
pub use head::Head;
pub use outcome::{Decision, refusal};
pub use restore::restore;
pub use retention::StreamBounds;
pub use room::grows;
pub use snapshot::{SnapshotError, SnapshotLoader, SnapshotWriter};
pub(crate) use validate::COMMAND_BYTES_MAX;
pub use validate::{validate, validate_range, validate_streamed_put};
pub use view::{SessionInfo, View};
