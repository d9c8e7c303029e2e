//! The connections that a listener lets in: how many, after which handshake, and how soon.
//!
//! A handshake never keeps the next caller from being accepted, and its place counts from the first
//! packet on. What is refused is logged once, within bounds, and counted. In plaintext a connection
//! is the socket itself behind one match.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::Stream;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::{
    host::tcp::{TcpListener, TcpStream},
    net::{Fault, Tls, first_bytes::FirstBytes, log_limit::LogLimit},
    observe::Metrics,
    types::Duration,
};

/// How many connections may wait to be served.
const READY_MAX: usize = 128;

/// How long to wait after the system refused to hand out a connection: it has no file left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a refused caller may take to read why.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// How many bytes of a refused caller are read so that it reads why.
const FAREWELL_BYTES_MAX: u64 = 64 << 10;

/// What a TLS record of a handshake begins with.
const TLS_HANDSHAKE: u8 = 0x16;

/// What HTTP/2 in plaintext begins with.
const H2_PREFACE: u8 = b'P';

/// What is said to HTTP/2 in plaintext: empty SETTINGS, then GOAWAY with INADEQUATE_SECURITY and
/// the reason as text, which gRPC clients show.
const TLS_DEMANDED: &[u8] =
    b"\0\0\0\x04\0\0\0\0\0\0\0\x1d\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0cthis port demands TLS";

/// How a listener serves.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// The listener's name in logs and metrics: `client` or `peer`.
    pub listener: &'static str,
    /// How many connections it holds; further ones are accepted and closed at once.
    pub connections_max: usize,
    /// How long a handshake may take, and how long the first bytes after it.
    pub handshake_timeout: Duration,
    /// Its certificates; without them it speaks plaintext.
    pub tls: Option<Arc<Tls>>,
    /// Where refusals are counted.
    pub metrics: Metrics,
}

/// Lets connections in. Must be called within a tokio runtime. When the stream is dropped the
/// listener closes; connections that it gave out live on.
#[must_use]
pub fn incoming(listener: TcpListener, options: ListenOptions) -> Incoming {
    let (sender, ready) = mpsc::channel(READY_MAX);
    let limit = LogLimit::new(Instant::now());
    let places = Arc::new(Semaphore::new(options.connections_max.min(Semaphore::MAX_PERMITS)));
    let desk = Arc::new(Desk { options, limit });
    let task = tokio::spawn(accept(listener, desk, places, sender));
    Incoming { ready, _task: AbortOnDropHandle::new(task) }
}

/// The connections that a listener lets in.
#[derive(Debug)]
pub struct Incoming {
    ready: mpsc::Receiver<Connection>,
    _task: AbortOnDropHandle<()>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Connection>>> {
        self.ready.poll_recv(context).map(|next| next.map(Ok))
    }
}

/// What all connections of a listener share.
#[derive(Debug)]
pub(super) struct Desk {
    options: ListenOptions,
    limit: LogLimit,
}

impl Desk {
    /// When a handshake that begins now must be done.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.options.handshake_timeout
    }

    /// Takes note of a caller that is turned away.
    pub(super) fn refuse(&self, from: SocketAddr, fault: Fault, detail: &str) {
        let (listener, reason) = (self.options.listener, fault.name());
        self.options.metrics.record_tls_failure(listener, reason);
        if fault == Fault::Closed {
            // Whoever only looks whether the port is open does this.
            tracing::debug!(listener, %from, reason, detail, "connection refused");
        } else if let Some(left_out) = self.limit.pass(Instant::now()) {
            let why = fault.told();
            tracing::warn!(listener, %from, reason, why, detail, left_out, "connection refused");
        }
    }

    fn full(&self, from: SocketAddr) {
        let listener = self.options.listener;
        self.options.metrics.record_connection_refused(listener);
        if let Some(left_out) = self.limit.pass(Instant::now()) {
            let most = self.options.connections_max;
            tracing::warn!(listener, %from, most, left_out, "connection refused: too many are open");
        }
    }
}

async fn accept(
    listener: TcpListener,
    desk: Arc<Desk>,
    places: Arc<Semaphore>,
    sender: mpsc::Sender<Connection>,
) {
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                if let Some(left_out) = desk.limit.pass(Instant::now()) {
                    let listener = desk.options.listener;
                    tracing::warn!(listener, %error, left_out, "no connection can be accepted");
                }
                sleep_until(Instant::now() + ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            desk.full(from);
            continue;
        };
        let open = Open::new(&desk, place);
        // It fails only on a socket that is gone already.
        let _gone = tcp.set_nodelay(true);
        match &desk.options.tls {
            None => {
                let first = Some(FirstBytes::new(&desk, from, true));
                let connection = Connection { io: Io::Plain(tcp), first, _open: open };
                if sender.send(connection).await.is_err() {
                    return;
                }
            }
            Some(tls) => {
                let acceptor = TlsAcceptor::from(tls.server());
                let (desk, sender) = (Arc::clone(&desk), sender.clone());
                tokio::spawn(async move {
                    if let Some(connection) = shake_hands(&desk, acceptor, tcp, from, open).await {
                        let _ended = sender.send(connection).await;
                    }
                });
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

async fn shake_hands(
    desk: &Arc<Desk>,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    from: SocketAddr,
    open: Open,
) -> Option<Connection> {
    let deadline = desk.deadline();
    let mut first = [0; 1];
    match timeout_at(deadline, tcp.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        Ok(_) => {
            desk.refuse(from, Fault::Closed, "");
            return None;
        }
        Err(_) => {
            desk.refuse(from, Fault::TooSlow, "");
            return None;
        }
    }
    if first[0] != TLS_HANDSHAKE {
        desk.refuse(from, Fault::Plaintext, "");
        if first[0] == H2_PREFACE {
            see_off(tcp, TLS_DEMANDED).await;
        }
        return None;
    }
    match timeout_at(deadline, acceptor.accept(tcp).into_fallible()).await {
        Ok(Ok(stream)) => {
            let first = Some(FirstBytes::new(desk, from, false));
            Some(Connection { io: Io::Tls(Box::new(stream)), first, _open: open })
        }
        Ok(Err((error, tcp))) => {
            desk.refuse(from, Fault::of_handshake(&error, true), &error.to_string());
            // The alert that says why is on its way.
            see_off(tcp, &[]).await;
            None
        }
        Err(_) => {
            desk.refuse(from, Fault::TooSlow, "");
            None
        }
    }
}

/// Lets a refused caller read why. What it sends is read meanwhile: closing over unread bytes would
/// take back what was said.
async fn see_off(mut tcp: TcpStream, words: &[u8]) {
    let told = async {
        tcp.write_all(words).await?;
        tcp.shutdown().await?;
        let mut unread = tcp.take(FAREWELL_BYTES_MAX);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    // Whether the caller listens is its own affair.
    let _told = timeout_at(Instant::now() + FAREWELL_LIMIT, told).await;
}

/// The place that a connection takes from its first packet to its end.
#[derive(Debug)]
struct Open {
    desk: Arc<Desk>,
    _place: OwnedSemaphorePermit,
}

impl Open {
    fn new(desk: &Arc<Desk>, place: OwnedSemaphorePermit) -> Self {
        desk.options.metrics.connection_opened(desk.options.listener);
        Self { desk: Arc::clone(desk), _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.desk.options.metrics.connection_closed(self.desk.options.listener);
    }
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    first: Option<Box<FirstBytes>>,
    _open: Open,
}

#[derive(Debug)]
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection {
    fn tcp(&self) -> &TcpStream {
        match &self.io {
            Io::Plain(tcp) => tcp,
            Io::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp().connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = match &mut this.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_read(context, buffer),
        };
        if let Some(first) = &mut this.first {
            match &polled {
                Poll::Pending => {
                    let error = ready!(first.poll_patience(context));
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Err(_)) => this.first = None,
                Poll::Ready(Ok(())) => {
                    if first.read(&buffer.filled()[before..]) {
                        this.first = None;
                    }
                }
            }
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_write_vectored(context, parts),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(tcp) => tcp.is_write_vectored(),
            Io::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_flush(context),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(tcp) => Pin::new(tcp).poll_shutdown(context),
            Io::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(context),
        }
    }
}
