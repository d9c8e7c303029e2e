//! Certificates for the tests: CAs, and what they sign, good or bad.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use tempfile::TempDir;

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pair {
    pub(crate) fn cert(&self) -> String {
        self.cert.display().to_string()
    }

    pub(crate) fn key(&self) -> String {
        self.key.display().to_string()
    }

    /// Takes the place of another pair, the certificate first.
    pub(crate) fn replace(&self, other: &Self) {
        fs::copy(&self.cert, &other.cert).expect("copied");
        fs::copy(&self.key, &other.key).expect("copied");
    }
}

/// A CA.
pub(crate) struct Authority {
    dir: PathBuf,
    name: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Where certificates are kept; removed at the end.
pub(crate) struct Pki(TempDir);

impl Pki {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn authority(&self, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let dir = self.0.path().to_owned();
        fs::write(dir.join(format!("{name}.pem")), issuer.pem()).expect("written");
        Authority { dir, name: name.to_owned(), issuer }
    }
}

impl Authority {
    /// Its certificate.
    pub(crate) fn ca(&self) -> String {
        self.dir.join(format!("{}.pem", self.name)).display().to_string()
    }

    /// A certificate for localhost, good on both sides.
    pub(crate) fn sign(&self, name: &str) -> Pair {
        self.sign_with(name, |_| ())
    }

    /// The same, long expired.
    pub(crate) fn sign_expired(&self, name: &str) -> Pair {
        self.sign_with(name, expired)
    }

    pub(crate) fn sign_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names = ["localhost", "127.0.0.1"].map(str::to_owned);
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let file = |what: &str| self.dir.join(format!("{}-{name}{what}.pem", self.name));
        let pair = Pair { cert: file(""), key: file("-key") };
        fs::write(&pair.cert, signed.pem()).expect("written");
        fs::write(&pair.key, key.serialize_pem()).expect("written");
        pair
    }
}

/// Makes a certificate one of long ago.
pub(crate) fn expired(params: &mut CertificateParams) {
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
}
