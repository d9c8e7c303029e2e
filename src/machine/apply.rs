//! SKELETON: signatures that other floors build on; bodies come with the machine itself.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    machine::store::{Store, StoreError},
    pb::{
        command::v1::{Origin, Outcome},
        event::v1::RecordedEvent,
        kv::v1::KeyValue,
    },
    raft::{Entry, Membership},
    types::{Duration, LogIndex, LogTime, Position, Revision, SessionId, Term},
};

/// How the state machine is set up; the same on every node of a cluster.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// How many revisions of history automatic compaction keeps.
    pub retained_revisions: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self { retained_revisions: 100_000 }
    }
}

/// Where the state stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last applied entry.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Its log time.
    pub time: LogTime,
    /// The newest revision.
    pub revision: Revision,
    /// The revision at or below which replaced versions are discarded.
    pub compact_revision: Revision,
    /// The last event's position.
    pub position: Position,
    /// The membership in force.
    pub membership: Membership,
}

/// The parts of the revisioned keyspace; users reach the first one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// Keys of users.
    User,
    /// Held locks: key is the name, value an encoded `lock.v1.Lock` without waiters.
    Locks,
    /// Instances: key is `service \0 instance_id`, value an encoded `discovery.v1.Instance`.
    Instances,
    /// Members: key is the node id (8 bytes, big endian), value an encoded
    /// `command.v1.RegisterMember`.
    Members,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Written.
    Put,
    /// Deleted.
    Delete,
}

/// One change of the revisioned keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The part of the keyspace.
    pub space: Space,
    /// What happened.
    pub kind: ChangeKind,
    /// The key after the change; of a deletion, the key and `mod_revision` alone.
    pub kv: KeyValue,
    /// The version before, where there was one.
    pub prev: Option<KeyValue>,
}

/// What the leader, who keeps the clocks, is to know of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionEffect {
    /// A session's TTL counts from now: it was opened, or its lock was granted, or its
    /// checkpoint was recorded.
    Started {
        /// The session.
        session: SessionId,
        /// What is left of its TTL.
        ttl: Duration,
        /// The whole TTL, which a renewal restores.
        full_ttl: Duration,
        /// Its epoch; an expiry must carry it.
        epoch: u64,
    },
    /// The session is gone.
    Closed {
        /// The session.
        session: SessionId,
    },
}

/// What came of applying a run of entries.
#[derive(Debug, Default)]
pub struct Applied {
    /// Where the state stands after it.
    pub head: Head,
    /// The outcomes of calls: of the entries' own and of parked ones that were completed. Origins
    /// with sequence 0 are left out.
    pub outcomes: Vec<(Origin, Outcome)>,
    /// Calls that are parked now: the node that took them renews their sessions until the outcome.
    pub parked: Vec<(Origin, SessionId)>,
    /// The changes, in revision order.
    pub changes: Vec<Change>,
    /// The events, in position order.
    pub events: Vec<RecordedEvent>,
    /// What became of sessions, in order.
    pub sessions: Vec<SessionEffect>,
    /// The earliest log time at which something falls due (a wait deadline, automatic compaction,
    /// a dedup window's end is *not* among them: it can wait for the next entry).
    pub next_timer: Option<LogTime>,
}

/// The state machine.
#[derive(Debug)]
pub struct Machine {
    store: Arc<dyn Store>,
    head: Head,
}

impl Machine {
    /// Opens the state in a store; an empty store is the state before the first entry.
    ///
    /// # Errors
    /// Where the store cannot be read or holds an unknown format.
    pub fn open(store: Arc<dyn Store>, _config: MachineConfig) -> Result<Self, StoreError> {
        Ok(Self { store, head: Head::default() })
    }

    /// Where the state stands.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The store that the state lives in.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Applies consecutive entries in one atomic batch. Entries at or below the head are skipped.
    ///
    /// # Errors
    /// Where the store fails: the node must stop.
    pub fn apply(&mut self, _entries: &[Entry]) -> Result<Applied, StoreError> {
        unimplemented!("the machine's helper writes this")
    }

    /// What the next timer is now, as in [`Applied::next_timer`].
    #[must_use]
    pub fn next_timer(&self) -> Option<LogTime> {
        None
    }
}

/// A placeholder so that the skeleton names `Bytes`.
pub type Value = Bytes;
