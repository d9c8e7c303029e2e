//! The state store behind [`machine::store::Store`](crate::machine::store::Store): on disk and in
//! memory.
//!
//! One body of tests, [`conformance`], holds for both.

mod backend;
mod buffer;
pub mod conformance;
mod memory;
mod redb;

pub use memory::MemoryStore;
pub use redb::RedbStore;
