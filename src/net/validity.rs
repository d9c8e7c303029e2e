//! Whether a certificate that lies on the disk would be accepted at some time.

use rustls::{
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{ServerName, UnixTime},
    sign::CertifiedKey,
};

use crate::{
    net::files::{Origin, identity, provider, roots},
    types::Duration,
};

/// Whether a node that shows `own`, a certificate and its key in PEM, would be accepted under
/// `name` by whoever trusts `ca`, at the time `at` since 1970.
#[must_use]
pub fn is_good_for(ca: &[u8], own: (&[u8], &[u8]), name: &str, at: Duration) -> bool {
    let origin = Origin::Given("certificate");
    let verified = || {
        let own = identity((own.0, origin), (own.1, origin)).ok()?;
        let trusted = roots(ca, origin).ok()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(trusted, provider());
        let name = ServerName::try_from(name).ok()?;
        let (first, rest) = own.chain.split_first()?;
        let at = UnixTime::since_unix_epoch(at);
        verifier.build().ok()?.verify_server_cert(first, rest, &name, &[], at).ok()?;
        CertifiedKey::from_der(own.chain, own.key, &provider()).ok()
    };
    verified().is_some()
}
