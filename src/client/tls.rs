//! What a client needs to dial by TLS: whom it trusts, and who it is where nodes demand that.
//!
//! Reading files is the caller's; here is only what they hold.

use std::{fmt, sync::Arc};

use rustls::ClientConfig;

use crate::{client::Error, net};

/// Certificates of a client, for [`crate::client::Builder::tls`].
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use quorate::client::{Client, Tls};
///
/// let tls = Tls::trusting(std::fs::read("quorate-data/ca.pem")?);
/// let client = Client::builder().endpoints(["127.0.0.1:7401"]).tls(tls).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct Tls {
    ca: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Trusts nodes whose certificate one of these CAs signed, in PEM, and that is valid for the
    /// host by which they are reached.
    pub fn trusting(ca: impl Into<Vec<u8>>) -> Self {
        Self { ca: ca.into(), identity: None }
    }

    /// Shows this certificate, in PEM with its intermediates, to nodes that demand one. `key` is
    /// its private key in PEM.
    pub fn identity(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        let own = self.identity.as_ref().map(|(cert, key)| (cert.as_slice(), key.as_slice()));
        net::client_config(&self.ca, own).map_err(|error| Error::invalid(error.to_string()))
    }
}

/// The key stays out of it.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_pem_is_named_and_a_key_is_never_printed() {
        let refused = Tls::trusting("nothing").config().expect_err("no certificate");
        assert_eq!(refused.message(), "the CA: holds no certificate in PEM");
        let tls = Tls::trusting("").identity("cert", "secret");
        assert!(!format!("{tls:?}").contains("secret"), "{tls:?}");
    }
}
