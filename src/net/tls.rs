//! The certificates of one listener as they were last read, and reading them again.
//!
//! Files are looked at every second. What changed is taken once it has stood still from one look to
//! the next, so that a certificate is not read without its new key. What does not fit is logged and
//! changes nothing. Connections keep what they began with.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error as RustlsError, RootCertStore,
    ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    client::verify_server_name,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::time::{Instant, interval_at};

use crate::{
    net::{
        Error, Fault, TlsFiles,
        dial::client_config_of,
        files::{Origin, identity, provider, read, roots},
    },
    observe::Metrics,
    types::Duration,
};

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What gRPC is called in the handshake.
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// The certificates of one listener.
#[derive(Debug)]
pub struct Tls {
    listener: &'static str,
    files: TlsFiles,
    /// A name that the other side's certificate must be valid for, whatever its address.
    name: Option<ServerName<'static>>,
    mutual: bool,
    current: ArcSwap<Configs>,
    /// How the files stood when they were last read. Held while they are read.
    read_at: Mutex<Vec<Option<Stamp>>>,
    /// The listener that must not trust the same CAs, where there is one.
    apart: OnceLock<Apart>,
}

/// The other one of two listeners that must not trust the same CAs.
#[derive(Debug)]
struct Apart {
    other: Weak<Tls>,
    /// Taken before `read_at`, so that each of the two sees what the other one has in force.
    turn: Arc<Mutex<()>>,
}

/// What the files were made into.
#[derive(Debug)]
struct Configs {
    server: Arc<ServerConfig>,
    /// Where this side also dials.
    client: Option<Arc<ClientConfig>>,
    /// The CAs of callers, where certificates are demanded of them.
    trusted: Option<Arc<RootCertStore>>,
}

/// What changes when a file does: its device and number, size, and time in nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Tls {
    /// Reads the certificates for a listener that clients reach.
    ///
    /// # Errors
    /// Where a file cannot be read, holds something else, or does not go with the others.
    pub fn for_clients(files: TlsFiles) -> Result<Arc<Self>, Error> {
        Self::new("client", files, None, false)
    }

    /// Reads the certificates that peers show each other: one for both directions. With `name` each
    /// side demands that the other's certificate is valid for it; without, the side that dials
    /// demands that it is valid for the host that it dialled.
    ///
    /// # Errors
    /// As [`Tls::for_clients`]; also where the certificate is not one that a peer would accept.
    ///
    /// # Panics
    /// Where `files` name no CA.
    pub fn for_peers(
        files: TlsFiles,
        name: Option<ServerName<'static>>,
    ) -> Result<Arc<Self>, Error> {
        assert!(files.ca.is_some(), "peers always demand certificates of each other");
        Self::new("peer", files, name, true)
    }

    fn new(
        listener: &'static str,
        files: TlsFiles,
        name: Option<ServerName<'static>>,
        mutual: bool,
    ) -> Result<Arc<Self>, Error> {
        let stamps = stamps(&files);
        let configs = load(&files, name.as_ref(), mutual)?;
        Ok(Arc::new(Self {
            listener,
            files,
            name,
            mutual,
            current: ArcSwap::from_pointee(configs),
            read_at: Mutex::new(stamps),
            apart: OnceLock::new(),
        }))
    }

    /// Its files.
    #[must_use]
    pub const fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// The name that every peer's certificate must be valid for, where one was set.
    pub(crate) const fn name(&self) -> Option<&ServerName<'static>> {
        self.name.as_ref()
    }

    /// Checks that no client can pass for a peer, now and whenever one of the two is reloaded: one
    /// CA for both would let it, unless peers have a name of their own. Called once, before either
    /// is in use. Only the CAs themselves are compared, not who signed them.
    ///
    /// # Errors
    /// Where it could.
    pub fn keep_apart(peers: &Arc<Self>, clients: &Arc<Self>) -> Result<(), Error> {
        if peers.name.is_some() {
            return Ok(());
        }
        let turn = Arc::new(Mutex::new(()));
        for (tls, other) in [(peers, clients), (clients, peers)] {
            let apart = Apart { other: Arc::downgrade(other), turn: Arc::clone(&turn) };
            tls.apart.set(apart).expect("two listeners are paired once");
        }
        check_apart((peers, &peers.current.load()), (clients, &clients.current.load()))
    }

    /// For a connection that is accepted now.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().server)
    }

    /// For a connection that is dialled now.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        let configs = self.current.load();
        Arc::clone(configs.client.as_ref().expect("only peers dial with a listener's certificates"))
    }

    /// Reads the files again, changed or not. What does not fit is logged, and what was read
    /// before stays.
    pub fn reload(&self, metrics: &Metrics) {
        let _turn = self.apart.get().map(|apart| lock(&apart.turn));
        let mut read_at = lock(&self.read_at);
        *read_at = stamps(&self.files);
        let listener = self.listener;
        let loaded = load(&self.files, self.name.as_ref(), self.mutual).and_then(|configs| {
            match self.apart.get().and_then(|apart| apart.other.upgrade()) {
                Some(other) if self.mutual => {
                    check_apart((self, &configs), (&other, &other.current.load()))
                }
                Some(other) => check_apart((&other, &other.current.load()), (self, &configs)),
                None => Ok(()),
            }
            .map(|()| configs)
        });
        match loaded {
            Ok(configs) => {
                self.current.store(Arc::new(configs));
                tracing::info!(listener, cert = %self.files.cert.display(), "certificates reloaded");
                metrics.record_tls_reload(listener, true);
            }
            Err(error) => {
                tracing::error!(listener, %error, "new certificates do not fit; the old ones stay");
                metrics.record_tls_reload(listener, false);
            }
        }
    }

    /// Looks at the files every second, for ever, and reloads what changed.
    pub async fn follow(self: Arc<Self>, metrics: Metrics) {
        let mut looks = interval_at(Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
        let mut before = None;
        loop {
            looks.tick().await;
            let tls = Arc::clone(&self);
            let look = move || {
                let now = stamps(&tls.files);
                let changed = *lock(&tls.read_at) != now;
                (now, changed)
            };
            let Ok((now, changed)) = tokio::task::spawn_blocking(look).await else { return };
            let settled = before.as_ref() == Some(&now);
            before = Some(now);
            if changed && settled {
                let (tls, metrics) = (Arc::clone(&self), metrics.clone());
                let _done = tokio::task::spawn_blocking(move || tls.reload(&metrics)).await;
            }
        }
    }
}

/// Checks that no CA of clients is one of peers as well.
fn check_apart(
    (peers, ours): (&Tls, &Configs),
    (clients, theirs): (&Tls, &Configs),
) -> Result<(), Error> {
    let (Some(our_roots), Some(their_roots)) = (&ours.trusted, &theirs.trusted) else {
        return Ok(());
    };
    let shared = our_roots.roots.iter().any(|root| {
        let mut others = their_roots.roots.iter();
        others.any(|other| other.subject_public_key_info == root.subject_public_key_info)
    });
    if !shared {
        return Ok(());
    }
    let file = |tls: &Tls| tls.files.ca.as_deref().unwrap_or(&tls.files.cert).display().to_string();
    Err(Error::Unfit(format!(
        "{} and {} trust the same CA, so that a client could pass for a peer; use one CA for each, \
         or set --peer-tls-name to a name that only peers' certificates have",
        file(clients),
        file(peers)
    )))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn stamps(files: &TlsFiles) -> Vec<Option<Stamp>> {
    let stamp = |path| {
        let data = fs::metadata(path).ok()?;
        Some((data.dev(), data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
    };
    files.paths().map(stamp).collect()
}

fn load(
    files: &TlsFiles,
    name: Option<&ServerName<'static>>,
    mutual: bool,
) -> Result<Configs, Error> {
    let unfit = |error: RustlsError| {
        Error::Unfit(format!(
            "{} and {} do not go together: {error}",
            files.cert.display(),
            files.key.display()
        ))
    };
    let (cert, key) = (read(&files.cert)?, read(&files.key)?);
    let own = || identity((&cert, Origin::File(&files.cert)), (&key, Origin::File(&files.key)));
    let trusted = match &files.ca {
        None => None,
        Some(ca) => Some((ca, roots(&read(ca)?, Origin::File(ca))?)),
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions");
    let builder = match &trusted {
        None => builder.with_no_client_auth(),
        Some((ca, roots)) => {
            let inner =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider()).build();
            let inner = inner
                .map_err(|error| Error::File { path: ca.to_path_buf(), why: error.to_string() })?;
            let verifier = CallerVerifier { inner, name: name.cloned() };
            if mutual {
                check_own(&verifier, &own()?.chain, files)?;
            }
            builder.with_client_cert_verifier(Arc::new(verifier))
        }
    };
    let identity = own()?;
    let mut server = builder.with_single_cert(identity.chain, identity.key).map_err(unfit)?;
    server.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A session that is taken up again is not verified again: an expired certificate would go on.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let callers = trusted.as_ref().map(|(_, roots)| Arc::clone(roots));
    let client = match trusted.filter(|_| mutual) {
        Some((_, roots)) => Some(client_config_of(roots, Some(own()?)).map_err(unfit)?),
        None => None,
    };
    Ok(Configs { server: Arc::new(server), client, trusted: callers })
}

/// A peer whose certificate all others refuse should say so itself.
fn check_own(
    verifier: &CallerVerifier,
    chain: &[CertificateDer<'static>],
    files: &TlsFiles,
) -> Result<(), Error> {
    let (first, rest) = chain.split_first().expect("a chain that was read has one at least");
    let verified = verifier.verify_client_cert(first, rest, UnixTime::now());
    verified.map(drop).map_err(|error| {
        let why = match Fault::behind(&error) {
            Some(Fault::UnknownCa) => "it is not signed by the peer CA".to_owned(),
            Some(Fault::BadCertificate) => format!("{error}; it must be for servers and clients"),
            Some(fault @ (Fault::Expired | Fault::NotYetValid | Fault::WrongName)) => {
                fault.told().to_owned()
            }
            _ => error.to_string(),
        };
        let why = format!("peers would refuse this certificate: {why}");
        Error::File { path: files.cert.clone(), why }
    })
}

/// Checks a caller's certificate against the CAs, and that it is valid for a name where one is set.
#[derive(Debug)]
struct CallerVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    name: Option<ServerName<'static>>,
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, RustlsError> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if let Some(name) = &self.name {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
