//! Floor 2: what a node keeps on its disk.
//!
//! The [data directory](DataDir) holds who the node is, the [log](Wal) that consensus lives in, the
//! [state store](store) that the state machine lives in, and snapshots on their way. Every format
//! has a version, and an unknown one is refused; what is wrong is told in words that name the file.

pub mod backup;
mod data_dir;
mod error;
pub mod files;
#[cfg(test)]
mod fuzz;
mod identity;
mod steps;
pub mod store;
mod wal;

pub use data_dir::{Bootstrap, DataDir, PendingState, free_bytes};
pub use error::Error;
pub use identity::Identity;
#[cfg(test)]
pub(crate) use steps::DIES_AT;
pub(crate) use steps::{Step, reached};
pub use wal::{RecoveredGroup, Wal, WalOptions};
