//! The server's side: reads a deadline once, refuses what is late already, and ends what gets late.
//!
//! tonic keeps a timeout of its own for the same header, outside of every layer, and answers
//! CANCELLED. It polls what is inside first, and starts its timer after it has called what is inside;
//! ours counts from that call and runs out a margin sooner, so it wins. A server must therefore not
//! set tonic's `Server::timeout` below the maximum given here.

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
    stats::Counters,
    timeout_in,
};
use crate::{
    layers::{BoxError, BoxFuture, Clock},
    resilience::deadline::{Deadline, ValidConfig},
};

/// Keeps the deadline of each call that a server takes: what `grpc-timeout` asks for or the default,
/// and at most the maximum; all minus the margin, so that the answer arrives in time.
///
/// A call that is late when its turn comes is refused before any work. A handler finds its deadline
/// as a [`Due`] in the extensions of the request, and what it calls inherits it. A call, or a stream,
/// that is late ends with DEADLINE_EXCEEDED, and the handler is dropped.
///
/// ```
/// use quorate::{layers::{Due, ServerDeadlineLayer}, resilience::deadline::ValidConfig};
/// use tonic::{Code, Status, body::Body};
/// use tower::{Layer as _, Service as _, ServiceExt as _};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // With tonic: `Server::builder().layer(ServerDeadlineLayer::new(config)).add_service(..)`.
/// let layer = ServerDeadlineLayer::new(ValidConfig::default());
/// let mut server = layer.layer(tower::service_fn(|request: http::Request<Body>| async move {
///     assert!(request.extensions().get::<Due>().is_some());
///     std::future::pending::<Result<http::Response<Body>, Status>>().await
/// }));
/// let request = http::Request::builder().header("grpc-timeout", "20m").body(Body::empty())?;
/// let answer = server.ready().await?.call(request).await?;
/// let status = Status::from_header_map(answer.headers()).expect("it has ended");
/// assert_eq!(status.code(), Code::DeadlineExceeded);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ServerDeadlineLayer {
    config: ValidConfig,
    clock: Clock,
    counters: Arc<Counters>,
}

impl ServerDeadlineLayer {
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
}

impl<S> Layer<S> for ServerDeadlineLayer {
    type Service = ServerDeadline<S>;

    fn layer(&self, inner: S) -> ServerDeadline<S> {
        ServerDeadline { inner, layer: self.clone() }
    }
}

/// What [`ServerDeadlineLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct ServerDeadline<S> {
    inner: S,
    layer: ServerDeadlineLayer,
}

impl<S> Service<Request<Body>> for ServerDeadline<S>
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
        let ServerDeadlineLayer { config, clock, counters } = self.layer.clone();
        let now = clock.now();
        let asked = config.deadline(now, timeout_in(request.headers()), Deadline::NEVER);
        if asked.is_never() {
            return Box::pin(self.inner.call(request));
        }
        counters.calls.fetch_add(1, Relaxed);
        let deadline = asked.propagated(now, config.margin());
        let due = Due::at(clock.at(deadline.instant()));
        request.extensions_mut().insert(due);
        let spare = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, spare);
        Box::pin(due.scope(async move {
            // A busy server may come to it late.
            if deadline.has_passed(clock.now()) {
                return refused(Side::Server, &counters);
            }
            let call = inner.call(request);
            run(Side::Server, due, counters, call).await
        }))
    }
}
