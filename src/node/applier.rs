//! The thread that owns the state machine: applies committed entries, completes the calls of this
//! node and publishes what changed.

use std::sync::{Arc, mpsc::Receiver};

use tokio::sync::oneshot;

use crate::{
    machine::{Machine, MachineConfig, Space, View, store::StoreError},
    node::{
        SnapshotSource, Transport,
        complete::{Callers, Learned, complete, feed_head, learn},
        install::Prepared,
        pending::{Marks, Settled},
        replica::Event,
        shared::{DriverInput, Shared},
    },
    pb::command::v1::Outcome,
    raft::{Entry, SendSnapshot},
    storage::{Step, reached},
    types::{GroupId, Instant},
};

/// About how many entries are applied in one batch of the store.
const ENTRIES_PER_BATCH: usize = 1_024;

/// Work for the applier, in order.
#[derive(Debug)]
pub(crate) enum ApplierJob {
    /// Applies entries that were committed at this time.
    Apply(Vec<Entry>, Instant),
    /// Replaces the state by a received snapshot.
    Install(Box<Prepared>, oneshot::Sender<Result<(), String>>),
    /// Sends a snapshot of the state.
    Send(SendSnapshot),
    /// Ends the thread.
    Stop,
}

/// The state machine with its surroundings.
pub(crate) struct Applier {
    pub(crate) machine: Machine,
    pub(crate) config: MachineConfig,
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Applier {
    /// Runs until the driver is gone or the store fails.
    pub(crate) fn run(mut self, jobs: &Receiver<ApplierJob>) {
        let mut next = jobs.recv().ok();
        while let Some(job) = next.take() {
            if !self.carry_out(job, jobs, &mut next) {
                return;
            }
            if next.is_none() {
                next = jobs.recv().ok();
            }
        }
    }

    /// Carries out a job, with those behind it that go with it; `next` is then the one that does
    /// not. `false` ends the thread.
    pub(crate) fn carry_out(
        &mut self,
        job: ApplierJob,
        jobs: &Receiver<ApplierJob>,
        next: &mut Option<ApplierJob>,
    ) -> bool {
        let done = match job {
            ApplierJob::Apply(mut entries, committed) => {
                *next = gather(&mut entries, jobs);
                self.apply(&entries, committed)
            }
            ApplierJob::Install(prepared, reply) => self.install(*prepared, reply),
            ApplierJob::Send(send) => self.send_snapshot(send),
            ApplierJob::Stop => return false,
        };
        if let Err(error) = done {
            self.shared.fail(format!("the state cannot be kept, this node stops: {error}"));
            return false;
        }
        true
    }

    fn apply(&mut self, entries: &[Entry], committed: Instant) -> Result<(), StoreError> {
        let before = self.machine.head().clone();
        let applied = self.machine.apply(entries)?;
        let settled = self.shared.clock.now();
        self.shared.metrics.record_applied(entries.len(), settled.since(committed));
        let marks = Marks { committed, settled, ..Marks::default() };
        let members = applied.changes.iter().any(|change| change.space == Space::Members);
        let (me, boot) = (self.shared.directory.node_id, self.shared.boot);
        let mut callers = Waiting { shared: &self.shared, marks };
        let mut report = complete(applied, &before, &self.shared.feed, (me, boot), &mut callers);
        if members {
            (report.founded, report.registered) = self.learn_members()?;
        }
        // The driver is gone only when the node stops.
        let _ = self.shared.driver.send(DriverInput::Event(Event::Applied(report)));
        Ok(())
    }

    /// Takes over what the log says of cluster and members. Returns whether the cluster is founded
    /// and whether this node is registered, with its disk and addresses.
    fn learn_members(&self) -> Result<(bool, bool), StoreError> {
        let view = View::new(self.machine.store().snapshot());
        learn_members(&view, &self.shared)
    }

    fn install(
        &mut self,
        prepared: Prepared,
        reply: oneshot::Sender<Result<(), String>>,
    ) -> Result<(), StoreError> {
        if prepared.head.index <= self.machine.head().index {
            // Not needed any more; the sender need not know.
            let _ = reply.send(Ok(()));
            return Ok(());
        }
        if let Err(error) = self.shared.data.switch_state(prepared.pending) {
            return Err(StoreError(error.to_string()));
        }
        self.machine = Machine::open(prepared.store, self.config.clone())?;
        reached(Step::Opened);
        let store = Arc::clone(self.machine.store());
        self.shared.store.store(Arc::new(store));
        let head = self.machine.head().clone();
        self.shared.feed.installed(feed_head(&head));
        self.shared.metrics.record_snapshot_installed();
        tracing::info!(index = head.index.value(), "installed a snapshot");
        let view = View::new(self.machine.store().snapshot());
        let (founded, registered) = learn_members(&view, &self.shared)?;
        let installed = crate::node::replica::Installed {
            from: prepared.from,
            term: prepared.term,
            index: head.index,
            last_term: head.term,
            time: head.time,
            membership: head.membership,
            sessions: view.sessions()?,
            founded,
            registered,
            next_timer: self.machine.next_timer(),
        };
        let _ = self.shared.driver.send(DriverInput::Event(Event::Installed(installed)));
        let _ = reply.send(Ok(()));
        Ok(())
    }

    fn send_snapshot(&self, send: SendSnapshot) -> Result<(), StoreError> {
        let reader = self.machine.store().snapshot();
        let head = View::new(Arc::clone(&reader)).head()?;
        let source = SnapshotSource {
            term: send.term,
            index: head.index,
            last_term: head.term,
            chunks: Box::new(move || {
                Box::new(crate::machine::SnapshotWriter::new(Arc::clone(&reader)))
            }),
        };
        tracing::info!(peer = send.to.value(), index = head.index.value(), "sending a snapshot");
        self.transport.send_snapshot(send.to, GroupId::SYSTEM, source);
        Ok(())
    }
}

/// The calls of this process, completed as the entries that answer them are applied.
struct Waiting<'a> {
    shared: &'a Shared,
    marks: Marks,
}

impl Callers for Waiting<'_> {
    fn settle(&mut self, sequence: u64, outcome: Outcome) -> bool {
        self.shared.pending.settle(sequence, Settled::Outcome(outcome), self.marks)
    }

    fn park(&mut self, sequence: u64) {
        self.shared.pending.park(sequence);
    }

    fn refused_identity(&mut self, words: &str) {
        self.shared.fail(words.to_owned());
    }
}

/// Adds the entries of the jobs that wait already, up to a batch; returns the job that ends it.
fn gather(entries: &mut Vec<Entry>, jobs: &Receiver<ApplierJob>) -> Option<ApplierJob> {
    while entries.len() < ENTRIES_PER_BATCH {
        match jobs.try_recv().ok()? {
            ApplierJob::Apply(more, _) => entries.extend(more),
            other => return Some(other),
        }
    }
    None
}

/// Takes over what the state says of cluster and members into directory and identity.
pub(crate) fn learn_members(view: &View, shared: &Shared) -> Result<(bool, bool), StoreError> {
    match learn(view, &shared.directory)? {
        Learned::Nothing => Ok((false, false)),
        Learned::Foreign(words) => {
            shared.fail(words);
            Ok((true, false))
        }
        Learned::Members { founded_now, registered } => {
            if let Some(cluster_id) = founded_now {
                if let Err(error) = shared.data.set_cluster_id(cluster_id) {
                    return Err(StoreError(error.to_string()));
                }
                tracing::info!(cluster = %cluster_id, "the cluster is founded");
            }
            Ok((true, registered))
        }
    }
}
