//! A store and a harness for the machine's own tests.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::{
        Applied, Machine, MachineConfig, View,
        apply::COMMAND_VERSION,
        store::{Batch, Reader, Row, Rows, Store, StoreError},
    },
    pb::{
        command::v1::{Command, Origin, Outcome, Refusal, command::Op, outcome},
        kv::v1::{DeleteRangeRequest, PutRequest, RangeRequest},
    },
    raft::{Entry, Payload},
    types::{LogIndex, LogTime, Term},
};

pub(crate) type Map = BTreeMap<Bytes, Bytes>;

/// A store in a map.
#[derive(Debug, Default)]
pub(crate) struct MapStore(Mutex<Arc<Map>>);

impl MapStore {
    /// The rows as they are now.
    pub(crate) fn rows(&self) -> Arc<Map> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug)]
struct MapReader(Arc<Map>);

fn rows(map: &Map, start: &[u8], end: Option<&[u8]>) -> Vec<Row> {
    map.range::<[u8], _>((core::ops::Bound::Included(start), core::ops::Bound::Unbounded))
        .take_while(|(key, _)| end.is_none_or(|end| key.as_ref() < end))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

impl Reader for MapReader {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        Box::new(rows(&self.0, start, end).into_iter().map(Ok))
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        Box::new(rows(&self.0, start, end).into_iter().rev().map(Ok))
    }
}

impl Reader for MapStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.rows().get(key).cloned())
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        Box::new(rows(&self.rows(), start, end).into_iter().map(Ok))
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        Box::new(rows(&self.rows(), start, end).into_iter().rev().map(Ok))
    }
}

impl Store for MapStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let map = Arc::make_mut(&mut map);
        for (key, value) in batch.rows {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        Arc::new(MapReader(self.rows()))
    }

    fn persist(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A machine on a map, fed one command at a time.
#[derive(Debug)]
pub(crate) struct Harness {
    /// The machine.
    pub(crate) machine: Machine,
    /// Its store.
    pub(crate) store: Arc<MapStore>,
    /// The log time of the next entry, in milliseconds.
    pub(crate) now_ms: u64,
    /// The term of the next entry.
    pub(crate) term: u64,
}

impl Harness {
    pub(crate) fn new() -> Self {
        Self::with(MachineConfig::default())
    }

    pub(crate) fn with(config: MachineConfig) -> Self {
        let store = Arc::new(MapStore::default());
        let machine = Machine::open(Arc::clone(&store) as Arc<dyn Store>, config).unwrap();
        Self { machine, store, now_ms: 1_000, term: 1 }
    }

    /// The call that waits for the entry that comes next: its sequence is the entry's index.
    pub(crate) fn next_origin(&self) -> Origin {
        Origin { node_id: 1, boot: 7, sequence: self.machine.head().index.next().value() }
    }

    /// Applies one command with the origin of [`Harness::next_origin`].
    pub(crate) fn apply(&mut self, op: Op) -> Applied {
        let command =
            Command { version: COMMAND_VERSION, origin: Some(self.next_origin()), op: Some(op) };
        self.apply_payload(Payload::Command(command.encode_to_vec().into()))
    }

    /// Applies one payload as the next entry.
    pub(crate) fn apply_payload(&mut self, payload: Payload) -> Applied {
        let entry = Entry {
            index: self.machine.head().index.next(),
            term: Term::new(self.term),
            time: LogTime::from_millis(self.now_ms),
            payload,
        };
        self.machine.apply(&[entry]).unwrap()
    }

    /// Applies one command and returns its own outcome; panics where it was parked.
    pub(crate) fn outcome(&mut self, op: Op) -> Outcome {
        let origin = self.next_origin();
        let applied = self.apply(op);
        let own = applied.outcomes.into_iter().find(|(to, _)| *to == origin);
        own.expect("the command has an outcome at once").1
    }

    /// Applies one command that must be refused.
    pub(crate) fn refused(&mut self, op: Op) -> Refusal {
        match self.outcome(op).result {
            Some(outcome::Result::Refusal(refusal)) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// All rows but the head, which moves with every entry.
    pub(crate) fn state(&self) -> Map {
        let mut rows = Map::clone(&self.store.rows());
        rows.remove(&crate::machine::head::key());
        rows
    }

    /// Puts a key and returns its revision.
    pub(crate) fn put(&mut self, key: &str, value: &str) -> u64 {
        match self.outcome(put(key, value)).result {
            Some(outcome::Result::Put(response)) => response.revision,
            other => panic!("not put: {other:?}"),
        }
    }

    /// The state as readers see it.
    pub(crate) fn view(&self) -> View {
        View::new(self.store.snapshot())
    }

    /// The index of the last entry.
    pub(crate) fn index(&self) -> LogIndex {
        self.machine.head().index
    }
}

/// A plain put.
pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put(PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..PutRequest::default()
    })
}

/// A plain deletion; an empty `end` deletes one key.
pub(crate) fn delete(key: &str, end: &str) -> Op {
    Op::DeleteRange(DeleteRangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        ..DeleteRangeRequest::default()
    })
}

/// A plain range at a revision; 0 is the newest.
pub(crate) fn range(key: &str, end: &str, revision: u64) -> RangeRequest {
    RangeRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        revision,
        ..RangeRequest::default()
    }
}

/// Bytes as lines of hexadecimal, for golden files.
pub(crate) fn hex_lines(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(32).map(|bytes| line(bytes) + "\n").collect()
}
