//! Log lines to standard error, as text or JSON.
//!
//! Set up once by the process; a library user's own subscriber is left alone.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

use crate::server::{ConfigError, LogFormat};

/// Sends log lines to standard error. `level` is a level or directives such as
/// `info,quorate::raft=debug`. Where a subscriber is installed already, that one stays.
///
/// # Errors
/// Where `level` cannot be read.
pub fn init(format: LogFormat, level: &str) -> Result<(), ConfigError> {
    let filter = EnvFilter::try_new(level).map_err(|error| ConfigError::Setting {
        setting: "--log-level",
        why: format!("`{level}`: {error}"),
    })?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    drop(installed);
    Ok(())
}
