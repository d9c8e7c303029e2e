//! Floor 6: a node as a process: settings, assembly, listeners, health, drain.
//!
//! [`run`] is what `quorate node` calls; [`Server`] is the same node inside somebody's program. All
//! that is particular to a process (signals, exit codes) stays in [`run`].

mod addresses;
mod admin;
mod assemble;
mod config;
mod drain;
mod error;
#[cfg(test)]
mod fuzz;
mod listeners;
mod registration;
mod requests;
mod run;
mod secure;
mod settings;
mod signals;
mod slow;
mod spans;
pub mod telemetry;

pub use addresses::Addresses;
pub use admin::Readiness;
pub use assemble::Server;
pub use config::{Config, ConfigError, LogFormat, ValidConfig};
pub use drain::Scope;
pub use error::Error;
pub use run::run;
pub use settings::{Settings, parse_bytes, parse_duration};
