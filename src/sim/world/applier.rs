//! The applier's thread as an actor: it applies runs of entries, sends and installs snapshots, in
//! the order of its jobs, and completes the calls of its node.

use std::sync::{Arc, PoisonError};

use crate::{
    machine::{Machine, MachineConfig, SnapshotWriter, View, store::Store},
    node::{
        complete::{Callers, Learned, complete, feed_head, learn},
        replica::{Event, Installed},
    },
    pb::command::v1::{Outcome, command},
    raft::{Entry, SendSnapshot},
    sim::{invariants::Broken, store::SimStore},
    types::{Duration, NodeId},
};

use super::{
    Happening, World,
    net::Transfer,
    node::{ApplyJob, Boot},
    turn::place,
};

/// The most entries that are applied in one batch of the store.
const ENTRIES_PER_BATCH: usize = 1_024;

/// What a run of entries told the calls of a process.
#[derive(Debug, Default)]
struct Told {
    /// The calls that somebody waits for.
    waiting: std::collections::BTreeSet<u64>,
    outcomes: Vec<(u64, Outcome)>,
    refused: Option<String>,
}

impl Callers for Told {
    fn settle(&mut self, sequence: u64, outcome: Outcome) -> bool {
        self.outcomes.push((sequence, outcome));
        self.waiting.contains(&sequence)
    }

    fn park(&mut self, _: u64) {}

    fn refused_identity(&mut self, words: &str) {
        self.refused = Some(words.to_owned());
    }
}

impl World {
    /// The applier begins its next job, where it is idle.
    pub(super) fn work(&mut self, node: usize) {
        let (from, to) = self.plan.settings.apply_us;
        let me = &mut self.nodes[node];
        let Some(process) = me.process.as_deref_mut() else { return };
        if process.applying || process.jobs.is_empty() {
            return;
        }
        process.applying = true;
        let boot = Boot { node, count: process.boot };
        let span = Duration::from_micros(from + me.apply_rng.below(to - from + 1));
        let at = self.now.after(span).max(me.slow_until);
        self.at(at, Happening::Applied { boot });
    }

    /// The applier carries a job out.
    pub(super) fn applier_done(&mut self, boot: Boot) -> Result<(), Broken> {
        if self.defer(boot, Happening::Applied { boot }) {
            return Ok(());
        }
        let node = boot.node;
        let Some(process) = self.nodes[node].running(boot.count) else { return Ok(()) };
        process.applying = false;
        match process.jobs.pop_front() {
            Some(ApplyJob::Apply(mut entries)) => {
                while entries.len() < ENTRIES_PER_BATCH
                    && let Some(ApplyJob::Apply(more)) = process.jobs.front_mut()
                {
                    entries.append(more);
                    process.jobs.pop_front();
                }
                self.apply(node, &entries)?;
            }
            Some(ApplyJob::Send(send)) => self.send_snapshot(node, send),
            Some(ApplyJob::Install(transfer, store)) => self.install(node, *transfer, store)?,
            None => {}
        }
        self.work(node);
        Ok(())
    }

    fn apply(&mut self, node: usize, entries: &[Entry]) -> Result<(), Broken> {
        let process = self.nodes[node].process.as_deref_mut().expect("it runs");
        let before = process.machine.head().clone();
        let applied = process.machine.apply(entries).map_err(|error| {
            Broken::new("state-store", format!("node {} cannot apply: {error}", node + 1))
        })?;
        let (head, hash) = (applied.head.clone(), process.store.hash());
        self.checks.applied(node, &head, hash)?;
        let view = View::new(process.store.snapshot());
        self.checks.changed(&before, entries, &applied, &view)?;
        self.promises.applied(self.now, entries, &applied)?;
        let mut told = Told::default();
        told.waiting.extend(process.pending.keys());
        let own = (NodeId::new(node as u64 + 1), process.name);
        let report = complete(applied, &before, &process.feed, own, &mut told);
        let (report, learned) = {
            let mut report = report;
            let learned = learn(&view, &process.directory).expect("memory is readable");
            if let Learned::Members { registered, .. } = learned {
                (report.founded, report.registered) = (true, registered);
            }
            (report, learned)
        };
        let cluster = process.directory.cluster_id();
        for (sequence, _) in &told.outcomes {
            if !process.answered.insert(*sequence) {
                let words = format!("call {sequence} of node {} was answered twice", node + 1);
                return Err(Broken::new("one-outcome", words));
            }
        }
        self.nodes[node].cluster = cluster;
        if let Learned::Foreign(words) = learned {
            return Err(Broken::new("one-cluster", words));
        }
        self.tell(|| format!("n{}: has applied up to {:?}", node + 1, head.index));
        self.give(node, Event::Applied(report));
        for (sequence, outcome) in told.outcomes {
            self.settled(node, sequence, outcome);
        }
        self.serve_reads(node);
        if let Some(words) = told.refused {
            self.counts.count("disk refused by the log");
            self.die(node, &format!("stops: {words}"));
            self.lose(node);
        }
        Ok(())
    }

    fn send_snapshot(&mut self, node: usize, send: SendSnapshot) {
        let process = self.nodes[node].process.as_deref_mut().expect("it runs");
        let reader = process.store.snapshot();
        let head = View::new(Arc::clone(&reader)).head().expect("memory is readable");
        let chunks = SnapshotWriter::new(reader).map(|chunk| chunk.expect("memory is readable"));
        let transfer = Transfer {
            from: node,
            term: send.term,
            index: head.index,
            last_term: head.term,
            chunks: chunks.collect(),
        };
        self.counts.count("snapshots sent");
        self.transfer(place(send.to), transfer);
    }

    /// A snapshot has arrived whole: it is loaded beside the state, and waits for its turn.
    pub(super) fn snapshot_arrived(
        &mut self,
        node: usize,
        transfer: Transfer,
    ) -> Result<(), Broken> {
        let Some(process) = self.nodes[node].process.as_deref_mut() else {
            return Ok(());
        };
        if transfer.index <= process.feed.head().index {
            self.transfer_ends(node, &transfer, true);
            return Ok(());
        }
        let store = Arc::new(SimStore::default());
        let mut loader = crate::machine::SnapshotLoader::new(store.as_ref());
        let loaded = transfer.chunks.iter().try_for_each(|chunk| loader.feed(chunk));
        let head = loaded.and_then(|()| loader.finish()).map_err(|error| {
            Broken::new("snapshot-loads", format!("a snapshot cannot be loaded: {error}"))
        })?;
        if (head.index, head.term) != (transfer.index, transfer.last_term) {
            let words = format!("a snapshot of {:?} holds {:?}", transfer.index, head.index);
            return Err(Broken::new("snapshot-loads", words));
        }
        store.persist_through(u64::MAX);
        process.jobs.push_back(ApplyJob::Install(Box::new(transfer), store));
        self.work(node);
        Ok(())
    }

    fn install(
        &mut self,
        node: usize,
        transfer: Transfer,
        store: Arc<SimStore>,
    ) -> Result<(), Broken> {
        let retained_revisions = self.plan.settings.retained_revisions;
        let process = self.nodes[node].process.as_deref_mut().expect("it runs");
        if transfer.index <= process.machine.head().index {
            self.transfer_ends(node, &transfer, true);
            return Ok(());
        }
        // The name of the state is switched, durably.
        process.store = Arc::clone(&store);
        *process.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&store);
        let shared: Arc<dyn Store> = Arc::clone(&store) as Arc<dyn Store>;
        process.machine = Machine::open(shared, MachineConfig { retained_revisions })
            .expect("memory is readable");
        let head = process.machine.head().clone();
        process.feed.installed(feed_head(&head));
        let view = View::new(store.snapshot());
        let learned = learn(&view, &process.directory).expect("memory is readable");
        let (founded, registered) = match learned {
            Learned::Members { registered, .. } => (true, registered),
            Learned::Nothing | Learned::Foreign(_) => (false, false),
        };
        let installed = Installed {
            from: NodeId::new(transfer.from as u64 + 1),
            term: transfer.term,
            index: head.index,
            last_term: head.term,
            time: head.time,
            membership: head.membership.clone(),
            sessions: view.sessions().expect("memory is readable"),
            founded,
            registered,
            next_timer: process.machine.next_timer(),
        };
        let cluster = process.directory.cluster_id();
        self.nodes[node].cluster = cluster;
        self.nodes[node].store = Arc::clone(&store);
        self.checks.applied(node, &head, store.hash())?;
        self.counts.count("snapshots installed");
        self.note(Some(node), &format!("installs a snapshot up to {:?}", head.index));
        self.give(node, Event::Installed(installed));
        self.transfer_ends(node, &transfer, true);
        self.serve_reads(node);
        Ok(())
    }

    /// Whether a command would be refused for want of room at the door of this node.
    pub(super) fn refuses_for_room(&self, node: usize, op: &command::Op) -> bool {
        self.now < self.nodes[node].short_until && crate::machine::grows(op)
    }
}
