//! The state store of a simulated node: rows in memory, of which a crash keeps a prefix of the
//! commits no older than the last persist, as the contract of the real one says.
//!
//! It keeps a hash of all rows at hand, so that nodes can be compared after every commit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    machine::store::{Batch, Reader, Rows, Store, StoreError},
    storage::store::MemoryStore,
    types::Rng,
};

/// A store that can crash.
#[derive(Debug, Default)]
pub(crate) struct SimStore {
    rows: MemoryStore,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    /// The rows of the last persist.
    durable: MemoryStore,
    /// What was committed since.
    pending: Vec<Batch>,
    /// How many commits were persisted.
    persisted: u64,
    hash: u64,
}

impl SimStore {
    /// A hash of all rows.
    pub(crate) fn hash(&self) -> u64 {
        self.log().hash
    }

    /// How many commits there were.
    pub(crate) fn commits(&self) -> u64 {
        let log = self.log();
        log.persisted + log.pending.len() as u64
    }

    /// Makes the first so many commits durable.
    pub(crate) fn persist_through(&self, commits: u64) {
        let mut log = self.log();
        let count = usize::try_from(commits.saturating_sub(log.persisted)).unwrap_or(usize::MAX);
        let count = count.min(log.pending.len());
        let batches: Vec<Batch> = log.pending.drain(..count).collect();
        log.persisted += count as u64;
        for batch in batches {
            log.durable.commit(batch).expect("memory takes it");
        }
    }

    /// What a process finds that opens the store after this one ended.
    pub(crate) fn reopened(&self, rng: &mut Rng) -> Self {
        let kept = {
            let log = self.log();
            // Often all or nothing is kept.
            match rng.below(4) {
                0 => 0,
                1 => log.pending.len() as u64,
                _ => rng.below(log.pending.len() as u64 + 1),
            }
        };
        let through = self.log().persisted + kept;
        self.persist_through(through);
        let log = self.log();
        let (rows, durable) = (log.durable.fork(), log.durable.fork());
        let hash = hash_of(&rows);
        let log = Log { durable, pending: Vec::new(), persisted: log.persisted, hash };
        Self { rows, log: Mutex::new(log) }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        // No code under the lock can leave it half changed.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash_of(rows: &MemoryStore) -> u64 {
    let rows = rows.scan(&[], None).map(|row| row.expect("memory is readable"));
    rows.fold(0, |hash, (key, value)| hash.wrapping_add(hash_row(&key, &value)))
}

fn hash_row(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(key))
}

impl Reader for SimStore {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>, StoreError> {
        self.rows.get(key)
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.rows.scan(start, end)
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.rows.scan_back(start, end)
    }
}

impl Store for SimStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut log = self.log();
        for (at, (key, value)) in batch.rows.iter().enumerate() {
            // A later change of a key in one batch replaces an earlier one.
            let before = batch.rows[..at].iter().rfind(|(earlier, _)| earlier == key);
            let old = match before {
                Some((_, value)) => value.clone(),
                None => self.rows.get(key)?,
            };
            if let Some(old) = old {
                log.hash = log.hash.wrapping_sub(hash_row(key, &old));
            }
            if let Some(new) = value {
                log.hash = log.hash.wrapping_add(hash_row(key, new));
            }
        }
        self.rows.commit(batch.clone())?;
        log.pending.push(batch);
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        self.rows.snapshot()
    }

    fn persist(&self) -> Result<(), StoreError> {
        self.persist_through(u64::MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &SimStore, rows: &[(&'static str, Option<&'static str>)]) {
        let rows = rows.iter().map(|(key, value)| {
            ((*key).into(), value.map(|value| bytes::Bytes::from_static(value.as_bytes())))
        });
        store.commit(Batch { rows: rows.collect() }).expect("memory takes it");
    }

    #[test]
    fn the_hash_is_that_of_the_rows() {
        let store = SimStore::default();
        put(&store, &[("a", Some("1")), ("b", Some("2"))]);
        put(&store, &[("a", Some("3")), ("a", Some("4")), ("b", None), ("c", None)]);
        assert_eq!(store.hash(), hash_of(&store.rows));
        let other = SimStore::default();
        put(&other, &[("a", Some("4"))]);
        assert_eq!(store.hash(), other.hash());
        put(&other, &[("a", Some("5"))]);
        assert_ne!(store.hash(), other.hash());
    }

    #[test]
    fn a_crash_keeps_a_prefix_no_older_than_the_last_persist() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let store = SimStore::default();
            for key in ["a", "b", "c", "d"] {
                put(&store, &[(key, Some("1"))]);
            }
            store.persist_through(2);
            let after = store.reopened(&mut Rng::new(seed));
            let keys = after.rows.scan(&[], None).count();
            assert_eq!(after.commits(), keys as u64);
            assert_eq!(after.hash(), hash_of(&after.rows));
            lengths.insert(keys);
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [2, 3, 4]);
    }
}
