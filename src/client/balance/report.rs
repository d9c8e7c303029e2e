//! How a call ended, read where gRPC says it: in the headers of an answer without a body, or in the
//! trailers behind the body. Whoever only looks at the HTTP status takes every failure for a success.
//!
//! It also keeps a call counted as in flight for as long as its answer is being read, and ends it at
//! its deadline.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::{Code, Status, body::Body};

use crate::{
    client::balance::load::Call,
    layers::{code_in, is_failure},
};

/// An answer that ended before its status: what it says may have been done.
fn truncated() -> Status {
    let mut status = Status::unavailable("the answer ended without a status");
    status.set_source(Arc::new(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
    status
}

/// The body of an answer, whose end is told to the endpoint's load.
pub(super) struct Reported {
    body: Body,
    /// Taken when the end was told.
    call: Option<Call>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Reported {
    pub(super) const fn new(body: Body, call: Call, deadline: Option<Pin<Box<Sleep>>>) -> Self {
        Self { body, call: Some(call), deadline }
    }

    fn end(&mut self, failed: bool) {
        if let Some(call) = self.call.take() {
            call.ended(failed);
        }
    }
}

impl HttpBody for Reported {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) else {
            if let Some(deadline) = &mut this.deadline {
                ready!(deadline.as_mut().poll(context));
                this.deadline = None;
                this.body = Body::empty();
                this.end(true);
                return Poll::Ready(Some(Err(super::deadline_exceeded())));
            }
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let code = code_in(trailers).unwrap_or(Code::Unknown);
                    this.end(is_failure(code));
                }
            }
            Some(Err(_)) => this.end(true),
            None if this.call.is_some() => {
                // Without trailers the call has no status: a stream that broke.
                this.end(true);
                this.body = Body::empty();
                return Poll::Ready(Some(Err(truncated())));
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        // As long as no status was seen there is one to come, or an error to tell.
        self.call.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
