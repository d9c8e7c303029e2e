//! What was applied, for those who watch: a bounded ring of recent batches.
//!
//! The one writer never waits for a reader: a reader that the ring has overtaken catches up from
//! the state.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::watch;

use crate::{
    machine::Change,
    pb::{event::v1::RecordedEvent, kv::v1::KeyValue},
    types::{LogIndex, Position, Revision},
};

/// The most batches that the ring keeps.
const BATCHES_MAX: usize = 4_096;
/// The most bytes of keys, values and events that the ring keeps, about.
const BYTES_MAX: usize = 8 << 20;

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

impl Published {
    fn bytes(&self) -> usize {
        let row = |kv: &KeyValue| 128 + kv.key.len() + kv.value.len();
        let changes = self.changes.iter().map(|change| row(&change.kv));
        let metadata = |e: &RecordedEvent| -> usize {
            let pairs = e.metadata.iter().map(|(name, value)| 64 + name.len() + value.len());
            pairs.sum::<usize>() + e.tags.iter().map(|tag| 32 + tag.len()).sum::<usize>()
        };
        let events = self.events.iter().map(|e| 256 + e.data.len() + metadata(e));
        changes.sum::<usize>() + events.sum::<usize>()
    }
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

#[derive(Debug, Default)]
struct Ring {
    batches: VecDeque<Arc<Published>>,
    bytes: usize,
}

/// A bounded ring of recent batches.
#[derive(Debug)]
pub struct Feed {
    head: watch::Sender<FeedHead>,
    ring: RwLock<Ring>,
}

impl Feed {
    /// An empty ring at a state that is already there.
    #[must_use]
    pub fn new(head: FeedHead) -> Self {
        Self { head: watch::Sender::new(head), ring: RwLock::default() }
    }

    /// How far the feed is, and a way to wait for more.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<FeedHead> {
        self.head.subscribe()
    }

    /// How far the feed is.
    #[must_use]
    pub fn head(&self) -> FeedHead {
        *self.head.borrow()
    }

    /// The batches that continue gaplessly after `revision`, oldest first, at most `max` of them;
    /// `None` where the ring has moved on and the reader must catch up from the state. Empty where
    /// nothing is new. The first batch may begin before `revision`.
    #[must_use]
    pub fn after_revision(&self, revision: Revision, max: usize) -> Option<Vec<Arc<Published>>> {
        if self.head().revision <= revision {
            return Some(Vec::new());
        }
        self.after(
            max,
            |batch| batch.revision_before <= revision,
            |batch| batch.revision > revision,
        )
    }

    /// The same for positions.
    #[must_use]
    pub fn after_position(&self, position: Position, max: usize) -> Option<Vec<Arc<Published>>> {
        if self.head().position <= position {
            return Some(Vec::new());
        }
        self.after(
            max,
            |batch| batch.position_before <= position,
            |batch| batch.position > position,
        )
    }

    fn after(
        &self,
        max: usize,
        reaches: impl Fn(&Published) -> bool,
        is_new: impl Fn(&Published) -> bool,
    ) -> Option<Vec<Arc<Published>>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if !ring.batches.front().is_some_and(|first| reaches(first)) {
            return None;
        }
        let start = ring.batches.partition_point(|batch| !is_new(batch));
        Some(ring.batches.range(start..).take(max).cloned().collect())
    }

    /// Adds a batch and wakes the readers.
    pub fn publish(&self, index: LogIndex, batch: Published) {
        let (revision, position) = (batch.revision, batch.position);
        if !batch.changes.is_empty() || !batch.events.is_empty() {
            let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            ring.bytes += batch.bytes();
            ring.batches.push_back(Arc::new(batch));
            while ring.batches.len() > BATCHES_MAX
                || (ring.bytes > BYTES_MAX && ring.batches.len() > 1)
            {
                let oldest = ring.batches.pop_front().expect("the ring is not empty");
                ring.bytes -= oldest.bytes();
            }
        }
        self.head.send_modify(|head| {
            *head = FeedHead { index, revision, position, installs: head.installs };
        });
    }

    /// A snapshot replaced the state: the ring starts anew.
    pub(crate) fn installed(&self, head: FeedHead) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Ring::default();
        self.head.send_modify(|old| *old = FeedHead { installs: old.installs + 1, ..head });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(before: u64, count: u64) -> Published {
        let positions = before + 1..=before + count;
        let event = |position| RecordedEvent { position, ..RecordedEvent::default() };
        Published {
            position_before: Position::new(before),
            position: Position::new(before + count),
            events: positions.map(event).collect(),
            ..Published::default()
        }
    }

    #[test]
    fn a_reader_gets_what_follows_without_a_gap() {
        let feed = Feed::new(FeedHead { position: Position::new(5), ..FeedHead::default() });
        feed.publish(LogIndex::new(1), events(5, 2));
        feed.publish(LogIndex::new(2), events(7, 1));
        let after = |position| {
            let batches = feed.after_position(Position::new(position), 10)?;
            Some(batches.iter().map(|batch| batch.position.value()).collect::<Vec<_>>())
        };
        assert_eq!(after(4), None, "the ring does not reach back that far");
        assert_eq!(after(5), Some(vec![7, 8]));
        assert_eq!(after(6), Some(vec![7, 8]), "the first batch may begin earlier");
        assert_eq!(after(7), Some(vec![8]));
        assert_eq!(after(8), Some(vec![]));
    }

    #[test]
    fn the_ring_is_bounded_and_an_overtaken_reader_is_told() {
        let feed = Feed::new(FeedHead::default());
        for n in 0..BATCHES_MAX as u64 + 1 {
            feed.publish(LogIndex::new(n + 1), events(n, 1));
        }
        assert!(feed.after_position(Position::ZERO, 10).is_none());
        assert!(feed.after_position(Position::new(1), 10).is_some());
    }

    #[test]
    fn an_install_empties_the_ring_and_counts() {
        let feed = Feed::new(FeedHead::default());
        feed.publish(LogIndex::new(1), events(0, 1));
        feed.installed(FeedHead { position: Position::new(9), ..FeedHead::default() });
        assert_eq!(feed.head().installs, 1);
        assert!(feed.after_position(Position::new(1), 10).is_none());
    }
}
