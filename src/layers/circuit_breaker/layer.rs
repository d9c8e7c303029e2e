//! The layer and its service: which breaker a call has, what its end means, what a refusal says.
//!
//! When a breaker opens and closes is not decided here.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tonic::{Code, body::Body};
use tower::{Layer, Service};

use crate::{
    host,
    layers::{
        BoxError, BoxFuture, Clock, Due, Outcome,
        circuit_breaker::CircuitBreakerHandle,
        keyed::{Idle, KEYS_MAX, KeyOf, Keyed},
        observe,
        refusal::{Refusal, RefusedHere},
    },
    resilience::circuit_breaker::{
        Breaker, Permit, Reason, Refused, State, Transition, ValidConfig, Verdict, Why,
    },
    types::{Instant, Rng},
};

/// The `ErrorInfo` reason of refusals.
pub const CIRCUIT_OPEN: &str = "CIRCUIT_OPEN";

/// When to come back while the probes are out: they tell soon.
const PROBES_OUT_RETRY: Duration = Duration::from_millis(100);

/// What the end of a call means to a breaker, unless told otherwise: a failure is what
/// [`Outcome::is_failure`] calls so, but for UNIMPLEMENTED, which tells of the caller's version; that
/// and a cancellation say nothing; all else is a success.
#[must_use]
pub const fn verdict(outcome: Outcome) -> Verdict {
    match outcome {
        Outcome::Cancelled | Outcome::Status(Code::Unimplemented) => Verdict::Neutral,
        outcome if outcome.is_failure() => Verdict::Failure,
        _ => Verdict::Success,
    }
}

/// Breaks the circuit of a client or server: see [the module](crate::layers::circuit_breaker).
///
/// All services that one layer, or a clone of it, makes share its breakers. Set it up before it is
/// used: each of the methods that do begins with new breakers.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use quorate::{
///     layers::circuit_breaker::CircuitBreakerLayer,
///     resilience::circuit_breaker::{Config, State},
/// };
/// use tonic::{Status, body::Body};
/// use tower::{Layer as _, Service as _, ServiceExt as _};
///
/// let config = Config { consecutive_failures: Some(2), ..Config::default() };
/// let layer = CircuitBreakerLayer::new(config.validate()?);
/// let handle = layer.handle();
/// // In its place stands a `tonic::transport::Channel`, or anything that answers like one.
/// let down = tower::service_fn(|_: http::Request<Body>| async {
///     Ok::<_, tonic::transport::Error>(Status::unavailable("down").into_http::<Body>())
/// });
/// let mut client = layer.layer(down);
/// for _ in 0..3 {
///     let answer = client.ready().await?.call(http::Request::new(Body::empty())).await?;
///     let status = Status::from_header_map(answer.headers()).expect("it has one");
///     println!("{}", status.message());
/// }
/// assert!(matches!(handle.state(), State::Open { .. }));
/// assert_eq!(handle.stats().refused, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct CircuitBreakerLayer {
    settings: Settings,
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Settings {
    config: ValidConfig,
    key_of: Option<KeyOf>,
    keys_max: usize,
    verdict: Arc<dyn Fn(Outcome) -> Verdict + Send + Sync>,
    seed: u64,
}

impl CircuitBreakerLayer {
    /// One breaker for all calls.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        let verdict = Arc::new(verdict);
        Self::of(Settings { config, key_of: None, keys_max: KEYS_MAX, verdict, seed: host::seed() })
    }

    /// One breaker for each method.
    #[must_use]
    pub fn by_path(self) -> Self {
        self.by(|request| request.uri().path().into())
    }

    /// One breaker for each key, as of the endpoint that stands in a request's extensions.
    #[must_use]
    pub fn by(
        self,
        key_of: impl for<'a> Fn(&'a Request<Body>) -> Cow<'a, str> + Send + Sync + 'static,
    ) -> Self {
        Self::of(Settings { key_of: Some(Arc::new(key_of)), ..self.settings })
    }

    /// At most so many keys have a breaker of their own; at least 1, default 1024. One whose
    /// breaker remembers nothing bad makes room; where there is none, further keys share one.
    #[must_use]
    pub fn keys_max(self, keys: usize) -> Self {
        Self::of(Settings { keys_max: keys.max(1), ..self.settings })
    }

    /// What the end of a call means; default [`verdict`].
    #[must_use]
    pub fn verdict(self, verdict: impl Fn(Outcome) -> Verdict + Send + Sync + 'static) -> Self {
        Self::of(Settings { verdict: Arc::new(verdict), ..self.settings })
    }

    /// The chance that spreads how long breakers are open; by default from the system.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self::of(Settings { seed, ..self.settings })
    }

    /// For whoever looks after it.
    #[must_use]
    pub fn handle(&self) -> CircuitBreakerHandle {
        CircuitBreakerHandle::new(Arc::clone(&self.shared))
    }

    fn of(settings: Settings) -> Self {
        let observers = Arc::new(Observers::default());
        let make = Make {
            config: settings.config,
            rng: Rng::new(settings.seed),
            observers: Arc::clone(&observers),
        };
        let only = make.circuit(None, None, Instant::ZERO);
        let shared = Shared {
            circuits: Keyed::new(settings.key_of.clone(), settings.keys_max, only),
            make,
            verdict: Arc::clone(&settings.verdict),
            clock: Clock::start(),
            observers,
            forced: Mutex::new(None),
        };
        Self { settings, shared: Arc::new(shared) }
    }
}

impl<S> Layer<S> for CircuitBreakerLayer {
    type Service = CircuitBreaker<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CircuitBreaker { inner, shared: Arc::clone(&self.shared) }
    }
}

impl fmt::Debug for CircuitBreakerLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CircuitBreakerLayer").field(&self.handle()).finish()
    }
}

/// What all services of a layer share.
pub(super) struct Shared {
    pub(super) circuits: Keyed<Circuit>,
    make: Make,
    verdict: Arc<dyn Fn(Outcome) -> Verdict + Send + Sync>,
    pub(super) clock: Clock,
    pub(super) observers: Arc<Observers>,
    /// What breakers that come later are forced to.
    pub(super) forced: Mutex<Option<State>>,
}

/// What a breaker is made of.
struct Make {
    config: ValidConfig,
    rng: Rng,
    observers: Arc<Observers>,
}

/// A breaker with its key.
pub(super) struct Circuit {
    pub(super) key: Option<Arc<str>>,
    pub(super) breaker: Breaker,
}

/// Who is told of transitions.
#[derive(Default)]
pub(super) struct Observers(Mutex<Vec<Observer>>);

type Observer = Arc<dyn Fn(Option<&str>, &Transition) + Send + Sync>;

impl Observers {
    pub(super) fn add(&self, observer: Observer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    fn tell(&self, key: Option<&str>, change: &Transition) {
        log(key, change);
        let observers = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        observers.iter().for_each(|observer| observer(key, change));
    }
}

/// One event for each change of state.
fn log(key: Option<&str>, change: &Transition) {
    let (key, reason) = (key.unwrap_or("all"), &change.reason);
    let (from, to) = (change.from.name(), change.to.name());
    if let Some(open_for) = change.open_for() {
        tracing::warn!(key, from, to, %reason, ?open_for, "circuit breaker opened");
    } else {
        tracing::info!(key, from, to, %reason, "circuit breaker changed");
    }
}

impl Make {
    fn circuit(&self, key: Option<&Arc<str>>, forced: Option<State>, now: Instant) -> Arc<Circuit> {
        let rng = key.map_or_else(|| self.rng.clone(), |key| self.rng.stream(key));
        let breaker = Breaker::new(self.config, rng);
        match forced {
            Some(State::ForcedOpen) => breaker.force_open(now),
            Some(State::ForcedClosed) => breaker.force_close(now),
            _ => {}
        }
        // Observers may ask the handle, so they hear nothing before the breaker has its place.
        let (observers, name) = (Arc::clone(&self.observers), key.cloned());
        breaker.observe(move |change| observers.tell(name.as_deref(), change));
        Arc::new(Circuit { key: key.cloned(), breaker })
    }
}

impl Shared {
    fn circuit(&self, request: &Request<Body>, now: Instant) -> Arc<Circuit> {
        self.circuits.of(request, now, |key| {
            let forced = *self.forced.lock().unwrap_or_else(PoisonError::into_inner);
            self.make.circuit(Some(key), forced, now)
        })
    }
}

impl Idle for Circuit {
    fn is_idle(&self, now: Instant) -> bool {
        self.breaker.is_idle(now)
    }
}

impl Circuit {
    /// The answer to a call that may not be sent.
    fn refusal(&self, refused: Refused, now: Instant) -> Response<Body> {
        let of = self.key.as_deref().unwrap_or("this service");
        let last = self.breaker.last_transition().map(|last| last.reason);
        let retry_after = match refused.why {
            Why::Open => refused.until.map(|until| until.since(now)),
            Why::ProbesOut => Some(PROBES_OUT_RETRY),
            Why::ForcedOpen => None,
        };
        let message = match (refused.why, last) {
            (Why::ForcedOpen, _) => {
                format!("the circuit breaker of {of} was opened by hand: wait for its operator")
            }
            (Why::ProbesOut, _) => format!(
                "the circuit breaker of {of} is half-open and waits for its probes: try again soon"
            ),
            (Why::Open, reason) => {
                let reason = reason.unwrap_or(Reason::ProbeFailed);
                let wait = retry_after.unwrap_or_default();
                format!(
                    "the circuit breaker of {of} is open because {reason}: try again in {wait:.0?}, \
                     or elsewhere"
                )
            }
        };
        let mut facts = HashMap::from([("state".to_owned(), self.breaker.state().name().into())]);
        if let Some(key) = &self.key {
            facts.insert("key".to_owned(), key.to_string());
        }
        let (code, reason) = (Code::Unavailable, CIRCUIT_OPEN);
        Refusal { code, reason, message, retry_after, facts }.into_response()
    }
}

/// A service behind breakers; see [`CircuitBreakerLayer`].
#[derive(Clone)]
pub struct CircuitBreaker<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for CircuitBreaker<S>
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
        let now = self.shared.clock.now();
        let circuit = self.shared.circuit(&request, now);
        let permit = match circuit.breaker.try_acquire(now) {
            Ok(permit) => permit,
            Err(refused) => {
                let response = circuit.refusal(refused, now);
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        let due = request.extensions().get::<Due>().copied();
        let shared = Arc::clone(&self.shared);
        let call = Call { circuit, shared, permit: Some(permit), due };
        let answer = self.inner.call(request);
        Box::pin(async move {
            match answer.await {
                // A layer further in, such as a limit, says nothing of the other side.
                Ok(response) if response.extensions().get::<RefusedHere>().is_some() => {
                    call.end(Outcome::Cancelled);
                    Ok(response)
                }
                Ok(response) => Ok(observe(response, move |outcome| call.end(outcome))),
                Err(error) => {
                    call.end(Outcome::Broken);
                    Err(error)
                }
            }
        })
    }
}

impl<S> fmt::Debug for CircuitBreaker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let handle = CircuitBreakerHandle::new(Arc::clone(&self.shared));
        f.debug_tuple("CircuitBreaker").field(&handle).finish()
    }
}

/// A call under way. Dropped before its answer it was given up, or ended by its deadline.
struct Call {
    circuit: Arc<Circuit>,
    shared: Arc<Shared>,
    permit: Option<Permit>,
    /// Whoever ends it at its deadline drops it, and never says why.
    due: Option<Due>,
}

impl Call {
    fn end(mut self, outcome: Outcome) {
        self.record(outcome);
    }

    fn record(&mut self, outcome: Outcome) {
        if let Some(permit) = self.permit.take() {
            let verdict = (self.shared.verdict)(outcome);
            self.circuit.breaker.record(permit, verdict, self.shared.clock.now());
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let late = self.due.is_some_and(|due| due.left().is_zero());
        self.record(if late {
            Outcome::Status(Code::DeadlineExceeded)
        } else {
            Outcome::Cancelled
        });
    }
}
