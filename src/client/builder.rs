//! How a client is made, and the client itself: endpoints, limits and the typed handles.
//!
//! Building opens no connection; the first call does. It must therefore happen inside a tokio
//! runtime, building need not.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::DropGuard;

use crate::{
    client::{
        Cluster, Discovery, Error, Events, Kv, Lab, Locks, Sessions, Tls,
        balance::{self, Balance, Endpoint, Http2, LeastRequests, Policy, View},
        retries::{self, Retries, RetryStats},
        router::{Router, follow_registry},
    },
    observe::TraceParent,
    resilience::{backoff, retry_budget},
    types::Duration,
};

/// What bounds a unary call, retries included, unless said otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// How long a stream or a waiting call that was established tries to come back.
const PATIENCE_DEFAULT: Duration = Duration::from_secs(30);

/// How long one attempt to connect may take: short, so that a dead node costs little.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_millis(400);

/// The pauses between attempts to connect to a node: short, because a node that starts again, and a
/// cluster that elects, are back soon.
const BACKOFF: backoff::Config = backoff::Config {
    base: Duration::from_millis(20),
    factor: 1.6,
    jitter: 0.2,
    max: Duration::from_millis(500),
};

/// A client of one cluster. Cheap to clone; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) router: Arc<Router>,
    /// Keeps the router told of the registered nodes, from the first call until the last clone of
    /// this client is dropped. Absent where that is not wanted.
    following: Option<Arc<OnceLock<DropGuard>>>,
    pub(super) timeout: Duration,
    pub(super) patience: Duration,
    pub(super) parent: Option<TraceParent>,
    pub(super) retries: Arc<Retries>,
}

impl Client {
    /// Starts to build a client.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use quorate::client::Client;
    ///
    /// let client = Client::builder()
    ///     .endpoints(["127.0.0.1:7401", "127.0.0.1:7402"])
    ///     .timeout(Duration::from_secs(2))
    ///     .build()?;
    /// assert_eq!(client.endpoints().len(), 2);
    /// # Ok::<(), quorate::client::Error>(())
    /// ```
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The same client, over the same connections, with another bound of its unary calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same client, over the same connections, whose unary calls are part of a trace: they
    /// carry a W3C `traceparent`. In a build with the feature `otel`, calls made without this are
    /// part of OpenTelemetry's current span, where there is one.
    #[must_use]
    pub fn with_trace_parent(&self, parent: TraceParent) -> Self {
        Self { parent: Some(parent), ..self.clone() }
    }

    /// The same client for calls that keep something alive: few, and not to wait behind others.
    pub(super) fn without_retry_budget(&self) -> Self {
        Self { retries: Arc::new(Retries::new(None)), ..self.clone() }
    }

    /// What this client and its clones sent beyond the first attempts of their calls.
    #[must_use]
    pub fn retry_stats(&self) -> RetryStats {
        self.retries.stats()
    }

    /// What calls made now are part of.
    pub(super) fn trace_parent(&self) -> Option<TraceParent> {
        self.parent.or_else(current_span)
    }

    /// What bounds a unary call, retries included.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The nodes that the client knows, as `host:port`: those it was built with, those it was led
    /// to, and those that are registered.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.router.addresses()
    }

    /// The balancer over the nodes that the client knows: its view, its metrics, and a service for
    /// any client that tonic generated. Must be called inside a tokio runtime; connections are made
    /// from the first call on.
    #[must_use]
    pub fn balance(&self) -> Balance {
        self.follow_registry();
        self.router.balance().clone()
    }

    /// How the nodes and their connections stand. As [`Client::balance`].
    #[must_use]
    pub fn view(&self) -> View {
        self.balance().view()
    }

    pub(super) fn follow_registry(&self) {
        if let Some(following) = &self.following {
            following.get_or_init(|| follow_registry(Self { following: None, ..self.clone() }));
        }
    }

    /// The revisioned keyspace.
    #[must_use]
    pub fn kv(&self) -> Kv {
        Kv::new(self.clone())
    }

    /// Locks with fencing tokens.
    #[must_use]
    pub fn locks(&self) -> Locks {
        Locks::new(self.clone())
    }

    /// Services and their instances.
    #[must_use]
    pub fn discovery(&self) -> Discovery {
        Discovery::new(self.clone())
    }

    /// Event streams.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.clone())
    }

    /// Sessions.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        Sessions::new(self.clone())
    }

    /// Faults on purpose, in nodes that were started with `--lab`.
    #[must_use]
    pub fn lab(&self) -> Lab {
        Lab::new(self.clone())
    }

    /// The cluster itself.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        Cluster::new(self.clone())
    }
}

/// Builds a [`Client`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    endpoints: Vec<String>,
    timeout: Duration,
    patience: Duration,
    connect_timeout: Duration,
    tls: Option<Tls>,
    balance: balance::Builder,
    discover: bool,
    retry_budget: Option<retry_budget::ValidConfig>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            timeout: TIMEOUT_DEFAULT,
            patience: PATIENCE_DEFAULT,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            tls: None,
            balance: Balance::builder()
                .policy(LeastRequests)
                .backoff(BACKOFF.validate().expect("its figures are in range")),
            discover: true,
            retry_budget: Some(retries::BUDGET.validate().expect("its figures are in range")),
        }
    }
}

impl Builder {
    /// Adds endpoints: `host:port`, or the same behind `http://`, or `https://` with
    /// [`Builder::tls`]. The first is asked first.
    pub fn endpoints<I>(mut self, endpoints: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// Bounds each unary call, retries included. Default 5 s.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Bounds how long a stream, or a call that waits in line, tries to come back once it was
    /// established. Default 30 s.
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Bounds one attempt to connect. Default 400 ms.
    pub const fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// How the node for a read is chosen, and for a change while the leader is not known or not
    /// reached. Default [`LeastRequests`].
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.balance = self.balance.policy(policy);
        self
    }

    /// Whether the client learns of nodes from the registry, where each node registers itself as an
    /// instance of the service `quorate`: calls then go to all of them, also at addresses that are
    /// not among the endpoints, and not to nodes that drain. Default yes. Without it the endpoints,
    /// and nodes that refusals name, are all that is asked: for clients that mean one certain node,
    /// and where registered addresses cannot be reached.
    pub const fn discover(mut self, discover: bool) -> Self {
        self.discover = discover;
        self
    }

    /// How many requests are sent again at most, of all calls together, so that many clients do not
    /// keep a cluster down that cannot bear their calls. While the budget is empty a call waits for
    /// it, up to its own limit. Default a fifth of the calls and 250 a second, over two seconds;
    /// `None` is no bound. Streams and calls that wait in line, which come back one by one, and the
    /// renewals of guards are not counted.
    ///
    /// ```
    /// use quorate::{client::Client, resilience::retry_budget::{Config, Share}};
    ///
    /// let budget = Config::Share(Share { ratio: 0.1, ..Share::default() }).validate()?;
    /// let client = Client::builder()
    ///     .endpoints(["127.0.0.1:7401"])
    ///     .retry_budget(Some(budget))
    ///     .build()?;
    /// assert_eq!(client.retry_stats().held_back, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn retry_budget(mut self, budget: Option<retry_budget::ValidConfig>) -> Self {
        self.retry_budget = budget;
        self
    }

    /// Dials every node by TLS. Without it all is plaintext.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Makes the client. Nothing is connected yet.
    ///
    /// # Errors
    /// INVALID_ARGUMENT without any endpoint, when one is not `host:port` or asks for TLS where
    /// there is none or the other way round, and when the certificates are not PEM of their kind.
    pub fn build(self) -> Result<Client, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::invalid("a client needs at least one endpoint"));
        }
        let tls = self.tls.as_ref().map(Tls::config).transpose()?;
        let endpoints = self
            .endpoints
            .iter()
            .map(|endpoint| parse(endpoint, tls.is_some()))
            .collect::<Result<_, _>>()?;
        let mut connect = Http2::new()
            .connect_timeout(self.connect_timeout)
            .keep_alive(balance::KEEPALIVE_INTERVAL);
        if let Some(config) = tls {
            connect = connect.tls(config);
        }
        let router = Arc::new(Router::new(endpoints, self.balance.clone().connect(connect)));
        let following = self.discover.then(Arc::default);
        let (timeout, patience) = (self.timeout, self.patience);
        let retries = Arc::new(Retries::new(self.retry_budget));
        Ok(Client { router, following, timeout, patience, parent: None, retries })
    }
}

/// Takes `host:port`, or the same behind the scheme that goes with how nodes are dialled.
fn parse(text: &str, tls: bool) -> Result<Endpoint, Error> {
    let wrong = |why: &str| Error::invalid(format!("endpoint {text:?} {why}"));
    let (scheme, address) = text.split_once("://").unwrap_or(("", text));
    match (scheme, tls) {
        ("", _) | ("http", false) | ("https", true) => {}
        ("https", false) => return Err(wrong("asks for TLS: name the CA to trust as well")),
        ("http", true) => return Err(wrong("asks for plaintext, and there is a CA for TLS")),
        _ => return Err(wrong("is not host:port")),
    }
    Endpoint::new(address.trim_end_matches('/')).map_err(|_| wrong("is not host:port"))
}

/// OpenTelemetry's current span.
#[cfg(feature = "otel")]
fn current_span() -> Option<TraceParent> {
    use opentelemetry::{Context, trace::TraceContextExt as _};

    let context = Context::current();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| TraceParent {
        trace_id: u128::from_be_bytes(span.trace_id().to_bytes()),
        parent_id: u64::from_be_bytes(span.span_id().to_bytes()),
        sampled: span.is_sampled(),
    })
}

/// Nobody keeps a current span in this build.
#[cfg(not(feature = "otel"))]
const fn current_span() -> Option<TraceParent> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_needs_well_formed_endpoints() {
        let build = |endpoint: &str| Client::builder().endpoints([endpoint]).build();
        for good in ["127.0.0.1:7401", "localhost:1", "http://node-1:7401", "[::1]:7401"] {
            assert!(build(good).is_ok(), "{good}");
        }
        for bad in ["", "localhost", "7401", "host:port", "https://a:1", "a b:1", "a:99999", ":1"] {
            let refused = build(bad).expect_err(bad);
            assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{bad}");
            assert!(refused.message().contains(bad), "{refused}");
        }
        assert!(Client::builder().build().is_err());
    }
}
