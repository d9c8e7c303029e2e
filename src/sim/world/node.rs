//! A node: what is on its disk, and the process that runs on it or does not.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use uuid::Uuid;

use crate::{
    machine::Machine,
    node::{
        Directory, Feed,
        replica::{Event, Replica, WalJob},
    },
    raft::{Entry, SendSnapshot},
    sim::{
        clock::Clock,
        invariants::{DurableChange, DurableLog},
        plan::Settings,
        store::SimStore,
    },
    storage::{Wal, files::MemoryFiles},
    types::{ClusterId, Instant, LogIndex, Rng},
};

use super::{clients::Attempt, disk::Writing, net::Transfer};

/// A process: the node, and which of its starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Boot {
    pub(super) node: usize,
    pub(super) count: u64,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) clock: Clock,
    /// Chance: of crashes and starts, of how long threads take to wake, of the disk, of applying.
    pub(super) rng: Rng,
    pub(super) wake_rng: Rng,
    pub(super) sync_rng: Rng,
    pub(super) apply_rng: Rng,
    pub(super) files: MemoryFiles,
    pub(super) store: Arc<SimStore>,
    pub(super) incarnation: Uuid,
    pub(super) cluster: Option<ClusterId>,
    /// What was made durable, as the world counts it.
    pub(super) durable: DurableLog,
    /// What was being written when its process ended, durable or not.
    pub(super) in_flight: Vec<DurableChange>,
    /// How many times a process was started.
    pub(super) boots: u64,
    pub(super) process: Option<Box<Process>>,
    /// Its disk is lost, it stays out.
    pub(super) lost: bool,
    /// Its disk was damaged on purpose.
    pub(super) damaged: bool,
    /// Its disk was wiped.
    pub(super) wiped: bool,
    /// Who refused it since.
    pub(super) refused_by: BTreeSet<usize>,
    pub(super) paused_until: Option<Instant>,
    pub(super) stalled_until: Instant,
    pub(super) slow_until: Instant,
    pub(super) short_until: Instant,
}

/// A process of a node.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) boot: u64,
    /// What it calls itself in commands.
    pub(super) name: u64,
    pub(super) replica: Replica,
    pub(super) machine: Machine,
    pub(super) store: Arc<SimStore>,
    /// The same, for readers that stay while a snapshot replaces it.
    pub(super) current: Arc<Mutex<Arc<SimStore>>>,
    pub(super) feed: Arc<Feed>,
    pub(super) directory: Directory,
    pub(super) wal: Option<Wal>,
    pub(super) inbox: VecDeque<Event>,
    /// When the driver wakes, and which of its wakings counts.
    pub(super) wakes_at: Instant,
    pub(super) wake: u64,
    pub(super) disk: crate::node::disk::Disk,
    /// What waits for the log's writer.
    pub(super) writes: VecDeque<Vec<WalJob>>,
    /// What it is writing.
    pub(super) writing: Option<Writing>,
    /// What waits for the applier.
    pub(super) jobs: VecDeque<ApplyJob>,
    pub(super) applying: bool,
    /// The calls that clients wait for.
    pub(super) pending: BTreeMap<u64, Attempt>,
    pub(super) sequence: u64,
    /// Calls that were answered from the log, each once.
    pub(super) answered: BTreeSet<u64>,
    /// Reads that wait until the state is far enough.
    pub(super) reads: Vec<(LogIndex, Attempt)>,
    /// Where its replica stood before, for what only grows.
    pub(super) grown: crate::sim::invariants::Grown,
}

/// Work for an applier, in order.
#[derive(Debug)]
pub(super) enum ApplyJob {
    Apply(Vec<Entry>),
    Install(Box<Transfer>, Arc<SimStore>),
    Send(SendSnapshot),
}

/// A state that is being made durable.
#[derive(Debug)]
pub(super) struct Persist {
    pub(super) index: LogIndex,
    pub(super) store: Arc<SimStore>,
    pub(super) commits: u64,
}

impl Node {
    pub(super) fn new(id: u64, settings: &Settings, rng: &Rng) -> Self {
        let place = usize::try_from(id).expect("a few nodes") - 1;
        let of = |values: &[i64]| values.get(place).copied().unwrap_or(0);
        let mut rng = rng.stream(&format!("node {id}"));
        Self {
            clock: Clock::new(of(&settings.drift_ppm), of(&settings.skew_ms)),
            files: MemoryFiles::new(),
            store: Arc::default(),
            incarnation: uuid(&mut rng),
            cluster: None,
            durable: DurableLog::default(),
            in_flight: Vec::new(),
            boots: 0,
            process: None,
            lost: false,
            damaged: false,
            wiped: false,
            refused_by: BTreeSet::new(),
            paused_until: None,
            stalled_until: Instant::ZERO,
            slow_until: Instant::ZERO,
            short_until: Instant::ZERO,
            wake_rng: rng.stream("wake"),
            sync_rng: rng.stream("sync"),
            apply_rng: rng.stream("apply"),
            rng,
        }
    }

    /// The process, where this start of it still runs.
    pub(super) fn running(&mut self, count: u64) -> Option<&mut Process> {
        self.process.as_deref_mut().filter(|process| process.boot == count)
    }
}

pub(super) fn uuid(rng: &mut Rng) -> Uuid {
    let high = u128::from(rng.next_u64()) << 64;
    uuid::Builder::from_random_bytes((high | u128::from(rng.next_u64())).to_be_bytes()).into_uuid()
}
