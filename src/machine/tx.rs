//! The transaction in which entries are applied: the store as it was, and over it what the run
//! has changed so far.
//!
//! Entries run one after the other and are committed in one batch. Each *unit* of work (what fell
//! due before an entry, the entry's command) is atomic: a refused one is rolled back. It never
//! writes to the store itself.

use core::ops::Bound;
use std::collections::{BTreeMap, BTreeSet, btree_map};

use bytes::Bytes;
use prost::Message;

use crate::{
    machine::{
        apply::MachineConfig,
        dedup::Requests,
        effect::{Applied, Change, ChangeKind, Space},
        head::{self, Counters, Head},
        keyspace::{self, Current, Place},
        store::{Batch, Reader, Row, Rows, StoreError},
        tables::{Fields, Key, Table},
    },
    pb::{
        command::v1::{Origin, Outcome},
        kv::v1::KeyValue,
    },
    types::{LogIndex, LogTime, Position, Revision, SessionId, Term},
};

/// A run of entries that is being applied.
pub(crate) struct Tx<'a> {
    /// The entry's log time.
    pub(crate) now: LogTime,
    /// The entry's index.
    pub(crate) index: LogIndex,
    /// The entry's term.
    pub(crate) term: Term,
    /// Where the state stands, this run included. `revision` moves through `write_row` and
    /// `delete_row` alone; the position is moved by whoever appends events.
    pub(crate) head: Head,
    /// The bookkeeping's counters.
    pub(crate) counters: Counters,
    /// What came of it so far. A refused command's effects are taken back.
    pub(crate) applied: Applied,
    /// How the machine is set up.
    pub(crate) config: &'a MachineConfig,
    /// Where the remembered requests are; changed through [`Tx::set_request`] alone.
    pub(crate) requests: Requests,
    store: &'a dyn Reader,
    overlay: BTreeMap<Bytes, Option<Bytes>>,
    timers_moved: bool,
    /// No timer is due before this. It may lie too early, never too late.
    timers_from: Option<LogTime>,
    unit: Unit,
}

/// What a run comes to.
pub(crate) struct Finished {
    /// To be committed.
    pub(crate) batch: Batch,
    pub(crate) applied: Applied,
    pub(crate) counters: Counters,
    pub(crate) requests: Requests,
    /// Whether a timer was set or cleared.
    pub(crate) timers_moved: bool,
    /// No timer lies before this; none is set where it is `None`.
    pub(crate) timers_from: Option<LogTime>,
}

/// The unit of work under way: what it takes to undo it.
#[derive(Debug, Default)]
struct Unit {
    /// What the overlay held for each key written, in the order of writing.
    undo: Vec<(Bytes, Option<Option<Bytes>>)>,
    /// Where each request that was remembered or forgotten was before.
    requests: Vec<(u128, Option<u64>)>,
    timers_from: Option<LogTime>,
    revision: Revision,
    compact_revision: Revision,
    position: Position,
    counters: Counters,
    effects: [usize; 5],
    /// The keys that took their change in the newest revision; none before the first change.
    touched: Touched,
    /// The next change's place in the revision.
    sub: u32,
}

/// The rows that took their change in one revision. Mostly it is one, which costs no tree.
#[derive(Debug, Default)]
struct Touched {
    first: Option<(Space, Bytes)>,
    more: BTreeSet<(Space, Bytes)>,
}

impl Touched {
    const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn clear(&mut self) {
        self.first = None;
        self.more.clear();
    }

    fn insert(&mut self, space: Space, key: Bytes) {
        if self.first.is_none() {
            self.first = Some((space, key));
        } else {
            self.more.insert((space, key));
        }
    }

    fn contains(&self, space: Space, key: &[u8]) -> bool {
        let first = self.first.as_ref().is_some_and(|(of, first)| *of == space && first == key);
        first || !self.more.is_empty() && self.more.contains(&(space, Bytes::copy_from_slice(key)))
    }
}

impl core::fmt::Debug for Tx<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Tx").field("index", &self.index).field("head", &self.head).finish()
    }
}

impl<'a> Tx<'a> {
    /// Starts a run where the state stands.
    pub(crate) fn new(
        store: &'a dyn Reader,
        config: &'a MachineConfig,
        head: Head,
        counters: Counters,
        requests: Requests,
    ) -> Self {
        Self {
            requests,
            now: head.time,
            index: head.index,
            term: head.term,
            unit: Unit::default(),
            head,
            counters,
            applied: Applied::default(),
            config,
            store,
            overlay: BTreeMap::new(),
            timers_moved: false,
            timers_from: Some(LogTime::ZERO),
        }
    }

    /// Says that no timer is due before this; none at all where it is `None`.
    pub(crate) fn expect_timers_from(&mut self, next: Option<LogTime>) {
        self.timers_from = next;
    }

    /// Makes room for the effects of so many entries.
    pub(crate) fn reserve(&mut self, entries: usize) {
        self.applied.outcomes.reserve(entries);
        self.applied.changes.reserve(entries);
    }

    /// Opens a unit of work: what follows is kept together and shares a revision.
    pub(crate) fn begin(&mut self) {
        self.unit.undo.clear();
        self.unit.requests.clear();
        self.unit = Unit {
            undo: core::mem::take(&mut self.unit.undo),
            timers_from: self.timers_from,
            requests: core::mem::take(&mut self.unit.requests),
            revision: self.head.revision,
            compact_revision: self.head.compact_revision,
            position: self.head.position,
            counters: self.counters,
            effects: self.effects(),
            touched: Touched::default(),
            sub: 0,
        };
    }

    /// Takes back everything since [`Tx::begin`], which stays in force.
    pub(crate) fn rollback(&mut self) {
        for (key, old) in core::mem::take(&mut self.unit.undo).into_iter().rev() {
            match old {
                Some(value) => self.overlay.insert(key, value),
                None => self.overlay.remove(&key),
            };
        }
        for (uuid, number) in core::mem::take(&mut self.unit.requests).into_iter().rev() {
            self.requests.set(uuid, number);
        }
        self.head.revision = self.unit.revision;
        self.head.compact_revision = self.unit.compact_revision;
        self.head.position = self.unit.position;
        self.counters = self.unit.counters;
        let [outcomes, parked, changes, events, sessions] = self.unit.effects;
        self.applied.outcomes.truncate(outcomes);
        self.applied.parked.truncate(parked);
        self.applied.changes.truncate(changes);
        self.applied.events.truncate(events);
        self.applied.sessions.truncate(sessions);
        self.unit.touched.clear();
        self.unit.sub = 0;
        self.timers_from = self.unit.timers_from;
        self.requests.oldest = None;
    }

    /// A number that no other entry of this cluster has, nor any of the cluster that it was
    /// restored from: ids are made of it.
    pub(crate) fn entry_number(&self) -> u64 {
        self.counters.id_base + self.index.value()
    }

    /// How many changes of the keyspace the unit has made.
    pub(crate) fn change_count(&self) -> usize {
        self.applied.changes.len() - self.unit.effects[2]
    }

    fn effects(&self) -> [usize; 5] {
        let applied = &self.applied;
        [
            applied.outcomes.len(),
            applied.parked.len(),
            applied.changes.len(),
            applied.events.len(),
            applied.sessions.len(),
        ]
    }

    /// Ends the run.
    pub(crate) fn finish(mut self) -> Finished {
        let row = head::encode(&self.head, &self.counters);
        self.overlay.insert(head::key(), Some(row));
        self.applied.head = self.head;
        Finished {
            batch: Batch { rows: self.overlay.into_iter().collect() },
            applied: self.applied,
            counters: self.counters,
            requests: self.requests,
            timers_moved: self.timers_moved,
            timers_from: self.timers_from,
        }
    }
}

/// Rows.
impl Tx<'_> {
    /// The value of a row.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.overlay.get(key).map_or_else(|| self.store.get(key), |value| Ok(value.clone()))
    }

    /// The message in a row.
    pub(crate) fn load<M: Message + Default>(&self, key: &[u8]) -> Result<Option<M>, StoreError> {
        self.get(key)?.map(decode).transpose()
    }

    /// Writes a row.
    pub(crate) fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.set(key.into(), Some(value.into()));
    }

    /// Writes a message into a row.
    pub(crate) fn save<M: Message>(&mut self, key: impl Into<Bytes>, message: &M) {
        self.set(key.into(), Some(message.encode_to_vec().into()));
    }

    /// Deletes a row, present or not.
    pub(crate) fn delete(&mut self, key: impl Into<Bytes>) {
        self.set(key.into(), None);
    }

    /// The rows from `start` (inclusive) to `end` (exclusive), ascending. Lazy: the first row
    /// costs one step.
    pub(crate) fn scan<'s>(&'s self, start: &[u8], end: Option<&[u8]>) -> Rows<'s> {
        merge(self.overlay_range(start, end), || self.store.scan(start, end), false)
    }

    /// The same rows, descending.
    pub(crate) fn scan_back<'s>(&'s self, start: &[u8], end: Option<&[u8]>) -> Rows<'s> {
        merge(self.overlay_range(start, end), || self.store.scan_back(start, end), true)
    }

    /// The rows whose keys start with `prefix`, ascending.
    pub(crate) fn scan_prefix(&self, prefix: Key) -> Rows<'_> {
        let range = prefix.prefix();
        self.scan(&range.start, range.end.as_deref())
    }

    /// A UUID is remembered at a number from now on, or no more.
    pub(crate) fn set_request(&mut self, uuid: u128, number: Option<u64>) {
        let before = self.requests.set(uuid, number);
        self.unit.requests.push((uuid, before));
    }

    fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        let old = self.overlay.insert(key.clone(), value);
        self.unit.undo.push((key, old));
    }

    fn overlay_range(&self, start: &[u8], end: Option<&[u8]>) -> OverlayRange<'_> {
        if end.is_some_and(|end| end <= start) {
            return btree_map::Range::default();
        }
        let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
        self.overlay.range::<[u8], _>((Bound::Included(start), upper))
    }
}

/// The revisioned keyspace. All changes of one unit share one revision, taken at the first change,
/// unless the unit says otherwise ([`Tx::end_revision`]);
/// only a key that changes twice takes a further one, so that (key, revision) names one version
/// and a lock that changes hands twice in one entry grants two tokens.
impl Tx<'_> {
    /// The newest version of a row.
    pub(crate) fn row(&self, space: Space, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        keyspace::row(self, space, key)
    }

    /// The revision that the unit's changes have, or that its first change would take.
    pub(crate) fn next_revision(&self) -> Revision {
        if self.unit.touched.is_empty() { self.head.revision.next() } else { self.head.revision }
    }

    /// The revision that a change of this very row would take now.
    pub(crate) fn revision_for(&self, space: Space, key: &[u8]) -> Revision {
        if self.unit.touched.contains(space, key) {
            self.head.revision.next()
        } else {
            self.next_revision()
        }
    }

    /// Writes a row. With a session the row is listed under it (`keyspace::bound_rows`); who
    /// closes the session deletes it.
    pub(crate) fn write_row(
        &mut self,
        space: Space,
        key: &[u8],
        value: Bytes,
        session: SessionId,
    ) -> Result<Revision, StoreError> {
        let before = keyspace::current(self, space, key)?;
        let key = Bytes::copy_from_slice(key);
        let place = self.take_place(space, &key);
        let current = Current {
            place,
            create_revision: before.map_or(place.revision.value(), |row| row.create_revision),
            version: before.map_or(1, |row| row.version + 1),
            session,
        };
        self.rebind(space, &key, before.map_or(SessionId::ZERO, |row| row.session), session);
        self.put(keyspace::current_key(space, &key), current.encode());
        let kv = KeyValue {
            key,
            value,
            create_revision: current.create_revision,
            mod_revision: place.revision.value(),
            version: current.version,
            session_id: session.value(),
        };
        self.record(space, ChangeKind::Put, kv, place, before);
        Ok(place.revision)
    }

    /// Deletes a row; returns what was known of it. An absent row takes no revision.
    pub(crate) fn delete_row(
        &mut self,
        space: Space,
        key: &[u8],
    ) -> Result<Option<Current>, StoreError> {
        let Some(before) = keyspace::current(self, space, key)? else { return Ok(None) };
        let key = Bytes::copy_from_slice(key);
        let place = self.take_place(space, &key);
        self.rebind(space, &key, before.session, SessionId::ZERO);
        self.delete(keyspace::current_key(space, &key));
        let kv = KeyValue { key, mod_revision: place.revision.value(), ..KeyValue::default() };
        self.record(space, ChangeKind::Delete, kv, place, Some(before));
        Ok(Some(before))
    }

    /// Lets the unit's next change take a revision of its own.
    pub(crate) fn end_revision(&mut self) {
        self.unit.touched.clear();
        self.unit.sub = 0;
    }

    fn take_place(&mut self, space: Space, key: &Bytes) -> Place {
        let revision = self.revision_for(space, key);
        if revision > self.head.revision {
            self.head.revision = revision;
            self.unit.touched.clear();
            self.unit.sub = 0;
        }
        self.unit.touched.insert(space, key.clone());
        let sub = self.unit.sub;
        self.unit.sub += 1;
        Place { revision, sub }
    }

    fn rebind(&mut self, space: Space, key: &[u8], before: SessionId, session: SessionId) {
        if before == session {
            return;
        }
        if !before.is_zero() {
            self.delete(keyspace::bound_key(before, space, key));
        }
        if !session.is_zero() {
            self.put(keyspace::bound_key(session, space, key), Bytes::new());
        }
    }

    fn record(
        &mut self,
        space: Space,
        kind: ChangeKind,
        kv: KeyValue,
        place: Place,
        before: Option<Current>,
    ) {
        let version = keyspace::version_key(space, &kv.key, place.revision);
        self.put(version, keyspace::encode_version(kind, place));
        let replaced = before.map_or_else(Place::default, |row| row.place);
        let change = Change { space, kind, kv, replaced: replaced.revision, prev: None };
        self.put(place.key(), keyspace::encode_change(&change, replaced));
        self.applied.changes.push(change);
    }
}

/// Calls and timers.
impl Tx<'_> {
    /// Completes a call; a call with sequence 0 waits for nothing.
    pub(crate) fn complete(&mut self, origin: &Origin, outcome: impl Into<Outcome>) {
        if origin.sequence != 0 {
            self.applied.outcomes.push((*origin, outcome.into()));
        }
    }

    /// Lets something fall due: at the first entry whose time is not before the deadline
    /// `timers::fire` meets it. Setting the same timer twice is setting it once.
    pub(crate) fn set_timer(&mut self, deadline: LogTime, kind: u8, key: &[u8]) {
        self.timers_moved = true;
        self.timers_from = Some(self.timers_from.map_or(deadline, |from| from.min(deadline)));
        self.put(timer_key(deadline, kind, key), Bytes::new());
    }

    /// Takes a timer back.
    pub(crate) fn clear_timer(&mut self, deadline: LogTime, kind: u8, key: &[u8]) {
        self.timers_moved = true;
        self.delete(timer_key(deadline, kind, key));
    }

    /// The earliest timer that is due now; it stays until it is cleared.
    pub(crate) fn due_timer(&mut self) -> Result<Option<Timer>, StoreError> {
        let Some(from) = self.timers_from.filter(|from| *from <= self.now) else {
            return Ok(None);
        };
        let first = first_timer(self, from)?;
        self.timers_from = first.as_ref().map(|timer| timer.deadline);
        Ok(first.filter(|timer| timer.deadline <= self.now))
    }
}

/// Something that falls due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    /// When.
    pub(crate) deadline: LogTime,
    /// What kind of thing; `timers.rs` knows them.
    pub(crate) kind: u8,
    /// Which one.
    pub(crate) key: Bytes,
}

/// The earliest timer, where none lies before `from`. The store remembers for a while what was
/// deleted: a search from the very beginning would pass all of it.
pub(crate) fn first_timer(reader: &dyn Reader, from: LogTime) -> Result<Option<Timer>, StoreError> {
    let end = Key::of(Table::Timer).prefix().end;
    let start = Key::of(Table::Timer).u64(from.as_millis());
    let Some(row) = reader.scan(&start, end.as_deref()).next() else {
        return Ok(None);
    };
    let (key, _) = row?;
    let mut fields = Fields::of_key(&key);
    let deadline = LogTime::from_millis(fields.u64()?);
    let kind = fields.u8()?;
    Ok(Some(Timer { deadline, kind, key: Bytes::copy_from_slice(fields.rest()) }))
}

fn timer_key(deadline: LogTime, kind: u8, key: &[u8]) -> Bytes {
    Key::of(Table::Timer).u64(deadline.as_millis()).u8(kind).raw(key).bytes()
}

/// Reads the message in a row; bytes fields share the row's memory.
pub(crate) fn decode<M: Message + Default>(row: Bytes) -> Result<M, StoreError> {
    M::decode(row).map_err(|error| StoreError(format!("a row is malformed: {error}")))
}

/// Reads a text that was written into a row or its key.
pub(crate) fn text(bytes: &[u8]) -> Result<String, StoreError> {
    let text = core::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|error| StoreError(format!("a row is malformed: {error}")))
}

/// The message in a row of any reader.
pub(crate) fn load<M: Message + Default>(
    reader: &dyn Reader,
    key: &[u8],
) -> Result<Option<M>, StoreError> {
    reader.get(key)?.map(decode).transpose()
}

/// Reads of the state work on a run as on a view.
impl Reader for Tx<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Tx::get(self, key)
    }

    fn scan<'s>(&'s self, start: &[u8], end: Option<&[u8]>) -> Rows<'s> {
        Tx::scan(self, start, end)
    }

    fn scan_back<'s>(&'s self, start: &[u8], end: Option<&[u8]>) -> Rows<'s> {
        Tx::scan_back(self, start, end)
    }
}

type OverlayRange<'a> = btree_map::Range<'a, Bytes, Option<Bytes>>;

fn merge<'a>(
    overlay: OverlayRange<'a>,
    store: impl FnOnce() -> Rows<'a>,
    backward: bool,
) -> Rows<'a> {
    if overlay.clone().next().is_none() {
        return store();
    }
    Box::new(Merge { overlay, over: None, store: store(), under: None, backward })
}

/// Store and overlay in one order; the overlay's word counts.
struct Merge<'a> {
    overlay: OverlayRange<'a>,
    over: Option<(&'a Bytes, &'a Option<Bytes>)>,
    store: Rows<'a>,
    under: Option<Result<Row, StoreError>>,
    backward: bool,
}

impl Merge<'_> {
    fn fill(&mut self) {
        if self.over.is_none() {
            let next = if self.backward { self.overlay.next_back() } else { self.overlay.next() };
            self.over = next;
        }
        if self.under.is_none() {
            self.under = self.store.next();
        }
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<Row, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.fill();
            let Some((over, _)) = self.over else { return self.under.take() };
            if let Some(under) = &self.under {
                let Ok((under, _)) = under else { return self.under.take() };
                let order = under.cmp(over);
                let order = if self.backward { order.reverse() } else { order };
                match order {
                    core::cmp::Ordering::Less => return self.under.take(),
                    core::cmp::Ordering::Equal => self.under = None,
                    core::cmp::Ordering::Greater => {}
                }
            }
            if let Some((key, Some(value))) = self.over.take() {
                return Some(Ok((key.clone(), value.clone())));
            }
        }
    }
}

#[cfg(test)]
mod tests;
