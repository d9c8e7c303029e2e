//! A store in memory: the double that tests and the simulator run on.
//!
//! A snapshot is the map itself, shared; the next commit copies it only where a snapshot still
//! looks at it. Persisting remembers the rows of that moment, [`MemoryStore::crash`] goes back to
//! them: the harshest reading of the contract, which a real store may only do better.

use core::fmt;
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::machine::store::{Batch, Reader, Rows, Store, StoreError};

/// The rows, and those of the last persist.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: Arc<View>,
    persisted: Arc<View>,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was not persisted, as a power loss does.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.rows = Arc::clone(&state.persisted);
    }

    /// Another store with the same rows; they are copied only once one of the two changes.
    #[must_use]
    pub fn fork(&self) -> Self {
        let State { rows, persisted } = &*self.lock();
        let (rows, persisted) = (Arc::clone(rows), Arc::clone(persisted));
        Self { state: Mutex::new(State { rows, persisted }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.lock().rows)
    }
}

impl Reader for MemoryStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.lock().rows.get(key)
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        let (view, end) = (self.view(), end.map(Bytes::copy_from_slice));
        let mut next = Bytes::copy_from_slice(start);
        Box::new(std::iter::from_fn(move || {
            let (key, value) = view.range(&next, end.as_deref())?.next()?;
            next = [key, &[0][..]].concat().into();
            Some(Ok((key.clone(), value.clone())))
        }))
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        let (view, start) = (self.view(), Bytes::copy_from_slice(start));
        let mut end = end.map(Bytes::copy_from_slice);
        Box::new(std::iter::from_fn(move || {
            let (key, value) = view.range(&start, end.as_deref())?.next_back()?;
            end = Some(key.clone());
            Some(Ok((key.clone(), value.clone())))
        }))
    }
}

impl Store for MemoryStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.lock();
        let rows = &mut Arc::make_mut(&mut state.rows).0;
        for (key, value) in batch.rows {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        self.view()
    }

    fn persist(&self) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.persisted = Arc::clone(&state.rows);
        Ok(())
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("rows", &self.lock().rows.0.len()).finish()
    }
}

/// The rows at one moment.
#[derive(Clone, Default)]
struct View(BTreeMap<Bytes, Bytes>);

impl View {
    /// The rows of a range; none where the range is empty.
    fn range(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> Option<std::collections::btree_map::Range<'_, Bytes, Bytes>> {
        if end.is_some_and(|end| end <= start) {
            return None;
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        Some(self.0.range::<[u8], _>((Bound::Included(start), end)))
    }
}

impl Reader for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        let rows = self.range(start, end).into_iter().flatten();
        Box::new(rows.map(|(key, value)| Ok((key.clone(), value.clone()))))
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        let rows = self.range(start, end).into_iter().flatten().rev();
        Box::new(rows.map(|(key, value)| Ok((key.clone(), value.clone()))))
    }
}
