//! What every request passes on its way in: it is counted, and it ends when the node drains.
//!
//! A graceful shutdown of the listener alone would wait for ever on open streams, so streams and
//! parked calls are ended here, with a status that sends the client to another node. Requests that
//! may have been proposed get time to finish; what is left then is answered as unknown.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::{
    machine::refusal,
    observe::{MethodMetrics, Metrics, Stage, TRACEPARENT, Trace, TraceParent, traced},
    pb::{DESCRIPTORS, command::v1::Reason},
    server::{
        slow::{Ended, Nature, SlowLog},
        spans::Spans,
    },
    services,
    types::Duration,
    wire::status,
};

/// The one unary method that waits for others by its nature.
const PARKED: &str = "/quorate.lock.v1.LockService/Acquire";

/// The one stream that proposes; it ends itself when the node drains.
const PUT_STREAM: &str = "/quorate.kv.v1.KvService/PutStream";

/// The header that carries a request's outcome.
const GRPC_STATUS: &str = "grpc-status";

/// When requests end although they could go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    /// Ends streams, which go on elsewhere, and parked calls, which may be granted yet.
    pub(crate) streams: CancellationToken,
    /// Ends everything else: what came of it is unknown.
    pub(crate) requests: CancellationToken,
}

/// Puts [`Requests`] around a service.
#[derive(Clone, Debug)]
pub(crate) struct RequestLayer {
    methods: Arc<BTreeMap<String, Method>>,
    told: Arc<Told>,
    ending: Ending,
}

/// Who is told of requests that ended.
#[derive(Debug)]
struct Told {
    metrics: Metrics,
    slow: SlowLog,
    spans: Spans,
}

#[derive(Clone, Debug)]
struct Method {
    metrics: MethodMetrics,
    /// Whether it ends with the streams when the node drains, and not with what proposes.
    yields: bool,
    nature: Nature,
}

impl RequestLayer {
    /// Logs requests that take `slow`, none where that is zero, and exports requests as spans.
    pub(crate) fn new(metrics: Metrics, ending: Ending, slow: Duration, spans: Spans) -> Self {
        let methods = Arc::new(methods(&metrics));
        Self { methods, told: Arc::new(Told { metrics, slow: SlowLog::new(slow), spans }), ending }
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = Requests<S>;

    fn layer(&self, inner: S) -> Requests<S> {
        Requests { inner, layer: self.clone() }
    }
}

/// A service whose requests are counted and end when the node drains.
#[derive(Clone, Debug)]
pub(crate) struct Requests<S> {
    inner: S,
    layer: RequestLayer,
}

impl<S> Service<Request<Body>> for Requests<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        services::arrive(&mut request);
        let method = self.layer.methods.get(request.uri().path()).cloned();
        let proposes = method.as_ref().is_some_and(|method| !method.yields);
        let parked = request.uri().path() == PARKED;
        let ending = &self.layer.ending;
        let end = if proposes { ending.requests.clone() } else { ending.streams.clone() };
        let reason = if proposes || parked { Reason::OutcomeUnknown } else { Reason::Draining };
        let parent =
            request.headers().get(TRACEPARENT).and_then(|text| text.to_str().ok()?.parse().ok());
        let mut open = Open::new(&self.layer, method, parent);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = traced(async {
                tokio::select! {
                    biased;
                    answer = answer => answer,
                    () = end.cancelled() => Ok(farewell(reason).into_http()),
                }
            });
            let (response, trace) = answer.await;
            let response = response?;
            open.trace = trace;
            open.note(response.headers());
            let end = Box::pin(end.cancelled_owned());
            Ok(response.map(|body| Body::new(Scoped { body, end, reason, over: false, open })))
        })
    }
}

/// The status of a request that the drain ended.
fn farewell(reason: Reason) -> Status {
    let sentence = match reason {
        Reason::Draining => "this node is stopping: go on with another one",
        _ => "this node stopped before the request was done: its outcome is unknown",
    };
    status::from_refusal(refusal(reason, sentence))
}

/// Our own methods by their HTTP path.
fn methods(metrics: &Metrics) -> BTreeMap<String, Method> {
    let descriptors =
        FileDescriptorSet::decode(DESCRIPTORS).expect("the build script encoded them");
    let mut methods = BTreeMap::new();
    for file in &descriptors.file {
        for service in &file.service {
            let full = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                let path = format!("/{full}/{}", method.name());
                let nature = match &*path {
                    PARKED => Nature::Parked,
                    _ if method.server_streaming() => Nature::Stream,
                    _ => Nature::Prompt,
                };
                let yields = nature != Nature::Prompt && path != PUT_STREAM;
                let metrics = metrics.method(&full, method.name());
                methods.insert(path, Method { metrics, yields, nature });
            }
        }
    }
    methods
}

/// A request under way; counted when it is dropped. Without a status it was cancelled.
struct Open {
    told: Arc<Told>,
    method: Option<Method>,
    started: Instant,
    code: Code,
    trace: Trace,
    parent: Option<TraceParent>,
}

impl Open {
    fn new(layer: &RequestLayer, method: Option<Method>, parent: Option<TraceParent>) -> Self {
        if let Some(method) = &method {
            method.metrics.opened();
        }
        let told = Arc::clone(&layer.told);
        let (started, code, trace) = (Instant::now(), Code::Cancelled, Trace::default());
        Self { told, method, started, code, trace, parent }
    }

    /// Reads the outcome off headers or trailers that carry one.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get(GRPC_STATUS) {
            self.code = Code::from_bytes(value.as_bytes());
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(method) = &self.method else { return };
        let told = &*self.told;
        let total = self.started.elapsed();
        method.metrics.closed(self.code as usize, total);
        let ended = Ended {
            method: &method.metrics,
            code: self.code,
            started: self.started,
            total,
            trace: &self.trace,
            parent: self.parent,
            nature: method.nature,
        };
        if let (Some(_), Some(answer)) = (self.trace.replicate, ended.answer()) {
            told.metrics.observe_stage(Stage::Answer, answer, 1);
        }
        told.slow.tell(&told.metrics, &ended);
        told.spans.export(&told.metrics, &ended);
    }
}

/// A response's body that ends with a status when the node drains.
struct Scoped {
    body: Body,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    reason: Reason,
    over: bool,
    open: Open,
}

impl HttpBody for Scoped {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if let Some(trailers) = frame.as_ref().and_then(|f| f.as_ref().ok()?.trailers_ref()) {
                let trailers = trailers.clone();
                self.open.note(&trailers);
            }
            return Poll::Ready(frame);
        }
        ready!(self.end.as_mut().poll(context));
        self.over = true;
        let mut trailers = HeaderMap::new();
        let written = farewell(self.reason).add_header(&mut trailers);
        self.open.note(&trailers);
        Poll::Ready(Some(written.map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for Scoped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped").field("over", &self.over).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt as _;

    /// A service that answers with a body that never ends, or never answers at all.
    fn stuck(
        answers: bool,
    ) -> impl Service<
        Request<Body>,
        Response = Response<Body>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
    > + Clone
    + Send
    + 'static {
        tower::service_fn(move |_: Request<Body>| async move {
            if !answers {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(Body::new(Never)))
        })
    }

    fn layer(metrics: Metrics, ending: Ending) -> RequestLayer {
        RequestLayer::new(metrics, ending, Duration::ZERO, Spans::default())
    }

    struct Never;

    impl HttpBody for Never {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    async fn next(body: &mut Pin<Box<Body>>) -> Option<Result<Frame<Bytes>, Status>> {
        std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await
    }

    fn request(path: &str) -> Request<Body> {
        Request::builder().uri(path).body(Body::empty()).expect("a request")
    }

    #[tokio::test]
    async fn a_drain_ends_an_open_stream_with_a_status_that_says_where_to_go() {
        let (metrics, ending) = (Metrics::new(), Ending::default());
        let service = layer(metrics.clone(), ending.clone()).layer(stuck(true));
        let path = "/quorate.kv.v1.KvService/Watch";
        let response = service.oneshot(request(path)).await.expect("it answers");
        let mut body = Box::pin(response.into_body());
        {
            let open =
                tokio::time::timeout(std::time::Duration::from_millis(20), next(&mut body)).await;
            assert!(open.is_err(), "the stream is open");
        }
        ending.streams.cancel();
        let frame = next(&mut body).await.expect("a frame").expect("no error");
        let trailers = frame.into_trailers().expect("trailers");
        let status = Status::from_header_map(&trailers).expect("a status");
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status::reason(&status), Some(Reason::Draining));
        assert!(next(&mut body).await.is_none(), "the body is over");
        drop(body);
        assert!(metrics.encode().contains("method=\"Watch\",code=\"UNAVAILABLE\"} 1"));
    }

    #[tokio::test]
    async fn a_request_that_may_be_proposed_outlives_the_streams_and_ends_as_unknown() {
        let ending = Ending::default();
        let service = layer(Metrics::new(), ending.clone()).layer(stuck(false));
        let path = "/quorate.kv.v1.KvService/Put";
        let mut answer = Box::pin(service.oneshot(request(path)));
        ending.streams.cancel();
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), &mut answer).await;
        assert!(early.is_err(), "it is given time to finish");
        ending.requests.cancel();
        let response = answer.await.expect("it answers");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status::reason(&status), Some(Reason::OutcomeUnknown));
    }

    #[tokio::test]
    async fn a_parked_acquire_ends_with_the_streams() {
        let ending = Ending::default();
        ending.streams.cancel();
        let service = layer(Metrics::new(), ending).layer(stuck(false));
        let response = service.oneshot(request(PARKED)).await.expect("it answers");
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status::reason(&status), Some(Reason::OutcomeUnknown));
    }

    #[test]
    fn methods_that_last_are_known_and_all_but_one_yield_to_a_drain() {
        let methods = methods(&Metrics::new());
        let of = |path: &str| (methods[path].yields, methods[path].nature);
        assert_eq!(of(PARKED), (true, Nature::Parked));
        assert_eq!(of("/quorate.kv.v1.KvService/Watch"), (true, Nature::Stream));
        assert_eq!(of("/quorate.kv.v1.KvService/Put"), (false, Nature::Prompt));
        // It acknowledges what it took before it ends, and is long all the same.
        assert_eq!(of(PUT_STREAM), (false, Nature::Stream));
    }
}
