//! The client's side: tells the server what is left, and ends the call when it is due.
//!
//! It does not trust the server to end in time, and inherits the deadline of the call that it is made
//! for. It repeats nothing.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::{
    Due, Stats,
    body::{Side, refused, run},
    set_timeout,
    stats::Counters,
    timeout_in,
};
use crate::{
    layers::{BoxError, BoxFuture, Clock},
    resilience::deadline::{self, ValidConfig},
};

/// Gives each call of a client a deadline: of what `grpc-timeout` asks for or the default, the
/// maximum, and what is left of the call that it is made for minus a margin, the soonest. That call
/// is found in the extensions of the request or around the task, as a [`Due`].
///
/// The server is told in `grpc-timeout`; a call, or a stream, that is late is ended here with
/// DEADLINE_EXCEEDED, and so cancelled there. One whose time is over already is not sent. Layers
/// further in find the deadline as a [`Due`] in the extensions.
///
/// ```
/// use quorate::{
///     layers::DeadlineLayer,
///     resilience::deadline::Config,
/// };
/// use tonic::{Code, Status, body::Body};
/// use tower::{Layer as _, Service as _, ServiceExt as _};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limit = std::time::Duration::from_millis(20);
/// let layer = DeadlineLayer::new(Config { default: Some(limit), ..Config::default() }.validate()?);
/// let channel = tower::service_fn(|request: http::Request<Body>| async move {
///     assert!(request.headers().contains_key("grpc-timeout"));
///     std::future::pending::<Result<http::Response<Body>, Status>>().await
/// });
/// // What a client that tonic generated would be made of: `KvServiceClient::new(stack)`.
/// let mut stack = layer.layer(channel);
/// let answer = stack.ready().await?.call(http::Request::new(Body::empty())).await?;
/// let status = Status::from_header_map(answer.headers()).expect("it has ended");
/// assert_eq!(status.code(), Code::DeadlineExceeded);
/// assert_eq!(layer.stats().expired, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DeadlineLayer {
    config: ValidConfig,
    clock: Clock,
    counters: Arc<Counters>,
}

impl DeadlineLayer {
    /// With these figures.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        Self { config, clock: Clock::start(), counters: Arc::default() }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// When a call must have ended that begins now.
    fn deadline(&self, request: &Request<Body>) -> deadline::Deadline {
        let marked = request.extensions().get::<Due>().copied();
        let outer = marked.into_iter().chain(Due::current()).min();
        let outer = outer.map_or(deadline::Deadline::NEVER, |due| {
            deadline::Deadline::at(self.clock.of(due.instant()))
        });
        self.config.deadline(self.clock.now(), timeout_in(request.headers()), outer)
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, layer: self.clone() }
    }
}

/// What [`DeadlineLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    layer: DeadlineLayer,
}

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let DeadlineLayer { clock, counters, .. } = &self.layer;
        let deadline = self.layer.deadline(&request);
        if deadline.is_never() {
            return Box::pin(self.inner.call(request));
        }
        counters.calls.fetch_add(1, Relaxed);
        let now = clock.now();
        if deadline.has_passed(now) {
            return Box::pin(std::future::ready(refused(Side::Client, counters)));
        }
        let due = Due::at(clock.at(deadline.instant()));
        set_timeout(request.headers_mut(), deadline.left(now));
        request.extensions_mut().insert(due);
        let call = self.inner.call(request);
        Box::pin(run(Side::Client, due, Arc::clone(counters), call))
    }
}
