//! Reads of the state, as pure functions over a consistent view.
//!
//! This file holds the view itself and the reads of the revisioned keyspace; the typed parts add
//! theirs in their own files.

use core::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    machine::{
        effect::{Change, ChangeKind, Space},
        head::{self, Head},
        keyspace::{self, Place},
        outcome::Decision,
        read,
        store::{Reader, StoreError},
        tables::{Key, Table},
        validate::validate_range,
    },
    pb::{
        cluster::v1::StateHashResponse,
        command::v1::Refusal,
        kv::v1::{KeyValue, RangeRequest, RangeResponse},
    },
    types::{Duration, Revision, SessionId},
};

/// What the leader loads of a session when it takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// The session.
    pub session: SessionId,
    /// Its TTL.
    pub ttl: Duration,
    /// What is left at most, as far as it was recorded.
    pub remaining: Duration,
    /// Its epoch.
    pub epoch: u64,
}

/// A consistent view of the state. Cheap to clone.
#[derive(Clone)]
pub struct View {
    reader: Arc<dyn Reader>,
}

impl core::fmt::Debug for View {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

impl View {
    /// Reads through a store's snapshot.
    #[must_use]
    pub fn new(reader: Arc<dyn Reader>) -> Self {
        Self { reader }
    }

    /// The rows beneath.
    #[must_use]
    pub fn reader(&self) -> &Arc<dyn Reader> {
        &self.reader
    }

    /// Where the state stands.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn head(&self) -> Result<Head, StoreError> {
        Ok(head::load(self.reader.as_ref())?.0)
    }

    /// `kv.v1.KvService/Range`. At most 10,000 keys and about 3 MiB are returned; `more` tells
    /// whether that cut the list.
    ///
    /// # Errors
    /// Where the store cannot be read. Inside, the refusal of a malformed request and of a
    /// revision that was compacted or lies in the future.
    pub fn range(
        &self,
        request: &RangeRequest,
    ) -> Result<Result<RangeResponse, Refusal>, StoreError> {
        if let Err(refusal) = validate_range(request) {
            return Ok(Err(refusal));
        }
        read::range(self.reader.as_ref(), &self.head()?, request)
    }

    /// The changes of a space from revision `from` on, in order, whole revisions only, until about
    /// `bytes_max` are gathered; and the last revision that they cover (the head's where nothing
    /// was cut): go on behind it. History is walked by the same measure, so the list may be empty
    /// although the head is not reached. Refused as compacted where `from` is not kept, that is
    /// not behind the compact revision.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn changes(
        &self,
        space: Space,
        from: Revision,
        bytes_max: usize,
    ) -> Result<Result<(Vec<Change>, Revision), Refusal>, StoreError> {
        read::changes(self.reader.as_ref(), &self.head()?, space, from, bytes_max)
    }

    /// The version of a row that a change replaced; `None` where it is not kept any more.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn replaced(&self, change: &Change) -> Result<Option<KeyValue>, StoreError> {
        keyspace::version(self.reader.as_ref(), change.space, &change.kv.key, change.replaced)
    }

    /// `cluster.v1.ClusterService/StateHash`; `node_id` is left 0. Reads the whole state.
    ///
    /// The hash covers every version up to the revision that compaction lets stand, whether or not
    /// the sweep has come by; the full hash covers every row.
    ///
    /// # Errors
    /// Where the store cannot be read. Inside, the refusal of a revision that was compacted or is
    /// not applied yet.
    pub fn state_hash(&self, revision: Revision) -> Decision<StateHashResponse> {
        let head = self.head()?;
        let revision = if revision.is_zero() { head.revision } else { revision };
        if let Err(refusal) = read::check_revision(&head, revision) {
            return Ok(Err(refusal));
        }
        Ok(Ok(StateHashResponse {
            node_id: 0,
            revision: revision.value(),
            compact_revision: head.compact_revision.value(),
            hash: self.hash_versions(revision, head.compact_revision)?,
            applied_index: head.index.value(),
            full_hash: self.hash_rows()?,
        }))
    }

    fn hash_versions(&self, upto: Revision, compact: Revision) -> Result<String, StoreError> {
        let mut hash = Xxh3::new();
        let rows = Key::of(Table::Version).prefix();
        // A version is judged by the one after it, so the walk lags one row behind.
        let mut last: Option<(Bytes, Bytes, ChangeKind, Place)> = None;
        for row in self.reader.scan(&rows.start, rows.end.as_deref()) {
            let (row_key, value) = row?;
            let (key, revision) = read::split_version_key(&row_key)?;
            let (kind, place) = keyspace::decode_version(revision, &value)?;
            if let Some((last_row, last_key, last_kind, last_place)) = last.take() {
                let replaced = last_key == key && revision <= compact;
                let gone = last_kind == ChangeKind::Delete && last_place.revision <= compact;
                if !replaced && !gone && last_place.revision <= upto {
                    self.hash_version(&mut hash, &last_row, last_kind, last_place)?;
                }
            }
            last = Some((row_key, key, kind, place));
        }
        if let Some((row_key, _, kind, place)) = last {
            let gone = kind == ChangeKind::Delete && place.revision <= compact;
            if !gone && place.revision <= upto {
                self.hash_version(&mut hash, &row_key, kind, place)?;
            }
        }
        Ok(hex(&hash))
    }

    fn hash_version(
        &self,
        hash: &mut Xxh3,
        row_key: &[u8],
        kind: ChangeKind,
        place: Place,
    ) -> Result<(), StoreError> {
        let value = match kind {
            ChangeKind::Put => keyspace::load(self.reader.as_ref(), place)?.encode_to_vec(),
            ChangeKind::Delete => Vec::new(),
        };
        update(hash, row_key, &value);
        Ok(())
    }

    fn hash_rows(&self) -> Result<String, StoreError> {
        let mut hash = Xxh3::new();
        for row in self.reader.scan(&[], None) {
            let (key, value) = row?;
            update(&mut hash, &key, &value);
        }
        Ok(hex(&hash))
    }
}

fn update(hash: &mut Xxh3, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
}

fn hex(hash: &Xxh3) -> String {
    let mut text = String::with_capacity(32);
    write!(text, "{:032x}", hash.digest128()).expect("a string takes everything");
    text
}

#[cfg(test)]
mod tests;
