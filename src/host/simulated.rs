//! The machine that a turmoil simulation stands for. Only in the build of the unit tests.
//!
//! Whether a simulation runs is a matter of the thread: turmoil runs all hosts of one simulation on
//! the thread that steps it. Nothing here may be asked on another one.

use core::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
};
use std::{io, net::SocketAddr};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tower::{Service, service_fn};
use uuid::Uuid;

use crate::types::Rng;

thread_local! {
    static CHANCE: RefCell<Option<Rng>> = const { RefCell::new(None) };
}

/// Whether this is code of a simulated host.
pub(crate) fn is_on() -> bool {
    turmoil::in_simulation()
}

/// Draws this thread's simulated chance from a seed from now on; `None` ends that.
pub(crate) fn seed(seed: Option<u64>) {
    CHANCE.set(seed.map(Rng::new));
}

pub(crate) fn draw() -> Option<Uuid> {
    let draw = |rng: &mut Rng| Uuid::from_u64_pair(rng.next_u64(), rng.next_u64());
    let drawn = CHANCE.with_borrow_mut(|rng| rng.as_mut().map(draw))?;
    Some(uuid::Builder::from_random_bytes(drawn.into_bytes()).into_uuid())
}

/// Dials in the simulated network, by the names of its hosts.
pub(crate) fn connector() -> impl Service<
    Uri,
    Response = TokioIo<turmoil::net::TcpStream>,
    Error = io::Error,
    Future: Send + Unpin,
> + Clone
+ Send
+ Sync {
    service_fn(|uri: Uri| {
        Box::pin(async move {
            let host = uri.host().unwrap_or_default().to_owned();
            let port = uri.port_u16().unwrap_or_default();
            turmoil::net::TcpStream::connect((host, port)).await.map(TokioIo::new)
        })
    })
}

/// A listener in the real network or in the simulated one.
pub enum TcpListener {
    /// Of the operating system.
    Real(tokio::net::TcpListener),
    /// Of turmoil.
    Simulated(turmoil::net::TcpListener),
}

impl TcpListener {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        if is_on() {
            turmoil::net::TcpListener::bind(address).await.map(Self::Simulated)
        } else {
            tokio::net::TcpListener::bind(address).await.map(Self::Real)
        }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Real(listener) => listener.local_addr(),
            Self::Simulated(listener) => listener.local_addr(),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Real(listener) => {
                listener.accept().await.map(|(tcp, from)| (TcpStream::Real(tcp), from))
            }
            Self::Simulated(listener) => {
                listener.accept().await.map(|(tcp, from)| (TcpStream::Simulated(tcp), from))
            }
        }
    }
}

impl core::fmt::Debug for TcpListener {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("TcpListener").field(&self.local_addr()).finish()
    }
}

impl axum::serve::Listener for TcpListener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Ok(accepted) = Self::accept(self).await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

/// A connection in the real network or in the simulated one.
#[derive(Debug)]
pub enum TcpStream {
    /// Of the operating system.
    Real(tokio::net::TcpStream),
    /// Of turmoil.
    Simulated(turmoil::net::TcpStream),
}

impl TcpStream {
    pub(crate) async fn connect((host, port): (&str, u16)) -> io::Result<Self> {
        if is_on() {
            turmoil::net::TcpStream::connect((host, port)).await.map(Self::Simulated)
        } else {
            tokio::net::TcpStream::connect((host, port)).await.map(Self::Real)
        }
    }

    pub(crate) fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        match self {
            Self::Real(tcp) => tcp.set_nodelay(nodelay),
            Self::Simulated(tcp) => tcp.set_nodelay(nodelay),
        }
    }

    /// Only what is to become TLS is looked at like this, and a simulation has no TLS.
    pub(crate) async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Real(tcp) => tcp.peek(bytes).await,
            Self::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Connected for TcpStream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match self {
            Self::Real(tcp) => tcp.connect_info(),
            Self::Simulated(tcp) => TcpConnectInfo {
                local_addr: tcp.local_addr().ok(),
                remote_addr: tcp.peer_addr().ok(),
            },
        }
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_read(context, buffer),
            Self::Simulated(tcp) => Pin::new(tcp).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Simulated(tcp) => Pin::new(tcp).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_write_vectored(context, parts),
            Self::Simulated(tcp) => Pin::new(tcp).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Real(tcp) if tcp.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_flush(context),
            Self::Simulated(tcp) => Pin::new(tcp).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Real(tcp) => Pin::new(tcp).poll_shutdown(context),
            Self::Simulated(tcp) => Pin::new(tcp).poll_shutdown(context),
        }
    }
}
