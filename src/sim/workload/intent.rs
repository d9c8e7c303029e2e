//! What a client wants, without what it can only know when the time comes.

use serde::{Deserialize, Serialize};

/// The version that an append expects of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// None.
    Anything,
    /// The last one that the client knows of.
    Known,
    /// One that the stream cannot have.
    Wrong,
}

/// What a client wants next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Intent {
    /// Read a key.
    Get {
        /// The key.
        key: String,
        /// Whether it may be stale.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        stale: bool,
    },
    /// Write a value that is used once.
    Put {
        /// The key.
        key: String,
    },
    /// Write under a lock that the client holds, or once held.
    PutLocked {
        /// The key.
        key: String,
        /// The lock.
        lock: String,
    },
    /// Delete a key.
    Delete {
        /// The key.
        key: String,
    },
    /// Replace the value that the client saw last.
    Cas {
        /// The key.
        key: String,
    },
    /// Where the first key has what the client saw last, change all; read all.
    Txn {
        /// The keys.
        keys: Vec<String>,
    },
    /// Open a session.
    OpenSession {
        /// Its TTL in milliseconds.
        ttl_ms: u64,
    },
    /// Renew the session.
    RenewSession,
    /// Close the session.
    CloseSession,
    /// Acquire a lock.
    Acquire {
        /// The lock.
        lock: String,
        /// The TTL in milliseconds.
        ttl_ms: u64,
        /// How long to wait in line, in milliseconds.
        wait_ms: u64,
        /// Whether it hangs on the client's session, where it has one.
        #[serde(default, skip_serializing_if = "core::ops::Not::not")]
        in_session: bool,
    },
    /// Write to what the lock guards, with the last token, though it may be lost.
    GuardedWrite {
        /// The lock.
        lock: String,
    },
    /// Renew a lock.
    RenewLock {
        /// The lock.
        lock: String,
    },
    /// Release a lock.
    Release {
        /// The lock.
        lock: String,
    },
    /// Release a lock with a token that the client does not hold.
    ReleaseWrongly {
        /// The lock.
        lock: String,
    },
    /// Ask who holds a lock.
    Describe {
        /// The lock.
        lock: String,
    },
    /// Register the client's instance.
    Register {
        /// The service.
        service: String,
        /// The TTL in milliseconds.
        ttl_ms: u64,
    },
    /// Take the client's instance out.
    Deregister {
        /// The service.
        service: String,
    },
    /// List a service.
    Resolve {
        /// The service.
        service: String,
    },
    /// Append events.
    Append {
        /// The stream.
        stream: String,
        /// How many.
        count: u64,
        /// The expected version.
        expect: Expect,
    },
    /// Read a stream from a little before the last version that the client knows.
    ReadStream {
        /// The stream; empty is all.
        stream: String,
    },
    /// Compact all but the newest revisions.
    Compact {
        /// How many revisions to keep before the last one that the client knows.
        keep: u64,
    },
}
