//! The revisioned keyspace: its rows, and the commands that write it (etcd's revision rules).

use bytes::Bytes;

use crate::{
    machine::{
        effect::{Change, ChangeKind, Space},
        outcome::{Decision, invalid},
        store::StoreError,
        tables::{Fields, Key, Table},
        tx::Tx,
    },
    pb::kv::v1::{DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse},
    types::{Revision, SessionId},
};

/// Where a row's newest version is.
pub(crate) fn current_key(space: Space, key: &[u8]) -> Bytes {
    Key::of(Table::Current).u8(space.byte()).raw(key).bytes()
}

/// Where one version of a row is.
pub(crate) fn version_key(space: Space, key: &[u8], revision: Revision) -> Bytes {
    Key::of(Table::Version).u8(space.byte()).name(key).u64(revision.value()).bytes()
}

/// Where a session lists a row that is bound to it.
pub(crate) fn bound_key(session: SessionId, space: Space, key: &[u8]) -> Bytes {
    Key::of(Table::Bound).u64(session.value()).u8(space.byte()).raw(key).bytes()
}

/// A change as history keeps it; its versions are in their own table.
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
    tx: &Tx<'_>,
    session: SessionId,
    space: Space,
) -> Result<Vec<Bytes>, StoreError> {
    let prefix = Key::of(Table::Bound).u64(session.value()).u8(space.byte());
    tx.scan_prefix(prefix)
        .map(|row| {
            let (key, _) = row?;
            let mut fields = Fields::of_key(&key);
            fields.u64()?;
            fields.u8()?;
            Ok(Bytes::copy_from_slice(fields.rest()))
        })
        .collect()
}

/// Deletes the users' keys that are bound to a session.
pub(crate) fn delete_session_keys(tx: &mut Tx<'_>, session: SessionId) -> Result<(), StoreError> {
    for key in bound_rows(tx, session, Space::User)? {
        tx.delete_row(Space::User, &key)?;
    }
    Ok(())
}

pub(crate) fn put(_tx: &mut Tx<'_>, _request: &PutRequest) -> Decision<PutResponse> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn delete_range(
    _tx: &mut Tx<'_>,
    _request: &DeleteRangeRequest,
) -> Decision<DeleteRangeResponse> {
    Ok(Err(invalid("not yet")))
}
