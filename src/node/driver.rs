//! The thread that turns the replica: takes events in batches, carries its jobs out.
//!
//! It never waits for a disk, a store or the network, so heartbeats go out in time.

use std::{
    collections::VecDeque,
    sync::{
        Arc, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
};

use rustix::{process::setpriority_process, thread::gettid};

use crate::{
    node::{
        Transport,
        applier::ApplierJob,
        disk::Disk,
        linger::linger,
        pending::{Marks, Settled},
        places::{Sent, SentKind},
        replica::{Event, Jobs, Replica, WalJob},
        shared::{DriverInput, Shared},
        wal_writer::WalJobs,
    },
    observe::{Queue, ReadStage, Stage},
    raft::{Entry, Payload, RoleKind},
    types::{GroupId, Instant, LogIndex, NodeId},
};

/// The most events that one turn takes in.
const EVENTS_PER_TURN_MAX: usize = 1_024;
/// How long the thread looks out for more before it sleeps: longer than a sync of the log takes
/// where a few calls wait for each other, less where many do and the processors have other work.
const LINGER_QUIET: std::time::Duration = std::time::Duration::from_micros(400);
const LINGER_BUSY: std::time::Duration = std::time::Duration::from_micros(100);
/// From how many events a turn on it is busy, on average.
const BUSY_EVENTS: usize = 2;
/// About how many turns the average is of.
const AVERAGED_TURNS: usize = 16;
/// How far the thread that makes the state durable stands back, in `nice` levels.
const PERSIST_NICENESS: i32 = 10;
/// The longest sleep, well below what the replica takes for a pause of the process.
const SLEEP_MAX: std::time::Duration = std::time::Duration::from_millis(500);

/// The replica with its surroundings.
pub(crate) struct Driver {
    pub(crate) replica: Replica,
    pub(crate) shared: Arc<Shared>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) wal: Sender<WalJobs>,
    pub(crate) applier: Sender<ApplierJob>,
    pub(crate) disk: Disk,
    /// What this node proposed as the leader and does not know to be committed.
    pub(crate) proposed: VecDeque<Proposed>,
    /// For the next turn.
    pub(crate) again: Vec<Event>,
    /// The events of the last [`AVERAGED_TURNS`], about.
    pub(crate) recent_events: usize,
}

/// A batch of entries on its way to a majority.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proposed {
    last: LogIndex,
    entries: usize,
    at: Instant,
}

impl Driver {
    /// Runs until it is told to stop.
    pub(crate) fn run(mut self, inputs: &Receiver<DriverInput>) {
        let mut events = Vec::with_capacity(EVENTS_PER_TURN_MAX);
        self.publish_status();
        loop {
            if !self.receive(inputs, &mut events) {
                self.shared.pending.clear();
                // The writer ends with its queue; the applier's queue has other senders too.
                let _ = self.applier.send(ApplierJob::Stop);
                return;
            }
            self.turn(&mut events);
        }
    }

    /// Lets the replica take the events in, and carries out what it wants.
    pub(crate) fn turn(&mut self, events: &mut Vec<Event>) {
        let (now, wall) = (self.shared.clock.now(), self.shared.clock.wall());
        if let Some(change) = self.disk.check(now, self.shared.tuning.disk_stall_timeout) {
            events.push(Event::DiskStalled(change));
        }
        self.shared.metrics.observe_turn(events.len());
        let mut jobs = Jobs::default();
        self.replica.handle(now, wall, events.drain(..), &mut jobs);
        self.carry_out(now, jobs);
    }

    /// Waits for events, at most until the replica wants to wake. `false` ends the thread.
    fn receive(&mut self, inputs: &Receiver<DriverInput>, events: &mut Vec<Event>) -> bool {
        let (now, wall) = (self.shared.clock.now(), self.shared.clock.wall());
        let mut sleep = self.replica.next_deadline(now, wall).since(now).min(SLEEP_MAX);
        if !self.again.is_empty() {
            events.append(&mut self.again);
            sleep = std::time::Duration::ZERO;
        }
        let span = sleep.min(self.linger());
        let mut next = linger(&self.shared.clock, inputs, span);
        if next.is_none() {
            next = match inputs.recv_timeout(sleep - span) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return false,
            };
        }
        self.take_in(next, inputs, events)
    }

    /// Takes in an input and those that wait behind it. `false` ends the thread.
    pub(crate) fn take_in(
        &mut self,
        mut next: Option<DriverInput>,
        inputs: &Receiver<DriverInput>,
        events: &mut Vec<Event>,
    ) -> bool {
        while let Some(input) = next {
            match input {
                DriverInput::Event(event) => events.push(event),
                DriverInput::Synced { hard, log, batches } => {
                    self.disk.synced(batches);
                    events.push(Event::Persisted { hard, log });
                }
                DriverInput::Stop => return false,
            }
            if events.len() >= EVENTS_PER_TURN_MAX {
                break;
            }
            next = inputs.try_recv().ok();
        }
        events.append(&mut self.shared.take_overflow());
        self.recent_events -= self.recent_events / AVERAGED_TURNS;
        self.recent_events += events.len();
        true
    }

    const fn linger(&self) -> std::time::Duration {
        if self.recent_events < BUSY_EVENTS * AVERAGED_TURNS { LINGER_QUIET } else { LINGER_BUSY }
    }

    fn carry_out(&mut self, now: Instant, jobs: Jobs) {
        if !jobs.wal.is_empty() {
            self.disk.handed_over(now);
            self.count_proposals(now, &jobs.wal);
            // The writer is gone only after a failure, which ends the node.
            let _ = self.wal.send(WalJobs { jobs: jobs.wal, handed: now });
        }
        for (to, message) in jobs.messages {
            self.transport.send(to, GroupId::SYSTEM, message);
        }
        for (to, request) in jobs.forwards {
            self.forward(to, request);
        }
        for (to, response) in jobs.answers {
            self.transport.answer(to, response);
        }
        for send in jobs.snapshots {
            let _ = self.applier.send(ApplierJob::Send(send));
        }
        if !jobs.apply.is_empty() {
            let _ = self.applier.send(ApplierJob::Apply(jobs.apply, now));
        }
        for sent in jobs.sent {
            self.count_sent(now, sent);
        }
        let marks = Marks { settled: now, ..Marks::default() };
        for (sequence, reply) in jobs.replies {
            self.shared.pending.settle(sequence, Settled::Reply(reply), marks);
        }
        self.count_committed(now);
        for campaign in jobs.campaigns {
            self.shared.metrics.record_campaign(campaign);
        }
        if jobs.persist_state {
            self.persist_state();
        }
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) =
            self.replica.status().clone();
        if jobs.role_changed {
            self.publish_status();
        }
    }

    /// What a leader appends is what it proposes.
    fn count_proposals(&mut self, now: Instant, jobs: &[WalJob]) {
        if self.replica.status().role != RoleKind::Leader {
            return;
        }
        for job in jobs {
            if let WalJob::Append(append) = job
                && let Some(last) = append.entries.last()
            {
                let entries = append.entries.len();
                self.proposed.push_back(Proposed { last: last.index, entries, at: now });
            }
        }
        let appended = jobs.iter().filter_map(|job| match job {
            WalJob::Append(append) => Some(&append.entries),
            WalJob::Purge(_) => None,
        });
        let is_command = |entry: &&Entry| matches!(entry.payload, Payload::Command(_));
        self.shared.metrics.record_proposals(appended.flatten().filter(is_command).count());
    }

    /// How long the entries took that are committed now, and how much waits where.
    fn count_committed(&mut self, now: Instant) {
        let (status, metrics) = (self.replica.status(), &self.shared.metrics);
        if status.role != RoleKind::Leader {
            self.proposed.clear();
        }
        while let Some(&batch) = self.proposed.front()
            && batch.last <= status.commit
        {
            self.proposed.pop_front();
            metrics.observe_stage(Stage::Replicate, now.since(batch.at), batch.entries);
        }
        let waiting = if self.proposed.is_empty() { 0 } else { status.last.since(status.commit) };
        metrics.set_queue(Queue::Replicate, waiting);
        metrics.set_queue(Queue::Wal, self.disk.waiting() as u64);
        metrics.set_queue(Queue::Calls, self.replica.open_calls() as u64);
    }

    fn count_sent(&self, now: Instant, sent: Sent) {
        let Some(taken) = self.shared.places.stamp(sent, now) else { return };
        let (metrics, queued) = (&self.shared.metrics, now.since(taken));
        match sent.kind {
            SentKind::Write => metrics.observe_stage(Stage::Queue, queued, 1),
            SentKind::Read => metrics.observe_read_stage(ReadStage::Queue, queued),
            SentKind::Other => {}
        }
    }

    fn forward(&mut self, to: NodeId, request: crate::pb::raft::v1::ForwardRequest) {
        let count = request.proposals.len() + request.reads.len() + request.renewals.len();
        if self.transport.forward(to, request.clone()) {
            self.shared.metrics.record_forwards(count);
        } else {
            self.again.push(Event::NotForwarded { request });
        }
    }

    /// Makes the state durable on a thread of its own: neither ticks nor applying wait for it.
    fn persist_state(&self) {
        #[cfg(test)]
        if crate::host::simulated::is_on() {
            return super::stepped::persist_state(&self.shared);
        }
        let shared = Arc::clone(&self.shared);
        let persist = move || {
            // It has time: where the processors are busy, calls go first.
            let _ = setpriority_process(Some(gettid()), PERSIST_NICENESS);
            let (index, store) = (shared.feed.head().index, shared.store.load_full());
            match store.persist() {
                Ok(()) => {
                    let _ = shared.driver.send(DriverInput::Event(Event::StatePersisted { index }));
                }
                Err(error) => shared.fail(format!("the state cannot be made durable: {error}")),
            }
        };
        let thread = std::thread::Builder::new().name("persist".into()).spawn(persist);
        if let Err(error) = thread {
            self.shared.fail(format!("no thread can be started: {error}"));
        }
    }

    pub(crate) fn publish_status(&self) {
        let status = self.replica.status();
        let node = self.shared.directory.node_id.value();
        let leader = status.leader.map_or(0, NodeId::value);
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status.clone();
        let before = self.shared.status_changes.borrow().leader_id;
        self.shared.status_changes.send_replace(self.shared.node_status());
        self.shared.metrics.set_role(status.role);
        self.shared.metrics.set_term(status.term);
        if leader != 0 && leader != before {
            self.shared.metrics.record_leader_change();
            let term = status.term.value();
            if status.role == RoleKind::Leader {
                tracing::info!(node, term, "leads");
            } else {
                tracing::info!(node, term, leader, "follows");
            }
        }
    }
}
