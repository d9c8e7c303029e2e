//! Compaction: the history up to a revision is discarded.
//!
//! Answers follow the compact revision at once. The rows behind it are swept a few at each entry,
//! in the order of the changes, so that no entry stalls and every node sweeps alike.

use bytes::Bytes;

use crate::{
    machine::{
        effect::ChangeKind,
        keyspace::{self, ChangeRow, Place},
        outcome::Decision,
        read::{check_revision, compacted},
        store::StoreError,
        tx::Tx,
    },
    pb::kv::v1::{CompactRequest, CompactResponse},
    types::Revision,
};

/// How many changes an entry sweeps at least; twice its own changes come on top, so that the
/// sweep outruns any writer.
const SWEEP_STEPS: usize = 32;

/// About how many bytes of changes an entry reads for the sweep at most.
const SWEEP_BYTES: usize = 4 << 20;

/// `kv.v1.KvService/Compact`.
pub(crate) fn compact(tx: &mut Tx<'_>, request: &CompactRequest) -> Decision<CompactResponse> {
    let revision = Revision::new(request.revision);
    if revision <= tx.head.compact_revision {
        return Ok(Err(compacted(&tx.head, revision)));
    }
    if let Err(refusal) = check_revision(&tx.head, revision) {
        return Ok(Err(refusal));
    }
    tx.head.compact_revision = revision;
    Ok(Ok(CompactResponse { revision: tx.head.revision.value() }))
}

/// Takes the next step of automatic compaction and of the sweep; after each entry.
pub(crate) fn step(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let retained = tx.config.retained_revisions;
    let kept = tx.head.revision.value() - tx.head.compact_revision.value();
    // A tenth of slack, so that the compact revision moves now and then, not with every write.
    if retained > 0 && kept > retained.saturating_add(retained / 10) {
        tx.head.compact_revision = Revision::new(tx.head.revision.value() - retained);
    }
    if tx.counters.swept_revision < tx.head.compact_revision.value() {
        sweep(tx)?;
    }
    Ok(())
}

/// Deletes the versions that the next changes replaced. A change that made a row's version of now
/// stays, and goes when it is replaced itself.
fn sweep(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    let steps = SWEEP_STEPS + 2 * tx.change_count();
    let from = Place {
        revision: Revision::new(tx.counters.swept_revision).next(),
        sub: tx.counters.swept_changes,
    };
    let end = keyspace::change_range(from.revision, tx.head.compact_revision).end;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    for row in tx.scan(&from.key(), end.as_deref()) {
        let (key, value) = row?;
        bytes += value.len();
        let ChangeRow { place, space, kind, replaced, kv } = ChangeRow::decode(&key, &value)?;
        // A copy, so that the value does not stay for the sake of its key.
        rows.push((place, space, kind, replaced, Bytes::copy_from_slice(&kv.key)));
        if rows.len() == steps || bytes > SWEEP_BYTES {
            break;
        }
    }
    let swept_all = rows.len() < steps && bytes <= SWEEP_BYTES;
    for (place, space, kind, replaced, key) in rows {
        if !replaced.revision.is_zero() {
            tx.delete(keyspace::version_key(space, &key, replaced.revision));
            tx.delete(replaced.key());
        }
        if kind == ChangeKind::Delete {
            tx.delete(keyspace::version_key(space, &key, place.revision));
            tx.delete(place.key());
        }
        tx.counters.swept_revision = place.revision.previous().value();
        tx.counters.swept_changes = place.sub + 1;
    }
    if swept_all {
        tx.counters.swept_revision = tx.head.compact_revision.value();
        tx.counters.swept_changes = 0;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
