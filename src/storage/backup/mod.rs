//! Backups: a snapshot of the state in a file of its own, outside any data directory.
//!
//! [`BackupFile`] writes one and puts it in its place whole or not at all; [`verify`] reads one from
//! end to end and proves that a cluster can be founded from it; [`load`] fills a store from one.
//! Nothing here changes a data directory.

mod error;
mod file;
mod format;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use error::BackupError;
pub use file::{BackupFile, Loaded, Partial, digest_of, load, verify};
pub use format::Digest;
