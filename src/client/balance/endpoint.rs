//! What a resolver tells of one instance of a service. Data only: it opens nothing and knows no
//! connection.

use std::sync::Arc;

use crate::client::Error;

/// The longest name of a host and its port, in bytes.
const ADDRESS_BYTES_MAX: usize = 512;

/// One instance of a service: where it is, and what matters for choosing it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Endpoint {
    id: Arc<str>,
    address: Arc<str>,
    /// By what name calls know the other side, where that is not its address.
    authority: Option<Arc<str>>,
    zone: Arc<str>,
    weight: u32,
    draining: bool,
}

impl Endpoint {
    /// The instance at `host:port`. Its id is its address unless said otherwise.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where that is not `host:port`.
    pub fn new(address: impl AsRef<str>) -> Result<Self, Error> {
        let address = address.as_ref();
        let wrong = || Error::invalid(format!("endpoint {address:?} is not host:port"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let odd =
            |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '@' | '?' | '#');
        let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        if host.is_empty()
            || address.len() > ADDRESS_BYTES_MAX
            || host.contains(odd)
            || bare_v6
            || port.parse::<u16>().is_err()
        {
            return Err(wrong());
        }
        let address: Arc<str> = address.into();
        let id = Arc::clone(&address);
        Ok(Self { id, address, authority: None, zone: "".into(), weight: 1, draining: false })
    }

    /// The same with an id of its own, by which it is known when its address changes.
    pub fn with_id(mut self, id: impl AsRef<str>) -> Self {
        self.id = id.as_ref().into();
        self
    }

    /// The same, called `host:port` in `:authority`, and by TLS known by that host's certificate: what
    /// a name was resolved from. Default: its address.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where that is not `host:port`.
    pub fn with_authority(mut self, authority: impl AsRef<str>) -> Result<Self, Error> {
        self.authority = Some(Self::new(authority)?.address);
        Ok(self)
    }

    /// The same in a zone; empty is none.
    pub fn in_zone(mut self, zone: impl AsRef<str>) -> Self {
        self.zone = zone.as_ref().into();
        self
    }

    /// The same with a share of the load, for the policies that heed it. Zero counts as one.
    pub const fn with_weight(mut self, weight: u32) -> Self {
        self.weight = if weight == 0 { 1 } else { weight };
        self
    }

    /// The same, finishing what it has and taking nothing new.
    pub const fn draining(mut self, draining: bool) -> Self {
        self.draining = draining;
        self
    }

    /// What it is known by: unique among the endpoints of one balancer.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it listens, as `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// By what name calls know it, as `host:port`.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.authority.as_deref().unwrap_or(&self.address)
    }

    /// The zone it runs in; empty is none.
    #[must_use]
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Its share of the load; at least 1.
    #[must_use]
    pub const fn weight(&self) -> u32 {
        self.weight
    }

    /// Whether it takes no new calls.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) const fn shared_id(&self) -> &Arc<str> {
        &self.id
    }

    pub(super) const fn shared_address(&self) -> &Arc<str> {
        &self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["127.0.0.1:1", "localhost:65535", "[::1]:7401", "node-1.zone:80"] {
            assert_eq!(Endpoint::new(good).expect(good).address(), good);
        }
        for bad in
            ["", "host", ":1", "host:", "host:x", "host:70000", "a b:1", "::1:80", "a/b:1", "u@h:1"]
        {
            let refused = Endpoint::new(bad).expect_err(bad);
            assert!(refused.message().contains(bad), "{refused}");
        }
    }

    #[test]
    fn an_endpoint_is_known_by_its_address_unless_it_has_an_id() {
        let plain = Endpoint::new("a:1").expect("it is well formed");
        assert_eq!((plain.id(), plain.weight(), plain.zone()), ("a:1", 1, ""));
        let named = plain.with_id("a").with_weight(0).in_zone("z").draining(true);
        assert_eq!((named.id(), named.weight(), named.zone()), ("a", 1, "z"));
        assert!(named.is_draining());
    }
}
