//! The end of a late call, on either side: before its answer, and in the middle of its stream.
//!
//! A stream that is late ends with DEADLINE_EXCEEDED in trailers, so that whoever reads it sees a
//! status like any other. What is inside is dropped then, and so cancelled.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep_until};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Due, stats::Counters};
use crate::layers::{REFUSAL_DOMAIN, code_in};

/// Which side of the wire a layer stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// What a call is answered with whose deadline had passed before anything was done.
pub(super) fn refused<E>(side: Side, counters: &Counters) -> Result<Response<Body>, E> {
    counters.refused.fetch_add(1, Relaxed);
    tracing::debug!(?side, "the deadline of a call had passed before it began");
    let sentence = match side {
        Side::Client => "the deadline had passed before the call was sent: nothing was done",
        Side::Server => "the deadline had passed before the work began: nothing was done",
    };
    Ok(status(sentence).into_http())
}

/// Runs a call until it is due, and so its stream. On the server's side what it does is part of the
/// call that is due then.
pub(super) async fn run<E>(
    side: Side,
    due: Due,
    counters: Arc<Counters>,
    call: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    let mut timer = Box::pin(sleep_until(due.instant()));
    let response = tokio::select! {
        biased;
        answered = call => match answered {
            // A transport that keeps the same deadline has another word for it: tonic's is CANCELLED.
            Err(_) if side == Side::Client && due.left().is_zero() => {
                counters.expired.fetch_add(1, Relaxed);
                return Ok(late(side).into_http());
            }
            answered => answered?,
        },
        () = &mut timer => {
            counters.expired.fetch_add(1, Relaxed);
            tracing::debug!(?side, "a call got no answer by its deadline");
            return Ok(late(side).into_http());
        }
    };
    if code_in(response.headers()).is_some() {
        return Ok(response);
    }
    let scope = (side == Side::Server).then_some(due);
    Ok(response.map(|body| Body::new(Ended { body, timer: Some(timer), side, scope, counters })))
}

fn status(sentence: &str) -> Status {
    let details = ErrorDetails::with_error_info("DEADLINE_EXCEEDED", REFUSAL_DOMAIN, []);
    Status::with_error_details(Code::DeadlineExceeded, sentence, details)
}

fn late(side: Side) -> Status {
    status(match side {
        Side::Client => {
            "there was no whole answer by the deadline and the call was ended on the client's side; \
             what was asked for may have been done: read before asking again"
        }
        Side::Server => {
            "the deadline ran out before the answer was whole; what was asked for may have been \
             done: read before asking again"
        }
    })
}

/// A body that ends when its call is due.
struct Ended {
    body: Body,
    /// Absent once the body has ended.
    timer: Option<Pin<Box<Sleep>>>,
    side: Side,
    scope: Option<Due>,
    counters: Arc<Counters>,
}

impl HttpBody for Ended {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Some(timer) = &mut this.timer else { return Poll::Ready(None) };
        let body = Pin::new(&mut this.body);
        let polled = match this.scope {
            Some(due) => due.sync_scope(|| body.poll_frame(context)),
            None => body.poll_frame(context),
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                // One that always has more to say ends in time too.
                if timer.as_mut().poll(context).is_pending() {
                    return Poll::Ready(Some(Ok(frame)));
                }
            }
            Poll::Ready(last) => {
                this.timer = None;
                return Poll::Ready(last);
            }
            Poll::Pending => ready!(timer.as_mut().poll(context)),
        }
        this.timer = None;
        this.body = Body::empty();
        this.counters.expired_streams.fetch_add(1, Relaxed);
        tracing::debug!(side = ?this.side, "the stream of a call did not end by its deadline");
        let mut trailers = HeaderMap::new();
        late(this.side).add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.timer.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // It may end sooner than it says.
        SizeHint::new()
    }
}
