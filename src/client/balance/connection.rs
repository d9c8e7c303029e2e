//! One connection to one endpoint: HTTP/2 over TCP, with or without TLS.
//!
//! What makes connections is a trait, so that a balancer can stand on anything that answers gRPC
//! requests. Nothing here connects again, counts or chooses.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{HeaderValue, Request, Response, Uri, header::USER_AGENT, uri::Authority};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::{
    client::balance::Endpoint,
    host::tcp,
    net::{Dial, Tls},
    types::Duration,
};

/// Why there is no connection, or why it is gone.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A future in a box.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How long one attempt to connect may take, unless said otherwise.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// The flow-control window of a connection. Never the adaptive one: with it h2 closes
/// connections over many small unread frames.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The flow-control window of one stream.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// How often an HTTP/2 ping asks whether a node of Quorate is still there.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// Who is calling, as the other side's logs see it.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("quorate/", env!("CARGO_PKG_VERSION")));

/// Makes connections.
pub trait Connect: fmt::Debug + Send + Sync + 'static {
    /// Connects to an endpoint. The balancer itself bounds how often, not how long.
    fn connect(&self, endpoint: &Endpoint) -> BoxFuture<Result<Arc<dyn Connection>, BoxError>>;
}

/// A connection that carries calls until it is closed.
pub trait Connection: Send + Sync + 'static {
    /// Sends a request.
    fn call(&self, request: Request<Body>) -> BoxFuture<Result<Response<Body>, CallError>>;

    /// Resolves once no more calls can be sent; those under way may go on.
    fn closed(&self) -> BoxFuture<()>;
}

/// Why a request got no answer.
#[derive(Debug)]
pub enum CallError {
    /// It never left: here it is again.
    NotSent(Box<Request<Body>>, BoxError),
    /// It left, and may have been carried out.
    Broken(BoxError),
}

/// Connects by TCP, and by TLS where it has what that takes. The default of a balancer.
#[derive(Clone)]
#[must_use]
pub struct Http2 {
    connect_timeout: Duration,
    keep_alive: Option<Duration>,
    tls: Option<Dial>,
}

impl Default for Http2 {
    fn default() -> Self {
        Self { connect_timeout: CONNECT_TIMEOUT_DEFAULT, keep_alive: None, tls: None }
    }
}

impl Http2 {
    /// In plaintext; one attempt to connect may take 5 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bounds one attempt to connect, TLS included.
    pub const fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Asks by an HTTP/2 ping, at this interval and also while nothing is called, whether the other
    /// side is still there; one that does not answer as long again is given up. Default never:
    /// many servers close connections that ping more often than every 5 minutes.
    pub const fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = Some(interval);
        self
    }

    /// Dials by TLS. ALPN must offer `h2`.
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(Dial::fixed(config));
        self
    }

    /// Dials other nodes, with the certificates that this node's own listener for them has.
    pub(crate) fn peers(mut self, tls: Arc<Tls>) -> Self {
        self.tls = Some(Dial::peer(tls));
        self.keep_alive = Some(KEEPALIVE_INTERVAL);
        self
    }
}

impl fmt::Debug for Http2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = self.tls.is_some();
        f.debug_struct("Http2")
            .field("connect_timeout", &self.connect_timeout)
            .field("keep_alive", &self.keep_alive)
            .field("tls", &tls)
            .finish()
    }
}

impl Connect for Http2 {
    fn connect(&self, endpoint: &Endpoint) -> BoxFuture<Result<Arc<dyn Connection>, BoxError>> {
        let Self { connect_timeout, keep_alive, tls } = self.clone();
        let address = endpoint.address().to_owned();
        Box::pin(async move {
            let connecting = establish(&address, keep_alive, tls);
            match timeout(connect_timeout, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("no connection within {connect_timeout:?}").into()),
            }
        })
    }
}

async fn establish(
    address: &str,
    keep_alive: Option<Duration>,
    tls: Option<Dial>,
) -> Result<Arc<dyn Connection>, BoxError> {
    let authority: Authority = address.parse()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let origin =
        Uri::builder().scheme(scheme).authority(authority.clone()).path_and_query("/").build()?;
    let (sender, closed) = match tls {
        None => handshake(tcp::dial(&authority).await?, keep_alive).await?,
        Some(dial) => handshake(dial.oneshot(origin.clone()).await?, keep_alive).await?,
    };
    let Some(scheme) = origin.scheme().cloned() else { return Err("no scheme".into()) };
    Ok(Arc::new(Established { sender, scheme, authority, closed }))
}

async fn handshake<T>(
    io: TokioIo<T>,
    keep_alive: Option<Duration>,
) -> Result<(http2::SendRequest<Body>, CancellationToken), BoxError>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .keep_alive_interval(keep_alive)
        .keep_alive_while_idle(keep_alive.is_some());
    if let Some(interval) = keep_alive {
        builder.keep_alive_timeout(interval);
    }
    let (mut sender, connection) = builder.handshake::<_, Body>(io).await?;
    let closed = CancellationToken::new();
    let guard = closed.clone().drop_guard();
    tokio::spawn(async move {
        let _guard = guard;
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
    sender.ready().await?;
    Ok((sender, closed))
}

struct Established {
    sender: http2::SendRequest<Body>,
    scheme: http::uri::Scheme,
    authority: Authority,
    closed: CancellationToken,
}

impl Connection for Established {
    fn call(&self, mut request: Request<Body>) -> BoxFuture<Result<Response<Body>, CallError>> {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        if parts.path_and_query.is_none() {
            parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        }
        *request.uri_mut() = Uri::from_parts(parts).expect("all three parts are there");
        request.headers_mut().entry(USER_AGENT).or_insert(AGENT);
        let answer = self.sender.clone().try_send_request(request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => Ok(response.map(Body::new)),
                Err(mut error) => Err(match error.take_message() {
                    Some(request) => {
                        CallError::NotSent(Box::new(request), error.into_error().into())
                    }
                    None => CallError::Broken(error.into_error().into()),
                }),
            }
        })
    }

    fn closed(&self) -> BoxFuture<()> {
        Box::pin(self.closed.clone().cancelled_owned())
    }
}
