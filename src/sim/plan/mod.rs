//! What is to happen in a simulation, as data: settings, faults at their times, what clients want.
//!
//! A seed draws a plan; the plan is what runs. So it can be kept, edited and shrunk. What it leaves
//! to chance (how long each message takes, which sectors a crash tears) follows from its seed.

mod draw;
mod fault;
mod file;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use draw::draw;
pub use fault::{DiskFault, Fault, FaultFamily, LEADER};
pub use file::PlanError;
pub(crate) use file::SPAN_MS_MAX;

use crate::sim::workload::Planned;

/// The version of the format of plans.
pub const VERSION: u32 = 1;

/// A simulation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The first line of its file.
    pub settings: Settings,
    /// The faults, in the order of their times.
    pub faults: Vec<Timed>,
    /// What clients want, each client's in their order.
    pub intents: Vec<Planned>,
}

/// How the world is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The version of the format.
    pub quorate_plan: u32,
    /// Where chance comes from that the plan leaves open.
    pub seed: u64,
    /// How many nodes found the cluster, from 1 to 7.
    pub nodes: u64,
    /// How many watches of keys and subscriptions of events there are, each.
    pub readers: u64,
    /// When faults stop, in simulated milliseconds.
    pub faults_until_ms: u64,
    /// How often a leader speaks up.
    pub heartbeat_ms: u64,
    /// The shortest and longest silence after which a follower campaigns.
    pub election_ms: (u64, u64),
    /// How many bytes of applied log a node keeps.
    pub retained_log_bytes: u64,
    /// The size of a segment of the log on disk.
    pub segment_bytes: u64,
    /// How many revisions of history automatic compaction keeps.
    pub retained_revisions: u64,
    /// How long a message takes, from and to, in microseconds.
    pub latency_us: (u64, u64),
    /// How long a sync of the log takes, from and to, in microseconds.
    pub sync_us: (u64, u64),
    /// How long applying a piece takes, from and to, in microseconds.
    pub apply_us: (u64, u64),
    /// How much faster than real time each node's clock goes, in parts per million.
    pub drift_ppm: Vec<i64>,
    /// How far each node's wall clock is off at the start, in milliseconds.
    pub skew_ms: Vec<i64>,
    /// Whether clients ask the node that leads, as far as theirs knows.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub near_leader: bool,
}

/// A fault and when it strikes, in simulated milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    /// When.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub fault: Fault,
}
