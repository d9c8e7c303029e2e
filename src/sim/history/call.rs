//! What a client asks and what it is answered, as far as a checker needs it.
//!
//! Keys and values are text. What an answer does not carry (a revision in a history of another
//! system) is absent; the log witness needs it, the black box does not.

use serde::{Deserialize, Serialize};

/// A value with where it stands in the revision history.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Versioned {
    /// The value.
    pub value: String,
    /// The revision that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mod_revision: Option<u64>,
}

/// What a key must hold; `None` where it must be absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Option<String>,
}

/// A put, or with no value a delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value.
    pub value: Option<String>,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The owner as it named itself.
    pub owner: String,
    /// Its fencing token.
    pub fencing_token: u64,
}

/// An event as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The stream that it is in.
    pub stream: String,
    /// Its place in the stream, from 1.
    pub version: u64,
    /// Its place among all events, from 1.
    pub position: u64,
    /// Its data.
    pub data: String,
}

/// What a client asks. Each call happens at most once, or is legal to have happened so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// Reads a key; a stale read only promises to be true at the revision that it names.
    Get {
        /// The key.
        key: String,
        /// Whether it may be stale.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        stale: bool,
    },
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: String,
        /// Only while this token holds the lock of this name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        require_lock: Option<(String, u64)>,
    },
    /// Deletes a key.
    Delete {
        /// The key.
        key: String,
    },
    /// Writes a key where it has the expected value (`None`: is absent).
    Cas {
        /// The key.
        key: String,
        /// What it must hold.
        expected: Option<String>,
        /// Its new value.
        value: String,
    },
    /// Where all compares hold, makes the changes; in any case reads the keys afterwards.
    Txn {
        /// What must hold.
        compares: Vec<Compare>,
        /// What is then done.
        changes: Vec<Change>,
        /// What is read, after the changes.
        reads: Vec<String>,
    },
    /// Opens a session.
    OpenSession {
        /// Its TTL in milliseconds.
        ttl_ms: u64,
    },
    /// Renews a session.
    RenewSession {
        /// The session.
        session: u64,
    },
    /// Closes a session, and with it what hangs on it.
    CloseSession {
        /// The session.
        session: u64,
    },
    /// Acquires a lock.
    Acquire {
        /// Its name.
        lock: String,
        /// Who asks.
        owner: String,
        /// The TTL in milliseconds, where it brings its own session.
        ttl_ms: u64,
        /// How long it waits in line, in milliseconds.
        wait_ms: u64,
        /// The session that it hangs on; an implicit one where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<u64>,
    },
    /// Renews a held lock.
    RenewLock {
        /// Its name.
        lock: String,
        /// The token.
        fencing_token: u64,
        /// The session of the grant.
        session: u64,
    },
    /// Releases a lock.
    Release {
        /// Its name.
        lock: String,
        /// The token.
        fencing_token: u64,
    },
    /// Asks who holds a lock.
    Describe {
        /// Its name.
        lock: String,
    },
    /// Writes to a resource outside of the cluster that a lock guards: it refuses any token below
    /// the largest that it has seen.
    GuardedWrite {
        /// The lock's name.
        lock: String,
        /// The token.
        fencing_token: u64,
        /// What is written.
        value: String,
    },
    /// Puts a value at the end of a queue.
    Enqueue {
        /// The queue.
        queue: String,
        /// The value.
        value: String,
    },
    /// Takes the value at the head of a queue.
    Dequeue {
        /// The queue.
        queue: String,
    },
    /// Registers an instance of a service.
    Register {
        /// The service.
        service: String,
        /// The instance.
        instance: String,
        /// Its TTL in milliseconds.
        ttl_ms: u64,
    },
    /// Takes an instance out.
    Deregister {
        /// The service.
        service: String,
        /// The instance.
        instance: String,
    },
    /// Lists the instances of a service.
    Resolve {
        /// The service.
        service: String,
    },
    /// Appends events to a stream.
    Append {
        /// The stream.
        stream: String,
        /// The events' data.
        data: Vec<String>,
        /// The version that the stream must have; 0 where it must not exist.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected_version: Option<u64>,
    },
    /// Reads a stream from a version on to its end.
    ReadStream {
        /// The stream; empty is all, by position.
        stream: String,
        /// The first version (of all: position).
        from: u64,
    },
    /// Compacts the history of keys.
    Compact {
        /// The last revision to forget.
        revision: u64,
    },
}

/// What a call was answered, where it was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Of a get.
    Got {
        /// What the key held.
        value: Option<Versioned>,
        /// The revision that was read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Done; of a put, a release, a deregistration, a closed session, a compaction.
    Done {
        /// The revision that it made, or found where it changed nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of a delete.
    Deleted {
        /// Whether the key was there.
        existed: bool,
        /// As with [`Answer::Done`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of a compare-and-set.
    Swapped {
        /// Whether it was as expected.
        swapped: bool,
        /// As with [`Answer::Done`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of a transaction.
    Txn {
        /// Whether all compares held.
        succeeded: bool,
        /// What was read, in the order asked.
        reads: Vec<Option<Versioned>>,
        /// As with [`Answer::Done`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of an opened session.
    Opened {
        /// Its number.
        session: u64,
        /// The revision then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of a renewal, of a session or a lock.
    Renewed,
    /// Of an acquire.
    Acquired {
        /// The fencing token: the revision of the grant.
        fencing_token: u64,
        /// The session that it hangs on.
        session: u64,
    },
    /// Of a describe.
    Described {
        /// Who holds it.
        holder: Option<Held>,
        /// The revision that was read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of a guarded write: whether the resource took it.
    Guarded {
        /// Whether it was taken.
        accepted: bool,
    },
    /// Of a dequeue.
    Dequeued {
        /// The value, or `None` where the queue was empty.
        value: Option<String>,
    },
    /// Of a registration.
    Registered {
        /// The revision that it made.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of a resolve.
    Resolved {
        /// The instances' names, sorted.
        instances: Vec<String>,
        /// The revision that was read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<u64>,
    },
    /// Of an append.
    Appended {
        /// The first event's version.
        first_version: u64,
        /// The first event's position; the others follow it in both.
        first_position: u64,
        /// Whether all of its events were recorded before.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        duplicate: bool,
    },
    /// Of a read of a stream.
    Events {
        /// The events.
        events: Vec<Event>,
    },
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// It was carried out.
    Ok(Answer),
    /// It was certainly not carried out and never will be.
    Refused {
        /// Why, as the reason's name (`WRONG_FENCING_TOKEN`) where it has one.
        reason: String,
        /// Details that a checker may use, as `expected`/`actual` versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        actual: Option<u64>,
    },
    /// Nobody knows: it may take effect at any time from the call on, or never.
    Unknown {
        /// Why.
        reason: String,
    },
}
