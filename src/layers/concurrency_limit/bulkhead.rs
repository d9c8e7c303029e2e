//! The layer with a limit for each key: a backend, a method, a tenant.
//!
//! Keys come from requests, so their number is bounded: the limit of a key that has nothing under
//! way is forgotten when a new key needs its place, and where all have something, further keys share
//! one limit.

use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    entry::Entry,
    layer::{ready, through},
};
use crate::{
    layers::{
        BoxError, BoxFuture, Clock,
        keyed::{KEYS_MAX, KeyOf, Keyed},
    },
    resilience::concurrency_limit::{Stats, ValidConfig},
};

/// Gives the calls of each key a limit and a queue of their own. Clones share the limits.
///
/// ```
/// use quorate::{
///     layers::concurrency_limit::BulkheadLayer, resilience::concurrency_limit::Config,
/// };
/// use tonic::{Status, body::Body};
/// use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config { queue_max: 0, ..Config::fixed(1) }.validate()?;
/// let bulkhead = BulkheadLayer::new(config, |request| request.uri().path().into());
/// let handle = bulkhead.handle();
/// let service = service_fn(async |_: http::Request<Body>| {
///     tokio::task::yield_now().await;
///     Ok::<_, std::convert::Infallible>(Status::ok("").into_http::<Body>())
/// });
/// let mut service = ServiceBuilder::new().layer(bulkhead).service(service);
///
/// let mut call = async |path: &'static str| {
///     let request = http::Request::post(path).body(Body::empty())?;
///     Ok::<_, Box<dyn std::error::Error>>(service.ready().await?.call(request))
/// };
/// let (a, again, b) = (call("/a").await?, call("/a").await?, call("/b").await?);
/// let (a, again, b) = tokio::join!(a, again, b);
/// assert_eq!(a?.headers()["grpc-status"], "0");
/// assert_eq!(again?.headers()["grpc-status"], "8", "its place is taken");
/// assert_eq!(b?.headers()["grpc-status"], "0", "which is nothing to the other key");
/// assert_eq!(handle.stats("/a").map(|stats| stats.refused), Some(1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct BulkheadLayer {
    shared: Arc<Shared>,
}

struct Shared {
    config: ValidConfig,
    clock: Clock,
    entries: Keyed<Entry>,
}

impl BulkheadLayer {
    /// Limits without a key yet; each key gets one of this kind. Up to 1,024 keys.
    #[must_use]
    pub fn new(
        config: ValidConfig,
        key: impl for<'a> Fn(&'a Request<Body>) -> Cow<'a, str> + Send + Sync + 'static,
    ) -> Self {
        Self::with_keys_max(config, KEYS_MAX, key)
    }

    /// As [`new`](Self::new), with another bound on the keys. The calls of further keys share one
    /// limit of this kind as long as all those have calls under way.
    #[must_use]
    pub fn with_keys_max(
        config: ValidConfig,
        keys_max: usize,
        key: impl for<'a> Fn(&'a Request<Body>) -> Cow<'a, str> + Send + Sync + 'static,
    ) -> Self {
        let (clock, key): (_, KeyOf) = (Clock::start(), Arc::new(key));
        let rest = Arc::new(Entry::new(config, clock, "further keys".to_owned()));
        let entries = Keyed::new(Some(key), keys_max, rest);
        Self { shared: Arc::new(Shared { config, clock, entries }) }
    }

    /// For support.
    #[must_use]
    pub fn handle(&self) -> BulkheadHandle {
        BulkheadHandle(Arc::clone(&self.shared))
    }
}

impl Shared {
    fn entry(&self, request: &Request<Body>) -> Arc<Entry> {
        let (config, clock) = (self.config, self.clock);
        self.entries
            .of(request, clock.now(), |key| Arc::new(Entry::new(config, clock, key.to_string())))
    }
}

impl<S> Layer<S> for BulkheadLayer {
    type Service = Bulkhead<S>;

    fn layer(&self, inner: S) -> Bulkhead<S> {
        Bulkhead { inner, layer: self.clone() }
    }
}

impl fmt::Debug for BulkheadLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkheadLayer")
            .field("entries", &self.shared.entries)
            .finish_non_exhaustive()
    }
}

/// For support: how the limit of each key stands. Cheap to clone.
#[derive(Clone)]
pub struct BulkheadHandle(Arc<Shared>);

impl BulkheadHandle {
    /// How the limit of a key stands; `None` for one that has none, or none any more.
    #[must_use]
    pub fn stats(&self, key: &str) -> Option<Stats> {
        self.0.entries.get(key).map(|entry| entry.stats())
    }

    /// How the limit stands that further keys share.
    #[must_use]
    pub fn rest(&self) -> Stats {
        self.0.entries.shared().stats()
    }

    /// The keys that have a limit now, sorted.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let all = self.0.entries.all();
        // The first one is that of further keys.
        let mut keys: Vec<String> = all[1..].iter().map(|entry| entry.name().to_owned()).collect();
        keys.sort();
        keys
    }
}

impl fmt::Debug for BulkheadHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BulkheadHandle").field("keys", &self.keys()).finish()
    }
}

/// A service whose calls under way are bounded by key.
#[derive(Clone, Debug)]
pub struct Bulkhead<S> {
    inner: S,
    layer: BulkheadLayer,
}

impl<S> Service<Request<Body>> for Bulkhead<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let entry = self.layer.shared.entry(&request);
        Box::pin(through(entry, 0, ready(&mut self.inner), request))
    }
}
