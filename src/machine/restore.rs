//! A state out of a backup becomes the beginning of another cluster (docs/decisions/0006).
//!
//! [`restore`] runs once on every founding node, over the same rows, and so leaves the same rows.
//! [`leap`] runs at the first entry of the new cluster's log, whose time all nodes agree on. No
//! number that the old cluster may have given out after the backup is given out again: revisions,
//! and with them fencing tokens, and the numbers of sessions and instances leap over them.
//! Positions of events are gapless and go on.

use crate::{
    machine::{
        Head, MachineConfig, cluster,
        dedup::Requests,
        discovery, head, session,
        store::{Store, StoreError},
        tx::{Finished, Tx},
    },
    raft::Membership,
    types::Revision,
};

/// How far revisions leap where the clock of the founding leader is of no use: it stands before
/// the time that the old cluster's revisions stand for.
const LEAP_WITHOUT_CLOCK: u64 = 1 << 40;

/// Makes the rows of a backup the state that a new cluster begins with. `restored_from` names the
/// backup. The store is not persisted.
///
/// What belongs to the old cluster goes: its id, members, node registrations and everyone in line
/// for a lock. Sessions stay, their TTLs begin anew, and with them what is bound to them: keys,
/// instances and held locks. History goes.
///
/// # Errors
/// Where the store fails or its rows cannot be read.
pub fn restore(store: &dyn Store, restored_from: &str) -> Result<Head, StoreError> {
    let (head, counters) = head::load(store)?;
    let config = MachineConfig::default();
    let requests = Requests::load(store)?;
    let mut tx = Tx::new(store, &config, head, counters, requests);
    tx.begin();
    session::carry_over(&mut tx)?;
    discovery::remove_nodes(&mut tx)?;
    cluster::disown(&mut tx, restored_from)?;
    tx.head.membership = Membership::default();
    tx.head.compact_revision = tx.head.revision;
    tx.counters.restored = true;
    let Finished { batch, applied, .. } = tx.finish();
    store.commit(batch)?;
    Ok(applied.head)
}

/// Leaps over all numbers that were ever given out, to the microseconds since 1970. No cluster
/// makes a million changes a second for long, so whichever cluster comes later stands higher,
/// also where one backup is restored twice.
pub(crate) fn leap(tx: &mut Tx<'_>) {
    let clock = tx.now.as_millis().saturating_mul(1_000);
    let beyond = |last: u64| if clock > last { clock } else { last + LEAP_WITHOUT_CLOCK };
    tx.head.revision = Revision::new(beyond(tx.head.revision.value()));
    tx.head.compact_revision = tx.head.revision;
    tx.counters.id_base = beyond(tx.entry_number()) - tx.index.value();
    tx.counters.restored = false;
    tx.applied.leapt = true;
}

#[cfg(test)]
mod tests;
