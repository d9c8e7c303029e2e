//! What a state holds, counted: for people who look into a backup. Reads every row.

use crate::machine::{
    Space, View,
    store::StoreError,
    tables::{Key, Table},
};

/// How much a state holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Users' keys.
    pub keys: u64,
    /// Sessions.
    pub sessions: u64,
    /// Held locks.
    pub locks: u64,
    /// Registered instances, the cluster's nodes included.
    pub instances: u64,
    /// Event streams.
    pub streams: u64,
    /// Events.
    pub events: u64,
    /// Rows of any kind.
    pub rows: u64,
}

impl View {
    /// Counts what the state holds.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub fn census(&self) -> Result<Census, StoreError> {
        let current = |space: Space| Key::of(Table::Current).u8(space.byte());
        Ok(Census {
            keys: self.count(current(Space::User))?,
            sessions: self.count(Key::of(Table::Session))?,
            locks: self.count(current(Space::Locks))?,
            instances: self.count(current(Space::Instances))?,
            streams: self.count(Key::of(Table::Stream))?,
            events: self.count(Key::of(Table::Event))?,
            rows: self.count_range(&[], None)?,
        })
    }

    fn count(&self, prefix: Key) -> Result<u64, StoreError> {
        let range = prefix.prefix();
        self.count_range(&range.start, range.end.as_deref())
    }

    fn count_range(&self, start: &[u8], end: Option<&[u8]>) -> Result<u64, StoreError> {
        let mut count = 0;
        for row in self.reader().scan(start, end) {
            row?;
            count += 1;
        }
        Ok(count)
    }
}
