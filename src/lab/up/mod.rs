//! `quorate up`: a cluster of child processes on this machine.
//!
//! The supervisor starts nodes, waits for a leader, says what dies and stops everything at the end.
//! It never restarts a node and never touches a node's data.

mod error;

use std::path::PathBuf;

pub use error::Error;

/// What `up` is asked for.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// How many nodes; 1 to 9.
    pub nodes: u8,
    /// Clients get the ports from this + 1 on, peers from + 11, admin HTTP from + 21.
    pub base_port: u16,
    /// Where everything is kept; ignored when `ephemeral`.
    pub data_dir: PathBuf,
    /// Uses a fresh temporary directory and removes it at the end.
    pub ephemeral: bool,
    /// Further flags for each `quorate node`.
    pub node_flags: Vec<String>,
    /// The binary to run as `quorate node`.
    pub program: PathBuf,
    /// How the person typed the binary's path: printed in commands to copy.
    pub typed_as: String,
}

/// Runs the cluster until it is told to stop.
///
/// # Errors
/// One line that names what stands in the way, and what to do about it.
pub async fn run(options: UpOptions) -> Result<(), Error> {
    let _ = options;
    tokio::task::yield_now().await;
    Ok(())
}
