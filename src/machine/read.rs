//! Reads of the revisioned keyspace, now or at a past revision; the same for a run of entries and
//! for a view. It never writes.

use bytes::Bytes;

use crate::{
    machine::{
        effect::{Change, ChangeKind, Space},
        head::Head,
        keyspace::{self, ChangeRow, Current, Place},
        outcome::{Decision, refusal},
        store::{Reader, StoreError},
        validate::RANGE_KEYS_MAX,
    },
    pb::{
        command::v1::{Reason, Refusal},
        kv::v1::{KeyValue, RangeRequest, RangeResponse},
    },
    types::{KeyRange, Revision},
};

/// The most bytes of keys and values in the answer to one range, so that it fits a gRPC message
/// of 4 MiB; a first key is always returned.
const RANGE_BYTES_MAX: usize = 3 << 20;

/// Checks that a revision can be read at.
pub(crate) fn check_revision(head: &Head, revision: Revision) -> Result<(), Refusal> {
    if revision > head.revision {
        let message =
            format!("revision {revision} lies in the future: the newest is {}", head.revision);
        return Err(refusal(Reason::FutureRevision, message).with("revision", head.revision));
    }
    if revision < head.compact_revision {
        return Err(compacted(head, revision));
    }
    Ok(())
}

/// The refusal of a revision whose history is gone.
pub(crate) fn compacted(head: &Head, revision: Revision) -> Refusal {
    let message = format!(
        "revision {revision} was compacted: history is kept after revision {}",
        head.compact_revision
    );
    refusal(Reason::Compacted, message).with("compact_revision", head.compact_revision)
}

/// `kv.v1.KvService/Range`.
pub(crate) fn range(
    reader: &dyn Reader,
    head: &Head,
    request: &RangeRequest,
) -> Decision<RangeResponse> {
    let revision = Revision::new(request.revision);
    let at = if revision.is_zero() { head.revision } else { revision };
    if let Err(refusal) = check_revision(head, at) {
        return Ok(Err(refusal));
    }
    let range = KeyRange::from_wire(&request.key, &request.range_end);
    let mut page = Page::new(request);
    let current = |row: &[u8]| Ok(Current::decode(row)?.place);
    if range.is_empty() {
    } else if request.range_end.is_empty() && at == head.revision {
        if let Some(row) = reader.get(&keyspace::current_key(Space::User, &request.key))? {
            page.add(reader, current(&row)?)?;
        }
    } else if at == head.revision {
        let rows = keyspace::current_range(Space::User, &range);
        for row in reader.scan(&rows.start, rows.end.as_deref()) {
            page.add(reader, current(&row?.1)?)?;
        }
    } else {
        let rows = keyspace::version_range(Space::User, &range);
        for_each_version_at(reader, &rows, at, |place| page.add(reader, place))?;
    }
    let Page { kvs, count, more, .. } = page;
    Ok(Ok(RangeResponse { kvs, count, more, revision: head.revision.value() }))
}

/// Calls `each` with the version of each key that was in force at a revision.
fn for_each_version_at(
    reader: &dyn Reader,
    rows: &KeyRange,
    at: Revision,
    mut each: impl FnMut(Place) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut last: Option<(Bytes, (ChangeKind, Place))> = None;
    for row in reader.scan(&rows.start, rows.end.as_deref()) {
        let (row_key, version) = row?;
        let (key, revision) = split_version_key(&row_key)?;
        if let Some((_, (ChangeKind::Put, place))) = last.take_if(|(of, _)| *of != key) {
            each(place)?;
        }
        if revision <= at {
            last = Some((key, keyspace::decode_version(revision, &version)?));
        }
    }
    match last {
        Some((_, (ChangeKind::Put, place))) => each(place),
        _ => Ok(()),
    }
}

/// Splits the key of a version into what names the row and the revision.
pub(crate) fn split_version_key(row_key: &Bytes) -> Result<(Bytes, Revision), StoreError> {
    let at = row_key.len().checked_sub(8);
    let at = at.ok_or_else(|| StoreError("a version's key is malformed".to_owned()))?;
    let revision = row_key[at..].try_into().expect("eight bytes are left");
    Ok((row_key.slice(..at), Revision::new(u64::from_be_bytes(revision))))
}

/// The answer to a range while it grows.
struct Page {
    limit: usize,
    keys_only: bool,
    kvs: Vec<KeyValue>,
    bytes: usize,
    count: u64,
    more: bool,
}

impl Page {
    fn new(request: &RangeRequest) -> Self {
        let limit = match usize::try_from(request.limit) {
            _ if request.count_only => 0,
            Ok(limit) if limit > 0 => limit.min(RANGE_KEYS_MAX),
            _ => RANGE_KEYS_MAX,
        };
        Self {
            limit,
            keys_only: request.keys_only,
            kvs: Vec::new(),
            bytes: 0,
            count: 0,
            more: false,
        }
    }

    fn add(&mut self, reader: &dyn Reader, place: Place) -> Result<(), StoreError> {
        self.count += 1;
        if self.limit == 0 || self.more {
            return Ok(());
        }
        if self.kvs.len() == self.limit {
            self.more = true;
            return Ok(());
        }
        let mut kv = keyspace::load(reader, place)?;
        if self.keys_only {
            kv.value.clear();
        }
        let bytes = self.bytes + kv.key.len() + kv.value.len() + 64;
        if bytes > RANGE_BYTES_MAX && !self.kvs.is_empty() {
            self.more = true;
            return Ok(());
        }
        self.bytes = bytes;
        self.kvs.push(kv);
        Ok(())
    }
}

/// The changes of a space from a revision on, as `View::changes` gives them.
pub(crate) fn changes(
    reader: &dyn Reader,
    head: &Head,
    space: Space,
    from: Revision,
    bytes_max: usize,
) -> Decision<(Vec<Change>, Revision)> {
    if from <= head.compact_revision && !head.compact_revision.is_zero() {
        return Ok(Err(compacted(head, from)));
    }
    let rows = keyspace::change_range(from, head.revision);
    let (mut changes, mut bytes, mut revision) = (Vec::new(), 0, from);
    if rows.is_empty() {
        return Ok(Ok((changes, head.revision)));
    }
    for row in reader.scan(&rows.start, rows.end.as_deref()) {
        let (key, value) = row?;
        let row = ChangeRow::decode(&key, &value)?;
        if row.place.revision > revision && bytes >= bytes_max {
            return Ok(Ok((changes, row.place.revision.previous())));
        }
        revision = row.place.revision;
        // A change of another space costs a step too: no call walks through history unbounded.
        bytes += key.len() + value.len();
        if row.space == space {
            let ChangeRow { space, kind, replaced, kv, .. } = row;
            let prev = if replaced.revision.is_zero() {
                None
            } else {
                Some(keyspace::load(reader, replaced)?)
            };
            bytes += prev.as_ref().map_or(0, |prev| prev.value.len());
            changes.push(Change { space, kind, kv, replaced: replaced.revision, prev });
        }
    }
    Ok(Ok((changes, head.revision)))
}

#[cfg(test)]
mod tests;
