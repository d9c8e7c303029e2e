//! The bytes of a segment, version 1. All numbers are little endian.
//!
//! A segment is sectors of 512 bytes: the header in the first, then batches, each from the start
//! of a sector to the end of one, so that no write touches a sector that holds durable bytes.
//!
//! ```text
//! header   magic 8 · version u32 · crc u32 · sequence u64 · previous end u64 · previous crc u32
//! batch    length u32 = 40 · crc u32 · kind u8 = 1 · 0 0 0 · previous crc u32 · offset u64
//!          · durable sequence u64 · durable offset u64 · bytes of records u32 · 0u32
//! record   length of body u32 · crc u32 · kind u8 · body
//! ```
//!
//! A record's CRC32C goes on from the one before it, the first one's from its batch's. A batch's is
//! over the segment's sequence number and its own header alone, so that it can be recognised behind
//! damage, and carries the record's before it. Old records of a recycled segment therefore never
//! pass for new ones (raft-rules 25), and a batch proves what was durable before it (27).

use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};

use crate::{
    raft::{Entry, HardState, LogStart, Membership, Payload},
    storage::wal::group::GroupState,
    types::{GroupId, LogIndex, LogTime, NodeId, Planted, Term, planted},
};

pub(super) const SECTOR: u64 = 512;
pub(super) const BATCH_HEADER: usize = 48;
const RECORD_HEADER: usize = 9;
const SEGMENT_HEADER: usize = 64;
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"QUORWAL\n";

const KIND_BATCH: u8 = 1;
const KIND_APPEND: u8 = 2;
const KIND_PURGE: u8 = 3;
const KIND_GROUP: u8 = 4;

const PAYLOAD_NOOP: u8 = 1;
const PAYLOAD_COMMAND: u8 = 2;
const PAYLOAD_MEMBERSHIP: u8 = 3;

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) offset: u64,
}

/// The first sector of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) sequence: u64,
    /// Where the previous segment ended; all of it was durable then.
    pub(super) previous_end: u64,
    /// The CRC of the last record in it.
    pub(super) chain: u32,
}

/// What a segment's first sector says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderRead {
    Header(SegmentHeader),
    UnknownVersion(u32),
    Invalid,
}

impl SegmentHeader {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SECTOR as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.previous_end.to_le_bytes());
        bytes.extend_from_slice(&self.chain.to_le_bytes());
        bytes.resize(SEGMENT_HEADER, 0);
        let crc = header_crc(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes.resize(SECTOR as usize, 0);
        bytes
    }

    pub(super) fn decode(segment: &[u8]) -> HeaderRead {
        let Some(bytes) = segment.get(..SEGMENT_HEADER) else { return HeaderRead::Invalid };
        let mut rest = Cursor(&bytes[8..]);
        // Magic, version, checksum and length of the header stay where they are in every version.
        let (version, crc) = (rest.u32().expect("64 bytes"), rest.u32().expect("64 bytes"));
        if bytes[..8] != MAGIC || crc != header_crc(bytes) {
            return HeaderRead::Invalid;
        }
        if version != VERSION {
            return HeaderRead::UnknownVersion(version);
        }
        HeaderRead::Header(Self {
            sequence: rest.u64().expect("64 bytes"),
            previous_end: rest.u64().expect("64 bytes"),
            chain: rest.u32().expect("64 bytes"),
        })
    }
}

fn header_crc(bytes: &[u8]) -> u32 {
    crc32c_append(crc32c(&bytes[..12]), &bytes[16..SEGMENT_HEADER])
}

/// What a batch says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) crc: u32,
    /// The CRC of the record before the batch.
    pub(super) chain: u32,
    /// What was known durable when it was written.
    pub(super) durable: Place,
    pub(super) records_bytes: usize,
}

impl BatchHeader {
    /// Reads the batch at an offset of a segment; `None` where there is none of this segment.
    pub(super) fn decode(segment: &[u8], sequence: u64, offset: u64) -> Option<Self> {
        let start = usize::try_from(offset).ok()?;
        let bytes = segment.get(start..start.checked_add(BATCH_HEADER)?)?;
        let mut rest = Cursor(bytes);
        let (length, crc, kind) = (rest.u32()?, rest.u32()?, rest.u32()?);
        let (chain, place) = (rest.u32()?, rest.u64()?);
        let known = length == (BATCH_HEADER - 8) as u32 && kind == u32::from(KIND_BATCH);
        if !known || place != offset || crc != batch_crc(bytes, sequence) {
            return None;
        }
        let durable = Place { sequence: rest.u64()?, offset: rest.u64()? };
        Some(Self { crc, chain, durable, records_bytes: rest.u32()? as usize })
    }

    /// Where the next batch starts.
    pub(super) fn end(self, offset: u64) -> u64 {
        (offset + (BATCH_HEADER + self.records_bytes) as u64).next_multiple_of(SECTOR)
    }
}

fn batch_crc(header: &[u8], sequence: u64) -> u32 {
    let sequence = if planted(Planted::RecycledSegmentReadAsNew) { 0 } else { sequence };
    let crc = crc32c_append(crc32c(&sequence.to_le_bytes()), &header[..4]);
    crc32c_append(crc, &header[8..BATCH_HEADER])
}

/// Completes a buffer of [`BATCH_HEADER`] free bytes and records into a batch of whole sectors;
/// gives the CRC of its last record.
pub(super) fn seal(buffer: &mut Vec<u8>, place: Place, chain: u32, durable: Place) -> u32 {
    let records_bytes =
        u32::try_from(buffer.len() - BATCH_HEADER).expect("batches are below 4 GiB");
    let mut header = [0; BATCH_HEADER];
    header[0..4].copy_from_slice(&((BATCH_HEADER - 8) as u32).to_le_bytes());
    header[8] = KIND_BATCH;
    header[12..16].copy_from_slice(&chain.to_le_bytes());
    header[16..24].copy_from_slice(&place.offset.to_le_bytes());
    header[24..32].copy_from_slice(&durable.sequence.to_le_bytes());
    header[32..40].copy_from_slice(&durable.offset.to_le_bytes());
    header[40..44].copy_from_slice(&records_bytes.to_le_bytes());
    let mut chain = batch_crc(&header, place.sequence);
    header[4..8].copy_from_slice(&chain.to_le_bytes());
    buffer[..BATCH_HEADER].copy_from_slice(&header);
    let mut start = BATCH_HEADER;
    while start < buffer.len() {
        let end = start + RECORD_HEADER + body_bytes(&buffer[start..]);
        chain = record_crc(chain, &buffer[start..end]);
        buffer[start + 4..start + 8].copy_from_slice(&chain.to_le_bytes());
        start = end;
    }
    buffer.resize(buffer.len().next_multiple_of(SECTOR as usize), 0);
    chain
}

fn body_bytes(record: &[u8]) -> usize {
    u32::from_le_bytes(record[..4].try_into().expect("four bytes")) as usize
}

fn record_crc(chain: u32, record: &[u8]) -> u32 {
    crc32c_append(crc32c_append(chain, &record[..4]), &record[8..])
}

/// Checks the record at the start of `bytes`; gives its length and CRC.
pub(super) fn check_record(bytes: &[u8], chain: u32) -> Option<(usize, u32)> {
    let length = RECORD_HEADER.checked_add(body_bytes(bytes.get(..RECORD_HEADER)?))?;
    let record = bytes.get(..length)?;
    let crc = record_crc(chain, record);
    (record[4..8] == crc.to_le_bytes()).then_some((length, crc))
}

/// Something that happened to a group.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// Hard state and entries were written.
    Append {
        group: GroupId,
        hard: HardState,
        leader_term: Term,
        truncate_from: Option<LogIndex>,
        restart: Option<LogStart>,
        entries: Vec<Entry>,
    },
    /// Entries up to an index are no longer needed.
    Purge { group: GroupId, start: LogStart },
    /// How a group stood when the segment was opened.
    Group { group: GroupId, state: GroupState },
}

fn begin(buffer: &mut Vec<u8>, kind: u8, group: GroupId) -> usize {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; 8]);
    buffer.push(kind);
    put(buffer, group.value());
    start
}

fn finish(buffer: &mut [u8], start: usize) {
    let body = buffer.len() - start - RECORD_HEADER;
    let body = u32::try_from(body).expect("records are below 4 GiB");
    buffer[start..start + 4].copy_from_slice(&body.to_le_bytes());
}

fn put(buffer: &mut Vec<u8>, value: u64) {
    buffer.extend_from_slice(&value.to_le_bytes());
}

fn put_hard(buffer: &mut Vec<u8>, hard: HardState, leader_term: Term) {
    put(buffer, hard.term.value());
    put(buffer, hard.vote.map_or(0, NodeId::value));
    put(buffer, hard.commit.value());
    put(buffer, leader_term.value());
}

fn put_start(buffer: &mut Vec<u8>, start: LogStart) {
    put(buffer, start.index.value());
    put(buffer, start.term.value());
    put(buffer, start.time.as_millis());
}

pub(super) fn put_append(
    buffer: &mut Vec<u8>,
    group: GroupId,
    (hard, leader_term): (HardState, Term),
    truncate_from: Option<LogIndex>,
    restart: Option<LogStart>,
    entries: &[Entry],
) {
    let record = begin(buffer, KIND_APPEND, group);
    put_hard(buffer, hard, leader_term);
    put(buffer, truncate_from.map_or(0, LogIndex::value));
    buffer.push(u8::from(restart.is_some()));
    if let Some(start) = restart {
        put_start(buffer, start);
    }
    put(buffer, entries.first().map_or(0, |entry| entry.index.value()));
    put(buffer, entries.len() as u64);
    for entry in entries {
        put_entry(buffer, entry);
    }
    finish(buffer, record);
}

fn put_entry(buffer: &mut Vec<u8>, entry: &Entry) {
    put(buffer, entry.term.value());
    put(buffer, entry.time.as_millis());
    match &entry.payload {
        Payload::Noop => buffer.push(PAYLOAD_NOOP),
        Payload::Command(data) => {
            buffer.push(PAYLOAD_COMMAND);
            put(buffer, data.len() as u64);
            buffer.extend_from_slice(data);
        }
        Payload::Membership(membership) => {
            buffer.push(PAYLOAD_MEMBERSHIP);
            for part in [&membership.voters, &membership.outgoing, &membership.learners] {
                put(buffer, part.len() as u64);
                part.iter().for_each(|node| put(buffer, node.value()));
            }
        }
    }
}

pub(super) fn put_purge(buffer: &mut Vec<u8>, group: GroupId, start: LogStart) {
    let record = begin(buffer, KIND_PURGE, group);
    put_start(buffer, start);
    finish(buffer, record);
}

pub(super) fn put_group(buffer: &mut Vec<u8>, group: GroupId, state: &GroupState) {
    let record = begin(buffer, KIND_GROUP, group);
    put_hard(buffer, state.hard, state.leader_term);
    put_start(buffer, state.start);
    put(buffer, state.last.value());
    finish(buffer, record);
}

impl Record {
    /// Reads a record whose checksum holds; `None` where this version knows no such record.
    pub(super) fn decode(record: &[u8]) -> Option<Self> {
        let kind = record[8];
        let mut rest = Cursor(&record[RECORD_HEADER..]);
        let group = GroupId::new(rest.u64()?);
        let record = match kind {
            KIND_APPEND => {
                let (hard, leader_term) = rest.hard()?;
                let truncate_from = Some(LogIndex::new(rest.u64()?)).filter(|from| !from.is_zero());
                let restart = match rest.u8()? {
                    0 => None,
                    1 => Some(rest.start()?),
                    _ => return None,
                };
                let entries = rest.entries()?;
                Self::Append { group, hard, leader_term, truncate_from, restart, entries }
            }
            KIND_PURGE => Self::Purge { group, start: rest.start()? },
            KIND_GROUP => {
                let (hard, leader_term) = rest.hard()?;
                let (start, last) = (rest.start()?, LogIndex::new(rest.u64()?));
                Self::Group { group, state: GroupState { hard, leader_term, start, last } }
            }
            _ => return None,
        };
        rest.0.is_empty().then_some(record)
    }
}

/// What is left to read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn hard(&mut self) -> Option<(HardState, Term)> {
        let term = Term::new(self.u64()?);
        let vote = Some(NodeId::new(self.u64()?)).filter(|node| !node.is_zero());
        let commit = LogIndex::new(self.u64()?);
        Some((HardState { term, vote, commit }, Term::new(self.u64()?)))
    }

    fn start(&mut self) -> Option<LogStart> {
        Some(LogStart {
            index: LogIndex::new(self.u64()?),
            term: Term::new(self.u64()?),
            time: LogTime::from_millis(self.u64()?),
        })
    }

    fn entries(&mut self) -> Option<Vec<Entry>> {
        let mut index = LogIndex::new(self.u64()?);
        let count = self.u64()?;
        let mut entries = Vec::new();
        for _ in 0..count {
            let (term, time) = (Term::new(self.u64()?), LogTime::from_millis(self.u64()?));
            entries.push(Entry { index, term, time, payload: self.payload()? });
            index = index.next();
        }
        Some(entries)
    }

    fn payload(&mut self) -> Option<Payload> {
        Some(match self.u8()? {
            PAYLOAD_NOOP => Payload::Noop,
            PAYLOAD_COMMAND => {
                let len = usize::try_from(self.u64()?).ok()?;
                Payload::Command(Bytes::copy_from_slice(self.take(len)?))
            }
            PAYLOAD_MEMBERSHIP => Payload::Membership(Membership {
                voters: self.nodes()?,
                outgoing: self.nodes()?,
                learners: self.nodes()?,
            }),
            _ => return None,
        })
    }

    fn nodes<C: FromIterator<NodeId>>(&mut self) -> Option<C> {
        let count = self.u64()?;
        (0..count).map(|_| self.u64().map(NodeId::new)).collect()
    }
}
