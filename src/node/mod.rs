//! Floor 3: a node: the replica, the driver that carries out its jobs, and the handle to it.
//!
//! Four threads own what they change: the driver the replica, the writer the log on disk, the
//! applier the state machine, and one for each time that the state is made durable. They pass
//! messages; services come in through [`Handle`], peers through [`Mailbox`].

mod applier;
pub(crate) mod calls;
mod clock;
pub(crate) mod complete;
mod directory;
pub(crate) mod disk;
mod driver;
mod feed;
#[cfg(test)]
mod fuzz;
mod handle;
mod install;
mod lessor;
mod linger;
mod pending;
pub(crate) mod places;
mod proposal;
pub(crate) mod replica;
mod restore;
mod shared;
pub(crate) mod space;
pub(crate) mod start;
#[cfg(test)]
mod stepped;
mod transport;
mod tuning;
pub(crate) mod wal_writer;

pub use directory::{Directory, Peer};
pub use feed::{Feed, FeedHead, Published};
pub use handle::Handle;
pub use proposal::Proposal;
pub use restore::RestoreError;
pub use start::{Error, NodeOptions, Running, start};
pub use transport::{Mailbox, SnapshotChunks, SnapshotOffer, SnapshotSource, Transport};
pub use tuning::Tuning;

/// How many committed entries a node may have yet to apply and still be asked by clients.
pub(crate) const LAG_ENTRIES_MAX: u64 = 1_000;
