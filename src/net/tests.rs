//! Both ends of a connection in one process: which certificates are accepted under which name, and
//! what each side learns of a refusal.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use http::Uri;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;
use tower::Service as _;

use super::{Dial, Fault, ListenOptions, Tls, TlsFiles, incoming};
use crate::{host::tcp::TcpListener, observe::Metrics, types::Duration};

struct Place {
    dir: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let ca = CertifiedIssuer::self_signed(params, key).expect("signed");
        fs::write(dir.path().join("ca.pem"), ca.pem()).expect("written");
        Self { dir, ca }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// The certificates of a peer that is valid for these names.
    fn peer(&self, names: &[&str]) -> TlsFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let file = names.join("-").replace(':', "_");
        let (cert, key) = (self.path(&file), self.path(&format!("{file}-key")));
        let params = CertificateParams::new(names).expect("names");
        let pair = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&pair, &self.ca).expect("signed");
        fs::write(&cert, signed.pem()).expect("written");
        fs::write(&key, pair.serialize_pem()).expect("written");
        TlsFiles { cert, key, ca: Some(self.path("ca.pem")) }
    }

    fn tls(&self, names: &[&str], required: Option<&'static str>) -> Arc<Tls> {
        let required = required.map(|name| ServerName::try_from(name).expect("a name"));
        Tls::for_peers(self.peer(names), required).expect("they fit")
    }
}

/// A listener that answers each connection with one byte, as a node does with its settings.
async fn listen(tls: Option<Arc<Tls>>) -> SocketAddr {
    let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let options = ListenOptions {
        listener: "peer",
        connections_max: 8,
        handshake_timeout: Duration::from_secs(20),
        tls,
        metrics: Metrics::new(),
    };
    let mut connections = incoming(listener, options);
    tokio::spawn(async move {
        while let Some(Ok(mut connection)) = connections.next().await {
            tokio::spawn(async move {
                connection.write_all(b"!").await.expect("written");
                connection.flush().await.expect("written");
                let mut rest = Vec::new();
                let _end = connection.read_to_end(&mut rest).await;
            });
        }
    });
    address
}

/// Dials `host` at the port of `address`.
async fn dial(tls: Arc<Tls>, host: &str, address: SocketAddr) -> Result<(), Fault> {
    let uri: Uri = format!("http://{host}:{}", address.port()).parse().expect("an address");
    match Dial::peer(tls).call(uri).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::behind(error.as_ref()).unwrap_or_else(|| panic!("{error}"))),
    }
}

#[tokio::test]
async fn a_peer_must_be_who_was_dialled_by_address_or_by_name() {
    let place = Place::new();
    let both = place.tls(&["localhost", "127.0.0.1"], None);
    let at = listen(Some(Arc::clone(&both))).await;
    assert_eq!(dial(Arc::clone(&both), "127.0.0.1", at).await, Ok(()));
    assert_eq!(dial(Arc::clone(&both), "localhost", at).await, Ok(()));
    let elsewhere = listen(Some(place.tls(&["10.1.2.3", "node-9"], None))).await;
    assert_eq!(dial(Arc::clone(&both), "127.0.0.1", elsewhere).await, Err(Fault::WrongName));
    assert_eq!(dial(both, "localhost", elsewhere).await, Err(Fault::WrongName));
}

#[tokio::test]
async fn an_address_that_a_name_was_resolved_to_is_known_by_the_name() {
    let place = Place::new();
    let tls = place.tls(&["api.example"], None);
    let at = listen(Some(Arc::clone(&tls))).await;
    assert_eq!(dial(Arc::clone(&tls), "127.0.0.1", at).await, Err(Fault::WrongName));
    let uri: Uri = format!("https://{at}").parse().expect("an address");
    let name = Uri::from_static("https://api.example:443");
    let mut named = Dial::peer(Arc::clone(&tls)).called(&name).expect("a name");
    assert!(named.call(uri.clone()).await.is_ok());
    let other = Uri::from_static("https://other.example:443");
    let error =
        Dial::peer(tls).called(&other).expect("a name").call(uri).await.expect_err("not it");
    assert_eq!(Fault::behind(error.as_ref()), Some(Fault::WrongName));
}

#[tokio::test]
async fn a_required_name_counts_on_both_sides_and_the_address_no_more() {
    let place = Place::new();
    let name = Some("peer.quorate");
    let peer = place.tls(&["peer.quorate"], name);
    let at = listen(Some(Arc::clone(&peer))).await;
    assert_eq!(dial(peer, "127.0.0.1", at).await, Ok(()));
    // Of the same CA, and without the name: own files are not judged here, so that it may try.
    let lax = place.tls(&["127.0.0.1", "other"], None);
    assert_eq!(dial(lax, "127.0.0.1", at).await, Err(Fault::WrongName));
    let unnamed = listen(Some(place.tls(&["127.0.0.1"], None))).await;
    let strict = place.tls(&["peer.quorate", "also"], name);
    assert_eq!(dial(strict, "127.0.0.1", unnamed).await, Err(Fault::WrongName));
}

#[tokio::test]
async fn plaintext_is_told_apart_in_both_directions() {
    let place = Place::new();
    let tls = place.tls(&["127.0.0.1"], None);
    let plain = listen(None).await;
    assert_eq!(dial(Arc::clone(&tls), "127.0.0.1", plain).await, Err(Fault::NotTls));
    let at = listen(Some(tls)).await;
    let mut caller = TcpStream::connect(at).await.expect("open");
    caller.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    caller.read_to_end(&mut answer).await.expect("answered");
    assert!(answer.ends_with(b"this port demands TLS"), "{answer:?}");
    assert_eq!(answer[3], 4, "SETTINGS come first");
    assert_eq!((answer[12], answer[25]), (7, 0xc), "GOAWAY with INADEQUATE_SECURITY");
    let length = usize::from(answer[11]);
    assert_eq!(answer.len(), 9 + 9 + length, "the frame is as long as it says");
}

#[tokio::test]
async fn a_place_is_held_by_a_connection_and_given_back() {
    let at = listen(None).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(at).await.expect("open");
        stream.read_exact(&mut [0]).await.expect("served");
        held.push(stream);
    }
    let mut ninth = TcpStream::connect(at).await.expect("accepted");
    assert!(!matches!(ninth.read(&mut [0]).await, Ok(1)), "there is no place");
    drop(held);
    loop {
        let mut again = TcpStream::connect(at).await.expect("accepted");
        if matches!(again.read(&mut [0]).await, Ok(1)) {
            return;
        }
    }
}

#[test]
fn clients_and_peers_get_no_ca_in_common_by_a_reload_either() {
    let (servers, strangers) = (Place::new(), Place::new());
    let metrics = Metrics::new();
    let peers = Tls::for_peers(servers.peer(&["a"]), None).expect("they fit");
    let client_ca = strangers.path("client-ca.pem");
    fs::copy(strangers.path("ca.pem"), &client_ca).expect("copied");
    let files = TlsFiles { ca: Some(client_ca.clone()), ..strangers.peer(&["b"]) };
    let clients = Tls::for_clients(files.clone()).expect("they fit");
    Tls::keep_apart(&peers, &clients).expect("each has its own CA");

    let in_force = clients.server();
    fs::copy(servers.path("ca.pem"), &client_ca).expect("copied");
    clients.reload(&metrics);
    assert!(Arc::ptr_eq(&clients.server(), &in_force), "the old certificates stay");
    let mixed = Tls::for_clients(files).expect("they fit");
    let fresh = Tls::for_peers(servers.peer(&["a"]), None).expect("they fit");
    let why = Tls::keep_apart(&fresh, &mixed).expect_err("one CA for both").to_string();
    assert!(why.contains("a client could pass for a peer"), "{why}");

    fs::copy(strangers.path("ca.pem"), &client_ca).expect("copied");
    clients.reload(&metrics);
    assert!(!Arc::ptr_eq(&clients.server(), &in_force), "what fits is taken");
    let in_force = peers.server();
    peers.reload(&metrics);
    assert!(!Arc::ptr_eq(&peers.server(), &in_force), "what fits is taken");
}

#[test]
fn files_that_do_not_go_together_are_named() {
    let place = Place::new();
    let (one, other) = (place.peer(&["a"]), place.peer(&["b"]));
    let mixed = TlsFiles { key: other.key, ..one.clone() };
    let why = Tls::for_peers(mixed, None).expect_err("another's key").to_string();
    assert!(why.contains("do not go together"), "{why}");
    let strange = TlsFiles { ca: Some(one.cert.clone()), ..place.peer(&["c"]) };
    let why = Tls::for_peers(strange, None).expect_err("not its CA").to_string();
    assert!(why.contains("peers would refuse this certificate"), "{why}");
    let missing = TlsFiles { cert: Path::new("nowhere.pem").to_owned(), ..one };
    let why = Tls::for_clients(missing).expect_err("there is none").to_string();
    assert!(why.starts_with("nowhere.pem: cannot be read"), "{why}");
}
