//! Why a node could not start or had to end.

use std::net::SocketAddr;

use crate::server::ConfigError;

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
    /// A file or the process's surroundings failed.
    #[error("{what}: {why}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system says.
        why: std::io::Error,
    },
}
