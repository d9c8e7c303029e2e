//! The layer, its service and its handle.
//!
//! When a call may pass is not decided here.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tonic::{Code, body::Body};
use tower::{Layer, Service};

use crate::{
    layers::{
        BoxError, BoxFuture, Clock,
        keyed::{Idle, KEYS_MAX, KeyOf, Keyed},
        refusal::Refusal,
    },
    resilience::rate_limit::{RateLimiter, Reservation, ValidConfig},
    types::Instant,
};

/// The `ErrorInfo` reason of refusals.
pub const RATE_LIMITED: &str = "RATE_LIMITED";

/// How often the refusals of one limiter are logged, at most.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Limits the rate of a client's or server's calls: see [the module](crate::layers::rate_limit).
///
/// All services that one layer, or a clone of it, makes share its limiters. Set it up before it is
/// used: each of the methods that do begins with new limiters.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use quorate::{layers::rate_limit::RateLimitLayer, resilience::rate_limit::Config};
/// use tonic::{Code, Status, body::Body};
/// use tower::{Layer as _, Service as _, ServiceExt as _};
///
/// let config = Config { rate: 10, burst: 2, ..Config::default() };
/// // On a server: `tonic::transport::Server::builder().layer(layer)`.
/// let layer = RateLimitLayer::new(config.validate()?).by_path();
/// let works = tower::service_fn(|_: http::Request<Body>| async {
///     Ok::<_, std::convert::Infallible>(Status::ok("").into_http::<Body>())
/// });
/// let mut limited = layer.layer(works);
/// let mut codes = Vec::new();
/// for _ in 0..3 {
///     let answer = limited.ready().await?.call(http::Request::new(Body::empty())).await?;
///     codes.push(Status::from_header_map(answer.headers()).expect("it has one").code());
/// }
/// assert_eq!(codes, [Code::Ok, Code::Ok, Code::ResourceExhausted]);
/// assert_eq!(layer.handle().stats().refused, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RateLimitLayer {
    settings: Settings,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Settings {
    config: ValidConfig,
    key_of: Option<KeyOf>,
    keys_max: usize,
    wait_max: Duration,
}

impl RateLimitLayer {
    /// One limiter for all calls, which refuses what may not pass.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        Self::of(Settings { config, key_of: None, keys_max: KEYS_MAX, wait_max: Duration::ZERO })
    }

    /// Has a call wait until it may pass, if that is within `wait_max`; else it is refused at once.
    /// Whoever waits is served in order. At most the calls of `wait_max` wait at a time.
    #[must_use]
    pub fn wait(self, wait_max: Duration) -> Self {
        Self::of(Settings { wait_max, ..self.settings })
    }

    /// One limiter for each method.
    #[must_use]
    pub fn by_path(self) -> Self {
        self.by(|request| request.uri().path().into())
    }

    /// One limiter for each key, as of the caller that stands in a request's headers.
    #[must_use]
    pub fn by(
        self,
        key_of: impl for<'a> Fn(&'a Request<Body>) -> Cow<'a, str> + Send + Sync + 'static,
    ) -> Self {
        Self::of(Settings { key_of: Some(Arc::new(key_of)), ..self.settings })
    }

    /// At most so many keys have a limiter of their own; at least 1, default 1024. One that has
    /// rested makes room; where there is none, further keys share one.
    #[must_use]
    pub fn keys_max(self, keys: usize) -> Self {
        Self::of(Settings { keys_max: keys.max(1), ..self.settings })
    }

    /// For whoever looks after it.
    #[must_use]
    pub fn handle(&self) -> RateLimitHandle {
        RateLimitHandle { shared: Arc::clone(&self.shared) }
    }

    fn of(settings: Settings) -> Self {
        let limiter = Arc::new(Limiter::new(settings.config, None));
        let shared = Shared {
            limiters: Keyed::new(settings.key_of.clone(), settings.keys_max, limiter),
            config: settings.config,
            wait_max: settings.wait_max,
            clock: Clock::start(),
            counts: Counts::default(),
        };
        Self { settings, shared: Arc::new(shared) }
    }
}

impl<S> Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, shared: Arc::clone(&self.shared) }
    }
}

impl fmt::Debug for RateLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateLimitLayer").field(&self.handle()).finish()
    }
}

/// What all services of a layer share.
struct Shared {
    limiters: Keyed<Limiter>,
    config: ValidConfig,
    wait_max: Duration,
    clock: Clock,
    counts: Counts,
}

/// A limiter with its key.
struct Limiter {
    key: Option<Arc<str>>,
    machine: RateLimiter,
    /// When its next refusal is logged, in nanoseconds.
    log_at: AtomicU64,
}

#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    waited: AtomicU64,
    refused: AtomicU64,
    given_up: AtomicU64,
}

impl Idle for Limiter {
    fn is_idle(&self, now: Instant) -> bool {
        self.machine.is_idle(now)
    }
}

impl Limiter {
    const fn new(config: ValidConfig, key: Option<Arc<str>>) -> Self {
        Self { key, machine: RateLimiter::new(config), log_at: AtomicU64::new(0) }
    }

    fn refusal(&self, again: Instant, now: Instant) -> Response<Body> {
        let config = self.machine.config();
        let of = self.key.as_deref().unwrap_or("this service");
        let (rate, period, wait) = (config.rate, config.period, again.since(now));
        self.log(now);
        let message = format!(
            "the rate limit of {of}, {rate} calls in {period:?}, is reached: try again in {wait:.0?}"
        );
        let limit = ("limit".to_owned(), format!("{rate} in {period:?}"));
        let mut facts = HashMap::from([limit]);
        if let Some(key) = &self.key {
            facts.insert("key".to_owned(), key.to_string());
        }
        let (code, reason) = (Code::ResourceExhausted, RATE_LIMITED);
        Refusal { code, reason, message, retry_after: Some(wait), facts }.into_response()
    }

    /// One event for many refusals: under a flood the log is not to be flooded too.
    fn log(&self, now: Instant) {
        let log_at = self.log_at.load(Relaxed);
        let next = now.after(LOG_EVERY).as_nanos();
        let is_first = now.as_nanos() >= log_at
            && self.log_at.compare_exchange(log_at, next, Relaxed, Relaxed).is_ok();
        if is_first {
            let key = self.key.as_deref().unwrap_or("all");
            let config = self.machine.config();
            tracing::info!(key, rate = config.rate, period = ?config.period, "rate limit reached");
        }
    }
}

/// What a layer's limiters have seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls that passed, at once or after a wait.
    pub passed: u64,
    /// Calls that had to wait, whatever became of them.
    pub waited: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls whose caller gave up while they waited.
    pub given_up: u64,
}

/// The limiters of one [`RateLimitLayer`]. Cheap to clone.
#[derive(Clone)]
pub struct RateLimitHandle {
    shared: Arc<Shared>,
}

impl RateLimitHandle {
    /// What the limiters have seen together.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counts = &self.shared.counts;
        Stats {
            passed: counts.passed.load(Relaxed),
            waited: counts.waited.load(Relaxed),
            refused: counts.refused.load(Relaxed),
            given_up: counts.given_up.load(Relaxed),
        }
    }

    /// How many keys have a limiter of their own.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.shared.limiters.len()
    }

    /// How many calls would pass now: of all, or, where keys have their own limiter, of those that
    /// share one.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.shared.limiters.shared().machine.available(self.shared.clock.now())
    }

    /// The same of one key; `None` where it has no limiter, so that a burst would pass.
    #[must_use]
    pub fn available_to(&self, key: &str) -> Option<u32> {
        let limiter = self.shared.limiters.get(key)?;
        Some(limiter.machine.available(self.shared.clock.now()))
    }
}

impl fmt::Debug for RateLimitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitHandle")
            .field("config", &self.shared.config.config())
            .field("keys", &self.keys())
            .field("stats", &self.stats())
            .finish()
    }
}

/// A service behind limiters; see [`RateLimitLayer`].
#[derive(Clone)]
pub struct RateLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for RateLimit<S>
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
        let shared = &self.shared;
        let now = shared.clock.now();
        let new = |key: &Arc<str>| Arc::new(Limiter::new(shared.config, Some(Arc::clone(key))));
        let limiter = shared.limiters.of(&request, now, new);
        let reservation = match limiter.machine.reserve(1, now, shared.wait_max) {
            Ok(reservation) => reservation,
            Err(again) => {
                shared.counts.refused.fetch_add(1, Relaxed);
                return Box::pin(std::future::ready(Ok(limiter.refusal(again, now))));
            }
        };
        if reservation.at() <= now {
            shared.counts.passed.fetch_add(1, Relaxed);
            return Box::pin(self.inner.call(request));
        }
        shared.counts.waited.fetch_add(1, Relaxed);
        // The service that was found ready is the one to call, later.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        let at = shared.clock.at(reservation.at());
        let waits = Waits { shared: Arc::clone(shared), limiter, reservation: Some(reservation) };
        Box::pin(async move {
            tokio::time::sleep_until(at).await;
            waits.pass();
            ready.call(request).await
        })
    }
}

impl<S> fmt::Debug for RateLimit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handle = RateLimitHandle { shared: Arc::clone(&self.shared) };
        f.debug_tuple("RateLimit").field(&handle).finish()
    }
}

/// A call that waits. Dropped before it passes, it gives its time back.
struct Waits {
    shared: Arc<Shared>,
    limiter: Arc<Limiter>,
    reservation: Option<Reservation>,
}

impl Waits {
    fn pass(mut self) {
        self.reservation = None;
        self.shared.counts.passed.fetch_add(1, Relaxed);
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            self.limiter.machine.cancel(reservation);
            self.shared.counts.given_up.fetch_add(1, Relaxed);
        }
    }
}
