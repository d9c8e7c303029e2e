//! Rows that were committed and are not in the file yet, and how they are laid over it.
//!
//! Each change keeps the number of its batch, so that a snapshot sees the rows as they were after
//! its own. A buffer only grows; when it goes into the file as a whole, a new one takes its place
//! and those who still look at the old one keep it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    iter,
    ops::Bound,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;

use crate::machine::store::{Batch, Row, Rows, StoreError};

/// What a row costs beyond its bytes, about.
const ROW_BYTES: usize = 128;

type Changes = BTreeMap<Bytes, Versions>;
/// A key and its value there; `None` where it is deleted.
type Change = (Bytes, Option<Bytes>);

/// What one key was set to: the last, and what came before it, the oldest first.
#[derive(Debug)]
struct Versions {
    last: Version,
    before: Vec<Version>,
}

#[derive(Debug)]
struct Version {
    /// The batch.
    number: u64,
    value: Option<Bytes>,
}

impl Versions {
    /// The value as of a batch; `None` where it was not set yet.
    fn at(&self, number: u64) -> Option<&Option<Bytes>> {
        if self.last.number <= number {
            return Some(&self.last.value);
        }
        let set = self.before.iter().rev().find(|version| version.number <= number);
        set.map(|version| &version.value)
    }
}

/// Changes by key and batch.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    changes: RwLock<Changes>,
    bytes: AtomicUsize,
}

impl Buffer {
    /// Takes the changes of a batch; gives how many bytes are held now.
    pub(super) fn insert(&self, batch: Batch, number: u64) -> usize {
        let mut bytes = 0;
        // Inserting cannot leave a map half changed.
        let mut changes = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch.rows {
            bytes += key.len() + value.as_ref().map_or(0, Bytes::len) + ROW_BYTES;
            let version = Version { number, value };
            match changes.entry(key) {
                Entry::Vacant(place) => {
                    place.insert(Versions { last: version, before: Vec::new() });
                }
                Entry::Occupied(mut place) => {
                    let versions = place.get_mut();
                    versions.before.push(std::mem::replace(&mut versions.last, version));
                }
            }
        }
        bytes + self.bytes.fetch_add(bytes, Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// The last change of each key, in the order of keys.
    ///
    /// # Errors
    /// What `visit` gives.
    pub(super) fn each_last<E>(
        &self,
        mut visit: impl FnMut(&Bytes, Option<&Bytes>) -> Result<(), E>,
    ) -> Result<(), E> {
        let changes = self.read();
        changes.iter().try_for_each(|(key, versions)| visit(key, versions.last.value.as_ref()))
    }

    /// The change of a key as of a batch; `None` where there is none here.
    pub(super) fn get(&self, key: &[u8], number: u64) -> Option<Option<Bytes>> {
        self.read().get(key)?.at(number).cloned()
    }

    /// The changes of keys from `start` to `end` as of a batch, ascending.
    fn ascending(
        self: Arc<Self>,
        start: &[u8],
        end: Option<&[u8]>,
        number: u64,
    ) -> impl Iterator<Item = Change> + use<> {
        let end = end.map(Bytes::copy_from_slice);
        let mut from = Bound::Included(Bytes::copy_from_slice(start));
        iter::from_fn(move || {
            let changes = self.read();
            let range = (from.as_ref().map(AsRef::as_ref), upper(end.as_ref()));
            let change = changes.range::<[u8], _>(range).find_map(|(key, versions)| {
                versions.at(number).map(|value| (key.clone(), value.clone()))
            })?;
            from = Bound::Excluded(change.0.clone());
            Some(change)
        })
    }

    /// The same, descending.
    fn descending(
        self: Arc<Self>,
        start: &[u8],
        end: Option<&[u8]>,
        number: u64,
    ) -> impl Iterator<Item = Change> + use<> {
        let start = Bytes::copy_from_slice(start);
        let mut end = end.map(Bytes::copy_from_slice);
        iter::from_fn(move || {
            let changes = self.read();
            let range = (Bound::Included(start.as_ref()), upper(end.as_ref()));
            let change = changes.range::<[u8], _>(range).rev().find_map(|(key, versions)| {
                versions.at(number).map(|value| (key.clone(), value.clone()))
            })?;
            end = Some(change.0.clone());
            Some(change)
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Changes> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn upper(end: Option<&Bytes>) -> Bound<&[u8]> {
    end.map_or(Bound::Unbounded, |end| Bound::Excluded(end.as_ref()))
}

/// Lays buffers, the newest first, over rows; both from `start` to `end` and in the same order.
pub(super) fn overlay<'a>(
    rows: Rows<'a>,
    buffers: impl Iterator<Item = Arc<Buffer>>,
    (start, end): (&[u8], Option<&[u8]>),
    number: u64,
    back: bool,
) -> Rows<'a> {
    let rows = rows.map(|row| row.map(|(key, value)| (key, Some(value))));
    let buffers = buffers.map(|buffer| -> Source<'a> {
        if back {
            let changes: Box<dyn Iterator<Item = _>> =
                Box::new(buffer.descending(start, end, number).map(Ok));
            changes.peekable()
        } else {
            let changes: Box<dyn Iterator<Item = _>> =
                Box::new(buffer.ascending(start, end, number).map(Ok));
            changes.peekable()
        }
    });
    let mut sources: Vec<Source<'a>> = buffers.collect();
    let rows: Box<dyn Iterator<Item = _> + 'a> = Box::new(rows);
    sources.push(rows.peekable());
    Box::new(iter::from_fn(move || merge(&mut sources, back)))
}

type Source<'a> = iter::Peekable<Box<dyn Iterator<Item = Result<Change, StoreError>> + 'a>>;

/// The next row of what the sources hold together; of equal keys the first source's counts.
fn merge(sources: &mut [Source<'_>], back: bool) -> Option<Result<Row, StoreError>> {
    loop {
        let mut next: Option<Bytes> = None;
        for source in &mut *sources {
            match source.peek() {
                None => {}
                Some(Err(error)) => return Some(Err(StoreError(error.0.clone()))),
                Some(Ok((key, _))) => {
                    let sooner = |next: &Bytes| if back { key > next } else { key < next };
                    if next.as_ref().is_none_or(sooner) {
                        next = Some(key.clone());
                    }
                }
            }
        }
        let key = next?;
        let mut value = None;
        for source in sources.iter_mut().rev() {
            let here = source.next_if(|row| row.as_ref().is_ok_and(|(at, _)| *at == key));
            if let Some(Ok((_, found))) = here {
                value = found;
            }
        }
        if let Some(value) = value {
            return Some(Ok((key, value)));
        }
    }
}
