//! The state store on disk: one redb file, one table of rows, and the rows that are not in it yet.
//!
//! A commit goes to memory; [`Store::persist`] writes what was committed until then into the file
//! in one durable transaction, beside later commits. redb writes copies of pages and switches to
//! them in that transaction only, so a crash leaves exactly the batches of a whole persist, whatever
//! the disk made of the rest (`docs/decisions/0003-state-store.md`). Every page is checked when the
//! file is opened; between two openings each row carries a checksum, which every read verifies. The
//! file never compacts by itself: freed pages are used again.

use core::fmt;
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _,
    TableDefinition,
};

use crate::{
    machine::store::{Batch, Reader, Row, Rows, Store, StoreError},
    storage::{
        files::File,
        store::{
            backend::FileBackend,
            buffer::{Buffer, overlay},
        },
    },
};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("quorate");
const FORMAT: &str = "format";
/// The layout of rows in the file; redb keeps the version of its own layout.
const FORMAT_VERSION: u64 = 1;

/// Pages kept in memory, in bytes.
const CACHE_BYTES: usize = 16 << 20;
/// How much is committed at most before a commit writes it into the file itself, in bytes. The node
/// persists well before; this bounds the memory where the disk does not keep up.
const BUFFER_BYTES_MAX: usize = 64 << 20;
/// What precedes each value: the CRC32C of key and value.
const CHECKSUM_BYTES: usize = 4;

/// A store in one file.
pub struct RedbStore {
    path: PathBuf,
    /// The file itself, where it is one of the system's.
    file: Option<std::fs::File>,
    database: Database,
    layers: ArcSwap<Layers>,
    /// The number of the last batch.
    last: AtomicU64,
    /// Held while a batch is taken in or the layers change.
    writing: Mutex<()>,
    /// Held while a buffer goes into the file; taken before `writing`.
    flushing: Mutex<()>,
}

/// The rows, newest layer first.
#[derive(Clone)]
struct Layers {
    active: Arc<Buffer>,
    /// On its way into the file.
    frozen: Option<Arc<Buffer>>,
    file: Arc<FileView>,
}

impl RedbStore {
    /// Opens a store; a missing or empty file becomes an empty store. Reads the whole file.
    ///
    /// # Errors
    /// Where the file cannot be read or written, is damaged, belongs to another process or holds
    /// an unknown format.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fresh = std::fs::metadata(path).map_or(true, |file| file.len() == 0);
        let database = builder(fresh).create(path);
        Self::of(path, database.map_err(redb::Error::from))
    }

    /// Opens a store in a file of our own making; `name` is for messages.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_on(file: Box<dyn File>, name: &str) -> Result<Self, StoreError> {
        let fresh = file.len().is_ok_and(|len| len == 0);
        let database = builder(fresh).create_with_backend(FileBackend::new(file));
        Self::of(Path::new(name), database.map_err(redb::Error::from))
    }

    fn of(path: &Path, database: Result<Database, redb::Error>) -> Result<Self, StoreError> {
        let open = || {
            let database = database?;
            check_format(&database)?;
            let file = FileView::of(&database)?.into();
            let layers = Layers { active: Arc::default(), frozen: None, file };
            Ok(Self {
                path: path.into(),
                file: std::fs::File::open(path).ok(),
                database,
                layers: ArcSwap::from_pointee(layers),
                last: AtomicU64::new(0),
                writing: Mutex::new(()),
                flushing: Mutex::new(()),
            })
        };
        open().map_err(|error: redb::Error| StoreError(format!("{}: {error}", path.display())))
    }

    /// Writes what was committed until now into the file, beside later commits.
    fn flush(&self, durability: Durability) -> Result<(), redb::Error> {
        let _flushing = lock(&self.flushing);
        let frozen = {
            let _writing = lock(&self.writing);
            let layers = self.layers.load();
            // What an earlier flush failed with stays frozen, and so does the store.
            if layers.frozen.is_some() {
                return Err(redb::Error::PreviousIo);
            }
            let frozen = Arc::clone(&layers.active);
            if !frozen.is_empty() {
                self.layers.store(Arc::new(Layers {
                    active: Arc::default(),
                    frozen: Some(Arc::clone(&frozen)),
                    file: Arc::clone(&layers.file),
                }));
            }
            frozen
        };
        self.write(&frozen, durability)?;
        if !frozen.is_empty() {
            let file = FileView::of(&self.database)?.into();
            let _writing = lock(&self.writing);
            let active = Arc::clone(&self.layers.load().active);
            self.layers.store(Arc::new(Layers { active, frozen: None, file }));
        }
        Ok(())
    }

    fn write(&self, buffer: &Buffer, durability: Durability) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(durability)?;
        // With one phase a crash within the commit is recognised by checksums that are not meant
        // to withstand bytes that somebody chose; clients choose ours.
        write.set_two_phase_commit(true);
        {
            let mut rows = write.open_table(ROWS)?;
            let mut sealed = Vec::new();
            buffer.each_last(|key, value| -> Result<(), redb::Error> {
                match value {
                    Some(value) => {
                        sealed.clear();
                        sealed.extend_from_slice(&checksum(key, value).to_le_bytes());
                        sealed.extend_from_slice(value);
                        rows.insert(key.as_ref(), sealed.as_slice())?;
                    }
                    None => {
                        rows.remove(key.as_ref())?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(write.commit()?)
    }

    fn view(&self) -> View {
        // In this order: what is in the layers is at least what the number says.
        let layers = self.layers.load_full();
        View { layers, number: self.last.load(Ordering::Acquire) }
    }

    fn failed(&self, error: &redb::Error) -> StoreError {
        StoreError(format!("{}: {error}", self.path.display()))
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    // What it guards is swapped as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reader for RedbStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.view().get(key)
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.view().rows(start, end, false)
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.view().rows(start, end, true)
    }
}

impl Store for RedbStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        let held = {
            let _writing = lock(&self.writing);
            let number = self.last.load(Ordering::Relaxed) + 1;
            let held = self.layers.load().active.insert(batch, number);
            self.last.store(number, Ordering::Release);
            held
        };
        if held > BUFFER_BYTES_MAX {
            self.flush(Durability::None).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        Arc::new(self.view())
    }

    fn persist(&self) -> Result<(), StoreError> {
        self.flush(Durability::Immediate).map_err(|error| self.failed(&error))
    }

    fn reusable_bytes(&self) -> Result<u64, StoreError> {
        // What the file takes, not how long it is: it has holes. By its handle, as its name changes.
        let file = self.file.as_ref().and_then(|file| file.metadata().ok());
        let file = file.map_or(0, |file| file.blocks() * 512);
        let taken = || -> Result<u64, redb::Error> {
            // Pages that one transaction frees can be filled after the next.
            self.flush(Durability::Immediate)?;
            self.flush(Durability::Immediate)?;
            let write = self.database.begin_write()?;
            let stats = write.stats()?;
            write.abort()?;
            Ok(stats.allocated_pages().saturating_mul(stats.page_size() as u64))
        };
        Ok(file.saturating_sub(taken().map_err(|error| self.failed(&error))?))
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The rows after a batch.
struct View {
    layers: Arc<Layers>,
    number: u64,
}

impl View {
    fn buffers(&self) -> impl Iterator<Item = &Arc<Buffer>> {
        std::iter::once(&self.layers.active).chain(&self.layers.frozen)
    }

    /// An iterator that keeps what it reads alive by itself.
    fn rows<'a>(&self, start: &[u8], end: Option<&[u8]>, back: bool) -> Rows<'a> {
        if end.is_some_and(|end| end <= start) {
            return Box::new(std::iter::empty());
        }
        let rows = self.layers.file.rows(start, end, back);
        let buffers = self.buffers().filter(|buffer| !buffer.is_empty()).cloned();
        overlay(rows, buffers, (start, end), self.number, back)
    }
}

impl Reader for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.buffers().find_map(|buffer| buffer.get(key, self.number)) {
            Some(change) => Ok(change),
            None => self.layers.file.get(key),
        }
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.rows(start, end, false)
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.rows(start, end, true)
    }
}

/// The rows in the file at one moment; keeps its read transaction alive.
struct FileView {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl FileView {
    fn of(database: &Database) -> Result<Self, redb::Error> {
        Ok(Self { rows: database.begin_read()?.open_table(ROWS)? })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let sealed = self.rows.get(key).map_err(|error| StoreError(error.to_string()))?;
        sealed.map(|sealed| unseal(key, sealed.value())).transpose()
    }

    fn rows<'a>(&self, start: &[u8], end: Option<&[u8]>, back: bool) -> Rows<'a> {
        let range = match end {
            Some(end) => self.rows.range(start..end),
            None => self.rows.range(start..),
        };
        match range {
            Err(error) => Box::new(std::iter::once(Err(StoreError(error.to_string())))),
            Ok(range) if back => Box::new(range.rev().map(open_row)),
            Ok(range) => Box::new(range.map(open_row)),
        }
    }
}

type Guard = redb::AccessGuard<'static, &'static [u8]>;

fn open_row(row: Result<(Guard, Guard), redb::StorageError>) -> Result<Row, StoreError> {
    let (key, sealed) = row.map_err(|error| StoreError(error.to_string()))?;
    let value = unseal(key.value(), sealed.value())?;
    Ok((Bytes::copy_from_slice(key.value()), value))
}

fn unseal(key: &[u8], sealed: &[u8]) -> Result<Bytes, StoreError> {
    match sealed.split_first_chunk::<CHECKSUM_BYTES>() {
        Some((sum, value)) if u32::from_le_bytes(*sum) == checksum(key, value) => {
            Ok(Bytes::copy_from_slice(value))
        }
        _ => Err(StoreError(format!("corrupt: the row at {} fails its checksum", hex(key)))),
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks every page of a file that was there before.
fn builder(fresh: bool) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(!fresh);
    builder
}

/// Makes the tables in an empty file; refuses a layout of rows that this program does not know.
fn check_format(database: &Database) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_two_phase_commit(true);
    {
        let mut meta = write.open_table(META)?;
        let found = meta.get(FORMAT)?.map(|version| version.value());
        match found {
            Some(FORMAT_VERSION) => {}
            Some(version) => {
                let text = format!("the rows are of the unknown format version {version}");
                return Err(redb::Error::Corrupted(text));
            }
            None => {
                meta.insert(FORMAT, FORMAT_VERSION)?;
                write.open_table(ROWS)?;
            }
        }
    }
    Ok(write.commit()?)
}
