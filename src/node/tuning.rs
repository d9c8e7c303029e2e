//! The knobs of a node, with the defaults that fit a local network.

use crate::types::Duration;

/// How a node behaves. Every member of a cluster should have the same timeouts.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// How often a leader tells its followers that it lives.
    pub heartbeat_interval: Duration,
    /// The shortest silence after which a follower stands for election.
    pub election_timeout_min: Duration,
    /// The longest such silence.
    pub election_timeout_max: Duration,
    /// How many bytes of applied log are kept for followers that lag.
    pub retained_log_bytes: u64,
    /// How many calls may wait in this node at once, parked lock waiters aside; more are refused as
    /// overload.
    pub calls_max: usize,
    /// How many lock waiters may be parked on this node at once.
    pub waiters_max: usize,
    /// How long a call waits for a leader before it is refused.
    pub leader_patience: Duration,
    /// How long a write to the log may take before this node stops leading.
    pub disk_stall_timeout: Duration,
    /// How many revisions of history automatic compaction keeps. The same on every member.
    pub retained_revisions: u64,
    /// The size of one segment of the log on disk, in bytes.
    pub segment_bytes: u64,
    /// How many bytes must be free in the file system of the data directory for the cluster to take
    /// in what grows; 0 watches nothing.
    pub min_free_disk: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(50),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(600),
            retained_log_bytes: 24 << 20,
            calls_max: 4_096,
            waiters_max: 16_384,
            leader_patience: Duration::from_secs(2),
            disk_stall_timeout: Duration::from_secs(2),
            retained_revisions: 100_000,
            segment_bytes: 16 << 20,
            min_free_disk: 256 << 20,
        }
    }
}
