//! Files in memory that fail as disks do: the double behind tests and the simulator.
//!
//! A write is visible at once and durable with the next sync. [`MemoryFiles::crash`] decides by
//! chance what becomes of every 512-byte sector that was written since: it is old, new, zeroed or
//! garbage; and how many of the names' changes since the last sync of the directory are kept, in
//! their order. Sectors that were not written are never touched. The first sector of a file, which
//! holds what is rewritten in place, is only ever old or new once it was written, as on real disks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    storage::files::{File, Files},
    types::Rng,
};

/// What a disk writes whole or not, in bytes.
const SECTOR: usize = 512;

/// A directory of files in memory. Clones are the same directory.
#[derive(Clone, Debug, Default)]
pub struct MemoryFiles {
    disk: Arc<Mutex<Disk>>,
}

/// A failure that is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A write fails half way with an input/output error.
    Write,
    /// A sync of a file fails, and what it was to make durable is lost with the next crash, also
    /// where a later sync succeeds.
    Sync,
    /// A sync of the directory fails.
    SyncDirectory,
    /// A sync of a file fails half way: a crash decides by sector what it made durable.
    Torn,
    /// The disk is full: a write or a creation fails.
    Full,
}

#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<u64, Data>,
    next_file: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// The changes of names since the last sync of the directory.
    changes: Vec<Change>,
    /// Grows with each crash; handles from before are dead.
    generation: u64,
    fault: Option<(Fault, u64)>,
    syncs: u64,
}

#[derive(Debug, Default)]
struct Data {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// The sectors in which the two may differ.
    dirty: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
enum Change {
    Name(String, u64),
    Rename(String, String),
    Remove(String),
}

impl MemoryFiles {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Power is lost: what was not synced is kept, lost or damaged by chance. Open files are dead
    /// from here on.
    pub fn crash(&self, rng: &mut Rng) {
        let mut disk = self.lock();
        disk.generation += 1;
        disk.fault = None;
        let kept = rng.below(disk.changes.len() as u64 + 1) as usize;
        let mut names = disk.durable_names.clone();
        for change in disk.changes.drain(..).take(kept) {
            change.apply(&mut names);
        }
        disk.names.clone_from(&names);
        disk.durable_names = names;
        let live: BTreeSet<u64> = disk.names.values().copied().collect();
        disk.files.retain(|file, _| live.contains(file));
        for data in disk.files.values_mut() {
            data.crash(rng);
        }
    }

    /// Makes the operation that comes `after` others of its kind fail, once: a write or creation,
    /// a sync of a file, or one of the directory.
    pub fn fail(&self, fault: Fault, after: u64) {
        self.lock().fault = Some((fault, after));
    }

    /// Takes back a failure that has not come.
    pub fn heal(&self) {
        self.lock().fault = None;
    }

    /// Changes bits of a file behind everyone's back, durably.
    ///
    /// # Panics
    /// Where there is no such byte.
    pub fn damage(&self, name: &str, offset: u64, xor: u8) {
        let mut disk = self.lock();
        let file = disk.names[name];
        let data = disk.files.get_mut(&file).expect("names name files");
        let offset = usize::try_from(offset).expect("files in memory are small");
        data.now[offset] ^= xor;
        data.durable[offset] ^= xor;
    }

    /// The bytes of a file as they are visible now; `None` where it does not exist.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.lock();
        let file = disk.names.get(name)?;
        disk.files.get(file).map(|data| data.now.clone())
    }

    /// Puts a file there, durably.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        let mut disk = self.lock();
        let file = disk.add(Data { now: bytes.into(), durable: bytes.into(), ..Data::default() });
        disk.names.insert(name.into(), file);
        disk.durable_names.insert(name.into(), file);
    }

    /// How many syncs of files and of the directory there were.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        // A test that panicked under the lock has failed anyway.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    fn add(&mut self, data: Data) -> u64 {
        self.next_file += 1;
        self.files.insert(self.next_file, data);
        self.next_file
    }

    fn change(&mut self, change: Change) {
        change.clone().apply(&mut self.names);
        self.changes.push(change);
    }

    /// Whether a fault of this kind strikes now.
    fn strikes(&mut self, kinds: &[Fault]) -> Option<Fault> {
        match &mut self.fault {
            Some((fault, after)) if kinds.contains(fault) => {
                if *after == 0 {
                    return self.fault.take().map(|(fault, _)| fault);
                }
                *after -= 1;
                None
            }
            _ => None,
        }
    }
}

impl Change {
    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Name(name, file) => {
                names.insert(name, file);
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(&from) {
                    names.insert(to, file);
                }
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
        }
    }
}

impl Data {
    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
        }
        self.now[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn sync(&mut self) {
        self.durable.resize(self.now.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let range = sector_range(sector, self.now.len());
            self.durable[range.clone()].copy_from_slice(&self.now[range]);
        }
    }

    fn crash(&mut self, rng: &mut Rng) {
        // Half of the crashes lose everything unsynced or nothing, which chance by sector would
        // almost never do.
        let whole = rng.below(4);
        if self.now.len() != self.durable.len() && rng.below(2) == 0 {
            self.now.truncate(self.durable.len());
        }
        let mut after = self.durable.clone();
        after.resize(self.now.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let range = sector_range(sector, after.len());
            let in_place = sector == 0 && after[range.clone()].iter().any(|&byte| byte != 0);
            let chance = if in_place { rng.below(2) * 7 } else { rng.below(8) };
            match (whole, chance) {
                (0, _) => {}
                (1, _) | (_, 0..4) => after[range.clone()].copy_from_slice(&self.now[range]),
                (_, 4) => after[range].fill(0),
                (_, 5) => after[range].fill_with(|| rng.next_u64() as u8),
                _ => {}
            }
        }
        self.now.clone_from(&after);
        self.durable = after;
    }
}

fn sector_range(sector: usize, len: usize) -> std::ops::Range<usize> {
    (sector * SECTOR).min(len)..((sector + 1) * SECTOR).min(len)
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error())
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())
}

fn not_found(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no {name}"))
}

impl Files for MemoryFiles {
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn File>> {
        let mut disk = self.lock();
        if disk.strikes(&[Fault::Write, Fault::Full]).is_some() {
            return Err(full());
        }
        if disk.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        let zeroes = vec![0; usize::try_from(len).expect("files in memory are small")];
        let file = disk.add(Data { now: zeroes.clone(), durable: zeroes, ..Data::default() });
        disk.change(Change::Name(name.into(), file));
        let generation = disk.generation;
        drop(disk);
        Ok(Box::new(MemoryFile { disk: Arc::clone(&self.disk), file, generation }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let disk = self.lock();
        let file = *disk.names.get(name).ok_or_else(|| not_found(name))?;
        let generation = disk.generation;
        drop(disk);
        Ok(Box::new(MemoryFile { disk: Arc::clone(&self.disk), file, generation }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.lock();
        if !disk.names.contains_key(from) {
            return Err(not_found(from));
        }
        disk.change(Change::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.lock();
        if !disk.names.contains_key(name) {
            return Err(not_found(name));
        }
        disk.change(Change::Remove(name.into()));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.syncs += 1;
        if disk.strikes(&[Fault::SyncDirectory]).is_some() {
            return Err(broken());
        }
        disk.changes.clear();
        disk.durable_names = disk.names.clone();
        Ok(())
    }

    fn path_of(&self, name: &str) -> String {
        name.into()
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    file: u64,
    generation: u64,
}

impl MemoryFile {
    fn with<T>(&self, run: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        if disk.generation != self.generation {
            return Err(io::Error::other("the file was open when the power went"));
        }
        run(&mut disk)
    }

    fn with_data<T>(&self, run: impl FnOnce(&mut Data) -> io::Result<T>) -> io::Result<T> {
        self.with(|disk| run(disk.files.get_mut(&self.file).expect("files live till a crash")))
    }
}

impl File for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with_data(|data| {
            let offset = usize::try_from(offset).expect("files in memory are small");
            let bytes = data.now.get(offset..offset + buffer.len());
            buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("files in memory are small");
        let fault = self.with(|disk| Ok(disk.strikes(&[Fault::Write, Fault::Full])))?;
        self.with_data(|data| match fault {
            None => {
                data.write(bytes, offset);
                Ok(())
            }
            Some(Fault::Full) => Err(full()),
            Some(_) => {
                data.write(&bytes[..bytes.len() / 2], offset);
                Err(broken())
            }
        })
    }

    fn sync_data(&mut self) -> io::Result<()> {
        let fault = self.with(|disk| {
            disk.syncs += 1;
            Ok(disk.strikes(&[Fault::Sync, Fault::Torn]))
        })?;
        self.with_data(|data| {
            if let Some(fault) = fault {
                if fault == Fault::Sync {
                    // The kernel marks the pages clean all the same; they stay visible till a crash.
                    data.dirty.clear();
                }
                return Err(broken());
            }
            data.sync();
            Ok(())
        })
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.with_data(|data| {
            data.now.resize(usize::try_from(len).expect("files in memory are small"), 0);
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with_data(|data| Ok(data.now.len() as u64))
    }
}
