//! Who the cluster is: its id, drawn by its first command, and its members with the incarnations
//! of their disks.
//!
//! A disk that was wiped comes back with another incarnation, and is refused under its node's old
//! name (raft-rules 20). Addresses are not identity and may change.

use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    machine::{
        Space, View, keyspace,
        outcome::{Decision, invalid, refusal},
        store::StoreError,
        tables::{Key, Table},
        tx::{self, Tx},
    },
    pb::command::v1::{Done, FoundCluster, Reason, Refusal, RegisterMember},
    types::{ClusterId, Incarnation, KeyRange, SessionId},
};

pub(crate) fn validate_found(command: &FoundCluster) -> Result<(), Refusal> {
    if ClusterId::parse(&command.cluster_id).is_none() {
        return Err(invalid("`cluster_id` must be a UUID"));
    }
    for member in &command.members {
        validate_node(member)?;
        if !member.incarnation.is_empty() && Incarnation::parse(&member.incarnation).is_none() {
            return Err(invalid("`incarnation` must be a UUID"));
        }
    }
    Ok(())
}

pub(crate) fn validate_register(command: &RegisterMember) -> Result<(), Refusal> {
    validate_node(command)?;
    if Incarnation::parse(&command.incarnation).is_none() {
        return Err(invalid("`incarnation` must be a UUID"));
    }
    Ok(())
}

fn validate_node(member: &RegisterMember) -> Result<(), Refusal> {
    if member.node_id == 0 {
        return Err(invalid("`node_id` must not be 0"));
    }
    Ok(())
}

fn id_key() -> Key {
    Key::of(Table::Cluster).raw(b"id")
}

fn restored_from_key() -> Key {
    Key::of(Table::Cluster).raw(b"restored_from")
}

/// Makes the state nobody's: the cluster that is founded on it draws an id and registers members
/// of its own. What it came from stays on record.
pub(crate) fn disown(tx: &mut Tx<'_>, restored_from: &str) -> Result<(), StoreError> {
    tx.delete(id_key());
    tx.put(restored_from_key(), restored_from.as_bytes().to_vec());
    let range = KeyRange::prefix(&keyspace::current_key(Space::Members, b""));
    let keys: Vec<_> = tx
        .scan(&range.start, range.end.as_deref())
        .map(|row| row.map(|(key, _)| key.slice(range.start.len()..)))
        .collect::<Result<_, _>>()?;
    for key in keys {
        tx.delete_row(Space::Members, &key)?;
    }
    Ok(())
}

/// Founds the cluster. The first one wins; repeating it changes nothing.
pub(crate) fn found(tx: &mut Tx<'_>, command: &FoundCluster) -> Decision<Done> {
    let Some(id) = ClusterId::parse(&command.cluster_id) else {
        return Ok(Err(invalid("`cluster_id` must be a UUID")));
    };
    if let Some(known) = tx.get(&id_key())? {
        let known = tx::text(&known)?;
        if known == id.to_string() {
            return Ok(Ok(Done {}));
        }
        let sentence = format!("this cluster is {known}; it cannot be founded again as {id}");
        return Ok(Err(refusal(Reason::WrongIdentity, sentence).with("cluster_id", known)));
    }
    tx.put(id_key(), id.to_string().into_bytes());
    for member in &command.members {
        save(tx, member)?;
    }
    Ok(Ok(Done {}))
}

/// Makes a member's disk known, once; later only its addresses may change.
pub(crate) fn register_member(tx: &mut Tx<'_>, command: &RegisterMember) -> Decision<Done> {
    if let Err(refusal) = validate_register(command) {
        return Ok(Err(refusal));
    }
    let known: Option<RegisterMember> = tx
        .row(Space::Members, &command.node_id.to_be_bytes())?
        .map(|row| tx::decode(row.value))
        .transpose()?;
    if let Some(known) = known {
        if !known.incarnation.is_empty()
            && Incarnation::parse(&known.incarnation) != Incarnation::parse(&command.incarnation)
        {
            let sentence = format!(
                "node {} is registered with disk {}, not {}: its data directory was wiped or \
                 replaced",
                command.node_id, known.incarnation, command.incarnation
            );
            let refusal = refusal(Reason::WrongIdentity, sentence)
                .with("node_id", command.node_id)
                .with("incarnation", known.incarnation);
            return Ok(Err(refusal));
        }
        if known == *command {
            return Ok(Ok(Done {}));
        }
    }
    save(tx, command)?;
    Ok(Ok(Done {}))
}

fn save(tx: &mut Tx<'_>, member: &RegisterMember) -> Result<(), StoreError> {
    let value = member.encode_to_vec().into();
    tx.write_row(Space::Members, &member.node_id.to_be_bytes(), value, SessionId::ZERO)?;
    Ok(())
}

/// A number that differs from cluster to cluster; 0 before the founding.
pub(crate) fn salt(tx: &Tx<'_>) -> Result<u64, StoreError> {
    Ok(tx.get(&id_key())?.map_or(0, |id| xxh3_64(&id)))
}

impl View {
    /// The cluster's id, once it is founded.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn cluster_id(&self) -> Result<Option<ClusterId>, StoreError> {
        let Some(id) = self.reader().get(&id_key())? else { return Ok(None) };
        Ok(ClusterId::parse(&tx::text(&id)?))
    }

    /// The digest of the backup that the cluster was founded from; `None` where it was founded
    /// empty.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn restored_from(&self) -> Result<Option<String>, StoreError> {
        self.reader().get(&restored_from_key())?.map(|digest| tx::text(&digest)).transpose()
    }

    /// The registered members, in the order of their ids.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn members(&self) -> Result<Vec<RegisterMember>, StoreError> {
        let rows = keyspace::rows(self.reader().as_ref(), Space::Members, &KeyRange::prefix(b""));
        rows.map(|row| tx::decode(row?.value)).collect()
    }
}

#[cfg(test)]
mod tests;
