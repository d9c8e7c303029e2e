//! The thread that owns the state machine: applies committed entries, completes the calls of this
//! node and publishes what changed.

use std::sync::{Arc, mpsc::Receiver};

use tokio::sync::oneshot;

use crate::{
    machine::{Applied, Head, Machine, MachineConfig, Space, View, store::StoreError},
    node::{
        FeedHead, Published, SnapshotSource, Transport,
        calls::is_internal,
        install::Prepared,
        pending::{Marks, Settled},
        replica::{AppliedReport, Event},
        shared::{DriverInput, Shared},
    },
    pb::command::v1::{Outcome, Reason, outcome},
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
            let done = match job {
                ApplierJob::Apply(mut entries, committed) => {
                    next = gather(&mut entries, jobs);
                    self.apply(&entries, committed)
                }
                ApplierJob::Install(prepared, reply) => self.install(*prepared, reply),
                ApplierJob::Send(send) => self.send_snapshot(send),
                ApplierJob::Stop => return,
            };
            if let Err(error) = done {
                self.shared.fail(format!("the state cannot be kept, this node stops: {error}"));
                return;
            }
            if next.is_none() {
                next = jobs.recv().ok();
            }
        }
    }

    fn apply(&mut self, entries: &[Entry], committed: Instant) -> Result<(), StoreError> {
        let before = self.machine.head().clone();
        let applied = self.machine.apply(entries)?;
        let settled = self.shared.clock.now();
        self.shared.metrics.record_applied(entries.len(), settled.since(committed));
        let marks = Marks { committed, settled, ..Marks::default() };
        let (head, leapt) = (applied.head.clone(), applied.leapt);
        let members = applied.changes.iter().any(|change| change.space == Space::Members);
        let mut report = self.complete(applied, marks, |applied| {
            let batch = Published {
                revision_before: before.revision,
                revision: head.revision,
                position_before: before.position,
                position: head.position,
                changes: core::mem::take(&mut applied.changes),
                events: core::mem::take(&mut applied.events),
            };
            if leapt {
                self.shared.feed.installed(feed_head(&head));
            } else {
                self.shared.feed.publish(head.index, batch);
            }
        });
        if members {
            (report.founded, report.registered) = self.learn_members()?;
        }
        // The driver is gone only when the node stops.
        let _ = self.shared.driver.send(DriverInput::Event(Event::Applied(report)));
        Ok(())
    }

    /// Publishes, then completes the calls of this process: whoever gets an answer finds its
    /// effect in the feed.
    fn complete(
        &self,
        mut applied: Applied,
        marks: Marks,
        publish: impl FnOnce(&mut Applied),
    ) -> AppliedReport {
        publish(&mut applied);
        let mut report = AppliedReport {
            index: applied.head.index,
            term: applied.head.term,
            sessions: applied.sessions,
            next_timer: applied.next_timer,
            ..AppliedReport::default()
        };
        let ours = |origin: &crate::pb::command::v1::Origin| {
            origin.node_id == self.shared.directory.node_id.value()
                && origin.boot == self.shared.boot
        };
        for (origin, outcome) in applied.outcomes {
            if !ours(&origin) {
                continue;
            }
            report.completed.push(origin.sequence);
            if is_internal(origin.sequence) {
                self.notice_own(&outcome);
                continue;
            }
            let granted = match &outcome.result {
                Some(outcome::Result::Acquire(grant)) => Some(grant.name.clone()),
                _ => None,
            };
            let outcome = Settled::Outcome(outcome);
            let delivered = self.shared.pending.settle(origin.sequence, outcome, marks);
            if let (Some(name), false) = (granted, delivered) {
                report.undelivered.push((name, origin.sequence));
            }
        }
        let parked = applied.parked.into_iter().filter(|(origin, _)| ours(origin));
        let parked = parked.inspect(|(origin, _)| self.shared.pending.park(origin.sequence));
        report.parked = parked.map(|(origin, session)| (origin.sequence, session)).collect();
        report
    }

    /// The answer to a command of the node's own: a refused registration is the end (rule 20).
    fn notice_own(&self, outcome: &Outcome) {
        if let Some(outcome::Result::Refusal(refusal)) = &outcome.result
            && refusal.reason() == Reason::WrongIdentity
        {
            self.shared.fail(refusal.message.clone());
        }
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

/// Where the feed stands with a state that was not reached through it.
fn feed_head(head: &Head) -> FeedHead {
    let Head { index, revision, position, .. } = *head;
    FeedHead { index, revision, position, installs: 0 }
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
    let Some(cluster_id) = view.cluster_id()? else { return Ok((false, false)) };
    let directory = &shared.directory;
    match directory.cluster_id() {
        Some(known) if known != cluster_id => {
            shared.fail(format!(
                "this data directory belongs to cluster {known}, the log to cluster {cluster_id}: \
                 a foreign directory; start with the right --data-dir"
            ));
        }
        Some(_) => {}
        None => {
            directory.found(cluster_id);
            if let Err(error) = shared.data.set_cluster_id(cluster_id) {
                return Err(StoreError(error.to_string()));
            }
            tracing::info!(cluster = %cluster_id, "the cluster is founded");
        }
    }
    let members = view.members()?;
    directory.registered(&members);
    // A node that moved to other addresses registers again.
    let current = members.iter().any(|member| {
        member.node_id == directory.node_id.value()
            && member.client_address == directory.client_address
            && member.peer_address == directory.peer_address
    });
    Ok((true, current && directory.is_registered()))
}
