//! Calls that are slow are sent a second time, over [`crate::resilience::hedge`] and a budget.
//!
//! Only repeatable calls whose body can be kept; the first copy whose answer begins counts, the
//! others are dropped and so cancelled. A copy that fails leaves the call to those that are open;
//! sending it again after a pause is the business of a layer of retries further out. What is inside
//! chooses the endpoint of a copy; a balancer of this house finds in [`super::Tried`] which ones to
//! avoid.

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
use tokio::time::sleep_until;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;

pub use stats::Stats;

use self::stats::Counters;
use super::{
    BoxError, BoxFuture, Clock, Due, Outcome, Tried,
    deadline::set_timeout,
    failure::Failure,
    fed::feeds,
    observe,
    repeatable::{ByPath, is_repeatable},
    replay::Replay,
};
use crate::{
    resilience::{
        hedge::{self, Race, ValidConfig},
        retry_budget::RetryBudget,
    },
    types::Instant,
};

/// The largest body that is kept, unless said otherwise.
const BODY_BYTES_MAX: usize = 256 << 10;

/// The header that tells a server how many copies came before.
const PREVIOUS_ATTEMPTS: &str = "grpc-previous-rpc-attempts";

/// Which copy of a hedged call gave the answer, from 1; in the extensions of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Copy(pub u32);

/// Sends a repeatable call again while it has no answer, after a delay and within a budget.
///
/// A call is repeatable where its request carries [`super::Repeatable`], or where
/// [`HedgeLayer::repeatable`] says so of its path. A budget with the defaults comes with it; give it
/// that of the retries where there are any, so that both together are bounded. Put it inside of
/// them, and over something that balances: a copy to the same server helps little.
///
/// Its errors are boxed, as it must look into those of what is inside. Dropping a call drops all its
/// copies.
///
/// ```
/// use std::{sync::atomic::{AtomicU32, Ordering}, time::Duration};
///
/// use quorate::{
///     layers::{HedgeLayer, Repeatable, hedge::Copy},
///     resilience::hedge::{Config, Delay},
/// };
/// use tonic::{Status, body::Body};
/// use tower::{Layer as _, Service as _, ServiceExt as _};
///
/// static CALLS: AtomicU32 = AtomicU32::new(0);
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let config = Config { copies_max: 2, delay: Delay::Fixed(Duration::from_millis(10)) };
/// let layer = HedgeLayer::new(config.validate()?);
/// // In place of a balancer, one whose first server is silent.
/// let mut stack = layer.layer(tower::service_fn(|_: http::Request<Body>| async {
///     if CALLS.fetch_add(1, Ordering::Relaxed) == 0 {
///         std::future::pending::<()>().await;
///     }
///     Ok::<_, Status>(Status::ok("").into_http::<Body>())
/// }));
/// let mut request = http::Request::new(Body::empty());
/// request.extensions_mut().insert(Repeatable(true));
/// let answer = stack.ready().await?.call(request).await?;
/// assert_eq!(answer.extensions().get(), Some(&Copy(2)));
/// assert_eq!(layer.stats().won, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct HedgeLayer {
    hedge: Arc<hedge::Hedge>,
    budget: Option<Arc<RetryBudget>>,
    by_path: Option<Arc<ByPath>>,
    body_bytes_max: usize,
    clock: Clock,
    counters: Arc<Counters>,
}

impl HedgeLayer {
    /// With these figures, and a budget with the defaults.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        Self {
            hedge: Arc::new(hedge::Hedge::new(config)),
            budget: Some(Arc::default()),
            by_path: None,
            body_bytes_max: BODY_BYTES_MAX,
            clock: Clock::start(),
            counters: Arc::default(),
        }
    }

    /// Another budget, or none: without one, copies double the load of a service that gets slow.
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

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.read(self.hedge.delay())
    }
}

impl fmt::Debug for HedgeLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer")
            .field("hedge", &self.hedge)
            .field("budget", &self.budget)
            .field("body_bytes_max", &self.body_bytes_max)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for HedgeLayer {
    type Service = Hedge<S>;

    fn layer(&self, inner: S) -> Hedge<S> {
        Hedge { inner, layer: Arc::new(self.clone()) }
    }
}

/// What [`HedgeLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct Hedge<S> {
    inner: S,
    layer: Arc<HedgeLayer>,
}

impl<S> Service<Request<Body>> for Hedge<S>
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
        let mut inner = std::mem::replace(&mut self.inner, spare.clone());
        let layer = Arc::clone(&self.layer);
        layer.counters.calls.fetch_add(1, Relaxed);
        let (parts, body) = request.into_parts();
        if !is_repeatable(&parts, layer.by_path.as_deref()) {
            let call = inner.call(Request::from_parts(parts, body));
            return Box::pin(async move { call.await.map_err(Into::into) });
        }
        Box::pin(run(layer, inner, spare, parts, body))
    }
}

type Answered = Result<Response<Body>, BoxError>;

/// A copy under way.
struct Running {
    copy: u32,
    since: Instant,
    call: BoxFuture<Answered>,
}

async fn run<S>(
    layer: Arc<HedgeLayer>,
    mut inner: S,
    spare: S,
    mut parts: Parts,
    body: Body,
) -> Answered
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Send + 'static,
{
    let kept = match Replay::keep(body, layer.body_bytes_max).await {
        Ok(kept) => kept,
        Err(body) => {
            let call = inner.call(Request::from_parts(parts, body));
            return call.await.map_err(Into::into);
        }
    };
    let budget = layer.budget.as_ref();
    let fed = budget.filter(|budget| feeds(budget, &mut parts.extensions)).cloned();
    parts.extensions.get_or_insert_default::<Tried>();
    let mut now = layer.clock.now();
    if let Some(budget) = &fed {
        budget.called(now);
    }
    let request = Request::from_parts(parts.clone(), kept.body());
    let due = Due::of(&request);
    let first = inner.call(request);
    let first: BoxFuture<Answered> = Box::pin(async move { first.await.map_err(Into::into) });
    let mut running = vec![Running { copy: 1, since: now, call: first }];
    let mut race = layer.hedge.start(now);
    // The first copy that may have been carried out, whatever the later ones say of themselves.
    let mut doubtful = None;
    loop {
        let finished = next(&layer, &race, &mut running).await;
        now = layer.clock.now();
        let Some((copy, since, answered)) = finished else {
            if budget.is_some_and(|budget| !budget.withdraw(now)) {
                layer.counters.denied(parts.uri.path());
                race.stop();
                continue;
            }
            race.sent(now);
            let copy = race.copies();
            layer.counters.sends_again(&parts, copy);
            let call = another(spare.clone(), head(&parts, copy, due), kept.body());
            running.push(Running { copy, since: now, call });
            continue;
        };
        let Some(failure) = Failure::of(&answered, false) else {
            layer.hedge.took(now.since(since));
            for late in &running {
                layer.hedge.took(now.since(late.since));
            }
            layer.counters.settled(copy, running.len());
            drop(running);
            return settle(answered, copy, fed);
        };
        race.failed(now, failure.asked);
        if race.is_over() {
            fed.iter().for_each(|budget| budget.failed());
            return doubtful.filter(|_| failure.not_done).unwrap_or(answered);
        }
        if !failure.not_done {
            doubtful.get_or_insert(answered);
        }
        // The others will be told of; this one is not.
        budget.into_iter().for_each(|budget| budget.failed());
        tracing::debug!(path = parts.uri.path(), copy, %failure, "a copy of a call failed");
    }
}

/// The next copy that ends, or `None` when another is due.
async fn next(
    layer: &HedgeLayer,
    race: &Race,
    running: &mut Vec<Running>,
) -> Option<(u32, Instant, Answered)> {
    let finished = poll_fn(|context| {
        for place in 0..running.len() {
            if let Poll::Ready(answered) = running[place].call.as_mut().poll(context) {
                let Running { copy, since, .. } = running.swap_remove(place);
                return Poll::Ready((copy, since, answered));
            }
        }
        Poll::Pending
    });
    match race.next_at() {
        None => Some(finished.await),
        Some(at) => tokio::select! {
            biased;
            finished = finished => Some(finished),
            () = sleep_until(layer.clock.at(at)) => None,
        },
    }
}

/// Sends another copy once the service is ready for one.
fn another<S>(mut service: S, head: Parts, body: Body) -> BoxFuture<Answered>
where
    S: Service<Request<Body>, Response = Response<Body>> + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Send + 'static,
{
    let span = tracing::debug_span!("copy");
    let sending = async move {
        poll_fn(|context| service.poll_ready(context)).await.map_err(Into::into)?;
        service.call(Request::from_parts(head, body)).await.map_err(Into::into)
    };
    Box::pin(sending.instrument(span))
}

/// The head of a later copy.
fn head(parts: &Parts, copy: u32, due: Option<Due>) -> Parts {
    let mut parts = parts.clone();
    parts.headers.insert(PREVIOUS_ATTEMPTS, HeaderValue::from(copy - 1));
    if let Some(due) = due {
        set_timeout(&mut parts.headers, due.left());
    }
    parts
}

/// An answer as it is given to the caller; its end is told to the budget.
fn settle(answered: Answered, copy: u32, fed: Option<Arc<RetryBudget>>) -> Answered {
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => {
            fed.iter().for_each(|budget| budget.failed());
            return Err(error);
        }
    };
    response.extensions_mut().insert(Copy(copy));
    let Some(budget) = fed.filter(|budget| budget.counts_ends()) else { return Ok(response) };
    Ok(observe(response, move |outcome| match outcome {
        Outcome::Cancelled => {}
        outcome if outcome.is_failure() => budget.failed(),
        _ => budget.succeeded(),
    }))
}

impl Counters {
    fn sends_again(&self, parts: &Parts, copy: u32) {
        self.copies.fetch_add(1, Relaxed);
        self.dry.store(false, Relaxed);
        if copy == 2 {
            self.hedged.fetch_add(1, Relaxed);
        }
        tracing::debug!(path = parts.uri.path(), copy, "a slow call is sent again");
    }

    fn settled(&self, copy: u32, dropped: usize) {
        if copy > 1 {
            self.won.fetch_add(1, Relaxed);
        }
        self.dropped.fetch_add(dropped as u64, Relaxed);
    }

    fn denied(&self, path: &str) {
        self.denied.fetch_add(1, Relaxed);
        if !self.dry.swap(true, Relaxed) {
            tracing::warn!(path, "too many calls are slow: the budget for copies is empty");
        }
    }
}
