//! The layer with a limit for each key: a backend, a method, a tenant.
//!
//! Keys come from requests, so their number is bounded: the limit of a key that has nothing under
//! way is forgotten when a new key needs its place.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    entry::{ConcurrencyLimitHandle, Entry},
    layer::{ready, through},
};
use crate::{
    layers::{BoxError, BoxFuture, Clock},
    machine::refusal,
    pb::command::v1::Reason,
    resilience::concurrency_limit::{Stats, ValidConfig},
    wire::status::from_refusal,
};

/// The key of a call.
type Keys = Arc<dyn for<'a> Fn(&'a Request<Body>) -> Cow<'a, str> + Send + Sync>;

/// How many keys a bulkhead has at most, unless said otherwise.
const KEYS_MAX: usize = 1_024;

/// Gives the calls of each key a limit and a queue of their own. Clones share the limits.
///
/// ```
/// use quorate::{layers::BulkheadLayer, resilience::concurrency_limit::Config};
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
    keys: Keys,
}

struct Shared {
    config: ValidConfig,
    clock: Clock,
    keys_max: usize,
    entries: Mutex<HashMap<String, Arc<Entry>>>,
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

    /// As [`new`](Self::new), with a bound on the keys that have a call under way, at least 1. Where
    /// all of them have one, the calls of further keys are refused.
    #[must_use]
    pub fn with_keys_max(
        config: ValidConfig,
        keys_max: usize,
        key: impl for<'a> Fn(&'a Request<Body>) -> Cow<'a, str> + Send + Sync + 'static,
    ) -> Self {
        let (clock, entries, keys_max) = (Clock::start(), Mutex::default(), keys_max.max(1));
        Self { shared: Arc::new(Shared { config, clock, keys_max, entries }), keys: Arc::new(key) }
    }

    /// For support.
    #[must_use]
    pub fn handle(&self) -> BulkheadHandle {
        BulkheadHandle(Arc::clone(&self.shared))
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The limit of a key. In the same step it cannot be forgotten: whoever holds it is counted.
    fn entry(&self, key: &str) -> Result<Arc<Entry>, Status> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(key) {
            return Ok(Arc::clone(entry));
        }
        if entries.len() >= self.keys_max {
            // One that another call has found, and not entered yet, is not idle either.
            entries.retain(|_, entry| Arc::strong_count(entry) > 1 || !entry.is_idle());
        }
        if entries.len() >= self.keys_max {
            return Err(self.refuse());
        }
        let entry = Arc::new(Entry::new(self.config, self.clock, format!("of {key}")));
        entries.insert(key.to_owned(), Arc::clone(&entry));
        Ok(entry)
    }

    fn refuse(&self) -> Status {
        let sentence = format!(
            "the bulkhead refused the call before it began: all of its {} keys have calls under \
             way, and this one is a further key: try again later",
            self.keys_max
        );
        from_refusal(refusal(Reason::Overloaded, sentence).with("layer", "bulkhead"))
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
        let keys = self.shared.entries().len();
        f.debug_struct("BulkheadLayer").field("keys", &keys).finish_non_exhaustive()
    }
}

/// For support: how the limit of each key stands. Cheap to clone.
#[derive(Clone)]
pub struct BulkheadHandle(Arc<Shared>);

impl BulkheadHandle {
    /// How the limit of a key stands; `None` for one that has none, or none any more.
    #[must_use]
    pub fn stats(&self, key: &str) -> Option<Stats> {
        let entry = self.0.entries().get(key).cloned()?;
        Some(ConcurrencyLimitHandle(entry).stats())
    }

    /// The keys that have a limit now, sorted.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.0.entries().keys().cloned().collect();
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
        let entry = self.layer.shared.entry(&(self.layer.keys)(&request));
        let inner = ready(&mut self.inner);
        match entry {
            Ok(entry) => Box::pin(through(entry, 0, inner, request)),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}
