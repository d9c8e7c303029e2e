//! Floor 3: a node: the replica, the driver that carries out its jobs, and the handle to it.

mod directory;
mod feed;
mod handle;
mod transport;

pub use directory::{Directory, Peer};
pub use feed::{Feed, FeedHead, Published};
pub use handle::Handle;
pub use transport::{Mailbox, SnapshotOffer, SnapshotSource, Transport};
