//! TCP as the listeners and the channels use it.
//!
//! A shipped build has tokio's sockets and tonic's own connector here. The build of the unit tests
//! has sockets that are tokio's too, or those of a simulated network where a simulation runs.

use std::io;

use http::uri::Authority;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Error};

#[cfg(test)]
pub use crate::host::simulated::{TcpListener, TcpStream};
#[cfg(not(test))]
pub use tokio::net::{TcpListener, TcpStream};

/// Connects in plaintext.
///
/// # Errors
/// Where there is no connection within the endpoint's limit.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    #[cfg(test)]
    if crate::host::simulated::is_on() {
        return endpoint.connect_with_connector(crate::host::simulated::connector()).await;
    }
    endpoint.connect().await
}

/// Opens a connection to `host:port`, to the first address of the host that takes it.
///
/// # Errors
/// Where the host is not found or none of its addresses takes the connection.
pub async fn dial(authority: &Authority) -> io::Result<TokioIo<TcpStream>> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().ok_or(io::ErrorKind::InvalidInput)?;
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    Ok(TokioIo::new(tcp))
}
