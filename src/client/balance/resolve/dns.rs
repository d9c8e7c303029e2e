//! The addresses that a name has, asked for again and again.

use std::net::SocketAddr;

use tokio::{
    net::lookup_host,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    client::{
        Error,
        balance::{Endpoint, Resolver},
    },
    types::Duration,
};

/// How often a name is looked up, unless said otherwise.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(30);

/// How soon it is looked up again after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How long one look-up may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Resolves `host:port` by the system's resolver: one endpoint for each address of the host.
///
/// Calls, and certificates, know each by the name that was resolved. The system's resolver does not say how long an answer holds, so the name is looked up at an
/// interval. A name that is not found, or has no address, leaves the last answer in force.
#[derive(Clone, Debug)]
#[must_use]
pub struct Dns {
    /// `host:port` as it was given.
    name: String,
    host: String,
    port: u16,
    interval: Duration,
    next: Option<Instant>,
}

impl Dns {
    /// Resolves `host:port`.
    ///
    /// # Errors
    /// INVALID_ARGUMENT where that is not what it is.
    pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        let _ = Endpoint::new(name)?;
        let (host, port) = name.rsplit_once(':').expect("an endpoint has a port");
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = port.parse().expect("an endpoint's port is a number");
        Ok(Self { name: name.to_owned(), host, port, interval: INTERVAL_DEFAULT, next: None })
    }

    /// Looks the name up so often; 30 s unless said otherwise.
    pub const fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    async fn look_up(&self) -> Result<Vec<Endpoint>, Error> {
        let failed = |why: String| Error::unresolved(format!("{}: {why}", self.host));
        let found = match timeout(LOOKUP_LIMIT, lookup_host((self.host.as_str(), self.port))).await
        {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("no answer within {LOOKUP_LIMIT:?}"))),
        };
        let mut addresses: Vec<SocketAddr> = found.collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(failed("it has no address".to_owned()));
        }
        let endpoint =
            |address: &SocketAddr| Endpoint::new(address.to_string())?.with_authority(&self.name);
        addresses.iter().map(endpoint).collect()
    }
}

impl Resolver for Dns {
    async fn next(&mut self) -> Result<Vec<Endpoint>, Error> {
        if let Some(next) = self.next {
            sleep_until(next).await;
        }
        let found = self.look_up().await;
        let pause = if found.is_ok() { self.interval } else { RETRY_INTERVAL.min(self.interval) };
        self.next = Some(Instant::now() + pause);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_the_addresses_that_the_system_knows() {
        let mut local = Dns::new("localhost:7401").expect("it is host:port");
        let found = local.next().await.expect("every system knows it");
        let loopback = |e: &Endpoint| {
            ["127.0.0.1:7401", "[::1]:7401"].contains(&e.address())
                && e.authority() == "localhost:7401"
        };
        assert!(!found.is_empty() && found.iter().all(loopback), "{found:?}");
    }

    #[tokio::test]
    async fn a_name_that_is_not_found_is_an_error_that_names_it() {
        let mut nobody = Dns::new("nobody.invalid:1").expect("it is host:port");
        let refused = nobody.next().await.expect_err("the name is reserved for this");
        assert!(refused.message().contains("nobody.invalid"), "{refused}");
    }

    #[test]
    fn what_is_not_a_name_with_a_port_is_refused() {
        assert!(Dns::new("localhost").is_err());
    }
}
