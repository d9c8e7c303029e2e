//! The state store on disk: one redb file, one table of rows.
//!
//! redb writes copies of pages and switches to them only in a durable commit, so a crash leaves
//! exactly the batches up to the last [`Store::persist`], whatever the disk made of the rest
//! (`docs/decisions/0003-state-store.md`). Every page is checked when the file is opened; between
//! two openings each row carries a checksum of its own, which every read verifies. The file never
//! compacts by itself: freed pages are used again.

use core::fmt;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use redb::{
    Builder, Database, Durability, ReadOnlyTable, ReadableDatabase as _, ReadableTable as _,
    TableDefinition,
};

use crate::machine::store::{Batch, Reader, Row, Rows, Store, StoreError};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("quorate");
const FORMAT: &str = "format";
/// The layout of rows in the file; redb keeps the version of its own layout.
const FORMAT_VERSION: u64 = 1;

/// Pages kept in memory, in bytes; changes that are not yet durable count too.
const CACHE_BYTES: usize = 32 << 20;
/// What precedes each value: the CRC32C of key and value.
const CHECKSUM_BYTES: usize = 4;

/// A store in one file.
pub struct RedbStore {
    path: PathBuf,
    database: Database,
    /// The rows after the last commit.
    current: ArcSwap<View>,
}

impl RedbStore {
    /// Opens a store; a missing or empty file becomes an empty store. Reads the whole file.
    ///
    /// # Errors
    /// Where the file cannot be read or written, is damaged, belongs to another process or holds
    /// an unknown format.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |error: &dyn fmt::Display| StoreError(format!("{}: {error}", path.display()));
        let fresh = std::fs::metadata(path).map_or(true, |file| file.len() == 0);
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(!fresh);
        let database = builder.create(path).map_err(|error| fail(&error))?;
        check_format(&database).map_err(|error| fail(&error))?;
        let current = View::of(&database).map_err(|error| fail(&error))?;
        Ok(Self { path: path.into(), database, current: ArcSwap::from_pointee(current) })
    }

    fn write(&self, batch: &Batch) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::None)?;
        {
            let mut rows = write.open_table(ROWS)?;
            let mut sealed = Vec::new();
            for (key, value) in &batch.rows {
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
            }
        }
        write.commit()?;
        self.current.store(Arc::new(View::of(&self.database)?));
        Ok(())
    }

    fn sync(&self) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        Ok(write.commit()?)
    }

    fn failed(&self, error: &redb::Error) -> StoreError {
        StoreError(format!("{}: {error}", self.path.display()))
    }
}

impl Reader for RedbStore {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.current.load().get(key)
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.current.load().rows(start, end, false)
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.current.load().rows(start, end, true)
    }
}

impl Store for RedbStore {
    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        self.write(&batch).map_err(|error| self.failed(&error))
    }

    fn snapshot(&self) -> Arc<dyn Reader> {
        self.current.load_full()
    }

    fn persist(&self) -> Result<(), StoreError> {
        self.sync().map_err(|error| self.failed(&error))
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The rows at one moment; keeps its read transaction alive.
struct View {
    rows: ReadOnlyTable<&'static [u8], &'static [u8]>,
}

impl View {
    fn of(database: &Database) -> Result<Self, redb::Error> {
        Ok(Self { rows: database.begin_read()?.open_table(ROWS)? })
    }

    /// An iterator that keeps the read transaction alive by itself.
    fn rows<'a>(&self, start: &[u8], end: Option<&[u8]>, back: bool) -> Rows<'a> {
        let range = match end {
            Some(end) if end <= start => return Box::new(std::iter::empty()),
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

impl Reader for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let sealed = self.rows.get(key).map_err(|error| StoreError(error.to_string()))?;
        sealed.map(|sealed| unseal(key, sealed.value())).transpose()
    }

    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.rows(start, end, false)
    }

    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a> {
        self.rows(start, end, true)
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

/// Makes the tables in an empty file; refuses a layout of rows that this program does not know.
fn check_format(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
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
