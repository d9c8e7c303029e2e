//! How a call ended, read where gRPC says it: in the headers of an answer without a body, or in the
//! trailers behind the body. Whoever only looks at the HTTP status takes every failure for a success.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Code, Status, body::Body};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a status, OK among them.
    Status(Code),
    /// Without one: the connection or the stream broke.
    Broken,
    /// The caller gave it up. That says nothing about the other side.
    Cancelled,
}

impl Outcome {
    /// Whether it counts against the other side; see [`is_failure`]. A cancellation counts neither
    /// for nor against it.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Status(code) => is_failure(code),
            Self::Broken => true,
            Self::Cancelled => false,
        }
    }

    /// What an answer, or the lack of one, tells before its body is read. `None` where the trailers
    /// will tell.
    pub fn early<E>(answered: &Result<Response<Body>, E>) -> Option<Self> {
        match answered {
            Ok(response) => code_in(response.headers()).map(Self::Status),
            Err(_) => Some(Self::Broken),
        }
    }
}

/// Which answers count against the endpoint that gave them: those that say that it, or what stands
/// behind it, does not work. Refusals of what was asked for do not.
#[must_use]
pub const fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The code in headers or trailers, where there is one.
#[must_use]
pub fn code_in(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// Has `ended` called exactly once with how the call ended: at once where the headers tell, else when
/// the body has, with [`Outcome::Cancelled`] where that is dropped before. What the call holds for as
/// long as it is under way, such as a permit, goes into the closure.
pub fn observe(
    response: Response<Body>,
    ended: impl FnOnce(Outcome) + Send + Unpin + 'static,
) -> Response<Body> {
    if let Some(code) = code_in(response.headers()) {
        ended(Outcome::Status(code));
        return response;
    }
    response.map(|body| Body::new(Observed { body, ended: Some(ended) }))
}

/// A body whose end is told.
struct Observed<F: FnOnce(Outcome)> {
    body: Body,
    /// Taken when the end was told.
    ended: Option<F>,
}

impl<F: FnOnce(Outcome)> Observed<F> {
    fn end(&mut self, outcome: Outcome) {
        if let Some(ended) = self.ended.take() {
            ended(outcome);
        }
    }
}

impl<F: FnOnce(Outcome) + Unpin> HttpBody for Observed<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.end(code_in(trailers).map_or(Outcome::Broken, Outcome::Status));
                }
            }
            // Without trailers the call has no status: a stream that broke.
            Some(Err(_)) | None => self.end(Outcome::Broken),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // As long as the end was not told, whoever reads must come back for it.
        self.ended.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<F: FnOnce(Outcome)> Drop for Observed<F> {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}

impl<F: FnOnce(Outcome)> fmt::Debug for Observed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("told", &self.ended.is_none()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    type Told = Arc<Mutex<Vec<Outcome>>>;

    fn watched(frames: Vec<Result<Frame<Bytes>, Status>>) -> (Response<Body>, Told) {
        let told = Told::default();
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
        let tell = Arc::clone(&told);
        let tell = move |outcome| tell.lock().expect("nobody panics with it").push(outcome);
        (observe(Response::new(body), tell), told)
    }

    fn trailers(code: &str) -> Result<Frame<Bytes>, Status> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code.parse().expect("a number"));
        Ok(Frame::trailers(trailers))
    }

    fn data() -> Result<Frame<Bytes>, Status> {
        Ok(Frame::data(Bytes::from_static(b"data")))
    }

    async fn outcome_of(frames: Vec<Result<Frame<Bytes>, Status>>) -> Vec<Outcome> {
        let (response, told) = watched(frames);
        let _ = response.into_body().collect().await;
        told.lock().expect("nobody panics with it").clone()
    }

    #[tokio::test]
    async fn the_end_is_told_once_and_from_where_it_stands() {
        use Outcome::{Broken, Cancelled, Status as Ended};
        assert_eq!(outcome_of(vec![data(), trailers("0")]).await, [Ended(Code::Ok)]);
        assert_eq!(outcome_of(vec![data(), trailers("14")]).await, [Ended(Code::Unavailable)]);
        assert_eq!(outcome_of(vec![data()]).await, [Broken], "no status came");
        assert_eq!(outcome_of(vec![data(), Err(Status::internal("reset"))]).await, [Broken]);
        let (response, told) = watched(vec![data(), trailers("0")]);
        drop(response);
        assert_eq!(*told.lock().expect("nobody panics with it"), [Cancelled]);
    }

    #[tokio::test]
    async fn a_status_in_the_headers_is_told_at_once() {
        let told = Told::default();
        let tell = Arc::clone(&told);
        let response = Status::resource_exhausted("full").into_http::<Body>();
        let response =
            observe(response, move |outcome| tell.lock().expect("no panic").push(outcome));
        let expected = [Outcome::Status(Code::ResourceExhausted)];
        assert_eq!(*told.lock().expect("no panic"), expected);
        drop(response);
        assert_eq!(*told.lock().expect("no panic"), expected, "and not again");
    }

    #[test]
    fn a_refusal_of_what_was_asked_for_is_no_failure() {
        assert!(Outcome::Status(Code::Internal).is_failure() && Outcome::Broken.is_failure());
        for code in [Code::Ok, Code::NotFound, Code::Aborted, Code::InvalidArgument] {
            assert!(!Outcome::Status(code).is_failure(), "{code:?}");
        }
        assert!(!Outcome::Cancelled.is_failure());
    }
}
