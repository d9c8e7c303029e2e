//! The changes of a range of one space of the revisioned keyspace, as a source.
//!
//! A revision is never split: a piece ends where a revision ends.

use std::sync::Arc;

use prost::Message;

use crate::{
    machine::{Change, Decision, Space},
    node::{FeedHead, Handle, Published},
    observe::ReaderKind,
    pb::kv::v1::KeyValue,
    streaming::{
        cursor::Cursor,
        steps::{CursorCore, Local, Piece, Source},
    },
    types::{KeyRange, Planted, Revision, planted},
};

/// About how many bytes of history one step reads.
const HISTORY_BYTES: usize = 256 * 1024;

/// How many bytes of changes a live piece holds at most, unless one revision alone is larger.
const LIVE_BYTES_MAX: usize = 768 * 1024;

/// How many batches of the feed one step looks at.
const LIVE_BATCHES_MAX: usize = 64;

/// The changes of a range of one space.
#[derive(Clone, Debug)]
pub struct Changes<N = Handle> {
    node: N,
    space: Space,
    range: KeyRange,
    with_prev: bool,
}

impl<N: Local> Changes<N> {
    /// The changes of `range` in `space` as this node applies them.
    #[must_use]
    pub const fn new(node: N, space: Space, range: KeyRange) -> Self {
        Self { node, space, range, with_prev: false }
    }

    /// The same with the version before each change. Without this only history has it.
    #[must_use]
    pub fn with_prev(self, with_prev: bool) -> Self {
        Self { with_prev, ..self }
    }

    /// Starts with the changes after a revision, in history.
    #[must_use]
    pub fn core_catching_up(self, after: Revision) -> CursorCore<Self> {
        let head = self.node.feed().head();
        CursorCore::catching_up(self, &head, after)
    }

    /// Starts after a revision that the reader was told to be the live end.
    #[must_use]
    pub fn core_caught_up(self, after: Revision) -> CursorCore<Self> {
        let head = self.node.feed().head();
        CursorCore::caught_up(self, &head, after)
    }

    /// Adds the version before each change, where it is still kept. `None` where the state cannot be
    /// read, which history then says.
    fn add_prev(&self, piece: Piece<Self>) -> Option<Piece<Self>> {
        let view = self.node.view();
        with_versions_before(piece, LIVE_BYTES_MAX, |change| view.replaced(change).ok())
    }

    fn wants(&self, change: &Change) -> bool {
        change.space == self.space && self.range.contains(&change.kv.key)
    }
}

impl Changes {
    /// A cursor that starts with the changes after a revision, in history.
    #[must_use]
    pub fn catching_up(self, after: Revision) -> Cursor<Self> {
        let node = self.node.clone();
        Cursor::new(self.core_catching_up(after), node.feed().subscribe()).measured(node.metrics())
    }

    /// A cursor that starts after a revision that the reader was told to be the live end.
    #[must_use]
    pub fn caught_up(self, after: Revision) -> Cursor<Self> {
        let node = self.node.clone();
        Cursor::new(self.core_caught_up(after), node.feed().subscribe()).measured(node.metrics())
    }
}

impl<N: Local> Source for Changes<N> {
    type Item = Change;
    type Place = Revision;

    const KIND: ReaderKind = ReaderKind::Changes;

    fn number(place: Revision) -> u64 {
        place.value()
    }

    fn history(&self, after: Revision) -> Decision<Piece<Self>> {
        let view = self.node.view();
        let head = view.head()?.revision;
        if head <= after {
            return Ok(Ok(Piece { items: Vec::new(), place: after, more: false }));
        }
        let late = planted(Planted::WatchSkipsRevision) && !after.is_zero();
        let first = if late { after.next().next() } else { after.next() };
        let read = view.changes(self.space, first, HISTORY_BYTES)?;
        Ok(read.map(|(mut items, through)| {
            items.retain(|change| self.wants(change));
            Piece { items, place: through.max(after), more: through < head }
        }))
    }

    fn live(&self, after: Revision) -> Option<Piece<Self>> {
        let batches = self.node.feed().after_revision(after, LIVE_BATCHES_MAX)?;
        let (items, place, more) =
            gather(&batches, after, LIVE_BYTES_MAX, |change| self.wants(change));
        let piece = Piece { items, place, more };
        if self.with_prev { self.add_prev(piece) } else { Some(piece) }
    }

    fn is_behind(&self, place: Revision, head: &FeedHead) -> bool {
        place < head.revision
    }
}

/// The wanted changes after a revision, whole revisions only, the revision that they lead to, and
/// whether more was there than fits. The first wanted revision is taken whatever its size.
#[must_use]
pub fn gather(
    batches: &[Arc<Published>],
    after: Revision,
    bytes_max: usize,
    wants: impl Fn(&Change) -> bool,
) -> (Vec<Change>, Revision, bool) {
    let mut items: Vec<Change> = Vec::new();
    let (mut place, mut bytes) = (after, 0);
    // Where the revision under way begins in `items`.
    let (mut revision, mut start) = (after, 0);
    for batch in batches {
        for change in &batch.changes {
            let of = Revision::new(change.kv.mod_revision);
            if of <= after || !wants(change) {
                continue;
            }
            if of > revision {
                (revision, start) = (of, items.len());
            }
            bytes += size(change);
            if bytes > bytes_max && start > 0 {
                items.truncate(start);
                return (items, revision.previous(), true);
            }
            items.push(change.clone());
        }
        place = place.max(batch.revision);
    }
    (items, place, false)
}

/// Adds what each change replaced, and cuts the piece at a revision where that is too much.
fn with_versions_before<S>(
    mut piece: Piece<S>,
    bytes_max: usize,
    replaced: impl Fn(&Change) -> Option<Option<KeyValue>>,
) -> Option<Piece<S>>
where
    S: Source<Item = Change, Place = Revision>,
{
    let (mut bytes, mut start, mut revision) = (0, 0, 0);
    for at in 0..piece.items.len() {
        let change = &piece.items[at];
        if change.kv.mod_revision > revision {
            (revision, start) = (change.kv.mod_revision, at);
        }
        if change.replaced.is_zero() {
            continue;
        }
        let prev = replaced(change)?;
        bytes += prev.as_ref().map_or(0, Message::encoded_len);
        if bytes > bytes_max && start > 0 {
            piece.items.truncate(start);
            piece.place = Revision::new(revision).previous();
            piece.more = true;
            break;
        }
        piece.items[at].prev = prev;
    }
    Some(piece)
}

fn size(change: &Change) -> usize {
    change.kv.encoded_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ChangeKind;

    fn change(key: &str, revision: u64, bytes: usize) -> Change {
        let kv = KeyValue {
            key: key.to_owned().into(),
            value: vec![0; bytes].into(),
            mod_revision: revision,
            ..Default::default()
        };
        Change {
            space: Space::User,
            kind: ChangeKind::Put,
            kv,
            replaced: Revision::ZERO,
            prev: None,
        }
    }

    fn batch(before: u64, revision: u64, changes: Vec<Change>) -> Arc<Published> {
        Arc::new(Published {
            revision_before: Revision::new(before),
            revision: Revision::new(revision),
            changes,
            ..Default::default()
        })
    }

    fn gathered(after: u64, bytes_max: usize) -> (Vec<(String, u64)>, u64, bool) {
        let batches = [
            batch(0, 2, vec![change("a", 1, 100), change("b", 2, 100), change("x", 2, 100)]),
            batch(2, 4, vec![change("a", 3, 100), change("b", 3, 100), change("x", 4, 1)]),
        ];
        let wants = |change: &Change| change.kv.key != "x";
        let (items, place, more) = gather(&batches, Revision::new(after), bytes_max, wants);
        let named = |change: &Change| {
            (String::from_utf8(change.kv.key.to_vec()).unwrap(), change.kv.mod_revision)
        };
        (items.iter().map(named).collect(), place.value(), more)
    }

    fn names(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|&(key, revision)| (key.to_owned(), revision)).collect()
    }

    #[test]
    fn only_what_is_wanted_and_new_is_delivered() {
        let all = names(&[("a", 1), ("b", 2), ("a", 3), ("b", 3)]);
        assert_eq!(gathered(0, 10_000), (all.clone(), 4, false));
        assert_eq!(gathered(1, 10_000), (all[1..].to_vec(), 4, false), "a batch may begin before");
        assert_eq!(
            gathered(3, 10_000),
            (Vec::new(), 4, false),
            "the place moves past the unwanted"
        );
    }

    #[test]
    fn what_was_replaced_counts_and_what_is_compacted_is_left_out() {
        let mut items = vec![change("a", 4, 0), change("b", 5, 0), change("a", 6, 0)];
        items.iter_mut().for_each(|change| change.replaced = Revision::new(1));
        let piece =
            || Piece::<Changes> { items: items.clone(), place: Revision::new(9), more: false };
        let large = |change: &Change| {
            let kv = KeyValue { value: vec![0; 400].into(), ..Default::default() };
            Some((change.kv.key == "a").then_some(kv))
        };
        let whole = with_versions_before(piece(), 1_000, large).expect("it can be read");
        let known: Vec<_> = whole.items.iter().map(|change| change.prev.is_some()).collect();
        assert_eq!((known, whole.place.value(), whole.more), (vec![true, false, true], 9, false));
        let cut = with_versions_before(piece(), 500, large).expect("it can be read");
        assert_eq!((cut.items.len(), cut.place.value(), cut.more), (2, 5, true));
        let first = with_versions_before(piece(), 1, large).expect("it can be read");
        assert_eq!((first.items.len(), first.more), (1, true), "one revision is taken at least");
        assert!(with_versions_before(piece(), 1, |_| None).is_none());
    }

    #[test]
    fn a_revision_is_never_split() {
        assert_eq!(gathered(1, 250), (names(&[("b", 2)]), 2, true));
        assert_eq!(
            gathered(2, 50),
            (names(&[("a", 3), ("b", 3)]), 4, false),
            "larger than a piece"
        );
    }

    #[test]
    fn pieces_follow_each_other_without_gap() {
        for bytes_max in [0, 50, 150, 250, 350] {
            let (mut after, mut seen) = (0, Vec::new());
            loop {
                let (items, place, more) = gathered(after, bytes_max);
                seen.extend(items);
                after = place;
                if !more {
                    break;
                }
            }
            assert_eq!(seen, names(&[("a", 1), ("b", 2), ("a", 3), ("b", 3)]), "{bytes_max}");
            assert_eq!(after, 4);
        }
    }
}
