//! `quorate up`: the flags of a cluster on this machine; the lab runs it.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::{
    cli::Error,
    lab::up::{self, UpOptions},
};

/// Flags of `up`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  quorate up\n  quorate up --tls\n  quorate up --nodes 5 --ephemeral -- --log-level debug\n\nA --config file holds settings of every node, such as log_level = \"debug\"."
)]
pub struct UpArgs {
    /// How many nodes
    #[arg(long, env = "QUORATE_NODES", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Clients get the ports from this + 1 on, peers from + 11, admin HTTP from + 21
    #[arg(long, env = "QUORATE_BASE_PORT", default_value_t = 7400, value_name = "PORT")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=65_506))]
    base_port: u16,
    /// Where everything is kept
    #[arg(long, env = "QUORATE_DATA_DIR", default_value = "./quorate-data", value_name = "DIR")]
    data_dir: PathBuf,
    /// Use a fresh temporary directory and remove it at the end
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
    /// Found the cluster from a saved snapshot
    #[arg(long, value_name = "FILE")]
    restore: Option<PathBuf>,
    /// Make certificates: peers demand them of each other, clients need the CA alone
    #[arg(long)]
    tls: bool,
    /// Let `quorate lab` break the links between the nodes
    #[arg(long)]
    lab: bool,
    /// Further flags of each node
    #[arg(last = true, value_name = "NODE FLAGS")]
    node_flags: Vec<String>,
}

/// The file as a node finds it from anywhere: the commands to copy name it.
fn absolute(file: Option<PathBuf>) -> Result<Option<PathBuf>, Error> {
    let absolute = file.map(std::path::absolute).transpose();
    absolute.map_err(|error| Error::failed(format!("--restore: {error}")))
}

impl UpArgs {
    pub(crate) async fn run(mut self, config: Option<&Path>) -> Result<(), Error> {
        if self.lab {
            self.node_flags.push("--lab".to_owned());
        }
        if let Some(file) = config {
            self.node_flags.extend(["--config".to_owned(), file.display().to_string()]);
        }
        let program = std::env::current_exe()
            .map_err(|error| Error::failed(format!("cannot find this program: {error}")))?;
        let typed_as = std::env::args().next().unwrap_or_else(|| "quorate".to_owned());
        let options = UpOptions {
            nodes: self.nodes,
            base_port: self.base_port,
            data_dir: self.data_dir,
            ephemeral: self.ephemeral,
            restore: absolute(self.restore)?,
            tls: self.tls,
            node_flags: self.node_flags,
            program,
            typed_as,
        };
        up::run(options).await.map_err(|error| Error::failed(error.to_string()))
    }
}
