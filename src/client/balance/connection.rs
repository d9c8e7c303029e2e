//! One connection to one endpoint: HTTP/2 over TCP, with or without TLS.
//!
//! What makes connections is a trait, so that a balancer can stand on anything that answers gRPC
//! requests. Nothing here connects again, counts or chooses.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response, Uri,
    header::USER_AGENT,
    uri::{Authority, Scheme},
};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::ServiceExt as _;

use crate::{
    client::balance::Endpoint,
    host::tcp,
    layers::{BoxError, BoxFuture},
    net::{Dial, Tls},
    types::Duration,
};

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

    /// Resolves once no more calls can be sent, with the reason where the other side gave one;
    /// calls under way may go on.
    fn closed(&self) -> BoxFuture<Option<BoxError>>;
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
        let endpoint = endpoint.clone();
        Box::pin(async move {
            let connecting = establish(&endpoint, keep_alive, tls);
            match timeout(connect_timeout, connecting).await {
                Ok(connected) => connected,
                Err(_) => Err(format!("no connection within {connect_timeout:?}").into()),
            }
        })
    }
}

async fn establish(
    endpoint: &Endpoint,
    keep_alive: Option<Duration>,
    tls: Option<Dial>,
) -> Result<Arc<dyn Connection>, BoxError> {
    let scheme = if tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    let uri = |authority: &str| {
        Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query("/").build()
    };
    let authority: Authority = endpoint.authority().parse()?;
    let heard = Heard::default();
    let (sender, closed) = match tls {
        None => {
            let address = endpoint.address().parse()?;
            handshake(tcp::dial(&address).await?, &heard, keep_alive).await?
        }
        Some(dial) => {
            let dial = dial.called(&uri(endpoint.authority())?)?;
            let dialled = dial.oneshot(uri(endpoint.address())?).await?;
            handshake(dialled, &heard, keep_alive).await?
        }
    };
    Ok(Arc::new(Established { sender, scheme, authority, closed, heard }))
}

async fn handshake<T>(
    io: TokioIo<T>,
    heard: &Heard,
    keep_alive: Option<Duration>,
) -> Result<(http2::SendRequest<Body>, CancellationToken), BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
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
    let io = TokioIo::new(Overheard { io: io.into_inner(), heard: heard.clone(), whole: false });
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
    // A port that takes connections and says nothing is no server: its SETTINGS come first.
    tokio::select! {
        () = heard.spoken.cancelled() => Ok((sender, closed)),
        () = closed.cancelled() => Err("closed before a word was said".into()),
    }
}

struct Established {
    sender: http2::SendRequest<Body>,
    scheme: Scheme,
    authority: Authority,
    closed: CancellationToken,
    heard: Heard,
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

    fn closed(&self) -> BoxFuture<Option<BoxError>> {
        let (closed, heard) = (self.closed.clone(), self.heard.clone());
        Box::pin(async move {
            closed.cancelled().await;
            heard.farewell().map(|reason| h2::Error::from(reason).into())
        })
    }
}

/// How much of what the other side says first is kept.
const HEARD_BYTES_MAX: usize = 256;

/// The length of a frame's header (RFC 9113, section 4.1).
const FRAME_HEADER_BYTES: usize = 9;

/// The type of a GOAWAY frame (RFC 9113, section 6.8).
const GOAWAY: u8 = 7;

/// What the other side said first. hyper keeps to itself why a connection ended that no call was
/// under way on; a node that wants TLS says so at once.
#[derive(Clone, Default)]
struct Heard {
    first: Arc<Mutex<Vec<u8>>>,
    /// Cancelled once there is anything.
    spoken: CancellationToken,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reason of a GOAWAY among the first frames.
    fn farewell(&self) -> Option<h2::Reason> {
        let heard = self.lock();
        let mut rest = heard.as_slice();
        while let [one, two, three, kind, ..] = *rest {
            let length = u32::from_be_bytes([0, one, two, three]) as usize;
            let payload = rest.get(FRAME_HEADER_BYTES..)?;
            if kind == GOAWAY {
                let code = payload.get(4..8)?.try_into().ok()?;
                let reason = h2::Reason::from(u32::from_be_bytes(code));
                return (reason != h2::Reason::NO_ERROR).then_some(reason);
            }
            rest = payload.get(length..)?;
        }
        None
    }
}

/// A stream whose first bytes are kept.
struct Overheard<T> {
    io: T,
    heard: Heard,
    /// As much was kept as is to be.
    whole: bool,
}

impl<T: AsyncRead + Unpin> AsyncRead for Overheard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if !self.whole {
            let new = &buffer.filled()[before..];
            let mut heard = self.heard.lock();
            let room = HEARD_BYTES_MAX - heard.len();
            heard.extend_from_slice(&new[..new.len().min(room)]);
            let (spoke, whole) = (!heard.is_empty(), heard.len() == HEARD_BYTES_MAX);
            drop(heard);
            if spoke {
                self.heard.spoken.cancel();
            }
            self.whole = whole;
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Overheard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_takes_connections_and_says_nothing_is_not_connected_to() {
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
        let endpoint = Endpoint::new(mute.local_addr().expect("it is bound").to_string());
        let endpoint = endpoint.expect("it is an address");
        let connect = Http2::new().connect_timeout(Duration::from_millis(50));
        let error = connect.connect(&endpoint).await.err().expect("nothing was said");
        assert!(error.to_string().starts_with("no connection within"), "{error}");
        let connecting = tokio::spawn(Http2::new().connect(&endpoint));
        // The first one is the one that was given up.
        for _ in 0..2 {
            drop(mute.accept().await.expect("somebody connects"));
        }
        let error = connecting.await.expect("it does not panic").err().expect("it was closed");
        assert!(!error.to_string().starts_with("no connection within"), "it waited: {error}");
    }

    #[test]
    fn a_farewell_is_found_behind_other_frames() {
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
        let goaway = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12];
        let heard = Heard::default();
        assert_eq!(heard.farewell(), None);
        heard.lock().extend_from_slice(&settings);
        assert_eq!(heard.farewell(), None);
        heard.lock().extend_from_slice(&goaway);
        assert_eq!(heard.farewell(), Some(h2::Reason::INADEQUATE_SECURITY));
        let last = heard.lock().len() - 1;
        heard.lock()[last] = 0;
        assert_eq!(heard.farewell(), None, "it only ended");
        heard.lock().truncate(20);
        assert_eq!(heard.farewell(), None, "half a frame");
    }
}
