//! Reading the log back at start.
//!
//! Segments are read in order until something does not check. Whether that is the torn end of the
//! last write or damage to what was durable is decided by the batches and headers behind it: each
//! says how far the log was known durable before it (raft-rules 27). Damage below the largest such
//! place is refused with file and offset; anything else was never acknowledged, and is cut.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    storage::{
        Error,
        files::Files,
        wal::{
            format::{
                BATCH_HEADER, BatchHeader, HeaderRead, Place, Record, SECTOR, SegmentHeader,
                check_record,
            },
            group::GroupLog,
            log::{Segment, Spare, Tail, segment_name},
        },
    },
    types::{GroupId, LogIndex, Planted, planted},
};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    pub(super) groups: BTreeMap<GroupId, GroupLog>,
    pub(super) full: VecDeque<Segment>,
    /// The segment to go on in; `None` where there is no log yet.
    pub(super) tail: Option<Tail>,
    pub(super) spares: Vec<Spare>,
}

/// Reads all segments, cuts a torn tail and makes the rest durable.
pub(super) fn read(files: &dyn Files) -> Result<Recovered, Error> {
    let names = files.list().map_err(|error| Error::io("list", files.path_of(""), error))?;
    let sequences = sequences(&names);
    if let Some(gap) = sequences.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        let file = files.path_of(&segment_name(gap[0] + 1));
        return Err(Error::Missing { what: format!("the log segment {file}") });
    }
    let mut reader = Reader { files, out: Recovered::default() };
    let spares = names.into_iter().filter(|name| name.ends_with(".spare"));
    reader.out.spares = spares.map(|name| reader.spare(name)).collect::<Result<_, _>>()?;

    let mut left = sequences.as_slice();
    let mut next = match left.split_first() {
        Some((&first, later)) => {
            left = later;
            reader.first(first, later)?
        }
        None => None,
    };
    let mut end = None;
    while let Some(opened) = next {
        let reached = reader.segment(&opened)?;
        next = reader.next(&opened, &reached, left)?;
        if next.is_some() {
            left = &left[1..];
            reader.out.full.push_back(reached.segment);
        } else {
            end = Some((opened, reached));
        }
    }
    reader.finish(end, left)
}

/// The numbers of the segments, ascending.
fn sequences(names: &[String]) -> Vec<u64> {
    let number = |name: &String| u64::from_str_radix(name.strip_suffix(".wal")?, 16).ok();
    let mut sequences: Vec<u64> = names.iter().filter_map(number).collect();
    sequences.sort_unstable();
    sequences
}

/// A segment whose header and first batch are whole.
struct Opened {
    header: SegmentHeader,
    bytes: Vec<u8>,
}

/// How far a segment checks.
struct Reached {
    segment: Segment,
    /// Where the next batch is, or would be.
    offset: u64,
    chain: u32,
    /// What the last whole batch proves durable.
    proven: Place,
    damage: Option<Damage>,
}

/// A batch whose header is whole and whose records are not.
struct Damage {
    offset: u64,
    batch_end: u64,
}

/// The records of a whole batch, as ranges of the segment, and the last one's CRC.
struct Batch {
    records: Vec<std::ops::Range<usize>>,
    chain: u32,
    durable: Place,
    end: u64,
}

struct Reader<'a> {
    files: &'a dyn Files,
    out: Recovered,
}

impl Reader<'_> {
    /// Opens the oldest segment. A first segment that was never finished is no log.
    fn first(&self, sequence: u64, later: &[u64]) -> Result<Option<Opened>, Error> {
        let bytes = self.load(sequence)?;
        match self.header(sequence, &bytes)? {
            Some(header) if opening(&header, &bytes).is_some() => {
                Ok(Some(Opened { header, bytes }))
            }
            _ if sequence > 1 || self.proven(&bytes, sequence, later)? > Place::default() => {
                Err(self.corrupt(sequence, 0, "the start of the oldest segment does not check"))
            }
            _ => Ok(None),
        }
    }

    /// Opens the segment after `opened`, where that was gone on in.
    fn next(
        &self,
        opened: &Opened,
        reached: &Reached,
        later: &[u64],
    ) -> Result<Option<Opened>, Error> {
        let place = Place { sequence: opened.header.sequence, offset: reached.offset };
        let broken = reached.damage.as_ref().map_or(reached.offset, |damage| damage.offset);
        let corrupt =
            || self.corrupt(place.sequence, broken, "what was known durable does not check");
        if let Some((&sequence, rest)) = later.split_first() {
            let bytes = self.load(sequence)?;
            let header = self.header(sequence, &bytes)?;
            if let Some(header) = header {
                let fits = header.previous_end == place.offset && header.chain == reached.chain;
                if !fits || reached.damage.is_some() {
                    return Err(corrupt());
                }
                if opening(&header, &bytes).is_some() {
                    return Ok(Some(Opened { header, bytes }));
                }
            }
            let proven = self.proven(&bytes, sequence, rest)?;
            if proven.sequence > place.sequence {
                let offset = header.map_or(0, |_| SECTOR);
                return Err(self.corrupt(sequence, offset, "the segment's start does not check"));
            }
            if proven > place {
                return Err(corrupt());
            }
        }
        if evidence(&opened.bytes, place) > place {
            return Err(corrupt());
        }
        Ok(None)
    }

    /// The furthest place that a segment without a whole start and those behind it prove durable.
    fn proven(&self, bytes: &[u8], sequence: u64, later: &[u64]) -> Result<Place, Error> {
        let mut proven = evidence(bytes, Place { sequence, offset: 0 });
        for &sequence in later {
            let bytes = self.load(sequence)?;
            proven = proven.max(evidence(&bytes, Place { sequence, offset: 0 }));
            if self.header(sequence, &bytes)?.is_some() {
                proven = proven.max(Place { sequence, offset: 0 });
            }
        }
        Ok(proven)
    }

    /// Repeats all batches of a segment.
    fn segment(&mut self, opened: &Opened) -> Result<Reached, Error> {
        let Opened { header, bytes } = opened;
        let sequence = header.sequence;
        let segment = Segment { sequence, bytes: bytes.len() as u64, last: BTreeMap::new() };
        let proven = Place::default();
        let (offset, chain) = (SECTOR, header.chain);
        let mut reached = Reached { segment, offset, chain, proven, damage: None };
        loop {
            match batch(bytes, sequence, reached.offset, reached.chain) {
                None => return Ok(reached),
                Some(Err(damage)) => {
                    reached.damage = Some(damage);
                    return Ok(reached);
                }
                Some(Ok(batch)) => {
                    if batch.durable > (Place { sequence, offset: reached.offset }) {
                        let what = "a batch says that what comes behind it is durable";
                        return Err(self.corrupt(sequence, reached.offset, what));
                    }
                    for range in batch.records {
                        let offset = range.start as u64;
                        self.apply(&bytes[range], &mut reached.segment)
                            .map_err(|what| self.corrupt(sequence, offset, what))?;
                    }
                    (reached.offset, reached.chain) = (batch.end, batch.chain);
                    reached.proven = batch.durable;
                }
            }
        }
    }

    fn apply(&mut self, record: &[u8], segment: &mut Segment) -> Result<(), &'static str> {
        match Record::decode(record).ok_or("the record is whole but unknown")? {
            Record::Append { group, hard, leader_term, truncate_from, restart, entries } => {
                let void_from = restart.map(|_| LogIndex::ZERO).or(truncate_from);
                if let Some(from) = void_from {
                    let full = self.out.full.iter_mut();
                    full.chain([&mut *segment]).for_each(|s| s.note_truncation(group, from));
                }
                if let Some(entry) = entries.last() {
                    segment.note(group, entry.index);
                }
                let log = self.out.groups.entry(group).or_default();
                if !log.append((hard, leader_term), truncate_from, restart, entries) {
                    return Err("the entries do not follow those before them");
                }
            }
            Record::Purge { group, start } => {
                self.out.groups.entry(group).or_default().purge(start);
            }
            Record::Group { state, .. } if state.last < state.start.index => {
                return Err("the group's log ends before it starts");
            }
            Record::Group { group, state } if self.out.full.is_empty() => {
                self.out.groups.insert(group, GroupLog::opened(state));
            }
            Record::Group { group, state } => {
                if self.out.groups.get(&group).map(|log| log.state) != Some(state) {
                    return Err("the group does not stand where the segment before it ends");
                }
            }
        }
        Ok(())
    }

    /// Cuts what is torn, checks that nothing is missing and opens the tail.
    fn finish(
        mut self,
        end: Option<(Opened, Reached)>,
        unfinished: &[u64],
    ) -> Result<Recovered, Error> {
        for (group, log) in &self.out.groups {
            if let Some((first, last)) = log.missing() {
                let path = self.files.path_of("");
                let what = format!("entries {first} to {last} of group {group} in the log {path}");
                return Err(Error::Missing { what });
            }
        }
        if end.is_none() {
            // A first segment that was never finished; nothing was promised with it.
            self.remove(&[1])?;
        }
        self.remove(unfinished)?;
        if let Some((opened, reached)) = end {
            self.out.tail = Some(self.tail(&opened, reached)?);
        }
        self.files.sync_dir().map_err(|error| Error::io("sync", self.files.path_of(""), error))?;
        Ok(self.out)
    }

    /// Removes segments that were begun and never finished; used again they could pass for whole.
    fn remove(&self, sequences: &[u64]) -> Result<(), Error> {
        for &sequence in sequences.iter().rev() {
            let name = segment_name(sequence);
            match self.files.remove(&name).and_then(|()| self.files.sync_dir()) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                result => {
                    result.map_err(|error| Error::io("remove", self.files.path_of(&name), error))?
                }
            }
        }
        Ok(())
    }

    /// Writes again what was read and is not proven durable, zeroes over the torn batch, and syncs.
    /// After a killed process what was read may still be in flight; after a failed sync it may be
    /// in memory alone, and marked as written.
    fn tail(&self, opened: &Opened, reached: Reached) -> Result<Tail, Error> {
        let sequence = opened.header.sequence;
        let path = self.files.path_of(&segment_name(sequence));
        let torn_end = reached.damage.as_ref().map_or(0, |damage| damage.batch_end);
        if reached.damage.is_some() {
            tracing::warn!(file = path, offset = reached.offset, "cut the log's torn tail");
        }
        let Place { sequence: proven_in, offset: proven_to } = reached.proven;
        let start = if proven_in == sequence { proven_to } else { 0 };
        // Where the file ends within its last batch's sector, that is made whole again.
        let room = reached.segment.bytes.max(reached.offset);
        let end = torn_end.max(reached.offset + SECTOR).min(room);
        let index = |offset| usize::try_from(offset).expect("segments fit memory");
        let read = reached.offset.min(reached.segment.bytes);
        let mut bytes = opened.bytes[index(start)..index(read)].to_vec();
        bytes.resize(index(end - start), 0);
        let open = || {
            let mut file = self.files.open(&segment_name(sequence))?;
            file.write_at(&bytes, start)?;
            file.sync_data()?;
            Ok(file)
        };
        let file = open().map_err(|error| Error::io("cut the torn tail of", path, error))?;
        let Reached { segment, offset, chain, .. } = reached;
        Ok(Tail { segment, file, offset, chain })
    }

    fn load(&self, sequence: u64) -> Result<Vec<u8>, Error> {
        let name = segment_name(sequence);
        let load = || {
            let file = self.files.open(&name)?;
            let len = usize::try_from(file.len()?).map_err(std::io::Error::other)?;
            let mut bytes = vec![0; len];
            file.read_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        load().map_err(|error| Error::io("read", self.files.path_of(&name), error))
    }

    /// The header of a segment; `None` where it was never written or is damaged.
    fn header(&self, sequence: u64, bytes: &[u8]) -> Result<Option<SegmentHeader>, Error> {
        match SegmentHeader::decode(bytes) {
            HeaderRead::Header(header) if header.sequence == sequence => Ok(Some(header)),
            HeaderRead::UnknownVersion(version) => Err(Error::UnknownVersion {
                file: self.files.path_of(&segment_name(sequence)),
                version: version.into(),
            }),
            HeaderRead::Header(_) | HeaderRead::Invalid => Ok(None),
        }
    }

    fn spare(&self, name: String) -> Result<Spare, Error> {
        let bytes = self.files.open(&name).and_then(|file| file.len());
        let bytes = bytes.map_err(|error| Error::io("open", self.files.path_of(&name), error))?;
        Ok(Spare { name, bytes })
    }

    fn corrupt(&self, sequence: u64, offset: u64, what: &str) -> Error {
        let file = self.files.path_of(&segment_name(sequence));
        Error::Corrupt { file, offset, what: what.into() }
    }
}

/// The batch with the groups' states that a segment opens with.
fn opening(header: &SegmentHeader, bytes: &[u8]) -> Option<Batch> {
    batch(bytes, header.sequence, SECTOR, header.chain)?.ok()
}

/// The batch at an offset, every record checked; `None` where none goes on from there.
fn batch(bytes: &[u8], sequence: u64, offset: u64, chain: u32) -> Option<Result<Batch, Damage>> {
    let header = BatchHeader::decode(bytes, sequence, offset)?;
    if header.chain != chain && !planted(Planted::RecycledSegmentReadAsNew) {
        return None;
    }
    let mut start = usize::try_from(offset).ok()? + BATCH_HEADER;
    let records_end = start + header.records_bytes;
    let mut batch = Batch {
        records: Vec::new(),
        chain: header.crc,
        durable: header.durable,
        end: header.end(offset),
    };
    while start < records_end {
        let rest = bytes.get(start..records_end).unwrap_or_default();
        let Some((length, crc)) = check_record(rest, batch.chain) else {
            return Some(Err(Damage { offset: start as u64, batch_end: batch.end }));
        };
        batch.records.push(start..start + length);
        (start, batch.chain) = (start + length, crc);
    }
    Some(Ok(batch))
}

/// The furthest place that the batches from a place on to the end of its segment prove durable.
fn evidence(bytes: &[u8], from: Place) -> Place {
    let offsets = (from.offset..bytes.len() as u64).step_by(SECTOR as usize);
    let headers = offsets.filter_map(|at| BatchHeader::decode(bytes, from.sequence, at));
    headers.map(|header| header.durable).max().unwrap_or_default()
}
