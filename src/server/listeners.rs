//! The gRPC listeners: one for clients, one for peers.
//!
//! Windows are fixed and large, never adaptive: h2 closes a connection over many small unread
//! frames, and its budget for them is a share of the connection's window.

use std::net::SocketAddr;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tonic_health::ServingStatus;

use crate::{
    host::tcp::TcpListener,
    net::{self, ListenOptions},
    server::{Error, requests::RequestLayer, secure::ConnectionLimits},
    services::{
        peer::{self, PeerTransport},
        reflection,
    },
};

const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The service on the peer listener.
const RAFT_SERVICE: &str = "quorate.raft.v1.RaftService";

/// Binds an address.
pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let refuse = |why| Error::Listen { address, why };
    let listener = TcpListener::bind(address).await.map_err(refuse)?;
    let bound = listener.local_addr().map_err(refuse)?;
    Ok((listener, bound))
}

/// What peers reach, with health and reflection. A peer's health is that its process answers: who
/// leads is between the members themselves.
pub(crate) async fn peer_routes(transport: &PeerTransport) -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status(RAFT_SERVICE, ServingStatus::Serving).await;
    let routes = Routes::new(transport.service()).add_service(health);
    reflection::add(routes, &[RAFT_SERVICE]).prepare()
}

/// Serves clients until `stop`, then until the last connection is done.
pub(crate) fn serve_clients(
    listener: TcpListener,
    routes: Routes,
    layer: RequestLayer,
    limits: ConnectionLimits,
    options: ListenOptions,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams_per_connection_max)
        .http2_max_header_list_size(limits.header_bytes_max)
        .http2_keepalive_interval(Some(limits.keepalive_interval))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout))
        .layer(layer);
    let incoming = net::incoming(listener, options);
    tokio::spawn(async move {
        let served = server
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the client listener ended");
        }
    })
}

/// Serves peers until `stop`, then until the last connection is done.
pub(crate) fn serve_peers(
    listener: TcpListener,
    routes: Routes,
    limits: ConnectionLimits,
    options: ListenOptions,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let mut server = peer::server_builder()
        .max_concurrent_streams(limits.streams_per_connection_max)
        .http2_max_header_list_size(limits.header_bytes_max);
    let incoming = net::incoming(listener, options);
    tokio::spawn(async move {
        let served = server
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the peer listener ended");
        }
    })
}
