//! The real files.
//!
//! A new file is given its blocks and is then written through once with zeroes: without that, each
//! later sync of a block written for the first time would also have to write the file system's
//! journal. Log segments are used again, so this is paid a few times in a node's life.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, fallocate};

use crate::storage::files::{File, Files};

/// How much is written at a time while a new file is filled, in bytes.
const FILL_BYTES: usize = 64 << 10;

/// The files of one directory.
#[derive(Clone, Debug)]
pub struct DiskFiles {
    directory: PathBuf,
}

impl DiskFiles {
    /// Uses a directory, which is made where it is missing; its own name is synced.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(directory: &Path) -> io::Result<Self> {
        if !directory.is_dir() {
            fs::create_dir_all(directory)?;
            if let Some(parent) = directory.parent() {
                sync_directory(parent)?;
            }
        }
        Ok(Self { directory: directory.into() })
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    // An empty path is the parent of a bare name.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    fs::File::open(directory)?.sync_all()
}

impl Files for DiskFiles {
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn File>> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, len) {
            // Some file systems cannot; the zeroes below take the blocks as well.
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            result => result?,
        }
        let zeroes = vec![0; FILL_BYTES];
        let mut offset = 0;
        while offset < len {
            let part = usize::try_from(len - offset).unwrap_or(usize::MAX).min(FILL_BYTES);
            file.write_all_at(&zeroes[..part], offset)?;
            offset += part as u64;
        }
        file.sync_all()?;
        Ok(Box::new(DiskFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn File>> {
        let path = self.directory.join(name);
        Ok(Box::new(DiskFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.directory.join(from), self.directory.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.directory.join(name))
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_directory(&self.directory)
    }

    fn path_of(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }
}

#[derive(Debug)]
struct DiskFile(fs::File);

impl File for DiskFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
