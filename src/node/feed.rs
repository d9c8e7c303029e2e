//! SKELETON: what was applied, for those who watch: a bounded ring of recent batches.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    machine::Change,
    pb::event::v1::RecordedEvent,
    types::{LogIndex, Position, Revision},
};

/// What one applied batch changed.
#[derive(Debug, Default)]
pub struct Published {
    /// The revision before the batch: its changes are those after it.
    pub revision_before: Revision,
    /// The revision after the batch.
    pub revision: Revision,
    /// The position before the batch.
    pub position_before: Position,
    /// The position after the batch.
    pub position: Position,
    /// The changes, in revision order.
    pub changes: Vec<Change>,
    /// The events, in position order.
    pub events: Vec<RecordedEvent>,
}

/// How far the feed is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedHead {
    /// The applied index.
    pub index: LogIndex,
    /// The newest revision.
    pub revision: Revision,
    /// The last position.
    pub position: Position,
    /// Grows when a snapshot replaced the state: watchers go back to catching up.
    pub installs: u64,
}

/// A bounded ring of recent batches. The one writer never waits for a reader.
#[derive(Debug)]
pub struct Feed {
    head: watch::Sender<FeedHead>,
}

impl Feed {
    /// How far the feed is, and a way to wait for more.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<FeedHead> {
        self.head.subscribe()
    }

    /// The batches that continue gaplessly after `revision`, oldest first, at most `max` of them;
    /// `None` where the ring has moved on and the reader must catch up from the state. Empty where
    /// nothing is new. The first batch may begin before `revision`.
    #[must_use]
    pub fn after_revision(&self, _revision: Revision, _max: usize) -> Option<Vec<Arc<Published>>> {
        unimplemented!()
    }

    /// The same for positions.
    #[must_use]
    pub fn after_position(&self, _position: Position, _max: usize) -> Option<Vec<Arc<Published>>> {
        unimplemented!()
    }
}
