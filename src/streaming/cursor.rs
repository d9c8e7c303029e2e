//! The one cursor beneath all watches and subscriptions: history, then live, and back to history
//! when the feed's ring has moved on or a snapshot replaced the state.
//!
//! It delivers everything after its place once, in order. It holds no items between two calls, and
//! dropping a call loses nothing.

use core::{fmt, mem};

use tokio::sync::{Semaphore, watch};
use tonic::Status;

use crate::{
    machine::refusal,
    node::FeedHead,
    observe::{Metrics, Reader, ReaderKind},
    pb::command::v1::Reason,
    wire::status::from_refusal,
};

/// How many catch-ups read the state at the same time in this process. Each takes a thread.
static CATCH_UPS: Semaphore = Semaphore::const_new(16);

/// Where a cursor reads from.
pub trait Source: Clone + Send + Sync + 'static {
    /// What it delivers.
    type Item: Send + 'static;
    /// How far a reader is: everything up to it was delivered.
    type Place: Copy + PartialEq + fmt::Debug + Send + Sync + 'static;

    /// The next piece of history after a place, whole steps only, out of the state. Runs on a
    /// blocking thread. Its own place never lies before `after`.
    ///
    /// # Errors
    /// Where history is no longer kept, or the state cannot be read.
    fn history(&self, after: Self::Place) -> Result<Piece<Self>, Status>;

    /// The next piece out of the feed; `None` where the feed has moved on past `after`.
    fn live(&self, after: Self::Place) -> Option<Piece<Self>>;

    /// What a place counts, for those who measure how far readers are behind.
    const KIND: ReaderKind;

    /// A place as such a number.
    fn number(place: Self::Place) -> u64;

    /// Whether the feed's head lies beyond a place.
    fn is_behind(&self, place: Self::Place, head: &FeedHead) -> bool;
}

/// Some items and the place that they lead to.
pub struct Piece<S: Source> {
    /// The items in order.
    pub items: Vec<S::Item>,
    /// The place after them.
    pub place: S::Place,
    /// Whether more was there that did not fit.
    pub more: bool,
}

/// What a reader is told.
pub struct Update<S: Source> {
    /// The items in order; empty in a marker.
    pub items: Vec<S::Item>,
    /// Everything up to here was delivered.
    pub place: S::Place,
    /// Whether this reaches the live end.
    pub caught_up: bool,
    /// Whether the reader was sent back to history before this.
    pub fell_behind: bool,
}

/// A reader's place in a source.
pub struct Cursor<S: Source> {
    source: S,
    head: watch::Receiver<FeedHead>,
    installs: u64,
    place: S::Place,
    live: bool,
    fell_behind: bool,
    reader: Option<Reader>,
}

impl<S: Source> Cursor<S> {
    /// Starts after a place, in history; the first update that reaches the live end says so.
    #[must_use]
    pub fn catching_up(source: S, head: watch::Receiver<FeedHead>, after: S::Place) -> Self {
        let installs = head.borrow().installs;
        Self { source, head, installs, place: after, live: false, fell_behind: false, reader: None }
    }

    /// Starts after a place that the reader was told to be the live end.
    #[must_use]
    pub fn caught_up(source: S, head: watch::Receiver<FeedHead>, after: S::Place) -> Self {
        Self { live: true, ..Self::catching_up(source, head, after) }
    }

    /// The same, with its place told among the node's metrics.
    #[must_use]
    pub fn measured(mut self, metrics: &Metrics) -> Self {
        self.reader = Some(metrics.reader(S::KIND, S::number(self.place)));
        self
    }

    fn move_to(&mut self, place: S::Place) {
        self.place = place;
        if let Some(reader) = &self.reader {
            reader.at(S::number(place));
        }
    }

    /// Everything up to here was delivered or is of no interest to the reader.
    #[must_use]
    pub const fn place(&self) -> S::Place {
        self.place
    }

    /// Whether the last update reached the live end.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        self.live
    }

    /// Waits for the next update. Dropping the call loses nothing.
    ///
    /// # Errors
    /// Where history is no longer kept, the state cannot be read, or the node has stopped.
    pub async fn next(&mut self) -> Result<Update<S>, Status> {
        loop {
            let head = *self.head.borrow_and_update();
            if head.installs != self.installs {
                self.installs = head.installs;
                self.fall_behind();
            }
            if !self.live {
                let piece = self.read_history().await?;
                self.move_to(piece.place);
                self.live = !piece.more;
                if self.live || !piece.items.is_empty() {
                    return Ok(self.update(piece.items, self.live));
                }
                continue;
            }
            if !self.source.is_behind(self.place, &head) {
                self.head.changed().await.map_err(|_| stopped())?;
                continue;
            }
            match self.source.live(self.place) {
                Some(piece) => {
                    let moved = piece.place != self.place;
                    self.move_to(piece.place);
                    if !piece.items.is_empty() {
                        return Ok(self.update(piece.items, false));
                    }
                    if !moved {
                        // The head is told before the ring holds the batch: its news will come.
                        self.head.changed().await.map_err(|_| stopped())?;
                    }
                }
                None => self.fall_behind(),
            }
        }
    }

    async fn read_history(&self) -> Result<Piece<S>, Status> {
        let _turn = CATCH_UPS.acquire().await.expect("the semaphore is never closed");
        let (source, after) = (self.source.clone(), self.place);
        tokio::task::spawn_blocking(move || source.history(after))
            .await
            .map_err(|error| Status::internal(format!("reading history failed: {error}")))?
    }

    fn update(&mut self, items: Vec<S::Item>, caught_up: bool) -> Update<S> {
        let fell_behind = mem::take(&mut self.fell_behind);
        Update { items, place: self.place, caught_up, fell_behind }
    }

    const fn fall_behind(&mut self) {
        self.fell_behind |= self.live;
        self.live = false;
    }
}

/// The feed's writer is gone: the node has stopped under the stream.
fn stopped() -> Status {
    from_refusal(refusal(
        Reason::Draining,
        "this node has stopped: resume at another one after the last place delivered",
    ))
}

impl<S: Source<Item: fmt::Debug>> fmt::Debug for Piece<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Piece")
            .field("items", &self.items)
            .field("place", &self.place)
            .field("more", &self.more)
            .finish()
    }
}

impl<S: Source<Item: fmt::Debug>> fmt::Debug for Update<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("items", &self.items)
            .field("place", &self.place)
            .field("caught_up", &self.caught_up)
            .field("fell_behind", &self.fell_behind)
            .finish()
    }
}

impl<S: Source> fmt::Debug for Cursor<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor")
            .field("place", &self.place)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
