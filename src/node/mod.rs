//! Floor 3: a node: the replica, the driver that carries out its jobs, and the handle to it.
//!
//! Four threads own what they change: the driver the replica, the writer the log on disk, the
//! applier the state machine, and one for each time that the state is made durable. They pass
//! messages; services come in through [`Handle`], peers through [`Mailbox`].

mod applier;
mod calls;
mod clock;
mod complete;
mod directory;
mod disk;
mod driver;
mod feed;
mod handle;
mod install;
mod lessor;
mod linger;
mod pending;
mod places;
mod proposal;
mod replica;
mod restore;
mod shared;
mod space;
mod start;
mod transport;
mod tuning;
mod wal_writer;

pub use directory::{Directory, Peer};
pub use feed::{Feed, FeedHead, Published};
pub use handle::Handle;
pub use proposal::Proposal;
pub use restore::RestoreError;
pub use start::{Error, NodeOptions, Running, start};
pub use transport::{Mailbox, SnapshotChunks, SnapshotOffer, SnapshotSource, Transport};
pub use tuning::Tuning;
