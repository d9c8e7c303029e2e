//! The body of a request, kept so that it can be sent more than once.
//!
//! Kept is what is there at once and not above a bound in bytes, as the one message of a unary call
//! is. What comes in the course of time is a stream, and is sent once. Kept bytes are shared, not
//! copied. Nothing here sends anything.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};

/// The most frames that are kept; a message has one or a few.
const FRAMES_MAX: usize = 64;

/// A body that can be sent any number of times. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Replay {
    first: Option<Bytes>,
    more: Vec<Bytes>,
}

impl Replay {
    /// Keeps a body. Does not wait for anything.
    ///
    /// # Errors
    /// The body as it was, where it cannot be kept.
    pub(super) async fn keep(mut body: Body, bytes_max: usize) -> Result<Self, Body> {
        let (mut kept, mut bytes) = (Self::default(), 0);
        let frame = poll_fn(|context| {
            loop {
                let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(context) else {
                    return Poll::Ready(Some(None));
                };
                match frame.map(|frame| frame.map(Frame::into_data)) {
                    None => return Poll::Ready(None),
                    Some(Ok(Ok(data))) => {
                        bytes += data.len();
                        kept.push(data);
                        if bytes > bytes_max || kept.more.len() >= FRAMES_MAX {
                            return Poll::Ready(Some(None));
                        }
                    }
                    Some(Ok(Err(trailers))) => return Poll::Ready(Some(Some(Ok(trailers)))),
                    Some(Err(error)) => return Poll::Ready(Some(Some(Err(error)))),
                }
            }
        });
        match frame.await {
            None => Ok(kept),
            Some(odd) => {
                let data = kept.first.into_iter().chain(kept.more);
                let begun = data.map(|data| Ok(Frame::data(data))).chain(odd).collect();
                Err(Body::new(Begun { begun, rest: body }))
            }
        }
    }

    fn push(&mut self, data: Bytes) {
        if self.first.is_none() {
            self.first = Some(data);
        } else {
            self.more.push(data);
        }
    }

    /// The body.
    pub(super) fn body(&self) -> Body {
        Body::new(Replayed { first: self.first.clone(), more: self.more.clone().into_iter() })
    }
}

/// A kept body on its way.
struct Replayed {
    first: Option<Bytes>,
    more: vec::IntoIter<Bytes>,
}

impl HttpBody for Replayed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let next = self.first.take().or_else(|| self.more.next());
        Poll::Ready(next.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.more.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        // Not exact, or it would be sent with a content-length, which gRPC's requests have not.
        SizeHint::new()
    }
}

/// A body of which the beginning was read.
struct Begun {
    begun: VecDeque<Result<Frame<Bytes>, Status>>,
    rest: Body,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.begun.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.is_empty() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio_stream::StreamExt as _;

    use super::*;

    fn data(frames: &[&'static str]) -> Vec<Result<Frame<Bytes>, Status>> {
        let bytes = |text: &&'static str| Bytes::from_static(text.as_bytes());
        frames.iter().map(|text| Ok(Frame::data(bytes(text)))).collect()
    }

    fn body(frames: &[&'static str]) -> Body {
        Body::new(StreamBody::new(tokio_stream::iter(data(frames))))
    }

    async fn text(body: Body) -> Bytes {
        body.collect().await.expect("it is whole").to_bytes()
    }

    #[tokio::test]
    async fn what_is_there_is_kept_and_can_be_sent_again() {
        for frames in [&[] as &[&str], &["one"], &["one", "two", "three"]] {
            let kept = Replay::keep(body(frames), 11).await.expect("it is small");
            for _ in 0..2 {
                let body = kept.body();
                assert_eq!(body.is_end_stream(), frames.is_empty());
                assert_eq!(text(body).await, frames.concat());
            }
        }
    }

    #[tokio::test]
    async fn what_is_too_large_or_not_there_yet_is_given_back_whole() {
        let large = Replay::keep(body(&["one", "two", "three"]), 10).await.expect_err("11 bytes");
        assert_eq!(text(large).await, "onetwothree");
        let many = vec!["x"; FRAMES_MAX + 10];
        let many = Replay::keep(body(&many), 1_000).await.expect_err("many frames");
        assert_eq!(text(many).await.len(), FRAMES_MAX + 10);
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let coming = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let frames = tokio_stream::iter(data(&["now "])).chain(coming);
        let body = Body::new(StreamBody::new(frames));
        let stream = Replay::keep(body, 100).await.expect_err("it goes on");
        for frame in data(&["then"]) {
            sender.send(frame).await.expect("it is read");
        }
        drop(sender);
        assert_eq!(text(stream).await, "now then");
        let broken = tokio_stream::iter(vec![Err(Status::internal("broken"))]);
        let broken = Replay::keep(Body::new(StreamBody::new(broken)), 100).await;
        let broken = broken.expect_err("it is no message").collect().await;
        assert_eq!(broken.expect_err("it broke").message(), "broken");
    }
}
