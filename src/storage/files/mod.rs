//! A directory of files, as narrow as the log needs it.
//!
//! [`DiskFiles`] is the real one; [`MemoryFiles`] loses, tears and damages what was not synced, and
//! is how tests and the simulator own the log's disk.

use std::{fmt, io};

mod disk;
mod memory;

pub use disk::DiskFiles;
pub(crate) use disk::sync_directory;
pub use memory::{Fault, MemoryFiles};

/// A directory of files.
pub trait Files: fmt::Debug + Send {
    /// Makes a file of `len` zero bytes. Its bytes and length are durable when this returns, its
    /// name is after [`Files::sync_dir`].
    ///
    /// # Errors
    /// What the system says; a file of that name exists.
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn File>>;

    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, name: &str) -> io::Result<Box<dyn File>>;

    /// The names of all files, in no order.
    ///
    /// # Errors
    /// What the system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Gives a file another name, in place of the file that has it. Durable after
    /// [`Files::sync_dir`]; a crash leaves the old name or the new one.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Files::sync_dir`].
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes names durable.
    ///
    /// # Errors
    /// What the system says; then nothing is known and the process must end.
    fn sync_dir(&self) -> io::Result<()>;

    /// Where this is, for messages.
    fn path_of(&self, name: &str) -> String;
}

/// An open file.
pub trait File: fmt::Debug + Send {
    /// Fills the buffer from an offset.
    ///
    /// # Errors
    /// What the system says; the file ends before the buffer is full.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all bytes at an offset.
    ///
    /// # Errors
    /// What the system says; then any part may have been written.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes the bytes written so far durable, and the length where it changed.
    ///
    /// # Errors
    /// What the system says; then nothing is known and the process must end.
    fn sync_data(&mut self) -> io::Result<()>;

    /// Cuts or extends with zeroes.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// What the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether it holds no bytes.
    ///
    /// # Errors
    /// What the system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}
