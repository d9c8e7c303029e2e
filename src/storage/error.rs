//! What can go wrong on a disk, in words that name the file and say what to do.
//!
//! Missing and corrupt are different words (raft-rules 23): a file that is not there can be looked
//! for, bytes that are wrong must not be served or voted with.

use std::{io, path::PathBuf};

use crate::types::NodeId;

/// A failure of this floor. None of them is to be retried: the node stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {doing} {file}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that were known durable are wrong.
    #[error(
        "corrupt: {file} at offset {offset}: {what}; the node must not vote with this log: \
         restore the file, or remove the node from the cluster and add it anew"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// Something that must be there is not.
    #[error("missing: {what}; restore it, or remove the node from the cluster and add it anew")]
    Missing {
        /// What is missing.
        what: String,
    },
    /// A newer program wrote it.
    #[error(
        "{file} has format version {version}, which this program does not know: start the \
         program that wrote it, or a newer one"
    )]
    UnknownVersion {
        /// The file.
        file: String,
        /// Its version.
        version: u64,
    },
    /// An earlier write failed; what the disk holds is unknown until the next start.
    #[error("the log takes no more writes: an earlier one failed ({first})")]
    Poisoned {
        /// The failure.
        first: String,
    },
    /// Another process works on the directory.
    #[error(
        "the data directory {path} is in use by another process{holder}: stop that one, or give \
         this node a directory of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who, where known.
        holder: String,
    },
    /// The directory is another node's.
    #[error(
        "the data directory {path} belongs to node {found}, not to node {wanted}: start it with \
         --id {found}, or give node {wanted} its own directory"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who came.
        wanted: NodeId,
    },
    /// The directory is empty, and nobody said that this is meant.
    #[error(
        "the data directory {path} is empty: where a new cluster is to be founded, start every \
         node of it with --bootstrap; where this node had data, its disk was wiped or is not \
         mounted, and it must not vote under its old id"
    )]
    Empty {
        /// The directory.
        path: PathBuf,
    },
    /// Parts of a node's data are there, its identity is not.
    #[error(
        "the data directory {path} holds {found} but no identity file: it was wiped in part; \
         restore it whole, or empty it and add the node anew"
    )]
    NoIdentity {
        /// The directory.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The directory is of another cluster.
    #[error("the data directory {path} belongs to cluster {found}, not to cluster {wanted}")]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: crate::types::ClusterId,
        /// Who came.
        wanted: crate::types::ClusterId,
    },
    /// The state store failed.
    #[error(transparent)]
    Store(#[from] crate::machine::store::StoreError),
}

impl Error {
    /// Wraps what the system said of a file.
    pub(crate) fn io(doing: &'static str, file: impl Into<String>, source: io::Error) -> Self {
        Self::Io { doing, file: file.into(), source }
    }
}
