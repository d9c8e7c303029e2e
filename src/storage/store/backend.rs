//! Lets redb work on a [`File`] of ours, so that tests and the simulator own the store's disk.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use redb::StorageBackend;

use crate::storage::files::File;

/// One file, one operation at a time.
#[derive(Debug)]
pub(super) struct FileBackend(Mutex<Box<dyn File>>);

impl FileBackend {
    pub(super) fn new(file: Box<dyn File>) -> Self {
        Self(Mutex::new(file))
    }

    fn file(&self) -> MutexGuard<'_, Box<dyn File>> {
        // The file keeps no state of its own that a panic could leave half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        self.file().len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file().read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file().set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file().write_at(data, offset)
    }
}
