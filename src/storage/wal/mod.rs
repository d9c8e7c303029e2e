//! The write-ahead log of all groups: what consensus has promised, in segments of fixed size.
//!
//! One FIFO for terms, votes and entries (raft-rules 16), one write and one sync for everything
//! appended since the last one. The log is truth: the state store may lose its last batches, the
//! log may not. Nothing is read back while the node runs; the entries that are kept are in memory.
//!
//! `format` has the bytes, `recover` reads them at start, `log` writes them.

mod format;
#[cfg(test)]
mod fuzz;
mod group;
mod log;
mod recover;

pub use group::RecoveredGroup;
pub use log::{Wal, WalOptions};
