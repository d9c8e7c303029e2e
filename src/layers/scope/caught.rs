//! A future whose panics are values, in its polls and in its drop. It never goes on after a panic.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
};

use crate::layers::BoxFuture;

/// What a panic carries.
pub(super) type Payload = Box<dyn Any + Send>;

/// A future whose panics are values. Must not be polled again once it has ended.
pub(super) struct Caught<T>(Option<BoxFuture<T>>);

impl<T> Caught<T> {
    pub(super) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(Box::pin(future)))
    }

    /// Drops the future; the panic of that, where there is one.
    pub(super) fn end(&mut self) -> Result<(), Payload> {
        let future = self.0.take();
        catch_unwind(AssertUnwindSafe(|| drop(future)))
    }
}

impl<T> Future for Caught<T> {
    type Output = Result<T, Payload>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.0.as_mut().expect("it is not polled after its end").as_mut();
        // Nothing sees the future after a panic, so nothing sees it half changed.
        let polled = catch_unwind(AssertUnwindSafe(|| future.poll(context)));
        let ended = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(payload) => Err(payload),
        };
        match (ended, self.end()) {
            (Ok(_), Err(payload)) | (Err(payload), _) => Poll::Ready(Err(payload)),
            (Ok(output), Ok(())) => Poll::Ready(Ok(output)),
        }
    }
}

impl<T> fmt::Debug for Caught<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caught").field("ended", &self.0.is_none()).finish()
    }
}

/// The words of a panic.
pub(super) fn words(payload: &Payload) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "not in words".to_owned())
}
