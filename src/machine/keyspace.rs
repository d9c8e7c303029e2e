//! The revisioned keyspace: its rows, and the commands that write it (etcd's revision rules).
//!
//! A row's newest version stands in one table, all kept versions in another, and the order of the
//! changes in a third that names them. A put writes one row in each and reads one.

use bytes::Bytes;

use crate::{
    machine::{
        effect::{Change, ChangeKind, Space},
        lock,
        outcome::{Decision, refusal},
        session,
        store::{Reader, StoreError},
        tables::{Fields, Key, Table},
        tx::Tx,
        validate::WRITES_MAX,
    },
    pb::{
        command::v1::{Reason, Refusal},
        kv::v1::{DeleteRangeRequest, DeleteRangeResponse, HeldLock, PutRequest, PutResponse},
    },
    types::{KeyRange, Revision, SessionId},
};

/// Where a row's newest version is.
pub(crate) fn current_key(space: Space, key: &[u8]) -> Bytes {
    Key::of(Table::Current).u8(space.byte()).raw(key).bytes()
}

/// Where the newest versions of a range of rows are.
pub(crate) fn current_range(space: Space, range: &KeyRange) -> KeyRange {
    let table = Key::of(Table::Current).u8(space.byte());
    let end = range.end.as_ref().map(|end| table.clone().raw(end).bytes());
    KeyRange {
        start: table.clone().raw(&range.start).bytes(),
        end: end.or_else(|| table.prefix().end),
    }
}

/// Where one version of a row is; an empty value there is a deletion.
pub(crate) fn version_key(space: Space, key: &[u8], revision: Revision) -> Bytes {
    Key::of(Table::Version).u8(space.byte()).name(key).u64(revision.value()).bytes()
}

/// Where the versions of a range of rows are.
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

/// A change as history keeps it; the versions that it names are in their own table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChangeRow {
    pub(crate) revision: Revision,
    pub(crate) sub: u32,
    pub(crate) space: Space,
    pub(crate) kind: ChangeKind,
    /// The revision of the version before; zero where there was none.
    pub(crate) replaced: Revision,
    pub(crate) key: Bytes,
}

impl ChangeRow {
    /// Reads a row of the table of changes.
    pub(crate) fn decode(key: &[u8], value: &Bytes) -> Result<Self, StoreError> {
        let mut fields = Fields::of_key(key);
        let (revision, sub) = (Revision::new(fields.u64()?), fields.u32()?);
        let mut fields = Fields::of_value(value);
        let space = Space::from_byte(fields.u8()?)?;
        let kind = match fields.u8()? {
            1 => ChangeKind::Put,
            2 => ChangeKind::Delete,
            kind => return Err(StoreError(format!("a row names the unknown change {kind}"))),
        };
        let replaced = Revision::new(fields.u64()?);
        Ok(Self { revision, sub, space, kind, replaced, key: value.slice_ref(fields.rest()) })
    }
}

/// Where the changes from one revision up to another (both inclusive) are.
pub(crate) fn change_range(from: Revision, to: Revision) -> KeyRange {
    let start = Key::of(Table::Change).u64(from.value()).bytes();
    KeyRange { start, end: Some(Key::of(Table::Change).u64(to.next().value()).bytes()) }
}

/// Writes a change as history keeps it.
pub(crate) fn encode_change(change: &Change) -> Bytes {
    let mut row = Vec::with_capacity(10 + change.kv.key.len());
    row.push(change.space.byte());
    row.push(match change.kind {
        ChangeKind::Put => 1,
        ChangeKind::Delete => 2,
    });
    let replaced = change.prev.as_ref().map_or(0, |prev| prev.mod_revision);
    row.extend_from_slice(&replaced.to_be_bytes());
    row.extend_from_slice(&change.kv.key);
    row.into()
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
    let revision = tx.write_row(Space::User, &request.key, request.value.clone(), session)?;
    let prev_kv = match tx.applied.changes.last() {
        Some(change) if request.prev_kv => change.prev.clone(),
        _ => None,
    };
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
        let prev = tx.delete_row(Space::User, &key)?;
        if request.prev_kv {
            response.prev_kvs.extend(prev);
        }
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
