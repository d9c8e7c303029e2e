//! Why a node could not start or had to end.

use std::net::SocketAddr;

use crate::{net, node, server::ConfigError, storage};

/// Why a node could not start or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration does not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        why: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] net::Error),
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The node cannot start, or could not go on.
    #[error(transparent)]
    Node(#[from] node::Error),
    /// The cluster refuses this node: its disk was wiped, or it belongs elsewhere.
    #[error("the cluster refuses this node: {0}")]
    Refused(String),
    /// The start was broken off.
    #[error("the start was broken off: {0}")]
    Start(String),
    /// A file or the process's surroundings failed.
    #[error("{what}: {why}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system says.
        why: std::io::Error,
    },
}
