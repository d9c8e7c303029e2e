//! Certificates for a cluster on this machine: a CA that signs one certificate a node and is then
//! forgotten, so that nobody can have it sign another.
//!
//! They are valid for loopback only. Never meant for anything else: `docs/security.md` says how to
//! make certificates for a real cluster.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{net, types::Duration};

/// What the certificates of a person's cluster are valid for.
pub(crate) const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// How long certificates are valid.
const VALID: Duration = Duration::from_secs(365 * DAY_SECONDS);

/// What must be left of that; with less all are made anew.
const LEFT_MIN: Duration = Duration::from_secs(30 * DAY_SECONDS);

const DAY_SECONDS: u64 = 86_400;

/// The folder in a cluster's directory.
const FOLDER: &str = "tls";

/// The certificates of a cluster on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    dir: PathBuf,
    names: Vec<String>,
}

/// The files of one node.
#[derive(Clone, Debug)]
pub(crate) struct NodeFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) ca: PathBuf,
}

impl Certificates {
    /// Finds them in a cluster's directory, or makes them: all of them, where one is missing, spoilt,
    /// about to expire or not valid for all of `names`.
    pub(crate) fn in_dir(dir: &Path, nodes: u8, names: &[&str]) -> io::Result<Self> {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let certificates = Self { dir: dir.join(FOLDER), names };
        if !(1..=nodes).all(|id| certificates.are_good(id)) {
            certificates.make(nodes)?;
        }
        Ok(certificates)
    }

    /// The CA's certificate: what clients trust.
    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// The files of a node; it shows the same certificate to clients and to peers.
    pub(crate) fn of_node(&self, id: u64) -> NodeFiles {
        let file = |what: &str| self.dir.join(format!("node-{id}{what}.pem"));
        NodeFiles { cert: file(""), key: file("-key"), ca: self.ca() }
    }

    fn are_good(&self, id: u8) -> bool {
        let files = self.of_node(u64::from(id));
        let read = |file: &Path| fs::read(file).ok();
        let Some(((ca, cert), key)) = read(&files.ca).zip(read(&files.cert)).zip(read(&files.key))
        else {
            return false;
        };
        self.names.iter().all(|name| net::is_good_for(&ca, (&cert, &key), name, now() + LEFT_MIN))
    }

    fn make(&self, nodes: u8) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let ca = authority().map_err(io::Error::other)?;
        for id in 1..=nodes {
            let (cert, key) = signed(&ca, id, &self.names).map_err(io::Error::other)?;
            let files = self.of_node(u64::from(id));
            write(&files.key, &key, 0o600)?;
            write(&files.cert, &cert, 0o644)?;
        }
        write(&self.ca(), &ca.pem(), 0o644)
    }
}

/// A CA with a name of its own, so that one is never taken for another.
fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("quorate up {}", Uuid::new_v4()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    limit(&mut params);
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

/// A node's certificate and key in PEM.
fn signed(
    ca: &CertifiedIssuer<'static, KeyPair>,
    id: u8,
    names: &[String],
) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, format!("quorate node {id}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    limit(&mut params);
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
}

fn limit(params: &mut CertificateParams) {
    let at = |since: Duration| {
        let seconds = i64::try_from(since.as_secs()).expect("not that far away");
        OffsetDateTime::from_unix_timestamp(seconds).expect("not that far away")
    };
    // A clock that is a little behind must not find them from the future.
    params.not_before = at(now().saturating_sub(Duration::from_secs(DAY_SECONDS)));
    params.not_after = at(now() + VALID);
}

/// The time since 1970.
fn now() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "certificates are valid by the wall clock")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Replaces a file whole; the mode is there before the content is.
fn write(file: &Path, text: &str, mode: u32) -> io::Result<()> {
    let fresh = file.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut open = fs::File::options().write(true).create_new(true).mode(mode).open(&fresh)?;
    open.write_all(text.as_bytes())?;
    fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn they_are_made_once_and_again_when_one_is_spoilt() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Certificates::in_dir(dir.path(), 2, &LOOPBACK).expect("made");
        let ca = fs::read(made.ca()).expect("there");
        Certificates::in_dir(dir.path(), 2, &LOOPBACK).expect("found");
        assert_eq!(fs::read(made.ca()).expect("there"), ca, "they were good");
        fs::write(made.of_node(2).cert, "spoilt").expect("written");
        Certificates::in_dir(dir.path(), 2, &LOOPBACK).expect("made");
        assert_ne!(fs::read(made.ca()).expect("there"), ca, "all are made anew");
        assert!(made.are_good(1) && made.are_good(2));
    }

    #[test]
    fn a_key_is_its_owners_alone_and_the_ca_has_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Certificates::in_dir(dir.path(), 1, &LOOPBACK).expect("made");
        let mode = |file: &Path| fs::metadata(file).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&made.of_node(1).key), 0o600);
        assert_eq!(mode(&made.dir), 0o700);
        let mut files: Vec<_> = fs::read_dir(&made.dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        files.sort();
        assert_eq!(files, ["ca.pem", "node-1-key.pem", "node-1.pem"]);
    }

    #[test]
    fn one_that_is_about_to_expire_is_not_good() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Certificates::in_dir(dir.path(), 1, &LOOPBACK).expect("made");
        let files = made.of_node(1);
        let read = |file: &Path| fs::read(file).expect("there");
        let (ca, cert, key) = (read(&files.ca), read(&files.cert), read(&files.key));
        let good = |name: &str, at: Duration| net::is_good_for(&ca, (&cert, &key), name, at);
        assert!(good("localhost", now() + VALID / 2));
        assert!(!good("localhost", now() + VALID + LEFT_MIN));
        assert!(!good("example.org", now()));
    }
}
