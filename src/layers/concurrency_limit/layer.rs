//! The layer with one limit for all calls.
//!
//! A call holds its place until the body of its answer has ended or is dropped, so streams count as
//! long as they live. Its latency is the time from its place to the headers of its answer: a unary
//! call's whole time on a server, and what a stream tells about load.

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::entry::{ConcurrencyLimitHandle, Delays, Entry, sample_of};
use crate::{
    layers::{BoxError, BoxFuture, Clock, Due, observe},
    resilience::concurrency_limit::ValidConfig,
    types::Duration,
};

/// Which class a call has; 0 is the most important one.
pub(super) type Classes = Arc<dyn Fn(&Request<Body>) -> u8 + Send + Sync>;

/// Bounds the calls under way at once, and queues or refuses what is above. Clones share the limit.
///
/// ```
/// use quorate::{
///     layers::concurrency_limit::ConcurrencyLimitLayer, resilience::concurrency_limit::Config,
/// };
/// use tonic::{Status, body::Body};
/// use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // For a tonic server: `Server::builder().layer(limit)`; for a client, around its channel.
/// let limit = ConcurrencyLimitLayer::new(Config { queue_max: 0, ..Config::fixed(1) }.validate()?);
/// let handle = limit.handle();
/// let service = service_fn(async |_: http::Request<Body>| {
///     tokio::task::yield_now().await;
///     Ok::<_, std::convert::Infallible>(Status::ok("").into_http::<Body>())
/// });
/// let mut service = ServiceBuilder::new().layer(limit).service(service);
///
/// let request = || http::Request::new(Body::empty());
/// let first = service.ready().await?.call(request());
/// let second = service.ready().await?.call(request());
/// let (first, second) = tokio::join!(first, second);
/// assert_eq!(first?.headers()["grpc-status"], "0");
/// assert_eq!(second?.headers()["grpc-status"], "8", "RESOURCE_EXHAUSTED");
/// assert_eq!((handle.stats().admitted, handle.stats().refused), (1, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ConcurrencyLimitLayer {
    entry: Arc<Entry>,
    classes: Option<Classes>,
}

impl ConcurrencyLimitLayer {
    /// A limit with nothing under way.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        Self::build(config, None)
    }

    /// A limit that also tells of each call its class and how long it waited for its place, zero
    /// among them: for [`LoadShedHandle::observe`](crate::layers::load_shed::LoadShedHandle::observe),
    /// which sheds before the queue grows.
    #[must_use]
    pub fn telling(
        config: ValidConfig,
        delays: impl Fn(u8, Duration) + Send + Sync + 'static,
    ) -> Self {
        Self::build(config, Some(Arc::new(delays)))
    }

    fn build(config: ValidConfig, delays: Option<Delays>) -> Self {
        let entry = Entry::new(config, Clock::start(), "all calls".to_owned());
        Self { entry: Arc::new(entry.telling(delays)), classes: None }
    }

    /// Gives each call a class: 0 goes first and waits least, 7 last. Without it all are alike.
    #[must_use]
    pub fn by_class(self, class: impl Fn(&Request<Body>) -> u8 + Send + Sync + 'static) -> Self {
        Self { classes: Some(Arc::new(class)), ..self }
    }

    /// For support.
    #[must_use]
    pub fn handle(&self) -> ConcurrencyLimitHandle {
        ConcurrencyLimitHandle(Arc::clone(&self.entry))
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        ConcurrencyLimit { inner, layer: self.clone() }
    }
}

impl fmt::Debug for ConcurrencyLimitLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitLayer").field("entry", &self.entry).finish_non_exhaustive()
    }
}

/// A service whose calls under way are bounded.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    layer: ConcurrencyLimitLayer,
}

impl<S> Service<Request<Body>> for ConcurrencyLimit<S>
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
        let class = self.layer.classes.as_ref().map_or(0, |classes| classes(&request));
        let entry = Arc::clone(&self.layer.entry);
        Box::pin(through(entry, class, ready(&mut self.inner), request))
    }
}

/// The instance that is ready, with a clone left in its place.
pub(super) fn ready<S: Clone>(inner: &mut S) -> S {
    let clone = inner.clone();
    mem::replace(inner, clone)
}

/// A call once its limit is known.
pub(super) async fn through<S>(
    entry: Arc<Entry>,
    class: u8,
    mut inner: S,
    request: Request<Body>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    let due = request.extensions().get::<Due>().copied();
    let place = match entry.enter(class).await {
        Ok(place) => place.answer_due(due),
        Err(why) => return Ok(entry.answer(why)),
    };
    // Dropped on an error: that says nothing about load.
    let response = inner.call(request).await?;
    let latency = place.age();
    Ok(observe(response, move |outcome| place.end(sample_of(outcome, latency))))
}
