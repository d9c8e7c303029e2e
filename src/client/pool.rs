//! The endpoints and their channels, and which of them is asked next.
//!
//! One endpoint is current; calls stay with it until it fails, and then move on together. A
//! channel is made at its first use and connects again by itself. Nothing is balanced here.

use std::sync::{
    Arc, OnceLock, PoisonError, RwLock,
    atomic::{AtomicUsize, Ordering},
};

use rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint};

use crate::{client::Error, host::tcp, net::Dial, types::Duration};

/// How many endpoints a client knows at most, those it was led to included.
const ENDPOINTS_MAX: usize = 64;

/// The flow-control window of a connection. Never the adaptive one: with it h2 closes
/// connections over many small unread frames.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// The flow-control window of one stream.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;

/// How often an HTTP/2 ping asks whether the node is still there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// How long a ping may go unanswered before the connection counts as broken.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How every endpoint is dialled.
#[derive(Clone, Debug)]
pub(crate) struct Dialling {
    pub(crate) connect_timeout: Duration,
    /// Plaintext where there is none.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

#[derive(Debug)]
pub(crate) struct Pool {
    slots: RwLock<Vec<Arc<Slot>>>,
    current: AtomicUsize,
    dialling: Dialling,
}

/// One endpoint.
#[derive(Debug)]
pub(crate) struct Slot {
    address: String,
    endpoint: Endpoint,
    dial: Option<Dial>,
    channel: OnceLock<Channel>,
}

impl Slot {
    /// Takes `host:port`, or the same behind the scheme that goes with `dialling`.
    pub(crate) fn parse(text: &str, dialling: &Dialling) -> Result<Self, Error> {
        let wrong = |why: &str| Error::invalid(format!("endpoint {text:?} {why}"));
        let (scheme, address) = text.split_once("://").unwrap_or(("", text));
        match (scheme, &dialling.tls) {
            ("", _) | ("http", None) | ("https", Some(_)) => {}
            ("https", None) => return Err(wrong("asks for TLS: name the CA to trust as well")),
            ("http", Some(_)) => {
                return Err(wrong("asks for plaintext, and there is a CA for TLS"));
            }
            _ => return Err(wrong("is not host:port")),
        }
        let address = address.trim_end_matches('/');
        let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("is not host:port"))?;
        if host.is_empty() || port.parse::<u16>().is_err() {
            return Err(wrong("is not host:port"));
        }
        let origin = if dialling.tls.is_some() { "https" } else { "http" };
        let origin = format!("{origin}://{address}").parse();
        // The connector does the TLS; https here would make tonic look for a TLS of its own.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| wrong("is not host:port"))?
            .origin(origin.map_err(|_| wrong("is not host:port"))?)
            .connect_timeout(dialling.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_stream_window_size(STREAM_WINDOW_BYTES);
        let dial = dialling.tls.clone().map(Dial::fixed);
        Ok(Self { address: address.to_owned(), endpoint, dial, channel: OnceLock::new() })
    }

    fn channel(&self) -> Channel {
        let connect = || match &self.dial {
            None => tcp::connect_lazy(&self.endpoint),
            Some(dial) => self.endpoint.connect_with_connector_lazy(dial.clone()),
        };
        self.channel.get_or_init(connect).clone()
    }
}

impl Pool {
    pub(crate) fn new(slots: Vec<Slot>, dialling: Dialling) -> Self {
        assert!(!slots.is_empty(), "the builder refuses a client without endpoints");
        Self {
            slots: RwLock::new(slots.into_iter().map(Arc::new).collect()),
            current: AtomicUsize::new(0),
            dialling,
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.read().iter().map(|slot| slot.address.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    /// The current endpoint's number and channel.
    pub(crate) fn current(&self) -> (usize, Channel) {
        let slots = self.read();
        let number = self.current.load(Ordering::Relaxed) % slots.len();
        (number, slots[number].channel())
    }

    /// Moves on from an endpoint that failed, unless another call has done so.
    pub(crate) fn leave(&self, number: usize) {
        let next = (number + 1) % self.read().len();
        let _ = self.current.compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Goes to the node that an answer named. Returns whether that is another endpoint than
    /// `number`, so that it may be asked at once.
    pub(crate) fn follow(&self, number: usize, address: &str) -> bool {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let known = slots.iter().position(|slot| slot.address == address);
        let target = match known {
            Some(target) => target,
            None if slots.len() < ENDPOINTS_MAX => {
                let Ok(slot) = Slot::parse(address, &self.dialling) else { return false };
                slots.push(Arc::new(slot));
                slots.len() - 1
            }
            None => return false,
        };
        self.current.store(target, Ordering::Relaxed);
        target != number
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Slot>>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(addresses: &[&str]) -> Pool {
        let dialling = Dialling { connect_timeout: Duration::from_millis(1), tls: None };
        let slots = addresses.iter().map(|a| Slot::parse(a, &dialling).expect("well formed"));
        Pool::new(slots.collect(), dialling)
    }

    #[tokio::test]
    async fn calls_that_fail_together_move_on_once() {
        let pool = pool(&["a:1", "b:2", "c:3"]);
        pool.leave(0);
        pool.leave(0);
        assert_eq!(pool.current().0, 1);
        pool.leave(1);
        pool.leave(2);
        assert_eq!(pool.current().0, 0);
    }

    #[tokio::test]
    async fn a_hint_is_followed_also_to_an_endpoint_not_known_before() {
        let pool = pool(&["a:1", "b:2"]);
        assert!(pool.follow(0, "b:2"));
        assert_eq!(pool.current().0, 1);
        assert!(!pool.follow(1, "b:2"), "it is asked already");
        assert!(pool.follow(1, "c:3"));
        assert_eq!(pool.addresses(), ["a:1", "b:2", "c:3"]);
        assert!(!pool.follow(2, "not an address"));
    }
}
