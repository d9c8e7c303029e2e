//! Floor 2: connections: what a listener lets in and what a caller dials, in plaintext or by TLS.
//!
//! Certificates are files that change while a node runs: [`Tls`] holds what was read last and reads
//! it again. [`incoming`] bounds how many connections there are and how long each may take to say
//! what it wants; [`Dial`] is the way out. Nothing here knows gRPC's methods or Raft.

mod dial;
mod error;
mod fault;
mod files;
mod first_bytes;
mod incoming;
mod log_limit;
#[cfg(test)]
mod tests;
mod tls;
mod validity;

pub use dial::{ClientPem, Dial, Dialled, client_config, read_client_files};
pub use error::Error;
pub use fault::Fault;
pub use files::TlsFiles;
pub use incoming::{Connection, Incoming, ListenOptions, incoming};
pub use tls::Tls;
pub use validity::is_good_for;
