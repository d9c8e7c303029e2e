//! Floor 7: the command line, one file a command. `docs` on each flag are its help.
//!
//! Data goes to standard output and talk to standard error; a refused call exits with 64 plus its
//! gRPC code. Commands speak to a cluster through [`crate::client`] only; `node` and `up` call the
//! server and the lab. Nothing here decides what a cluster does.

mod args;
mod bench;
mod check;
mod child;
mod cluster;
mod completions;
mod context;
mod error;
mod event_lines;
mod event_retention;
mod events;
#[cfg(test)]
mod fuzz;
mod json;
mod kv;
mod lab;
mod lock;
mod node;
mod run;
mod service;
mod show;
mod sim;
mod snapshot;
mod status;
mod table;
#[cfg(test)]
mod tests;
mod up;

pub use args::{Cli, Command, Globals, OutputFormat};
pub use error::Error;
pub use run::{parse, run};
