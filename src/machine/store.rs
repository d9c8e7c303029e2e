//! What the state machine needs of a store: ordered rows, atomic batches, consistent snapshots.

use core::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A store's failure. The state cannot be trusted after one: the node stops.
#[derive(Debug, thiserror::Error)]
#[error("state store: {0}")]
pub struct StoreError(pub String);

/// A row: key and value.
pub type Row = (Bytes, Bytes);

/// The rows of a scan.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row, StoreError>> + 'a>;

/// A consistent view of rows in ascending byte order of their keys.
pub trait Reader: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The rows from `start` (inclusive) to `end` (exclusive; `None` has no upper end), ascending.
    fn scan<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a>;

    /// The same rows, descending.
    fn scan_back<'a>(&'a self, start: &[u8], end: Option<&[u8]>) -> Rows<'a>;
}

/// A store of rows. One thread writes; any number read.
pub trait Store: Reader + fmt::Debug + 'static {
    /// Carries out a batch atomically. Visible at once, durable with the next [`Store::persist`].
    ///
    /// # Errors
    /// Where the store cannot be written.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// A view of the rows as they are now, which later batches do not change.
    fn snapshot(&self) -> Arc<dyn Reader>;

    /// Makes every batch committed before durable. After a crash the store holds the batches up to
    /// some point not before the last successful call.
    ///
    /// # Errors
    /// Where the store cannot be synced.
    fn persist(&self) -> Result<(), StoreError>;

    /// How many bytes of what the store takes on disk it will fill again before it takes more. May
    /// read much of it: for rare use.
    ///
    /// # Errors
    /// Where the store cannot be read.
    fn reusable_bytes(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}

/// Changes that happen together. A later change of a key replaces an earlier one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Each key's new value; `None` deletes it.
    pub rows: Vec<(Bytes, Option<Bytes>)>,
}
