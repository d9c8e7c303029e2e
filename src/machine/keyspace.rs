//! The revisioned keyspace: its rows, and the commands that write it (etcd's revision rules).
//!
//! A change is written once, in the table of changes, in the order of revisions. Two small tables
//! point into it: one names each row's newest version, the other all versions that are kept. So
//! values go to the disk in sequence, and what lies scattered is small.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::{
        effect::{Change, ChangeKind, Space},
        lock,
        outcome::{Decision, refusal},
        session,
        store::{Reader, StoreError},
        tables::{Fields, Key, Table},
        tx::{Tx, decode},
        validate::WRITES_MAX,
    },
    pb::{
        command::v1::{Reason, Refusal},
        kv::v1::{
            DeleteRangeRequest, DeleteRangeResponse, HeldLock, KeyValue, PutRequest, PutResponse,
        },
    },
    types::{KeyRange, Revision, SessionId},
};

/// Where a row's newest version is named.
pub(crate) fn current_key(space: Space, key: &[u8]) -> Bytes {
    Key::of(Table::Current).u8(space.byte()).raw(key).bytes()
}

/// Where the newest versions of a range of rows are named.
pub(crate) fn current_range(space: Space, range: &KeyRange) -> KeyRange {
    let table = Key::of(Table::Current).u8(space.byte());
    let end = range.end.as_ref().map(|end| table.clone().raw(end).bytes());
    KeyRange {
        start: table.clone().raw(&range.start).bytes(),
        end: end.or_else(|| table.prefix().end),
    }
}

/// Where one version of a row is named.
pub(crate) fn version_key(space: Space, key: &[u8], revision: Revision) -> Bytes {
    Key::of(Table::Version).u8(space.byte()).name(key).u64(revision.value()).bytes()
}

/// Where the versions of a range of rows are named.
pub(crate) fn version_range(space: Space, range: &KeyRange) -> KeyRange {
    let table = Key::of(Table::Version).u8(space.byte());
    let end = range.end.as_ref().map(|end| table.clone().name(end).bytes());
    KeyRange {
        start: table.clone().name(&range.start).bytes(),
        end: end.or_else(|| table.prefix().end),
    }
}

/// Where a session lists a row that is bound to it.
pub(crate) fn bound_key(session: SessionId, space: Space, key: &[u8]) -> Bytes {
    Key::of(Table::Bound).u64(session.value()).u8(space.byte()).raw(key).bytes()
}

/// A change's place in history: the revision, and the place among that revision's changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) revision: Revision,
    pub(crate) sub: u32,
}

impl Place {
    /// Where the change is.
    pub(crate) fn key(self) -> Bytes {
        Key::of(Table::Change).u64(self.revision.value()).u32(self.sub).bytes()
    }
}

/// What is known of a row's newest version without reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Current {
    /// Where the version is.
    pub(crate) place: Place,
    pub(crate) create_revision: u64,
    pub(crate) version: u64,
    pub(crate) session: SessionId,
}

impl Current {
    pub(crate) fn encode(&self) -> Bytes {
        let mut row = [0; 36];
        row[..8].copy_from_slice(&self.place.revision.value().to_be_bytes());
        row[8..12].copy_from_slice(&self.place.sub.to_be_bytes());
        row[12..20].copy_from_slice(&self.create_revision.to_be_bytes());
        row[20..28].copy_from_slice(&self.version.to_be_bytes());
        row[28..].copy_from_slice(&self.session.value().to_be_bytes());
        Bytes::copy_from_slice(&row)
    }

    pub(crate) fn decode(row: &[u8]) -> Result<Self, StoreError> {
        let mut fields = Fields::of_value(row);
        Ok(Self {
            place: Place { revision: Revision::new(fields.u64()?), sub: fields.u32()? },
            create_revision: fields.u64()?,
            version: fields.u64()?,
            session: SessionId::new(fields.u64()?),
        })
    }
}

/// What names a kept version: where its change is, and whether that deleted the row.
pub(crate) fn encode_version(kind: ChangeKind, place: Place) -> Bytes {
    let mut row = [kind.byte(); 5];
    row[1..].copy_from_slice(&place.sub.to_be_bytes());
    Bytes::copy_from_slice(&row)
}

/// Reads what names a version of `revision`.
pub(crate) fn decode_version(
    revision: Revision,
    row: &[u8],
) -> Result<(ChangeKind, Place), StoreError> {
    let mut fields = Fields::of_value(row);
    Ok((ChangeKind::from_byte(fields.u8()?)?, Place { revision, sub: fields.u32()? }))
}

/// A change as history keeps it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChangeRow {
    pub(crate) place: Place,
    pub(crate) space: Space,
    pub(crate) kind: ChangeKind,
    /// The version before; of revision zero where there was none.
    pub(crate) replaced: Place,
    /// The row after the change; of a deletion, the key and `mod_revision` alone.
    pub(crate) kv: KeyValue,
}

impl ChangeRow {
    /// Reads a row of the table of changes.
    pub(crate) fn decode(key: &[u8], value: &Bytes) -> Result<Self, StoreError> {
        let mut fields = Fields::of_key(key);
        let place = Place { revision: Revision::new(fields.u64()?), sub: fields.u32()? };
        let mut fields = Fields::of_value(value);
        let space = Space::from_byte(fields.u8()?)?;
        let kind = ChangeKind::from_byte(fields.u8()?)?;
        let replaced = Place { revision: Revision::new(fields.u64()?), sub: fields.u32()? };
        let kv = decode(value.slice_ref(fields.rest()))?;
        Ok(Self { place, space, kind, replaced, kv })
    }
}

/// Writes a change as history keeps it.
pub(crate) fn encode_change(change: &Change, replaced: Place) -> Bytes {
    let mut row = Vec::with_capacity(14 + change.kv.encoded_len());
    row.push(change.space.byte());
    row.push(change.kind.byte());
    row.extend_from_slice(&replaced.revision.value().to_be_bytes());
    row.extend_from_slice(&replaced.sub.to_be_bytes());
    change.kv.encode(&mut row).expect("a vector takes everything");
    row.into()
}

/// Where the changes from one revision up to another (both inclusive) are.
pub(crate) fn change_range(from: Revision, to: Revision) -> KeyRange {
    let start = Key::of(Table::Change).u64(from.value()).bytes();
    KeyRange { start, end: Some(Key::of(Table::Change).u64(to.next().value()).bytes()) }
}

/// What is known of a row's newest version; `None` where the row is absent.
pub(crate) fn current(
    reader: &dyn Reader,
    space: Space,
    key: &[u8],
) -> Result<Option<Current>, StoreError> {
    reader.get(&current_key(space, key))?.map(|row| Current::decode(&row)).transpose()
}

/// The newest version of a row.
pub(crate) fn row(
    reader: &dyn Reader,
    space: Space,
    key: &[u8],
) -> Result<Option<KeyValue>, StoreError> {
    current(reader, space, key)?.map(|current| load(reader, current.place)).transpose()
}

/// The newest versions of a range of rows, ascending.
pub(crate) fn rows<'a>(
    reader: &'a dyn Reader,
    space: Space,
    range: &KeyRange,
) -> impl Iterator<Item = Result<KeyValue, StoreError>> + use<'a> {
    let range = current_range(space, range);
    reader.scan(&range.start, range.end.as_deref()).map(move |row| {
        let (_, row) = row?;
        load(reader, Current::decode(&row)?.place)
    })
}

/// The version that a change made.
pub(crate) fn load(reader: &dyn Reader, place: Place) -> Result<KeyValue, StoreError> {
    let key = place.key();
    let row = reader.get(&key)?;
    let missing = || {
        StoreError(format!("the change at revision {}.{} is missing", place.revision, place.sub))
    };
    Ok(ChangeRow::decode(&key, &row.ok_or_else(missing)?)?.kv)
}

/// One version of a row; `None` where it is not kept, or deleted the row.
pub(crate) fn version(
    reader: &dyn Reader,
    space: Space,
    key: &[u8],
    revision: Revision,
) -> Result<Option<KeyValue>, StoreError> {
    let Some(row) = reader.get(&version_key(space, key, revision))? else { return Ok(None) };
    match decode_version(revision, &row)? {
        (ChangeKind::Put, place) => load(reader, place).map(Some),
        (ChangeKind::Delete, _) => Ok(None),
    }
}

/// The keys of a space that are bound to a session, in order.
pub(crate) fn bound_rows(
    reader: &dyn Reader,
    session: SessionId,
    space: Space,
) -> Result<Vec<Bytes>, StoreError> {
    let range = Key::of(Table::Bound).u64(session.value()).u8(space.byte()).prefix();
    reader
        .scan(&range.start, range.end.as_deref())
        .map(|row| row.map(|(key, _)| key.slice(range.start.len()..)))
        .collect()
}

/// Deletes the users' keys that are bound to a session.
pub(crate) fn delete_session_keys(tx: &mut Tx<'_>, session: SessionId) -> Result<(), StoreError> {
    for key in bound_rows(tx, session, Space::User)? {
        tx.delete_row(Space::User, &key)?;
    }
    Ok(())
}

/// `kv.v1.KvService/Put`.
pub(crate) fn put(tx: &mut Tx<'_>, request: &PutRequest) -> Decision<PutResponse> {
    if let Err(refusal) = check_lock(tx, request.require_lock.as_ref())? {
        return Ok(Err(refusal));
    }
    let session = SessionId::new(request.session_id);
    if !session.is_zero() && !session::exists(tx, session)? {
        let message = format!("session {session} does not exist: open another and put again");
        return Ok(Err(refusal(Reason::SessionNotFound, message).with("session_id", session)));
    }
    let prev_kv = if request.prev_kv { tx.row(Space::User, &request.key)? } else { None };
    let revision = tx.write_row(Space::User, &request.key, request.value.clone(), session)?;
    Ok(Ok(PutResponse { revision: revision.value(), prev_kv }))
}

/// `kv.v1.KvService/DeleteRange`.
pub(crate) fn delete_range(
    tx: &mut Tx<'_>,
    request: &DeleteRangeRequest,
) -> Decision<DeleteRangeResponse> {
    if let Err(refusal) = check_lock(tx, request.require_lock.as_ref())? {
        return Ok(Err(refusal));
    }
    let keys = keys(tx, &KeyRange::from_wire(&request.key, &request.range_end))?;
    if keys.len() > WRITES_MAX {
        let message = format!("the range holds more than {WRITES_MAX} keys: delete it in parts");
        return Ok(Err(refusal(Reason::TooLarge, message).with("limit", WRITES_MAX)));
    }
    let mut response = DeleteRangeResponse { deleted: keys.len() as u64, ..Default::default() };
    for key in keys {
        if request.prev_kv {
            response.prev_kvs.extend(tx.row(Space::User, &key)?);
        }
        tx.delete_row(Space::User, &key)?;
    }
    response.revision = tx.head.revision.value();
    Ok(Ok(response))
}

/// The keys in a range, one more than may be deleted at most.
fn keys(tx: &Tx<'_>, range: &KeyRange) -> Result<Vec<Bytes>, StoreError> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let rows = current_range(Space::User, range);
    tx.scan(&rows.start, rows.end.as_deref())
        .take(WRITES_MAX + 1)
        .map(|row| row.map(|(key, _)| key.slice(2..)))
        .collect()
}

fn check_lock(tx: &Tx<'_>, required: Option<&HeldLock>) -> Result<Result<(), Refusal>, StoreError> {
    let Some(HeldLock { name, fencing_token }) = required else { return Ok(Ok(())) };
    if lock::is_held(tx, name, *fencing_token)? {
        return Ok(Ok(()));
    }
    let message = format!(
        "lock {name:?} is not held with fencing token {fencing_token}: acquire it again before writing"
    );
    let refusal = refusal(Reason::WrongFencingToken, message)
        .with("lock", name)
        .with("fencing_token", fencing_token);
    Ok(Err(refusal))
}

#[cfg(test)]
mod tests;
