//! What comes of applying: outcomes, changes, events, and what the leader is to know of sessions.
//!
//! Plain data that the node hands on; nothing here decides anything.

use crate::{
    machine::{head::Head, store::StoreError},
    pb::{
        command::v1::{Origin, Outcome},
        event::v1::RecordedEvent,
        kv::v1::KeyValue,
    },
    types::{Duration, LogTime, Revision, SessionId},
};

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

impl Space {
    /// The byte that stands for the space in keys of the state.
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::User => 0,
            Self::Locks => 1,
            Self::Instances => 2,
            Self::Members => 3,
        }
    }

    /// Reads the byte.
    pub(crate) fn from_byte(byte: u8) -> Result<Self, StoreError> {
        match byte {
            0 => Ok(Self::User),
            1 => Ok(Self::Locks),
            2 => Ok(Self::Instances),
            3 => Ok(Self::Members),
            _ => Err(StoreError(format!("a row names the unknown space {byte}"))),
        }
    }
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Written.
    Put,
    /// Deleted.
    Delete,
}

impl ChangeKind {
    /// The byte that stands for the kind in values of the state.
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Put => 1,
            Self::Delete => 2,
        }
    }

    /// Reads the byte.
    pub(crate) fn from_byte(byte: u8) -> Result<Self, StoreError> {
        match byte {
            1 => Ok(Self::Put),
            2 => Ok(Self::Delete),
            _ => Err(StoreError(format!("a row names the unknown change {byte}"))),
        }
    }
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
    /// The revision of the version before; zero where there was none.
    pub replaced: Revision,
    /// The version before, where it was asked for.
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
    /// The earliest log time at which something falls due (a wait deadline; a dedup window's end
    /// and the sweep behind a compaction are *not* among them: they wait for the next entry).
    pub next_timer: Option<LogTime>,
    /// Whether the revision leapt: this is the first entry after a restore, and history that a
    /// reader may wait for does not come.
    pub leapt: bool,
}
