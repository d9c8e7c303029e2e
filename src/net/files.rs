//! From PEM to what rustls takes: trusted CAs, and a certificate with its key.
//!
//! One crypto provider, ring, is named everywhere; there is no process-wide default to forget.

use std::{fs, path::Path, path::PathBuf, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::net::Error;

/// The files of one listener: its certificate with key, and whom it demands certificates of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate in PEM, with the intermediates that lead to its CA after it.
    pub cert: PathBuf,
    /// Its private key in PEM: PKCS #8, SEC 1 or PKCS #1.
    pub key: PathBuf,
    /// The CAs, in PEM, one of which must have signed every caller's certificate. Without it
    /// callers need none.
    pub ca: Option<PathBuf>,
}

impl TlsFiles {
    /// All files that are there to be watched.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.cert), Some(&self.key), self.ca.as_ref()].into_iter().flatten().map(|p| &**p)
    }
}

/// A certificate with its intermediates and its key.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Where PEM came from, for errors.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Origin<'a> {
    File(&'a Path),
    Given(&'static str),
}

impl Origin<'_> {
    fn wrong(self, why: impl Into<String>) -> Error {
        match self {
            Self::File(path) => Error::File { path: path.to_owned(), why: why.into() },
            Self::Given(what) => Error::Pem { what, why: why.into() },
        }
    }
}

/// The crypto behind every connection.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Origin::File(path).wrong(format!("cannot be read: {error}")))
}

/// The CAs in PEM.
pub(crate) fn roots(pem: &[u8], origin: Origin<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, origin)? {
        let added = roots.add(certificate);
        added.map_err(|error| origin.wrong(format!("is not a CA certificate: {error}")))?;
    }
    Ok(Arc::new(roots))
}

/// A certificate and its key in PEM.
pub(crate) fn identity(
    cert: (&[u8], Origin<'_>),
    key: (&[u8], Origin<'_>),
) -> Result<Identity, Error> {
    let chain = certificates(cert.0, cert.1)?;
    let key = PrivateKeyDer::from_pem_slice(key.0)
        .map_err(|error| key.1.wrong(format!("holds no private key in PEM: {error}")))?;
    Ok(Identity { chain, key })
}

fn certificates(pem: &[u8], origin: Origin<'_>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = read.map_err(|error| origin.wrong(format!("is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(origin.wrong("holds no certificate in PEM"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let missing = read(Path::new("nowhere/ca.pem")).expect_err("there is none").to_string();
        assert!(missing.starts_with("nowhere/ca.pem: cannot be read"), "{missing}");
        let origin = Origin::File(Path::new("ca.pem"));
        let empty = roots(b"nothing", origin).expect_err("no PEM").to_string();
        assert_eq!(empty, "ca.pem: holds no certificate in PEM");
        let torn = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let torn = roots(torn, origin).expect_err("not a certificate").to_string();
        assert!(torn.starts_with("ca.pem: is not a CA certificate"), "{torn}");
    }
}
