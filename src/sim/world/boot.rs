//! A process starts from its disk as the shipped one does, and is checked against what was promised;
//! it ends killed, without power, or by its own decision.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use crate::{
    machine::{Machine, MachineConfig, View, store::Store},
    node::{
        Directory, Feed, Peer,
        calls::first_sequence,
        complete::{Learned, feed_head, learn},
        disk::Disk,
        replica::{Event, Recovered, Replica, ReplicaConfig},
        start::{self, restore},
    },
    pb::command::v1::RegisterMember,
    raft::{Config, Membership},
    sim::invariants::{Broken, DurableChange, Grown},
    storage::{self, Wal, WalOptions, files::Fault},
    types::{Duration, GroupId, Incarnation, Instant, NodeId},
};

use super::{
    Happening, World,
    node::{Process, uuid},
};

/// How long calls of a node wait for a leader.
const PATIENCE: Duration = Duration::from_secs(2);
/// A process that could not start is started again after this.
const START_AGAIN: Duration = Duration::from_millis(500);

impl World {
    /// Starts a node's process, unless it runs or stays out.
    pub(super) fn start(&mut self, node: usize) -> Result<(), Broken> {
        if self.nodes[node].process.is_some() || self.nodes[node].lost {
            return Ok(());
        }
        let promised = self.nodes[node].durable.clone();
        match self.open(node) {
            Ok(process) => {
                // A write under way is there whole, or not at all.
                let mut whole = promised.clone();
                let in_flight = core::mem::take(&mut self.nodes[node].in_flight);
                in_flight.into_iter().for_each(|change| whole.change(change));
                let raft = process.replica.raft();
                let kept = self.checks.restarted(node, raft, &promised);
                kept.or_else(|broken| {
                    self.checks.restarted(node, raft, &whole).map_err(|_| broken)
                })?;
                self.checks.applied(node, process.machine.head(), process.store.hash())?;
                self.nodes[node].process = Some(Box::new(process));
                self.note(Some(node), "starts");
                self.reconnect(node);
                self.wake(node, Duration::ZERO);
                Ok(())
            }
            Err(error) => self.cannot_start(node, &error),
        }
    }

    fn cannot_start(&mut self, node: usize, error: &start::Error) -> Result<(), Broken> {
        let failed = matches!(error, start::Error::Storage(storage::Error::Io { .. }));
        if failed {
            // The disk failed once; the supervisor tries again.
            self.note(Some(node), "cannot start: its disk fails");
            self.after(START_AGAIN, Happening::Start { node });
            return Ok(());
        }
        if self.nodes[node].damaged {
            self.nodes[node].durable.lost();
            self.note(Some(node), "is refused its damaged disk, and stays out");
            self.counts.count("damage found");
            self.lose(node);
            return Ok(());
        }
        let words = format!("node {} cannot start from a disk that is whole: {error}", node + 1);
        Err(Broken::new("disk-opens", words))
    }

    /// A node stays out from here on; its disk counts as it stood before.
    pub(super) fn lose(&mut self, node: usize) {
        self.nodes[node].lost = true;
        self.counts.count("disk lost");
    }

    fn open(&mut self, node: usize) -> Result<Process, start::Error> {
        let settings = &self.plan.settings;
        let members = Membership::of((1..=settings.nodes).map(NodeId::new));
        let options = WalOptions { segment_bytes: settings.segment_bytes, ..WalOptions::default() };
        let peers = (1..=settings.nodes).map(|id| (NodeId::new(id), Peer::default())).collect();
        let retained_revisions = settings.retained_revisions;
        let me = &mut self.nodes[node];
        me.boots += 1;
        me.paused_until = None;
        let (mut wal, mut groups) = Wal::open(me.files.clone(), options)?;
        let recovered = groups.remove(&GroupId::SYSTEM).unwrap_or_default();
        let store = Arc::new(me.store.reopened(&mut me.rng));
        me.store = Arc::clone(&store);
        let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
        let machine = Machine::open(shared, MachineConfig { retained_revisions })?;
        let restored = restore(&mut wal, recovered, machine.head(), members)?;
        me.durable.restored(&restored);
        let id = NodeId::new(node as u64 + 1);
        let incarnation = Incarnation::new(me.incarnation);
        let directory =
            Directory::new(id, incarnation, String::new(), String::new(), me.cluster, peers);
        let view = View::new(machine.store().snapshot());
        let (founded, registered) = match learn(&view, &directory)? {
            Learned::Members { registered, .. } => (true, registered),
            Learned::Nothing => (false, false),
            Learned::Foreign(words) => return Err(start::Error::Fatal(words)),
        };
        me.cluster = directory.cluster_id();
        let recovered = Recovered {
            raft: restored,
            sessions: view.sessions()?,
            founded,
            registered,
            next_timer: machine.next_timer(),
        };
        let config = replica_config(&self.plan.settings, id, me, incarnation);
        let (boot, name) = (me.boots, config.boot);
        let grown = Grown::at(&recovered.raft);
        let now = me.clock.monotonic(self.now);
        Ok(Process {
            boot,
            name,
            replica: Replica::new(config, recovered, now),
            feed: Arc::new(Feed::new(feed_head(machine.head()))),
            machine,
            current: Arc::new(Mutex::new(Arc::clone(&store))),
            store,
            directory,
            wal: Some(wal),
            inbox: VecDeque::new(),
            wakes_at: Instant::FAR,
            wake: 0,
            disk: Disk::default(),
            writes: VecDeque::new(),
            writing: None,
            jobs: VecDeque::new(),
            applying: false,
            pending: BTreeMap::new(),
            sequence: first_sequence(name),
            answered: BTreeSet::new(),
            reads: Vec::new(),
            grown,
        })
    }

    /// The process ends; what it wrote stays written.
    pub(super) fn kill(&mut self, node: usize) -> bool {
        let Some(process) = self.nodes[node].process.take() else { return false };
        self.cut_off(node);
        self.nodes[node].paused_until = None;
        // Its buffers go with it: the log drops without a last sync.
        let Process { pending, reads, wal, .. } = *process;
        drop(wal);
        let attempts = pending.into_values().chain(reads.into_iter().map(|(_, attempt)| attempt));
        for attempt in attempts.collect::<Vec<_>>() {
            self.connection_to_client_broke(attempt);
        }
        true
    }

    /// The process is killed, and with it what it was writing: half of that is there, or all of it
    /// and not synced.
    pub(super) fn kill_in_write(&mut self, node: usize) -> bool {
        if self.break_off_write(node) {
            self.counts.count("killed in a write");
        }
        let killed = self.kill(node);
        self.nodes[node].files.heal();
        killed
    }

    /// Begins the write under way and does not end it; `false` where there is none.
    fn break_off_write(&mut self, node: usize) -> bool {
        let me = &mut self.nodes[node];
        let Some(process) = me.process.as_deref_mut() else { return false };
        let Some(writing) = process.writing.take() else { return false };
        let Some(wal) = process.wal.as_mut() else { return false };
        match me.rng.below(4) {
            0 => me.files.fail(Fault::Write, 0),
            1 => me.files.fail(Fault::Sync, 0),
            2 => me.files.fail(Fault::Torn, 0),
            // All of it is durable, and nobody was told.
            _ => {}
        }
        let mut written = crate::node::wal_writer::Written::default();
        let jobs: Vec<_> = writing.jobs.into_iter().flatten().collect();
        me.in_flight = jobs.iter().map(DurableChange::of).collect();
        if crate::node::wal_writer::write(wal, jobs, &mut written).is_ok() {
            let _ = wal.sync();
        }
        true
    }

    /// The machine loses its power: what was not synced is kept, lost or torn.
    pub(super) fn crash(&mut self, node: usize) -> bool {
        if self.nodes[node].rng.below(2) == 0 && self.break_off_write(node) {
            self.counts.count("power lost in a write");
        }
        let killed = self.kill(node);
        let me = &mut self.nodes[node];
        me.files.crash(&mut me.rng);
        killed
    }

    /// The process ends because it cannot go on.
    pub(super) fn die(&mut self, node: usize, why: &str) {
        self.note(Some(node), why);
        self.kill(node);
    }

    /// An event for a node's replica; lost where no process runs.
    pub(super) fn give(&mut self, node: usize, event: Event) {
        let Some(process) = self.nodes[node].process.as_deref_mut() else { return };
        process.inbox.push_back(event);
        // A thread that sleeps takes a moment to wake.
        let moment = Duration::from_micros(10 + self.nodes[node].wake_rng.below(90));
        self.wake(node, moment);
    }
}

fn replica_config(
    settings: &crate::sim::plan::Settings,
    id: NodeId,
    me: &mut super::node::Node,
    incarnation: Incarnation,
) -> ReplicaConfig {
    ReplicaConfig {
        raft: Config {
            id,
            heartbeat_interval: Duration::from_millis(settings.heartbeat_ms),
            election_timeout_min: Duration::from_millis(settings.election_ms.0),
            election_timeout_max: Duration::from_millis(settings.election_ms.1),
            seed: me.rng.next_u64(),
            ..Config::default()
        },
        boot: me.rng.next_u64(),
        patience: PATIENCE,
        retained_log_bytes: settings.retained_log_bytes,
        new_cluster_id: uuid(&mut me.rng).to_string(),
        member: RegisterMember {
            node_id: id.value(),
            incarnation: incarnation.to_string(),
            ..RegisterMember::default()
        },
    }
}
