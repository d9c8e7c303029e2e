//! The addresses that a node is bound to, and the file in its data directory that tells them.
//!
//! With port 0 nobody knows the port before it is bound; whoever started the node reads it here.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The file's name in the data directory.
const FILE: &str = "addresses";

/// The addresses that a node is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// gRPC for clients.
    pub client: SocketAddr,
    /// gRPC for peers.
    pub peer: SocketAddr,
    /// HTTP for probes and scrapers.
    pub admin: SocketAddr,
}

impl Addresses {
    /// Writes `addresses` into a data directory, whole or not at all.
    pub(crate) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let text = serde_json::to_string(self).expect("addresses become JSON");
        let (file, fresh) = (Self::file(data_dir), data_dir.join("addresses.new"));
        fs::write(&fresh, text + "\n")?;
        fs::rename(fresh, file)
    }

    /// Reads what the node in this data directory wrote when it was last started.
    ///
    /// # Errors
    /// Where there is no such file, or it is not ours.
    pub fn read(data_dir: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(Self::file(data_dir))?;
        serde_json::from_str(&text).map_err(io::Error::other)
    }

    fn file(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let addresses = Addresses { client: local(1), peer: local(2), admin: local(3) };
        assert!(Addresses::read(dir.path()).is_err(), "nothing was written yet");
        addresses.write(dir.path()).expect("written");
        assert_eq!(Addresses::read(dir.path()).expect("read"), addresses);
    }
}
