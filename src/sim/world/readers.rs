//! Watches of keys and subscriptions of events, which resume at other nodes.

use crate::sim::{invariants::Broken, plan::Settings};

use super::World;

/// All readers.
#[derive(Debug)]
pub(super) struct Readers {
    count: u64,
}

impl Readers {
    pub(super) const fn new(settings: &Settings) -> Self {
        Self { count: settings.readers }
    }
}

impl World {
    pub(super) fn begin_readers(&mut self) {
        let _ = self.readers.count;
    }

    pub(super) fn reader_looks(&mut self, _reader: usize, _round: u64) -> Result<(), Broken> {
        Ok(())
    }

    pub(super) fn readers_caught_up(&self) -> bool {
        true
    }
}
