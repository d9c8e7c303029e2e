//! Who a data directory belongs to: the `identity` file.
//!
//! Small TOML, written by the server alone and replaced as a whole. A directory's incarnation is
//! drawn when it is made, so that a wiped disk under an old id is not taken for the one before it
//! (raft-rules 20).

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use serde::Deserialize;

use crate::{
    storage::{Error, files::sync_directory},
    types::{ClusterId, Incarnation, NodeId},
};

pub(crate) const IDENTITY_FILE: &str = "identity";
const NEW_FILE: &str = "identity.new";
const FORMAT_VERSION: u64 = 1;

/// Whose data this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node_id: NodeId,
    /// The disk's incarnation.
    pub incarnation: Incarnation,
    /// The cluster, once it is known.
    pub cluster_id: Option<ClusterId>,
    /// Whether the log was begun; from then on its absence is a loss.
    pub log_begun: bool,
}

#[derive(Deserialize)]
struct Versioned {
    format: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(rename = "format")]
    _format: u64,
    node_id: u64,
    incarnation: String,
    cluster_id: Option<String>,
    log_begun: bool,
    checksum: String,
}

impl Identity {
    /// The file's text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = format!(
            "# Whose data this is. Written by quorate; not to be edited.\n\
             format = {FORMAT_VERSION}\n\
             node_id = {}\n\
             incarnation = \"{}\"\n",
            self.node_id, self.incarnation
        );
        if let Some(cluster_id) = self.cluster_id {
            text.push_str(&format!("cluster_id = \"{cluster_id}\"\n"));
        }
        text.push_str(&format!("log_begun = {}\n", self.log_begun));
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("checksum = \"{checksum:08x}\"\n"));
        text
    }

    /// Reads the file's text; `file` is for messages.
    ///
    /// # Errors
    /// Where the version is unknown or the text is not what was written.
    pub fn decode(text: &str, file: &str) -> Result<Self, Error> {
        let corrupt = |what: &dyn std::fmt::Display| Error::Corrupt {
            file: file.into(),
            offset: 0,
            what: what.to_string(),
        };
        let version: Versioned = toml::from_str(text).map_err(|error| corrupt(&error.message()))?;
        if version.format != FORMAT_VERSION {
            return Err(Error::UnknownVersion { file: file.into(), version: version.format });
        }
        let fields: Fields = toml::from_str(text).map_err(|error| corrupt(&error.message()))?;
        let summed = text.rfind("checksum").map_or(text, |end| &text[..end]);
        if fields.checksum != format!("{:08x}", crc32c::crc32c(summed.as_bytes())) {
            return Err(corrupt(&"the checksum does not hold"));
        }
        let cluster_id = fields
            .cluster_id
            .map(|id| ClusterId::parse(&id).ok_or_else(|| corrupt(&"the cluster id is no UUID")));
        Ok(Self {
            node_id: NodeId::new(fields.node_id),
            incarnation: Incarnation::parse(&fields.incarnation)
                .ok_or_else(|| corrupt(&"the incarnation is no UUID"))?,
            cluster_id: cluster_id.transpose()?,
            log_begun: fields.log_begun,
        })
    }

    /// Reads the identity of a directory; `None` where it has none.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(IDENTITY_FILE);
        let file = path.display().to_string();
        match fs::read_to_string(&path) {
            Ok(text) => Self::decode(&text, &file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", file, error)),
        }
    }

    /// Puts the identity there durably; a crash leaves the old one or the new one.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), Error> {
        let new = directory.join(NEW_FILE);
        let replace = || {
            let mut file = File::create(&new)?;
            file.write_all(self.encode().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, directory.join(IDENTITY_FILE))?;
            sync_directory(directory)
        };
        let path = directory.join(IDENTITY_FILE).display().to_string();
        replace().map_err(|error| Error::io("write", path, error))
    }
}
