//! Writing the log: one buffer, one write and one sync for all that was appended.
//!
//! Never reads, never retries: after a failed write or sync the log takes nothing more, because
//! what the disk holds is then unknown (raft-rules 26), and the process is to end.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    raft::{Append, HardState, LogStart},
    storage::{
        Error,
        files::{File, Files},
        wal::{
            format::{self, BATCH_HEADER, Place, SECTOR, SegmentHeader},
            group::{Group, GroupState, RecoveredGroup},
            recover,
        },
    },
    types::{GroupId, LogIndex, LogTime, Planted, Term, planted},
};

/// A buffer that grew beyond this many bytes is given back after the sync.
const BUFFER_BYTES_KEPT: usize = 4 << 20;

/// How the log uses the disk.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// The size of a segment, in bytes; a larger batch gets a larger one.
    pub segment_bytes: u64,
    /// How many segments that are no longer needed are kept to be used again.
    pub spare_segments_max: usize,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, spare_segments_max: 4 }
    }
}

/// The log of all groups of a node. One thread writes it.
#[derive(Debug)]
pub struct Wal {
    files: Box<dyn Files>,
    options: WalOptions,
    groups: BTreeMap<GroupId, Group>,
    /// How the groups stood at the last sync; what a new segment opens with.
    synced: BTreeMap<GroupId, GroupState>,
    /// The full segments, the oldest first.
    full: VecDeque<Segment>,
    tail: Tail,
    spares: Vec<Spare>,
    /// Room for the batch's header, then the records since the last sync.
    buffer: Vec<u8>,
    /// The last index of each group with entries in the buffer.
    buffered: BTreeMap<GroupId, LogIndex>,
    /// The groups with records in the buffer.
    touched: Vec<GroupId>,
    durable: Place,
    /// What the last batch on disk says to be durable.
    proven: Place,
    recycled: u64,
    failed: Option<String>,
}

/// A segment and the last entry of each group in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Segment {
    pub(super) sequence: u64,
    pub(super) bytes: u64,
    pub(super) last: BTreeMap<GroupId, LogIndex>,
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) segment: Segment,
    pub(super) file: Box<dyn File>,
    /// Where the next batch goes.
    pub(super) offset: u64,
    /// The CRC of the last record.
    pub(super) chain: u32,
}

/// A file to be used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) bytes: u64,
}

impl Segment {
    /// Notes that entries of a group up to `last` are in this segment.
    pub(super) fn note(&mut self, group: GroupId, last: LogIndex) {
        let known = self.last.entry(group).or_default();
        *known = last.max(*known);
    }

    /// Notes that a group's entries from `from` on are void.
    pub(super) fn note_truncation(&mut self, group: GroupId, from: LogIndex) {
        if let Some(last) = self.last.get_mut(&group) {
            *last = from.previous().min(*last);
        }
    }
}

pub(super) fn segment_name(sequence: u64) -> String {
    format!("{sequence:016x}.wal")
}

pub(super) fn spare_name(sequence: u64) -> String {
    format!("{sequence:016x}.spare")
}

impl Wal {
    /// Whether a directory holds a log, whole or not.
    ///
    /// # Errors
    /// Where it cannot be listed.
    pub fn exists(files: &impl Files) -> Result<bool, Error> {
        let names = files.list().map_err(|error| Error::io("list", files.path_of(""), error))?;
        Ok(names.iter().any(|name| name.ends_with(".wal")))
    }

    /// Opens the log of a directory, or begins it; gives what it holds of each group. A torn tail
    /// is cut, and the cut synced; all that is given back is durable.
    ///
    /// # Errors
    /// Where something is corrupt, missing or of an unknown version, or the disk fails.
    pub fn open(
        files: impl Files + 'static,
        options: WalOptions,
    ) -> Result<(Self, BTreeMap<GroupId, RecoveredGroup>), Error> {
        let files: Box<dyn Files> = Box::new(files);
        let recovered = recover::read(files.as_ref())?;
        let groups: BTreeMap<_, _> =
            recovered.groups.iter().map(|(&id, log)| (id, Group::recovered(log))).collect();
        let logs = recovered.groups.into_iter().map(|(id, log)| (id, log.finish())).collect();
        let tail = match recovered.tail {
            Some(tail) => tail,
            None => first_segment(files.as_ref(), options)?,
        };
        let mut wal = Self {
            files,
            options,
            synced: groups.iter().map(|(&id, group)| (id, group.state)).collect(),
            groups,
            full: recovered.full,
            durable: Place { sequence: tail.segment.sequence, offset: tail.offset },
            tail,
            spares: recovered.spares,
            buffer: vec![0; BATCH_HEADER],
            buffered: BTreeMap::new(),
            touched: Vec::new(),
            proven: Place::default(),
            recycled: 0,
            failed: None,
        };
        wal.free_segments()?;
        Ok((wal, logs))
    }

    /// Takes a write into the buffer; [`Wal::sync`] makes it durable.
    ///
    /// # Errors
    /// Where an earlier write failed.
    ///
    /// # Panics
    /// Where the entries do not follow the log.
    pub fn append(&mut self, group: GroupId, append: &Append) -> Result<(), Error> {
        self.check()?;
        let vote = append.hard.vote.filter(|_| !planted(Planted::VoteNotPersisted));
        let hard = (HardState { vote, ..append.hard }, append.log_mark.leader_term);
        let mut restart = append.reset_to;
        let state = self.groups.entry(group).or_default();
        if let Some(start) = restart.take_if(|start| state.connects(*start)) {
            state.purge(start);
            format::put_purge(&mut self.buffer, group, start);
        }
        state.append(hard, append.truncate_from, restart, &append.entries);
        format::put_append(
            &mut self.buffer,
            group,
            hard,
            append.truncate_from,
            restart,
            &append.entries,
        );
        let void_from = restart.map(|_| LogIndex::ZERO).or(append.truncate_from);
        if let Some(from) = void_from {
            self.full.iter_mut().for_each(|segment| segment.note_truncation(group, from));
            self.tail.segment.note_truncation(group, from);
            self.buffered.entry(group).and_modify(|last| *last = from.previous().min(*last));
        }
        if let Some(entry) = append.entries.last() {
            self.buffered.insert(group, entry.index);
        }
        self.touch(group);
        Ok(())
    }

    /// Forgets a group's entries up to and including `index`. What only they needed of the disk is
    /// freed by the [`Wal::sync`] that makes this durable.
    ///
    /// # Errors
    /// Where an earlier write failed.
    pub fn purge(
        &mut self,
        group: GroupId,
        index: LogIndex,
        term: Term,
        time: LogTime,
    ) -> Result<(), Error> {
        self.check()?;
        let start = LogStart { index, term, time };
        self.groups.entry(group).or_default().purge(start);
        format::put_purge(&mut self.buffer, group, start);
        self.touch(group);
        Ok(())
    }

    /// Makes everything appended since the last sync durable, with one write and one sync; frees
    /// the segments that nothing needs any more. With nothing appended it does nothing.
    ///
    /// # Errors
    /// Where the disk fails. Nothing is known then of what was appended since the last sync, and
    /// every later call fails: the process must end.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.check()?;
        if self.buffer.len() == BATCH_HEADER {
            return Ok(());
        }
        self.write_batch().inspect_err(|error| self.failed = Some(error.to_string()))
    }

    /// Syncs, and leaves a batch behind that proves all before it durable, so that damage done
    /// while the node is down is told from a torn tail.
    ///
    /// # Errors
    /// As [`Wal::sync`].
    pub fn close(mut self) -> Result<(), Error> {
        self.sync()?;
        self.write_batch()
    }

    /// How many bytes the log's segments and spares take on the disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        let full: u64 = self.full.iter().map(|segment| segment.bytes).sum();
        let spare: u64 = self.spares.iter().map(|spare| spare.bytes).sum();
        full + spare + self.tail.segment.bytes
    }

    /// The segment and offset below which the log itself, read back, knows everything to have been
    /// durable: damage there is corruption and no torn tail. Zero before the first sync.
    #[must_use]
    pub const fn proven(&self) -> (u64, u64) {
        (self.proven.sequence, self.proven.offset)
    }

    /// How many segments were used again since it was opened.
    #[must_use]
    pub const fn recycled(&self) -> u64 {
        self.recycled
    }

    /// How many bytes were appended since the last sync.
    #[must_use]
    pub fn unsynced_bytes(&self) -> u64 {
        (self.buffer.len() - BATCH_HEADER) as u64
    }

    fn check(&self) -> Result<(), Error> {
        match &self.failed {
            None => Ok(()),
            Some(first) => Err(Error::Poisoned { first: first.clone() }),
        }
    }

    fn touch(&mut self, group: GroupId) {
        if self.touched.last() != Some(&group) {
            self.touched.push(group);
        }
    }

    fn write_batch(&mut self) -> Result<(), Error> {
        let bytes = (self.buffer.len() as u64).next_multiple_of(SECTOR);
        if self.tail.offset + bytes > self.tail.segment.bytes {
            self.open_next_segment(bytes)?;
        }
        let tail = &mut self.tail;
        let place = Place { sequence: tail.segment.sequence, offset: tail.offset };
        let chain = format::seal(&mut self.buffer, place, tail.chain, self.durable);
        let file =
            |error| Error::io("write", self.files.path_of(&segment_name(place.sequence)), error);
        tail.file.write_at(&self.buffer, place.offset).map_err(file)?;
        if !planted(Planted::AcknowledgedBeforeSync) {
            tail.file.sync_data().map_err(file)?;
        }
        (tail.offset, tail.chain) = (place.offset + bytes, chain);
        self.proven = self.durable;
        self.durable = Place { offset: tail.offset, ..place };
        for (group, last) in std::mem::take(&mut self.buffered) {
            tail.segment.note(group, last);
        }
        for group in self.touched.drain(..) {
            self.synced.insert(group, self.groups[&group].state);
        }
        self.buffer.truncate(BATCH_HEADER);
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        self.free_segments()
    }

    /// Goes on in a new segment with room for `bytes`. All of the old one is durable; the new one's
    /// first batch becomes so with the batch that follows.
    fn open_next_segment(&mut self, bytes: u64) -> Result<(), Error> {
        let opening = Opening {
            sequence: self.tail.segment.sequence + 1,
            previous_end: self.tail.offset,
            chain: self.tail.chain,
            durable: self.durable,
        };
        let mut batch = vec![0; BATCH_HEADER];
        for (&group, state) in &self.synced {
            format::put_group(&mut batch, group, state);
        }
        let needed = SECTOR + (batch.len() as u64).next_multiple_of(SECTOR) + bytes;
        let (file, bytes) = self.take_file(opening.sequence, needed)?;
        let next = opening.write(self.files.as_ref(), file, bytes, batch)?;
        self.full.push_back(std::mem::replace(&mut self.tail, next).segment);
        Ok(())
    }

    /// A file of the right name with at least `needed` bytes: a spare one, or a new one.
    fn take_file(&mut self, sequence: u64, needed: u64) -> Result<(Box<dyn File>, u64), Error> {
        let name = segment_name(sequence);
        let Some(fit) = self.spares.iter().position(|spare| spare.bytes >= needed) else {
            let bytes = self.options.segment_bytes.max(needed).next_multiple_of(SECTOR);
            return Ok((create(self.files.as_ref(), &name, bytes)?, bytes));
        };
        let spare = self.spares.swap_remove(fit);
        self.recycled += 1;
        let path = self.files.path_of(&name);
        let renamed = self.files.rename(&spare.name, &name).and_then(|()| self.files.sync_dir());
        renamed.map_err(|error| Error::io("rename a spare segment to", &path, error))?;
        let file = self.files.open(&name).map_err(|error| Error::io("open", &path, error))?;
        Ok((file, spare.bytes))
    }

    /// Lets go of the oldest segments for as long as no group's live entries are in them. Each
    /// change is synced by itself, so that a crash never leaves a gap.
    fn free_segments(&mut self) -> Result<(), Error> {
        while let Some(oldest) = self.full.front() {
            let needed = oldest.last.iter().any(|(group, &last)| {
                self.synced.get(group).is_none_or(|state| last > state.start.index)
            });
            if needed {
                return Ok(());
            }
            let (name, spare) = (segment_name(oldest.sequence), spare_name(oldest.sequence));
            let standard = oldest.bytes <= self.options.segment_bytes.next_multiple_of(SECTOR);
            let known = self.spares.iter().any(|kept| kept.name == spare);
            let keep = standard && !known && self.spares.len() < self.options.spare_segments_max;
            let freed =
                if keep { self.files.rename(&name, &spare) } else { self.files.remove(&name) };
            freed
                .and_then(|()| self.files.sync_dir())
                .map_err(|error| Error::io("free", self.files.path_of(&name), error))?;
            if keep {
                self.spares.push(Spare { name: spare, bytes: oldest.bytes });
            }
            self.full.pop_front();
        }
        Ok(())
    }
}

fn create(files: &dyn Files, name: &str, bytes: u64) -> Result<Box<dyn File>, Error> {
    let file = files.create(name, bytes);
    file.and_then(|file| files.sync_dir().map(|()| file))
        .map_err(|error| Error::io("create", files.path_of(name), error))
}

/// Begins the log of an empty directory.
fn first_segment(files: &dyn Files, options: WalOptions) -> Result<Tail, Error> {
    let bytes = options.segment_bytes.next_multiple_of(SECTOR).max(4 * SECTOR);
    let file = create(files, &segment_name(1), bytes)?;
    let opening = Opening { sequence: 1, previous_end: 0, chain: 0, durable: Place::default() };
    let mut tail = opening.write(files, file, bytes, vec![0; BATCH_HEADER])?;
    tail.file
        .sync_data()
        .map_err(|error| Error::io("write", files.path_of(&segment_name(1)), error))?;
    Ok(tail)
}

/// What a new segment begins with.
struct Opening {
    sequence: u64,
    previous_end: u64,
    chain: u32,
    durable: Place,
}

impl Opening {
    /// Writes header and first batch, without a sync.
    fn write(
        &self,
        files: &dyn Files,
        mut file: Box<dyn File>,
        bytes: u64,
        mut batch: Vec<u8>,
    ) -> Result<Tail, Error> {
        let Self { sequence, previous_end, chain, durable } = *self;
        let mut start = SegmentHeader { sequence, previous_end, chain }.encode();
        let chain = format::seal(&mut batch, Place { sequence, offset: SECTOR }, chain, durable);
        start.extend_from_slice(&batch);
        file.write_at(&start, 0)
            .map_err(|error| Error::io("write", files.path_of(&segment_name(sequence)), error))?;
        let segment = Segment { sequence, bytes, last: BTreeMap::new() };
        Ok(Tail { segment, file, offset: start.len() as u64, chain })
    }
}
