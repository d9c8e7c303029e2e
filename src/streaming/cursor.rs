//! The one cursor beneath all watches and subscriptions: history, then live, and back to history
//! when the feed's ring has moved on or a snapshot replaced the state.
//!
//! What comes next is decided in `steps.rs`. This file waits for the feed, reads history on a thread
//! that may block, and answers in statuses. It holds no items between two calls, and dropping a call
//! loses nothing.

use core::fmt;

use tokio::sync::{Semaphore, watch};
use tonic::Status;

use crate::{
    host,
    machine::refusal,
    node::FeedHead,
    observe::{Metrics, Reader},
    pb::command::v1::Reason,
    streaming::steps::{CursorCore, Piece, Source, Step, Update},
    wire::status::{from_refusal, from_store_error},
};

/// How many catch-ups read the state at the same time in this process. Each takes a thread.
static CATCH_UPS: Semaphore = Semaphore::const_new(16);

/// A reader's place in a source.
pub struct Cursor<S: Source> {
    core: CursorCore<S>,
    head: watch::Receiver<FeedHead>,
    reader: Option<Reader>,
}

impl<S: Source + Send + Sync + 'static> Cursor<S> {
    /// Starts after a place, in history; the first update that reaches the live end says so.
    #[must_use]
    pub fn catching_up(source: S, head: watch::Receiver<FeedHead>, after: S::Place) -> Self {
        let core = CursorCore::catching_up(source, &head.borrow(), after);
        Self::new(core, head)
    }

    /// Starts after a place that the reader was told to be the live end.
    #[must_use]
    pub fn caught_up(source: S, head: watch::Receiver<FeedHead>, after: S::Place) -> Self {
        let core = CursorCore::caught_up(source, &head.borrow(), after);
        Self::new(core, head)
    }

    /// Carries out what `core` decides as `head` moves.
    #[must_use]
    pub const fn new(core: CursorCore<S>, head: watch::Receiver<FeedHead>) -> Self {
        Self { core, head, reader: None }
    }

    /// The same, with its place told among the node's metrics.
    #[must_use]
    pub fn measured(mut self, metrics: &Metrics) -> Self {
        self.reader = Some(metrics.reader(S::KIND, S::number(self.core.place())));
        self
    }

    /// Everything up to here was delivered or is of no interest to the reader.
    #[must_use]
    pub const fn place(&self) -> S::Place {
        self.core.place()
    }

    /// Whether the last update reached the live end.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.core.is_live()
    }

    /// Waits for the next update. Dropping the call loses nothing.
    ///
    /// # Errors
    /// Where history is no longer kept, the state cannot be read, or the node has stopped.
    pub async fn next(&mut self) -> Result<Update<S>, Status> {
        loop {
            let head = *self.head.borrow_and_update();
            let step = self.core.step(&head);
            self.tell_place();
            match step {
                Step::Deliver(update) => return Ok(update),
                Step::Wait => self.head.changed().await.map_err(|_| stopped())?,
                Step::ReadHistory(after) => {
                    let piece = self.read_history(after).await?;
                    let update = self.core.take_history(piece);
                    self.tell_place();
                    if let Some(update) = update {
                        return Ok(update);
                    }
                }
            }
        }
    }

    fn tell_place(&self) {
        if let Some(reader) = &self.reader {
            reader.at(S::number(self.core.place()));
        }
    }

    async fn read_history(&self, after: S::Place) -> Result<Piece<S>, Status> {
        let _turn = CATCH_UPS.acquire().await.expect("the semaphore is never closed");
        let source = self.core.source().clone();
        host::blocking(move || source.history(after))
            .await
            .map_err(|error| Status::internal(format!("reading history failed: {error}")))?
            .map_err(|error| from_store_error(&error))?
            .map_err(from_refusal)
    }
}

/// The feed's writer is gone: the node has stopped under the stream.
fn stopped() -> Status {
    from_refusal(refusal(
        Reason::Draining,
        "this node has stopped: resume at another one after the last place delivered",
    ))
}

impl<S: Source> fmt::Debug for Cursor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("core", &self.core).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
