//! The gRPC listeners: one for clients, one for peers, each with health and reflection.
//!
//! Windows are fixed and large, never adaptive: h2 closes a connection over many small unread
//! frames, and its budget for them is a share of the connection's window.

use std::net::SocketAddr;

use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    service::{Routes, RoutesBuilder},
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::{
    pb::DESCRIPTORS,
    server::{Error, requests::RequestLayer},
    services::peer,
    types::Duration,
};

const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
const STREAMS_PER_CONNECTION_MAX: u32 = 4_096;
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The reflection services themselves are told of as well.
const REFLECTION_SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// Binds an address.
pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let refuse = |why| Error::Listen { address, why };
    let listener = TcpListener::bind(address).await.map_err(refuse)?;
    let bound = listener.local_addr().map_err(refuse)?;
    Ok((listener, bound))
}

/// Adds health and reflection to a listener whose own services are `services`, full names.
pub(crate) fn with_health_and_reflection(
    builder: &mut RoutesBuilder,
    reporter: &HealthReporter,
    services: &[&str],
) {
    let health = HealthService::from_health_reporter(reporter.clone());
    builder.add_service(HealthServer::new(health));
    let reflection = || {
        let mut reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        for name in services.iter().chain(&REFLECTION_SERVICES) {
            reflection = reflection.with_service_name(*name);
        }
        reflection
    };
    let why = "the build script encoded the descriptors";
    builder.add_service(reflection().build_v1().expect(why));
    builder.add_service(reflection().build_v1alpha().expect(why));
}

/// Serves clients until `stop`, then until the last connection is done.
pub(crate) fn serve_clients(
    listener: TcpListener,
    routes: Routes,
    layer: RequestLayer,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let mut server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(layer);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(async move {
        let served = server
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled())
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
    stop: CancellationToken,
) -> JoinHandle<()> {
    let mut server = peer::server_builder().max_concurrent_streams(STREAMS_PER_CONNECTION_MAX);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(async move {
        let served = server
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, stop.cancelled())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the peer listener ended");
        }
    })
}
