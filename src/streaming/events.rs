//! The events of one stream or of all, as a source.
//!
//! History is read by the stream's versions, live by positions; a place holds both. A stream that
//! was trimmed beyond a reader's place ends the reader with a refusal; in the order of all streams
//! the jump of positions tells what was let go.

use std::sync::Arc;

use prost::Message as _;

use crate::{
    machine::{Decision, View, store::StoreError},
    node::{FeedHead, Handle, Published},
    observe::ReaderKind,
    pb::event::v1::RecordedEvent,
    streaming::{
        cursor::Cursor,
        steps::{CursorCore, Local, Piece, Source},
    },
    types::Position,
};

/// How many events one step of history reads at most.
const HISTORY_EVENTS_MAX: usize = 1_000;

/// About how many bytes of history one step reads.
const HISTORY_BYTES: usize = 256 * 1024;

/// How many bytes of events a live piece holds at most, unless one event alone is larger.
const LIVE_BYTES_MAX: usize = 768 * 1024;

/// How many batches of the feed one step looks at.
const LIVE_BATCHES_MAX: usize = 64;

/// How far a reader of events is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventPlace {
    /// The last position that was delivered or passed over.
    pub position: Position,
    /// The last version of the stream that was delivered or lay before the start; unused for all
    /// streams.
    pub version: u64,
    /// Whether it begins with whatever is the first event that is kept.
    pub at_first: bool,
}

/// The events of one stream, or of all.
#[derive(Clone, Debug)]
pub struct Events<N = Handle> {
    node: N,
    /// Empty is all.
    stream: Arc<str>,
}

impl<N: Local> Events<N> {
    /// The events of a stream, or of all where the name is empty, as this node applies them.
    #[must_use]
    pub fn new(node: N, stream: &str) -> Self {
        Self { node, stream: stream.into() }
    }

    /// Starts with a version (of a stream) or position (of all); 0 is the first that is kept.
    #[must_use]
    pub fn core_starting_at(self, from: u64) -> CursorCore<Self> {
        let before = from.saturating_sub(1);
        let after = if self.stream.is_empty() {
            EventPlace { position: Position::new(before), ..EventPlace::default() }
        } else {
            EventPlace { position: Position::ZERO, version: before, at_first: from == 0 }
        };
        let head = self.node.feed().head();
        CursorCore::catching_up(self, &head, after)
    }

    /// Starts after a place that the reader was told to be the live end.
    #[must_use]
    pub fn core_caught_up(self, after: EventPlace) -> CursorCore<Self> {
        let head = self.node.feed().head();
        CursorCore::caught_up(self, &head, after)
    }

    /// The next piece of one stream.
    fn read_stream(&self, view: &View, mut after: EventPlace) -> Decision<Piece<Self>> {
        let bounds = view.stream_bounds(&self.stream)?;
        let from = if core::mem::take(&mut after.at_first) { 0 } else { after.version + 1 };
        let from = match bounds.start(&self.stream, from) {
            Ok(from) => from,
            Err(refusal) => return Ok(Err(refusal)),
        };
        after.version = from - 1;
        let items = view.events(&self.stream, from, HISTORY_EVENTS_MAX, HISTORY_BYTES)?;
        let place = items.last().map_or(after, |last| EventPlace {
            position: Position::new(last.position),
            version: last.version,
            ..after
        });
        let more = !items.is_empty() && place.version < bounds.last;
        Ok(Ok(self.piece(view, items, place, more)?))
    }

    /// The next piece of all streams.
    fn read_all(&self, view: &View, after: EventPlace) -> Result<Piece<Self>, StoreError> {
        let from = after.position.value() + 1;
        let items = view.events("", from, HISTORY_EVENTS_MAX, HISTORY_BYTES)?;
        let place = items
            .last()
            .map_or(after, |last| EventPlace { position: Position::new(last.position), ..after });
        let more = !items.is_empty() && place.position < view.head()?.position;
        self.piece(view, items, place, more)
    }

    /// Without more everything up to the view's head is delivered or passed over.
    fn piece(
        &self,
        view: &View,
        items: Vec<RecordedEvent>,
        mut place: EventPlace,
        more: bool,
    ) -> Result<Piece<Self>, StoreError> {
        if !more {
            place.position = place.position.max(view.head()?.position);
        }
        Ok(Piece { items, place, more })
    }
}

impl Events {
    /// A cursor that starts with a version (of a stream) or position (of all); 0 is the first that
    /// is kept.
    #[must_use]
    pub fn starting_at(self, from: u64) -> Cursor<Self> {
        let node = self.node.clone();
        Cursor::new(self.core_starting_at(from), node.feed().subscribe()).measured(node.metrics())
    }

    /// A cursor that starts after a place that the reader was told to be the live end.
    #[must_use]
    pub fn caught_up(self, after: EventPlace) -> Cursor<Self> {
        let node = self.node.clone();
        Cursor::new(self.core_caught_up(after), node.feed().subscribe()).measured(node.metrics())
    }
}

impl<N: Local> Source for Events<N> {
    type Item = RecordedEvent;
    type Place = EventPlace;

    const KIND: ReaderKind = ReaderKind::Events;

    fn number(place: EventPlace) -> u64 {
        place.position.value()
    }

    fn history(&self, after: EventPlace) -> Decision<Piece<Self>> {
        let view = self.node.view();
        if self.stream.is_empty() {
            return self.read_all(&view, after).map(Ok);
        }
        self.read_stream(&view, after)
    }

    fn live(&self, after: EventPlace) -> Option<Piece<Self>> {
        let batches = self.node.feed().after_position(after.position, LIVE_BATCHES_MAX)?;
        let (items, place, more) = gather(&batches, &self.stream, after, LIVE_BYTES_MAX);
        Some(Piece { items, place, more })
    }

    fn is_behind(&self, place: EventPlace, head: &FeedHead) -> bool {
        place.position < head.position
    }
}

/// The events of a stream after a place, the place that they lead to, and whether more was there
/// than fits. The first event is taken whatever its size.
fn gather(
    batches: &[Arc<Published>],
    stream: &str,
    after: EventPlace,
    bytes_max: usize,
) -> (Vec<RecordedEvent>, EventPlace, bool) {
    let mut items = Vec::new();
    let (mut place, mut bytes) = (after, 0);
    for batch in batches {
        for event in &batch.events {
            let wanted =
                stream.is_empty() || (event.stream == stream && event.version > after.version);
            if event.position <= after.position.value() || !wanted {
                continue;
            }
            bytes += event.encoded_len();
            if bytes > bytes_max && !items.is_empty() {
                place.position = Position::new(event.position).previous();
                return (items, place, true);
            }
            place.version = event.version;
            items.push(event.clone());
        }
        place.position = place.position.max(batch.position);
    }
    (items, place, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(stream: &str, version: u64, position: u64) -> RecordedEvent {
        RecordedEvent {
            stream: stream.to_owned(),
            version,
            position,
            data: vec![0; 100].into(),
            ..Default::default()
        }
    }

    fn batches() -> [Arc<Published>; 2] {
        let batch = |before, position, events| {
            Arc::new(Published {
                position_before: Position::new(before),
                position: Position::new(position),
                events,
                ..Default::default()
            })
        };
        [
            batch(0, 3, vec![event("a", 1, 1), event("b", 1, 2), event("a", 2, 3)]),
            batch(3, 5, vec![event("a", 3, 4), event("b", 2, 5)]),
        ]
    }

    fn gathered(
        stream: &str,
        position: u64,
        version: u64,
        bytes_max: usize,
    ) -> (Vec<u64>, u64, bool) {
        let after = EventPlace { position: Position::new(position), version, at_first: false };
        let (items, place, more) = gather(&batches(), stream, after, bytes_max);
        (items.iter().map(|event| event.position).collect(), place.position.value(), more)
    }

    #[test]
    fn a_stream_gets_its_own_events_and_all_get_all() {
        assert_eq!(gathered("", 0, 0, 10_000), (vec![1, 2, 3, 4, 5], 5, false));
        assert_eq!(gathered("", 2, 0, 10_000), (vec![3, 4, 5], 5, false));
        assert_eq!(gathered("a", 0, 0, 10_000), (vec![1, 3, 4], 5, false));
        assert_eq!(gathered("b", 2, 1, 10_000), (vec![5], 5, false));
        assert_eq!(gathered("c", 0, 0, 10_000), (vec![], 5, false), "passed over");
    }

    #[test]
    fn a_stream_starts_at_its_version_also_where_that_is_still_to_come() {
        assert_eq!(gathered("a", 0, 2, 10_000), (vec![4], 5, false));
        assert_eq!(gathered("a", 0, 9, 10_000), (vec![], 5, false));
    }

    #[test]
    fn pieces_follow_each_other_without_gap() {
        for bytes_max in [0, 150, 250, 350] {
            let (mut after, mut seen) = (EventPlace::default(), Vec::new());
            loop {
                let (items, place, more) = gather(&batches(), "a", after, bytes_max);
                assert!(!items.is_empty() || !more);
                seen.extend(items.iter().map(|event| event.version));
                after = place;
                if !more {
                    break;
                }
            }
            assert_eq!((seen, after.version), (vec![1, 2, 3], 3), "{bytes_max}");
        }
    }
}
