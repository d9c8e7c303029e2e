//! The layout of the state: one prefix byte a table, then the fields of the key.
//!
//! Numbers are big endian, so that byte order is number order. A name that is followed by more
//! fields is escaped and ended (`name`), so that a scan over one name never meets another that
//! merely starts with it; a last field is written as it is (`raw`). Layout changes need a new
//! format version in `head.rs`.

use bytes::Bytes;

use crate::{machine::store::StoreError, types::KeyRange};

/// The tables. The bytes are part of the format of state and snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Table {
    /// One row: where the state stands. First, so that a snapshot opens with it.
    Head = 0x01,
    /// The cluster's own facts (`cluster.rs`).
    Cluster = 0x08,
    /// `space, key` -> where the newest version is, and what else a write must know of it.
    Current = 0x10,
    /// `space, name(key), revision` -> where a version is, and whether it is a deletion.
    Version = 0x11,
    /// `revision, sub` -> `space, kind, what it replaced`, and the row after it, a `KeyValue`.
    Change = 0x12,
    /// `session, space, key` of rows that are bound to a session.
    Bound = 0x13,
    /// Sessions (`session.rs`).
    Session = 0x20,
    /// What else is known by session (`session.rs`).
    SessionDetail = 0x21,
    /// Locks (`lock/`).
    Lock = 0x30,
    /// Waiters in line (`lock/`).
    Waiter = 0x31,
    /// Waiters by request id (`lock/`).
    WaiterRequest = 0x32,
    /// Waiters by the call that is parked (`lock/`).
    WaiterOrigin = 0x33,
    /// What else is known of locks (`lock/`).
    LockDetail = 0x34,
    /// `position` -> an event (`events.rs`).
    Event = 0x40,
    /// Streams (`events.rs`).
    Stream = 0x41,
    /// Events of a stream (`events.rs`).
    StreamEvent = 0x42,
    /// Event ids of a stream (`events.rs`).
    EventId = 0x43,
    /// `stream` whose events that were let go are still to be swept (`retention.rs`).
    StreamSweep = 0x44,
    /// `deadline, kind, key`: what falls due.
    Timer = 0x50,
    /// `number` -> a request with a UUID and what came of it, in the order of forgetting.
    Request = 0x60,
    /// `session, sequence` -> what came of the request.
    Sequence = 0x62,
    /// `session` -> the low-water mark.
    LowWater = 0x63,
    /// Put streams and the order in which they are forgotten (`put_stream.rs`).
    PutStream = 0x64,
}

/// A key under construction.
#[derive(Clone, Debug)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    /// Opens a key, or the prefix of a whole table.
    pub(crate) fn of(table: Table) -> Self {
        let mut bytes = Vec::with_capacity(48);
        bytes.push(table as u8);
        Self(bytes)
    }

    /// Adds a byte.
    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    /// Adds a number of 4 bytes.
    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Adds a number of 8 bytes.
    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Adds bytes that more fields follow: zero is written as `00 ff`, the end as `00 01`, which
    /// keeps their order.
    pub(crate) fn name(mut self, name: &[u8]) -> Self {
        self.0.reserve(name.len() + 12);
        let mut rest = name;
        while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
            self.0.extend_from_slice(&rest[..zero]);
            self.0.extend_from_slice(&[0x00, 0xff]);
            rest = &rest[zero + 1..];
        }
        self.0.extend_from_slice(rest);
        self.0.extend_from_slice(&[0x00, 0x01]);
        self
    }

    /// Adds bytes that nothing follows.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The key.
    pub(crate) fn bytes(self) -> Bytes {
        self.0.into()
    }

    /// The range of all keys that start with this one.
    pub(crate) fn prefix(self) -> KeyRange {
        KeyRange::prefix(&self.0)
    }
}

impl From<Key> for Bytes {
    fn from(key: Key) -> Self {
        key.bytes()
    }
}

impl core::ops::Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Reads the fields of a key or of a value of our own making.
#[derive(Debug)]
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Reads a key behind its table's byte.
    pub(crate) fn of_key(key: &'a [u8]) -> Self {
        Self(key.get(1..).unwrap_or_default())
    }

    /// Reads a value.
    pub(crate) fn of_value(value: &'a [u8]) -> Self {
        Self(value)
    }

    /// Takes a byte.
    pub(crate) fn u8(&mut self) -> Result<u8, StoreError> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// Takes a number of 4 bytes.
    pub(crate) fn u32(&mut self) -> Result<u32, StoreError> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes were taken")))
    }

    /// Takes a number of 8 bytes.
    pub(crate) fn u64(&mut self) -> Result<u64, StoreError> {
        let bytes = self.take(8)?;
        Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes were taken")))
    }

    /// Takes an escaped name.
    pub(crate) fn name(&mut self) -> Result<Bytes, StoreError> {
        let mut name = Vec::with_capacity(self.0.len());
        loop {
            let zero = self.0.iter().position(|&byte| byte == 0).ok_or_else(malformed)?;
            name.extend_from_slice(self.take(zero)?);
            match self.take(2)?[1] {
                0xff => name.push(0),
                0x01 => return Ok(name.into()),
                _ => return Err(malformed()),
            }
        }
    }

    /// The rest.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], StoreError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn malformed() -> StoreError {
    StoreError("a row is malformed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(key: &[u8]) -> Key {
        Key::of(Table::Version).u8(0).name(key)
    }

    #[test]
    fn names_keep_their_order_and_come_back() {
        let names: [&[u8]; 8] = [b"", b"\0", b"\0\0", b"\0\xff", b"a", b"a\0", b"a\0b", b"a\x01"];
        for pair in names.windows(2) {
            assert!(versions(pair[0]).bytes() < versions(pair[1]).bytes(), "{pair:?}");
        }
        for name in names {
            let key = versions(name).u64(7).bytes();
            let mut fields = Fields::of_key(&key);
            assert_eq!(fields.u8().unwrap(), 0);
            assert_eq!(fields.name().unwrap(), name);
            assert_eq!(fields.u64().unwrap(), 7);
            assert!(fields.rest().is_empty());
        }
    }

    #[test]
    fn a_scan_over_one_name_never_meets_another() {
        let range = versions(b"a").prefix();
        assert!(range.contains(&versions(b"a").u64(u64::MAX)));
        for other in [&b"a\0"[..], b"a\x01", b"ab", b"", b"A"] {
            assert!(!range.contains(&versions(other).u64(1)), "{other:?}");
        }
    }

    #[test]
    fn a_short_row_is_an_error() {
        assert!(Fields::of_key(&[1, 2, 3]).u64().is_err());
        assert!(Fields::of_key(b"\x11abc").name().is_err());
        assert!(Fields::of_key(b"\x11abc\0").name().is_err());
    }
}
