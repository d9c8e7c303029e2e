//! The way out over TLS: a connector for tonic's channels.
//!
//! Plaintext does not come by here: tonic's own connector serves it. The certificate that is shown
//! is the one of the moment, so that a channel made anew shows what was reloaded since.

use std::{
    fmt, io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::{
    ClientConfig, Error as RustlsError, RootCertStore, client::Resumption, pki_types::ServerName,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::{BoxError, Service};

use crate::{
    net::{
        Error, Fault, Tls,
        files::{Identity, Origin, identity, provider, read, roots},
        tls::ALPN_H2,
    },
    types::Duration,
};

/// How long to wait for the other side's first words.
const FIRST_WORDS_LIMIT: Duration = Duration::from_millis(150);

/// How many bytes of them are taken.
const HEAD_BYTES_MAX: usize = 512;

/// Dials by TLS. Made per channel; cheap to clone.
#[derive(Clone)]
pub struct Dial {
    tcp: HttpConnector,
    certificates: Certificates,
    /// Whose certificate is asked for, where that is not the host that is dialled.
    name: Option<ServerName<'static>>,
}

#[derive(Clone)]
enum Certificates {
    Fixed(Arc<ClientConfig>),
    Reloaded(Arc<Tls>),
}

impl Dial {
    /// Dials with what [`client_config`] made.
    #[must_use]
    pub fn fixed(config: Arc<ClientConfig>) -> Self {
        Self::new(Certificates::Fixed(config))
    }

    /// Dials a peer, with the certificates that its listener has as well.
    #[must_use]
    pub fn peer(tls: Arc<Tls>) -> Self {
        Self::new(Certificates::Reloaded(tls))
    }

    /// The same, asking for the certificate of this host, whatever address is dialled.
    ///
    /// # Errors
    /// Where that is no host name.
    pub fn called(self, uri: &Uri) -> Result<Self, BoxError> {
        Ok(Self { name: Some(host_name(uri)?), ..self })
    }

    fn new(certificates: Certificates) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        Self { tcp, certificates, name: None }
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial").finish_non_exhaustive()
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Dialled>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let name = self.name.clone().map_or_else(|| host_name(&uri), Ok);
        let (config, name) = match &self.certificates {
            Certificates::Fixed(config) => (Arc::clone(config), name),
            Certificates::Reloaded(tls) => (tls.client(), tls.name().cloned().map_or(name, Ok)),
        };
        let connecting = self.tcp.call(uri);
        Box::pin(async move {
            let name = name?;
            let tcp = connecting.await?.into_inner();
            let shaken = TlsConnector::from(config).connect(name, tcp).await;
            let accepted = match shaken {
                Ok(stream) => Dialled::once_accepted(stream).await,
                Err(error) => Err(error),
            };
            match accepted {
                Ok(dialled) => Ok(TokioIo::new(dialled)),
                Err(error) => {
                    let fault = Fault::of_handshake(&error, false);
                    Err(DialError { fault, detail: error.to_string() }.into())
                }
            }
        })
    }
}

/// A connection whose other side has said its first words, as far as it does so unasked.
///
/// In TLS 1.3 this side is done before the other one has looked at its certificate. A node speaks
/// first in HTTP/2; so whoever waits for that learns of a refusal before any request is sent.
#[derive(Debug)]
pub struct Dialled {
    stream: TlsStream<TcpStream>,
    head: Vec<u8>,
}

impl Dialled {
    async fn once_accepted(mut stream: TlsStream<TcpStream>) -> io::Result<Self> {
        let mut head = vec![0; HEAD_BYTES_MAX];
        let read = match timeout(FIRST_WORDS_LIMIT, stream.read(&mut head)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read?,
            // It may be one that waits to be spoken to.
            Err(_) => 0,
        };
        head.truncate(read);
        Ok(Self { stream, head })
    }
}

impl AsyncRead for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let taken = self.head.len().min(buffer.remaining());
        buffer.put_slice(&self.head[..taken]);
        self.head.drain(..taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The host that is dialled, as certificates name it: an IP address or a DNS name.
fn host_name(uri: &Uri) -> Result<ServerName<'static>, BoxError> {
    let host = uri.host().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(bare.to_owned()).map_err(|_| format!("{host:?} is not a host name").into())
}

/// A handshake that failed.
#[derive(Debug)]
pub(super) struct DialError {
    pub(super) fault: Fault,
    detail: String,
}

impl std::error::Error for DialError {}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fault {
            Fault::WrongName | Fault::BadCertificate | Fault::Protocol => {
                write!(f, "{}: {}", self.fault.told(), self.detail)
            }
            fault => f.write_str(fault.told()),
        }
    }
}

/// What a client dials with: the CAs that it trusts, in PEM, and where demanded its own certificate
/// with its key.
///
/// # Errors
/// Where one of them is not PEM of its kind, or certificate and key do not go together.
pub fn client_config(ca: &[u8], own: Option<(&[u8], &[u8])>) -> Result<Arc<ClientConfig>, Error> {
    let own = own.map(|(cert, key)| {
        identity(
            (cert, Origin::Given("client certificate")),
            (key, Origin::Given("client certificate's key")),
        )
    });
    let roots = roots(ca, Origin::Given("CA"))?;
    client_config_of(roots, own.transpose()?).map_err(|error| {
        Error::Unfit(format!("the client certificate and its key do not go together: {error}"))
    })
}

/// The PEM of a client: the CAs that it trusts, then its own certificate with its key.
pub type ClientPem = (Vec<u8>, Option<(Vec<u8>, Vec<u8>)>);

/// Reads the files that [`client_config`] takes the content of, and checks what they hold.
///
/// # Errors
/// As [`client_config`], with the name of the file; also where one cannot be read.
pub fn read_client_files(ca: &Path, own: Option<(&Path, &Path)>) -> Result<ClientPem, Error> {
    let trusted = read(ca)?;
    let roots = roots(&trusted, Origin::File(ca))?;
    let Some((cert, key)) = own else { return Ok((trusted, None)) };
    let pem = (read(cert)?, read(key)?);
    let identity = identity((&pem.0, Origin::File(cert)), (&pem.1, Origin::File(key)))?;
    client_config_of(roots, Some(identity)).map_err(|error| {
        let (cert, key) = (cert.display(), key.display());
        Error::Unfit(format!("{cert} and {key} do not go together: {error}"))
    })?;
    Ok((trusted, Some(pem)))
}

pub(super) fn client_config_of(
    roots: Arc<RootCertStore>,
    own: Option<Identity>,
) -> Result<Arc<ClientConfig>, RustlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
        .with_root_certificates(roots);
    let mut config = match own {
        Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
