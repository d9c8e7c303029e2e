//! Another answer where a call failed: what is known from before, a default, or another service.
//!
//! It stands outside of what retries, breaks and limits, and sees what comes of all that. An answer
//! that has begun is left as it is. What it gives instead looks like any other answer, marked in its
//! extensions.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, Uri, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame};
use prost::Message;
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use super::{BoxError, BoxFuture, code_in, is_failure};

/// In the extensions of an answer: it was given instead of a failure, with this code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsteadOf(pub Code);

/// A call that failed, as a fallback sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failed {
    /// What was called; its path is the method.
    pub uri: Uri,
    /// What the caller said along with the request: put in what a fallback has to know of it.
    pub extensions: Extensions,
    /// Why it failed. A connection that broke is UNAVAILABLE or UNKNOWN, as tonic tells it.
    pub status: Status,
}

/// What a fallback did since it was made, its clones included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls.
    pub calls: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Those that were given another answer.
    pub replaced: u64,
}

type Give = dyn Fn(Failed) -> BoxFuture<Option<Response<Body>>> + Send + Sync;
type When = dyn Fn(&Status) -> bool + Send + Sync;

/// Gives another answer where a call failed.
///
/// Asked are all failures by which [`super::is_failure`] counts, or those that
/// [`FallbackLayer::when`] chooses; where the fallback has nothing to give, the failure stands.
///
/// ```
/// use std::future::ready;
///
/// use quorate::{layers::{FallbackLayer, fallback}, pb::kv::v1::RangeResponse};
/// use tonic::{Status, body::Body};
/// use tower::{Layer as _, Service as _, ServiceExt as _};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let layer = FallbackLayer::new(|failed| {
///     let is_read = failed.uri.path().ends_with("/Range");
///     ready(is_read.then(|| fallback::unary(&RangeResponse::default())))
/// });
/// // In place of a channel, one that is down.
/// let mut stack = layer.layer(tower::service_fn(|_: http::Request<Body>| async {
///     Err::<http::Response<Body>, _>(Status::unavailable("down"))
/// }));
/// let mut request = http::Request::new(Body::empty());
/// *request.uri_mut() = "/quorate.kv.v1.KvService/Range".parse()?;
/// let answer = stack.ready().await?.call(request).await?;
/// assert!(answer.extensions().get::<fallback::InsteadOf>().is_some());
/// assert_eq!(layer.stats().replaced, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FallbackLayer {
    give: Arc<Give>,
    when: Option<Arc<When>>,
    counters: Arc<[AtomicU64; 3]>,
}

impl FallbackLayer {
    /// With what gives another answer, or none.
    #[must_use]
    pub fn new<F>(give: impl Fn(Failed) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Option<Response<Body>>> + Send + 'static,
    {
        let give = Arc::new(move |failed| -> BoxFuture<_> { Box::pin(give(failed)) });
        Self { give, when: None, counters: Arc::default() }
    }

    /// Which failures it is asked for: those of whose status this is true.
    #[must_use]
    pub fn when(self, when: impl Fn(&Status) -> bool + Send + Sync + 'static) -> Self {
        Self { when: Some(Arc::new(when)), ..self }
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let [calls, failed, replaced] = &*self.counters;
        Stats {
            calls: calls.load(Relaxed),
            failed: failed.load(Relaxed),
            replaced: replaced.load(Relaxed),
        }
    }

    /// The status of a call that failed so that a fallback is asked.
    fn failure(&self, answered: &Result<Response<Body>, BoxError>) -> Option<Status> {
        let status = match answered {
            Ok(response) => {
                code_in(response.headers()).filter(|code| *code != Code::Ok)?;
                Status::from_header_map(response.headers())?
            }
            Err(error) => {
                // The error itself stays with the call, should there be no other answer.
                let status = error.downcast_ref::<Status>().cloned();
                status.unwrap_or_else(|| Status::unavailable(error.to_string()))
            }
        };
        let asks = match &self.when {
            Some(when) => when(&status),
            None => is_failure(status.code()),
        };
        asks.then_some(status)
    }
}

impl fmt::Debug for FallbackLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackLayer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for FallbackLayer {
    type Service = Fallback<S>;

    fn layer(&self, inner: S) -> Fallback<S> {
        Fallback { inner, layer: self.clone() }
    }
}

/// What [`FallbackLayer`] makes of a service.
#[derive(Clone, Debug)]
pub struct Fallback<S> {
    inner: S,
    layer: FallbackLayer,
}

impl<S> Service<Request<Body>> for Fallback<S>
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
        let layer = self.layer.clone();
        layer.counters[0].fetch_add(1, Relaxed);
        let (uri, extensions) = (request.uri().clone(), request.extensions().clone());
        let call = self.inner.call(request);
        Box::pin(async move {
            let answered = call.await.map_err(Into::into);
            let Some(status) = layer.failure(&answered) else { return answered };
            layer.counters[1].fetch_add(1, Relaxed);
            let code = status.code();
            let path = uri.path().to_owned();
            match (layer.give)(Failed { uri, extensions, status }).await {
                None => answered,
                Some(mut given) => {
                    layer.counters[2].fetch_add(1, Relaxed);
                    tracing::debug!(path, ?code, "a failed call is given another answer");
                    given.extensions_mut().insert(InsteadOf(code));
                    Ok(given)
                }
            }
        })
    }
}

/// The answer to a unary call: this message and OK.
#[must_use]
pub fn unary(message: &impl Message) -> Response<Body> {
    let length = message.encoded_len();
    let mut data = BytesMut::with_capacity(5 + length);
    data.put_u8(0);
    data.put_u32(u32::try_from(length).expect("a message is far below 4 GiB"));
    message.encode(&mut data).expect("there is room for it");
    let mut trailers = HeaderMap::new();
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    let whole = Whole { data: Some(data.freeze()), trailers: Some(trailers) };
    let mut response = Response::new(Body::new(whole));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The body of a unary answer.
struct Whole {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let data = self.data.take().map(Frame::data);
        Poll::Ready(data.or_else(|| self.trailers.take().map(Frame::trailers)).map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.trailers.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use proptest::prelude::*;
    use tonic::client::Grpc;
    use tonic_prost::ProstCodec;
    use tower::service_fn;

    use super::*;
    use crate::pb::kv::v1::{RangeRequest, RangeResponse};

    fn known() -> RangeResponse {
        RangeResponse { count: 7, ..RangeResponse::default() }
    }

    fn layer() -> FallbackLayer {
        FallbackLayer::new(|_| ready(Some(unary(&known()))))
    }

    /// Asks as a client does that tonic generated.
    async fn ask(
        layer: &FallbackLayer,
        answer: impl Fn() -> Result<Response<Body>, Status> + Clone + Send + 'static,
    ) -> Result<tonic::Response<RangeResponse>, Status> {
        let service = service_fn(move |_: Request<Body>| ready(answer()));
        let mut client = Grpc::new(layer.layer(service));
        client.ready().await.map_err(Status::from_error)?;
        let codec = ProstCodec::<RangeRequest, RangeResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/quorate.kv.v1.KvService/Range");
        client.unary(tonic::Request::new(RangeRequest::default()), path, codec).await
    }

    fn broken() -> Result<Response<Body>, Status> {
        Err(Status::unavailable("reset"))
    }

    #[tokio::test]
    async fn a_failure_is_replaced_and_marked() {
        let layer = layer();
        let given = ask(&layer, || Ok(Status::internal("a bug").into_http())).await;
        let given = given.expect("there is another answer");
        assert_eq!(given.extensions().get(), Some(&InsteadOf(Code::Internal)));
        assert_eq!(given.into_inner(), known());
        let given = ask(&layer, broken).await.expect("there is another answer");
        assert_eq!(given.extensions().get(), Some(&InsteadOf(Code::Unavailable)));
        assert_eq!(layer.stats(), Stats { calls: 2, failed: 2, replaced: 2 });
    }

    #[tokio::test]
    async fn success_and_refusals_of_what_was_asked_for_stand() {
        let layer = layer();
        let fine = ask(&layer, || Ok(unary(&RangeResponse::default()))).await;
        assert_eq!(fine.expect("it is answered").into_inner(), RangeResponse::default());
        let refused = ask(&layer, || Ok(Status::not_found("no such key").into_http())).await;
        assert_eq!(refused.expect_err("it stands").code(), Code::NotFound);
        assert_eq!(layer.stats(), Stats { calls: 2, ..Stats::default() });
    }

    #[tokio::test]
    async fn where_there_is_nothing_to_give_the_failure_stands() {
        let layer = FallbackLayer::new(|failed| {
            assert_eq!(failed.uri.path(), "/quorate.kv.v1.KvService/Range");
            ready(None)
        });
        assert_eq!(ask(&layer, broken).await.expect_err("it stands").message(), "reset");
        assert_eq!(layer.stats(), Stats { calls: 1, failed: 1, replaced: 0 });
    }

    #[tokio::test]
    async fn the_caller_chooses_what_it_is_for() {
        let layer = layer().when(|status| status.code() == Code::NotFound);
        let given = ask(&layer, || Ok(Status::not_found("").into_http())).await;
        assert_eq!(given.expect("there is another answer").into_inner(), known());
        assert!(ask(&layer, broken).await.is_err());
    }

    proptest! {
        #[test]
        fn what_is_replaced_is_never_a_success(codes in proptest::collection::vec(0_i32..17, 1..50)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it starts");
            let layer = layer();
            let mut failed = 0;
            for code in codes {
                let code = Code::from_i32(code);
                let answer = move || Ok(Status::new(code, "").into_http());
                let given = runtime.block_on(ask(&layer, answer));
                let replaced = given.is_ok_and(|given| given.into_inner() == known());
                prop_assert_eq!(replaced, is_failure(code));
                failed += u64::from(is_failure(code));
            }
            prop_assert_eq!((layer.stats().failed, layer.stats().replaced), (failed, failed));
        }
    }
}
