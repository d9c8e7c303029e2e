//! The state to bytes and back.
//!
//! A snapshot is all rows of a consistent view in the order of their keys, so the head comes
//! first: magic and version, then the rows, then a trailer with their number and a hash of
//! everything before it. It is cut into chunks without regard to rows. Loading believes nothing
//! until the trailer fits: what was loaded of a snapshot that is refused must be thrown away.

use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    machine::{
        head::{self, Head},
        store::{Batch, Reader, Store, StoreError},
        tables::{Key, Table},
    },
    types::{Planted, Revision, planted},
};

/// The first bytes of every snapshot.
const MAGIC: &[u8; 8] = b"QRSNAP\r\n";

/// The version of the format.
const VERSION: u32 = 1;

/// The largest chunk, in bytes.
pub(crate) const CHUNK_BYTES_MAX: usize = 256 << 10;

/// The largest key and value that a row may claim; far above what the machine writes, far below
/// what a broken length would ask for.
const KEY_BYTES_MAX: usize = 64 << 10;
const VALUE_BYTES_MAX: usize = 64 << 20;

/// How many bytes of rows are loaded in one batch.
const BATCH_BYTES: usize = 1 << 20;

const ROW: u8 = 1;
const TRAILER: u8 = 2;

/// A snapshot's failure.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are not a snapshot, or a damaged one.
    #[error("corrupt snapshot at byte {offset}: {what}")]
    Corrupt {
        /// Where in the snapshot.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The snapshot has a format that this program does not know.
    #[error("the snapshot has format {0}, this program knows format {VERSION}")]
    Version(u32),
}

/// Writes a snapshot of a view, chunk by chunk. It holds the view until it is dropped.
pub struct SnapshotWriter {
    reader: Arc<dyn Reader>,
    hash: Xxh3,
    buffer: BytesMut,
    /// Where the next row starts; `None` when all are written.
    next: Option<Vec<u8>>,
    rows: u64,
    ended: bool,
}

impl core::fmt::Debug for SnapshotWriter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SnapshotWriter").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl SnapshotWriter {
    /// Starts a snapshot of a consistent view, as [`Store::snapshot`] gives it.
    #[must_use]
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        let mut buffer = BytesMut::with_capacity(2 * CHUNK_BYTES_MAX);
        buffer.put_slice(MAGIC);
        buffer.put_u32(VERSION);
        Self { reader, hash: Xxh3::new(), buffer, next: Some(Vec::new()), rows: 0, ended: false }
    }

    /// Reads on until a chunk is full or the rows end. Each call scans anew, since a scan cannot
    /// outlive the call.
    fn fill(&mut self, start: &[u8]) -> Result<(), StoreError> {
        let mut last = None;
        for row in self.reader.scan(start, None) {
            let (key, value) = row?;
            self.buffer.put_u8(ROW);
            self.buffer.put_u32(u32::try_from(key.len()).expect("keys are short"));
            self.buffer.put_u32(u32::try_from(value.len()).expect("values are below 4 GiB"));
            self.buffer.put_slice(&key);
            self.buffer.put_slice(&value);
            self.rows += 1;
            if self.buffer.len() >= CHUNK_BYTES_MAX {
                last = Some(key);
                break;
            }
        }
        self.next = last.map(|key| {
            let mut next = key.to_vec();
            next.push(0);
            next
        });
        Ok(())
    }

    fn chunk(&mut self) -> Bytes {
        let chunk = self.buffer.split_to(self.buffer.len().min(CHUNK_BYTES_MAX)).freeze();
        self.hash.update(&chunk);
        chunk
    }
}

impl Iterator for SnapshotWriter {
    type Item = Result<Bytes, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        while self.buffer.len() < CHUNK_BYTES_MAX {
            let Some(start) = self.next.take() else { break };
            if let Err(error) = self.fill(&start) {
                self.ended = true;
                return Some(Err(error));
            }
        }
        if !self.buffer.is_empty() {
            return Some(Ok(self.chunk()));
        }
        // The trailer is a chunk of its own, behind the last row's.
        self.ended = true;
        let mut trailer = BytesMut::new();
        trailer.put_u8(TRAILER);
        trailer.put_u64(self.rows);
        self.hash.update(&trailer);
        trailer.put_u128(self.hash.digest128());
        Some(Ok(trailer.freeze()))
    }
}

/// Loads a snapshot into an empty store. Where any call fails, or [`SnapshotLoader::finish`] was
/// not reached, the store must be thrown away.
#[derive(Debug)]
pub struct SnapshotLoader<'a> {
    store: &'a dyn Store,
    buffer: BytesMut,
    /// How many bytes were read off before the buffer.
    offset: u64,
    hash: HashState,
    batch: Batch,
    batch_bytes: usize,
    rows: u64,
    last_key: Bytes,
    head: Option<Head>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Rows,
    Ended,
}

struct HashState(Xxh3);

impl core::fmt::Debug for HashState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("HashState")
    }
}

impl<'a> SnapshotLoader<'a> {
    /// Starts loading into a store that must be empty.
    #[must_use]
    pub fn new(store: &'a dyn Store) -> Self {
        Self {
            store,
            buffer: BytesMut::new(),
            offset: 0,
            hash: HashState(Xxh3::new()),
            batch: Batch::default(),
            batch_bytes: 0,
            rows: 0,
            last_key: Bytes::new(),
            head: None,
            stage: Stage::Opening,
        }
    }

    /// Takes the next bytes, however they were cut.
    ///
    /// # Errors
    /// Where they are corrupt or of an unknown format, or the store fails.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), SnapshotError> {
        self.buffer.extend_from_slice(chunk);
        while self.step()? {}
        Ok(())
    }

    /// Ends the loading: everything is there and fits. It is in the store, not yet persisted.
    ///
    /// # Errors
    /// Where the snapshot is incomplete, or the store fails.
    pub fn finish(mut self) -> Result<Head, SnapshotError> {
        if self.stage != Stage::Ended {
            return Err(self.corrupt("it ends early"));
        }
        self.flush()?;
        self.head.take().ok_or_else(|| self.corrupt("it has no head"))
    }

    /// Reads one element off the buffer; `false` where it is not there whole.
    fn step(&mut self) -> Result<bool, SnapshotError> {
        match self.stage {
            Stage::Opening => {
                let Some(opening) = self.take(MAGIC.len() + 4) else { return Ok(false) };
                if !opening.starts_with(MAGIC) {
                    return Err(self.corrupt("it does not start like a snapshot"));
                }
                let version = u32_at(&opening, MAGIC.len());
                if version != VERSION {
                    return Err(SnapshotError::Version(version));
                }
                self.stage = Stage::Rows;
                Ok(true)
            }
            Stage::Rows => match self.buffer.first() {
                None => Ok(false),
                Some(&ROW) => self.row(),
                Some(&TRAILER) => self.trailer(),
                Some(tag) => Err(self.corrupt(format!("unknown element {tag}"))),
            },
            Stage::Ended if self.buffer.is_empty() => Ok(false),
            Stage::Ended => Err(self.corrupt("bytes follow the trailer")),
        }
    }

    fn row(&mut self) -> Result<bool, SnapshotError> {
        if self.buffer.len() < 9 {
            return Ok(false);
        }
        let (key, value) = (u32_at(&self.buffer, 1) as usize, u32_at(&self.buffer, 5) as usize);
        if key > KEY_BYTES_MAX || value > VALUE_BYTES_MAX {
            return Err(self.corrupt(format!("a row claims {key} and {value} bytes")));
        }
        let Some(mut row) = self.take(9 + key + value) else { return Ok(false) };
        let mut value = row.split_off(9 + key);
        let key = row.split_off(9);
        if key <= self.last_key {
            return Err(self.corrupt("rows are out of order"));
        }
        if self.rows == 0 {
            if key != head::key() {
                return Err(self.corrupt("it does not open with the head"));
            }
            let (mut head, counters) =
                head::decode(&value).map_err(|error| self.corrupt(error.0))?;
            if planted(Planted::TokenRestartsAtSnapshot) {
                head.revision = Revision::ZERO;
                value = head::encode(&head, &counters);
            }
            self.head = Some(head);
        }
        self.rows += 1;
        self.last_key = key.clone();
        self.batch_bytes += key.len() + value.len();
        let request = key.starts_with(&Key::of(Table::Request));
        if !(request && planted(Planted::RequestsLostAtSnapshot)) {
            self.batch.rows.push((key, Some(value)));
        }
        if self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(true)
    }

    fn trailer(&mut self) -> Result<bool, SnapshotError> {
        if self.buffer.len() < 25 {
            return Ok(false);
        }
        let counted = self.take(9).expect("25 bytes are there");
        let hash = self.hash.0.digest128();
        let stored = self.take(16).expect("25 bytes are there");
        if stored.as_ref() != hash.to_be_bytes() {
            return Err(self.corrupt("the hash does not fit"));
        }
        if counted[1..] != self.rows.to_be_bytes() {
            return Err(self.corrupt("the number of rows does not fit"));
        }
        self.stage = Stage::Ended;
        Ok(true)
    }

    fn take(&mut self, count: usize) -> Option<Bytes> {
        if self.buffer.len() < count {
            return None;
        }
        // Copied, not split off: a row must not keep a whole chunk in memory.
        let taken = Bytes::copy_from_slice(&self.buffer[..count]);
        let _ = self.buffer.split_to(count);
        self.offset += count as u64;
        self.hash.0.update(&taken);
        Some(taken)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.batch_bytes = 0;
        self.store.commit(core::mem::take(&mut self.batch))
    }

    fn corrupt(&self, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Corrupt { offset: self.offset, what: what.into() }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

#[cfg(test)]
mod tests;
