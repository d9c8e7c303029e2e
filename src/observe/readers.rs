//! How far open streams are behind: each reader notes its place, and a scrape compares.
//!
//! Nothing is computed when something is written; noting a place is one atomic store.

use core::fmt;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// What a reader's place counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReaderKind {
    /// Revisions of the keyspace: watches.
    Changes,
    /// Positions of events: subscriptions.
    Events,
}

impl ReaderKind {
    pub(crate) const ALL: [Self; 2] = [Self::Changes, Self::Events];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Changes => "changes",
            Self::Events => "events",
        }
    }
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    places: BTreeMap<(ReaderKind, u64), Arc<AtomicU64>>,
}

/// All open readers of a node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Readers(Arc<Mutex<Open>>);

impl Readers {
    pub(crate) fn open(&self, kind: ReaderKind, place: u64) -> Reader {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.next += 1;
        let (key, place) = ((kind, open.next), Arc::new(AtomicU64::new(place)));
        open.places.insert(key, Arc::clone(&place));
        Reader { key, place, readers: self.clone() }
    }

    /// How many there are of a kind, and how far the last of them is behind the head.
    pub(crate) fn measure(&self, kind: ReaderKind, head: u64) -> (u64, u64) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut measured = (0, 0);
        for (_, place) in open.places.iter().filter(|((of, _), _)| *of == kind) {
            let behind = head.saturating_sub(place.load(Ordering::Relaxed));
            measured = (measured.0 + 1, behind.max(measured.1));
        }
        measured
    }
}

/// An open reader; it is forgotten when this is dropped.
pub struct Reader {
    key: (ReaderKind, u64),
    place: Arc<AtomicU64>,
    readers: Readers,
}

impl Reader {
    /// Everything up to here was delivered, or is of no interest to the reader.
    pub fn at(&self, place: u64) {
        self.place.store(place, Ordering::Relaxed);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut open = self.readers.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.places.remove(&self.key);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("key", &self.key).field("place", &self.place).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reader_that_is_furthest_behind_counts_while_it_is_open() {
        let readers = Readers::default();
        let (slow, quick) =
            (readers.open(ReaderKind::Changes, 3), readers.open(ReaderKind::Changes, 3));
        let other = readers.open(ReaderKind::Events, 0);
        quick.at(10);
        assert_eq!(readers.measure(ReaderKind::Changes, 10), (2, 7));
        slow.at(12);
        assert_eq!(readers.measure(ReaderKind::Changes, 11), (2, 1), "one is ahead of the head");
        drop(quick);
        assert_eq!(readers.measure(ReaderKind::Changes, 13), (1, 1));
        assert_eq!(readers.measure(ReaderKind::Events, 5), (1, 5));
        drop(other);
        assert_eq!(readers.measure(ReaderKind::Events, 5), (0, 0));
    }
}
