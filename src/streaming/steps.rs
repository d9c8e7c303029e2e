//! What a reader does next: read history, take what is live, or wait. A decision and no more.
//!
//! It knows no time, threads or tasks: whoever asks says how far the feed is, reads the history it
//! is told to read, and waits as it can. A node's streams do so in `cursor.rs`; the simulator steps
//! the same code. It holds no items between two calls.

use core::{fmt, mem};

use crate::{
    machine::{Decision, View},
    node::{Feed, FeedHead, Handle},
    observe::ReaderKind,
};

/// Where sources find the state and the feed: a node, or a simulated one.
pub trait Local: Clone {
    /// The state as it is now.
    fn view(&self) -> View;

    /// What was applied lately.
    fn feed(&self) -> &Feed;
}

impl Local for Handle {
    fn view(&self) -> View {
        Self::view(self)
    }

    fn feed(&self) -> &Feed {
        Self::feed(self)
    }
}

/// Where a cursor reads from.
pub trait Source: Clone {
    /// What it delivers.
    type Item: Send + 'static;
    /// How far a reader is: everything up to it was delivered.
    type Place: Copy + PartialEq + fmt::Debug + Send + Sync + 'static;

    /// What a place counts, for those who measure how far readers are behind.
    const KIND: ReaderKind;

    /// A place as such a number.
    fn number(place: Self::Place) -> u64;

    /// Whether the feed's head lies beyond a place.
    fn is_behind(&self, place: Self::Place, head: &FeedHead) -> bool;

    /// The next piece of history after a place, whole steps only, out of the state. It may take a
    /// while. Its own place never lies before `after`.
    ///
    /// # Errors
    /// Where the state cannot be read. Inside, the refusal of history that is no longer kept.
    fn history(&self, after: Self::Place) -> Decision<Piece<Self>>;

    /// The next piece out of the feed; `None` where the feed has moved on past `after`.
    fn live(&self, after: Self::Place) -> Option<Piece<Self>>;
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

/// What a reader does next.
pub enum Step<S: Source> {
    /// Read the source's history after the place, and hand it to [`CursorCore::take_history`].
    ReadHistory(S::Place),
    /// This is the next update.
    Deliver(Update<S>),
    /// Nothing is new: ask again when the feed's head has changed.
    Wait,
}

/// A reader's place in a source, and what comes after it.
pub struct CursorCore<S: Source> {
    source: S,
    installs: u64,
    place: S::Place,
    live: bool,
    fell_behind: bool,
}

impl<S: Source> CursorCore<S> {
    /// Starts after a place, in history; the first update that reaches the live end says so.
    #[must_use]
    pub fn catching_up(source: S, head: &FeedHead, after: S::Place) -> Self {
        Self { source, installs: head.installs, place: after, live: false, fell_behind: false }
    }

    /// Starts after a place that the reader was told to be the live end.
    #[must_use]
    pub fn caught_up(source: S, head: &FeedHead, after: S::Place) -> Self {
        Self { live: true, ..Self::catching_up(source, head, after) }
    }

    /// Where it reads from.
    #[must_use]
    pub const fn source(&self) -> &S {
        &self.source
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

    /// What to do next where the feed is at `head`.
    pub fn step(&mut self, head: &FeedHead) -> Step<S> {
        if head.installs != self.installs {
            self.installs = head.installs;
            self.fall_behind();
        }
        while self.live && self.source.is_behind(self.place, head) {
            let Some(piece) = self.source.live(self.place) else {
                self.fall_behind();
                break;
            };
            let moved = piece.place != self.place;
            self.place = piece.place;
            if !piece.items.is_empty() {
                return Step::Deliver(self.update(piece.items, false));
            }
            if !moved {
                // The head is told before the ring holds the batch: its news will come.
                return Step::Wait;
            }
        }
        if self.live { Step::Wait } else { Step::ReadHistory(self.place) }
    }

    /// Takes the piece of history that [`Step::ReadHistory`] asked for. `None` where it holds
    /// nothing to tell: go on with the next step.
    pub fn take_history(&mut self, piece: Piece<S>) -> Option<Update<S>> {
        self.place = piece.place;
        self.live = !piece.more;
        let tells = self.live || !piece.items.is_empty();
        tells.then(|| self.update(piece.items, self.live))
    }

    /// The next update, for those who may read history where they stand; `None` where nothing is
    /// new at `head`. After a refusal there is nothing more to come.
    ///
    /// # Errors
    /// As [`Source::history`].
    pub fn poll(&mut self, head: &FeedHead) -> Decision<Option<Update<S>>> {
        loop {
            match self.step(head) {
                Step::Deliver(update) => return Ok(Ok(Some(update))),
                Step::Wait => return Ok(Ok(None)),
                Step::ReadHistory(after) => match self.source.history(after)? {
                    Ok(piece) => {
                        if let Some(update) = self.take_history(piece) {
                            return Ok(Ok(Some(update)));
                        }
                    }
                    Err(refusal) => return Ok(Err(refusal)),
                },
            }
        }
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

impl<S: Source<Item: fmt::Debug>> fmt::Debug for Step<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadHistory(after) => f.debug_tuple("ReadHistory").field(after).finish(),
            Self::Deliver(update) => f.debug_tuple("Deliver").field(update).finish(),
            Self::Wait => f.write_str("Wait"),
        }
    }
}

impl<S: Source> fmt::Debug for CursorCore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CursorCore")
            .field("place", &self.place)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
