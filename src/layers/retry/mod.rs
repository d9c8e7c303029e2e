//! Calls that failed are sent again, over [`crate::resilience::retry`] and a budget.
//!
//! Only what was certainly not done, or may be done twice; only while the answer has not begun; only
//! the bodies that can be kept. Each attempt is told how many came before it
//! (`grpc-previous-rpc-attempts`) and what is left of the deadline. What is inside chooses the endpoint
//! of an attempt; a balancer of this house finds in [`super::Tried`] which ones to avoid.

mod stats;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, request::Parts};
use tokio::time::{sleep_until, timeout_at};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::Instrument as _;

pub use stats::{GivenUp, Stats};

use self::stats::Counters;
use super::{
    BoxError, BoxFuture, Clock, Due, Outcome, Tried, code_in,
    deadline::set_timeout,
    failure::Failure,
    fed::feeds,
    observe,
    repeatable::{ByPath, is_repeatable},
    replay::Replay,
};
use crate::{
    host,
    resilience::{
        deadline::Deadline,
        retry::{Decision, Failed, ValidConfig, Why},
        retry_budget::RetryBudget,
    },
    types::{Instant, Rng},
};

/// The header that tells a server how many attempts came before.
const PREVIOUS_ATTEMPTS: &str = "grpc-previous-rpc-attempts";

/// The largest body that is kept, unless said otherwise: that of gRPC.
const BODY_BYTES_MAX: usize = 256 << 10;

/// How many attempts a call took; in the extensions of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempts(pub u32);

/// Sends a call again that failed, after a pause and within a budget.
///
/// A call is sent again where it was certainly not done, or where it is repeatable: its request
/// carries [`super::Repeatable`], or [`RetryLayer::repeatable`] says so of its path. A budget with
/// the defaults comes with it; give one of your own where several layers or services share one.
///
/// Its errors are boxed, as it must look into those of what is inside. Dropping a call ends its
/// attempt and its pause.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
///
/// use quorate::{
///     layers::{Repeatable, RetryLayer, retry::Attempts},
///     resilience::retry::ValidConfig,
/// };
/// use tonic::{Status, body::Body};
/// use tower::{Layer as _, Service as _, ServiceExt as _};
///
/// static CALLS: AtomicU32 = AtomicU32::new(0);
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let layer = RetryLayer::new(ValidConfig::default());
/// // In place of a channel, one that is not there at first.
/// let mut stack = layer.layer(tower::service_fn(|_: http::Request<Body>| async {
///     Ok::<_, Status>(match CALLS.fetch_add(1, Ordering::Relaxed) {
///         0 => Status::unavailable("starting").into_http::<Body>(),
///         _ => Status::ok("").into_http(),
///     })
/// }));
/// let mut request = http::Request::new(Body::empty());
/// request.extensions_mut().insert(Repeatable(true));
/// let answer = stack.ready().await?.call(request).await?;
/// assert_eq!(answer.headers()["grpc-status"], "0");
/// assert_eq!(answer.extensions().get(), Some(&Attempts(2)));
/// assert_eq!(layer.stats().recovered, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RetryLayer {
    config: ValidConfig,
    budget: Option<Arc<RetryBudget>>,
    by_path: Option<Arc<ByPath>>,
    body_bytes_max: usize,
    trusts_details: bool,
    clock: Clock,
    counters: Arc<Counters>,
}

impl RetryLayer {
    /// With these figures, and a budget with the defaults.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        Self {
            config,
            budget: Some(Arc::default()),
            by_path: None,
            body_bytes_max: BODY_BYTES_MAX,
            trusts_details: false,
            clock: Clock::start(),
            counters: Arc::default(),
        }
    }

    /// Another budget, or none: without one, retries multiply the load of a service that is down.
    #[must_use]
    pub fn budget(self, budget: impl Into<Option<Arc<RetryBudget>>>) -> Self {
        Self { budget: budget.into(), ..self }
    }

    /// Says by the path of a call, as `/quorate.kv.v1.KvService/Range`, whether it is repeatable.
    #[must_use]
    pub fn repeatable(self, by_path: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { by_path: Some(Arc::new(by_path)), ..self }
    }

    /// The largest body that is kept; a call with a larger one is sent once. Default 256 KiB.
    #[must_use]
    pub fn body_bytes_max(self, body_bytes_max: usize) -> Self {
        Self { body_bytes_max, ..self }
    }

    /// Whether the details of an answer prove that a call was not done: those of Quorate's servers and
    /// of the layers of this library do, unless a service between passed on what it was told by
    /// another one. Say so only of servers that answer for themselves. Default: they prove nothing.
    #[must_use]
    pub fn trusts_details(self, trusts_details: bool) -> Self {
        Self { trusts_details, ..self }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    fn fed_budget(&self, parts: &mut Parts) -> Option<Arc<RetryBudget>> {
        let budget = self.budget.as_ref().filter(|budget| feeds(budget, &mut parts.extensions))?;
        budget.called(self.clock.now());
        Some(Arc::clone(budget))
    }

    /// Decides, and takes the retry out of the budget.
    fn decide(&self, failed: &Failed, now: Instant) -> Decision {
        let withdraw = || self.budget.as_ref().is_none_or(|budget| budget.withdraw(now));
        self.config.decide(failed, now, &mut Rng::new(host::seed()), withdraw)
    }
}

impl fmt::Debug for RetryLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("config", &self.config)
            .field("budget", &self.budget)
            .field("body_bytes_max", &self.body_bytes_max)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, layer: Arc::new(self.clone()) }
    }
}

/// What [`RetryLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    layer: Arc<RetryLayer>,
}

impl<S> Service<Request<Body>> for Retry<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let spare = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, spare);
        let layer = Arc::clone(&self.layer);
        layer.counters.calls.fetch_add(1, Relaxed);
        Box::pin(run(layer, inner, request))
    }
}

async fn run<S>(
    layer: Arc<RetryLayer>,
    mut inner: S,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
{
    let due = Due::of(&request);
    let (mut parts, body) = request.into_parts();
    let fed = layer.fed_budget(&mut parts);
    let kept = match Replay::keep(body, layer.body_bytes_max).await {
        Ok(kept) => kept,
        Err(body) => {
            layer.counters.sent_once.fetch_add(1, Relaxed);
            let answered = inner.call(Request::from_parts(parts, body)).await;
            return settle(answered.map_err(Into::into), 1, fed);
        }
    };
    parts.extensions.get_or_insert_default::<Tried>();
    let repeatable = is_repeatable(&parts, layer.by_path.as_deref());
    let deadline = due.map_or(Deadline::NEVER, |due| Deadline::at(layer.clock.of(due.instant())));
    let mut attempts = 1;
    // The first attempt that may have been carried out, whatever the later ones say of themselves.
    let mut doubtful = None;
    loop {
        let request = Request::from_parts(attempt(&parts, attempts, due), kept.body());
        let span = tracing::debug_span!("try", attempt = attempts);
        let answered = send(&mut inner, request, attempts, due).instrument(span).await;
        let Some(failure) = Failure::of(&answered, layer.trusts_details) else {
            layer.counters.settled(attempts, &answered);
            return settle(answered, attempts, fed);
        };
        if let Some(budget) = &fed {
            budget.failed();
        }
        let may_repeat = repeatable || failure.not_done;
        let failed = Failed { attempts, may_repeat, asked: failure.asked, deadline };
        let now = layer.clock.now();
        match layer.decide(&failed, now) {
            Decision::GiveUp(why) => {
                layer.counters.gave_up(why, &parts, &failure);
                let told = doubtful.filter(|_| failure.not_done).unwrap_or(answered);
                return told.map(|response| counted(response, attempts));
            }
            Decision::After(at) => {
                layer.counters.sends_again();
                if let (None, Some(budget)) = (&fed, &layer.budget) {
                    // Whoever feeds it does not get to see this one.
                    budget.failed();
                }
                let (path, pause) = (parts.uri.path(), at.since(now));
                tracing::debug!(path, attempt = attempts, %failure, ?pause, "a call is sent again");
                if !failure.not_done {
                    doubtful.get_or_insert(answered);
                }
                sleep_until(layer.clock.at(at)).await;
                attempts += 1;
            }
        }
    }
}

/// The head of an attempt.
fn attempt(parts: &Parts, attempts: u32, due: Option<Due>) -> Parts {
    let mut parts = parts.clone();
    if attempts > 1 {
        parts.headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(attempts - 1));
        if let Some(due) = due {
            set_timeout(&mut parts.headers, due.left());
        }
    }
    parts
}

async fn send<S>(
    inner: &mut S,
    request: Request<Body>,
    attempts: u32,
    due: Option<Due>,
) -> Result<Response<Body>, BoxError>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Error: Into<BoxError>,
{
    if attempts > 1 {
        // For the first one the caller saw to it.
        let ready = poll_fn(|context| inner.poll_ready(context));
        match due {
            None => ready.await.map_err(Into::into)?,
            Some(due) => timeout_at(due.instant(), ready)
                .await
                .map_err(|_| Status::deadline_exceeded("the service was not ready in time"))?
                .map_err(Into::into)?,
        }
    }
    inner.call(request).await.map_err(Into::into)
}

fn counted(mut response: Response<Body>, attempts: u32) -> Response<Body> {
    response.extensions_mut().insert(Attempts(attempts));
    response
}

/// An answer as it is given to the caller; its end is told to the budget.
fn settle(
    answered: Result<Response<Body>, BoxError>,
    attempts: u32,
    fed: Option<Arc<RetryBudget>>,
) -> Result<Response<Body>, BoxError> {
    let response = match answered {
        Ok(response) => counted(response, attempts),
        Err(error) => {
            fed.iter().for_each(|budget| budget.failed());
            return Err(error);
        }
    };
    let Some(budget) = fed.filter(|budget| budget.counts_ends()) else { return Ok(response) };
    Ok(observe(response, move |outcome| match outcome {
        Outcome::Cancelled => {}
        outcome if outcome.is_failure() => budget.failed(),
        _ => budget.succeeded(),
    }))
}

impl Counters {
    fn settled(&self, attempts: u32, answered: &Result<Response<Body>, BoxError>) {
        let code = answered.as_ref().ok().map(|response| code_in(response.headers()));
        if attempts > 1 && matches!(code, Some(None | Some(Code::Ok))) {
            self.recovered.fetch_add(1, Relaxed);
        }
    }

    fn sends_again(&self) {
        self.retries.fetch_add(1, Relaxed);
        self.dry.store(false, Relaxed);
    }

    fn gave_up(&self, why: Why, parts: &Parts, failure: &Failure) {
        self.given_up(why).fetch_add(1, Relaxed);
        let path = parts.uri.path();
        if why == Why::Budget && !self.dry.swap(true, Relaxed) {
            tracing::warn!(path, "too many calls fail: the retry budget is empty");
        }
        tracing::debug!(path, ?why, %failure, "a failed call is not sent again");
    }
}
