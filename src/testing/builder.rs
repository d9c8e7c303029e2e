//! What a test's cluster is made with.

use std::path::PathBuf;

use crate::{server::Settings, testing::Cluster};

/// The most nodes: further ones would meet the next kind of port.
const NODES_MAX: u8 = 9;

/// Describes a cluster for a test.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    pub(super) nodes: u8,
    pub(super) program: Option<PathBuf>,
    pub(super) settings: String,
    pub(super) restore: Option<PathBuf>,
    pub(super) tls: bool,
    pub(super) lab: bool,
}

impl ClusterBuilder {
    pub(super) const fn new(nodes: u8) -> Self {
        Self {
            nodes,
            program: None,
            settings: String::new(),
            restore: None,
            tls: false,
            lab: false,
        }
    }

    /// Runs this binary, a process a node, instead of nodes inside the test's process.
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// Settings for every node, in the TOML of `quorate node --config`; addresses, ids and data
    /// directories are the cluster's own and cannot be set.
    #[must_use]
    pub fn settings(mut self, toml: impl Into<String>) -> Self {
        self.settings = toml.into();
        self
    }

    /// Founds the cluster from this backup.
    #[must_use]
    pub fn restore(mut self, file: impl Into<PathBuf>) -> Self {
        self.restore = Some(file.into());
        self
    }

    /// Makes certificates: clients trust the CA at [`Cluster::ca_file`], peers demand certificates
    /// of each other.
    #[must_use]
    pub const fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Permits [`Cluster::break_link`] and its like.
    #[must_use]
    pub const fn lab(mut self) -> Self {
        self.lab = true;
        self
    }

    /// Starts the nodes and waits until one leads and all are ready.
    ///
    /// # Panics
    /// Where the settings do not fit, a node cannot start, or no leader is there in time.
    pub async fn start(self) -> Cluster {
        assert!((1..=NODES_MAX).contains(&self.nodes), "a cluster has 1 to {NODES_MAX} nodes");
        let read = Settings::from_toml(&self.settings);
        let mut settings = read.unwrap_or_else(|error| panic!("the cluster's settings: {error}"));
        settings.lab = Some(self.lab);
        Cluster::begin(self, settings).await
    }
}
