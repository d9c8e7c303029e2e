//! The way into a node, for the services and for a node's own tasks.

use std::sync::{Arc, atomic::AtomicUsize, atomic::Ordering};

use prost::Message as _;
use tokio::{sync::watch, time::Instant as Deadline};

use crate::{
    machine::{View, refusal},
    node::{
        Directory, Feed, Mailbox,
        calls::{Call, CallKind, Reply},
        pending::{Marks, Settled},
        places::{PlaceId, SentKind},
        replica::Event,
        shared::Shared,
    },
    observe::{self, Metrics, ReadStage},
    pb::{
        cluster::v1::NodeStatus,
        command::v1::{Command, Origin, Outcome, Reason, Refusal, command, outcome},
        lock::v1::{AcquireRequest, AcquireResponse},
    },
    types::{Duration, Instant, LogIndex, NodeId, SessionId, Term},
};

/// A node that runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) shared: Arc<Shared>,
}

impl Handle {
    /// Proposes a command here or at the leader and waits until this node has applied it. The
    /// outcome may hold a refusal by the state machine.
    ///
    /// # Errors
    /// A refusal by the node: not proposed, or unknown. The reason says which.
    pub async fn propose(
        &self,
        op: command::Op,
        deadline: Option<Deadline>,
    ) -> Result<Outcome, Refusal> {
        self.shared.space.admit(&op)?;
        let open =
            Open::begin(&self.shared, &self.shared.open_calls, self.shared.tuning.calls_max)?;
        let kind = CallKind::Propose { command: self.encode(open.sequence, op), lock: None };
        match open.call(kind, deadline).await? {
            Settled::Outcome(outcome) => Ok(outcome),
            Settled::Reply(reply) => Err(refused(reply)),
        }
    }

    /// Acquires a lock, parked here while it waits. Dropping the future takes the waiter out of
    /// the line, or releases a grant that it did not see.
    ///
    /// # Errors
    /// As [`Handle::propose`], and the state machine's refusals.
    pub async fn acquire(
        &self,
        request: AcquireRequest,
        deadline: Option<Deadline>,
    ) -> Result<AcquireResponse, Refusal> {
        let mut open =
            Open::begin(&self.shared, &self.shared.waiters, self.shared.tuning.waiters_max)?;
        let lock = Some(request.name.clone());
        let op = command::Op::Acquire(request);
        self.shared.space.admit(&op)?;
        let command = self.encode(open.sequence, op);
        open.lock.clone_from(&lock);
        match open.call(CallKind::Propose { command, lock }, deadline).await? {
            Settled::Outcome(Outcome { result: Some(outcome::Result::Acquire(grant)) }) => {
                Ok(grant)
            }
            Settled::Outcome(Outcome { result: Some(outcome::Result::Refusal(refusal)) }) => {
                Err(refusal)
            }
            Settled::Outcome(_) => Err(refusal(Reason::OutcomeUnknown, "not an answer to acquire")),
            Settled::Reply(reply) => Err(refused(reply)),
        }
    }

    /// Waits until this node's state holds everything acknowledged before the call (ReadIndex).
    ///
    /// # Errors
    /// Where no leader confirms it in time.
    pub async fn read_barrier(&self, deadline: Option<Deadline>) -> Result<(), Refusal> {
        let open =
            Open::begin(&self.shared, &self.shared.open_calls, self.shared.tuning.calls_max)?;
        match open.call(CallKind::Read, deadline).await? {
            Settled::Reply(Reply::ReadIndex(index)) => self.wait_applied(index, deadline).await,
            Settled::Reply(reply) => Err(refused(reply)),
            Settled::Outcome(_) => Err(refusal(Reason::NoQuorum, "not an answer to a read")),
        }
    }

    async fn wait_applied(
        &self,
        index: LogIndex,
        deadline: Option<Deadline>,
    ) -> Result<(), Refusal> {
        if self.shared.feed.head().index >= index {
            return Ok(());
        }
        let began = Deadline::now();
        let mut head = self.shared.feed.subscribe();
        let applied = head.wait_for(|head| head.index >= index);
        match within(deadline, applied).await {
            Some(Ok(_)) => {
                let span = began.elapsed();
                self.shared.metrics.observe_read_stage(ReadStage::Apply, span);
                observe::note(|trace| trace.apply = Some(span));
                Ok(())
            }
            Some(Err(_)) => Err(stopping()),
            None => {
                let words = format!("this node has not applied the log up to {index} in time");
                Err(refusal(Reason::DeadlineExceeded, words).with("index", index))
            }
        }
    }

    /// This node's state now, without asking anybody.
    #[must_use]
    pub fn view(&self) -> View {
        self.shared.view()
    }

    /// Renews a session with the leader; answered after a quorum round begun after the call.
    /// Returns the TTL, to be counted from before the call.
    ///
    /// # Errors
    /// Where the session is gone, or no leader confirms in time.
    pub async fn renew(
        &self,
        session: SessionId,
        deadline: Option<Deadline>,
    ) -> Result<Duration, Refusal> {
        let open =
            Open::begin(&self.shared, &self.shared.open_calls, self.shared.tuning.calls_max)?;
        match open.call(CallKind::Renew { session }, deadline).await? {
            Settled::Reply(Reply::Renewed(ttl)) => Ok(ttl),
            Settled::Reply(reply) => Err(refused(reply)),
            Settled::Outcome(_) => Err(refusal(Reason::NoQuorum, "not an answer to a renewal")),
        }
    }

    /// Hands leadership over.
    ///
    /// # Errors
    /// Where the target does not take over.
    pub async fn transfer(
        &self,
        target: Option<NodeId>,
        deadline: Option<Deadline>,
    ) -> Result<(NodeId, Term), Refusal> {
        let open =
            Open::begin(&self.shared, &self.shared.open_calls, self.shared.tuning.calls_max)?;
        let leader = match open.call(CallKind::Transfer { target }, deadline).await? {
            Settled::Reply(Reply::Transferred(leader)) => leader,
            Settled::Reply(reply) => return Err(refused(reply)),
            Settled::Outcome(_) => {
                return Err(refusal(Reason::TransferAborted, "not an answer to a transfer"));
            }
        };
        // This node may hear of the new leader a little later than the old one did.
        let mut status = self.watch_status();
        let follows = status.wait_for(|status| status.leader_id == leader.value());
        let term = match within(deadline, follows).await {
            Some(Ok(status)) => status.term,
            Some(Err(_)) | None => self.status().term,
        };
        Ok((leader, Term::new(term)))
    }

    /// How this node stands.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.shared.node_status()
    }

    /// The leader that this node knows, and how many entries it knows to be committed and has yet to
    /// apply. Cheaper than [`Handle::status`].
    pub(crate) fn standing(&self) -> (Option<NodeId>, u64) {
        self.shared.standing()
    }

    /// How this node stands, each time that role, leader or term change.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<NodeStatus> {
        self.shared.status_changes.subscribe()
    }

    /// What was applied, for those who watch.
    #[must_use]
    pub fn feed(&self) -> &Arc<Feed> {
        &self.shared.feed
    }

    /// Who this node is and whom it knows.
    #[must_use]
    pub fn directory(&self) -> &Arc<Directory> {
        &self.shared.directory
    }

    /// Where the transport delivers what arrives.
    #[must_use]
    pub fn mailbox(&self) -> Mailbox {
        Mailbox { shared: Arc::clone(&self.shared) }
    }

    /// Brings those metrics up to date that are only told when somebody asks.
    pub fn measure(&self) {
        let (status, metrics) = (self.status(), self.metrics());
        metrics
            .set_progress(LogIndex::new(status.commit_index), LogIndex::new(status.applied_index));
        let open = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        metrics.set_calls(open(&self.shared.open_calls), open(&self.shared.waiters));
        let head = self.shared.feed.head();
        metrics.measure_readers(head.revision, head.position);
        metrics.measure_overload();
    }

    /// The node's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Says in the status that this node is about to stop.
    pub fn set_draining(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn encode(&self, sequence: u64, op: command::Op) -> bytes::Bytes {
        let node_id = self.shared.directory.node_id.value();
        let origin = Some(Origin { node_id, boot: self.shared.boot, sequence });
        Command { version: 1, origin, op: Some(op) }.encode_to_vec().into()
    }
}

/// A call that is open. Dropping it takes it back.
struct Open<'a> {
    shared: &'a Shared,
    counter: &'a AtomicUsize,
    sequence: u64,
    /// The lock that is asked for.
    lock: Option<String>,
    taken: Instant,
    place: PlaceId,
    settled: bool,
}

impl<'a> Open<'a> {
    fn begin(shared: &'a Shared, counter: &'a AtomicUsize, max: usize) -> Result<Self, Refusal> {
        if counter.fetch_add(1, Ordering::Relaxed) >= max {
            counter.fetch_sub(1, Ordering::Relaxed);
            return Err(overloaded(max));
        }
        let sequence = shared.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(Self {
            shared,
            counter,
            sequence,
            lock: None,
            taken: Instant::ZERO,
            place: PlaceId::NONE,
            settled: false,
        })
    }

    async fn call(
        mut self,
        kind: CallKind,
        deadline: Option<Deadline>,
    ) -> Result<Settled, Refusal> {
        let receiver = self.shared.pending.open(self.sequence);
        let until = deadline.map_or(Instant::FAR, |at| self.shared.clock.at(at.into_std()));
        let changes = matches!(kind, CallKind::Propose { .. } | CallKind::Transfer { .. });
        let (moment, asked) = (Deadline::now(), kind.sent());
        self.taken = self.shared.clock.at(moment.into_std());
        self.place = self.shared.places.claim(self.sequence, self.taken);
        observe::note(|trace| trace.taken = Some(moment));
        let call = Call { sequence: self.sequence, deadline: until, place: self.place, kind };
        if !self.shared.offer(Event::Call(call)) {
            self.settled = true;
            self.shared.pending.forget(self.sequence);
            return Err(overloaded(self.shared.tuning.calls_max));
        }
        match within(deadline, receiver).await {
            Some(Ok((settled, marks))) => {
                self.settled = true;
                self.note(asked, marks);
                Ok(settled)
            }
            Some(Err(_)) => Err(stopping()),
            None if changes => Err(refusal(
                Reason::DeadlineExceeded,
                "the deadline ran out; the outcome is unknown: retry with the same request id, or \
                 read the state",
            )),
            None => Err(refusal(Reason::DeadlineExceeded, "the deadline ran out: try again")),
        }
    }

    /// Notes how far the call came in the trace of the request that it serves.
    fn note_sent(&self) -> Option<(Instant, NodeId)> {
        let sent = self.shared.places.sent(self.place);
        let me = self.shared.directory.node_id;
        observe::note(|trace| {
            trace.sent = sent.map(|(at, _)| at);
            let leader = sent.map(|(_, leader)| leader).filter(|leader| *leader != me);
            trace.passed_on_to = leader.map_or(0, NodeId::value);
            trace.queue = sent.map(|(at, _)| at.since(self.taken));
        });
        sent
    }

    /// Notes where the time of a call went that has its answer.
    fn note(&self, asked: SentKind, marks: Marks) {
        let sent = self.note_sent();
        let after = |later: Instant| sent.map(|(at, _)| later.since(at));
        if let (SentKind::Read, Some(confirm)) = (asked, after(marks.settled)) {
            self.shared.metrics.observe_read_stage(ReadStage::Confirm, confirm);
        }
        observe::note(|trace| {
            trace.settled = Some(marks.settled.since(self.taken));
            trace.waited = marks.waited;
            match asked {
                SentKind::Write if marks.committed != Instant::ZERO => {
                    trace.replicate = after(marks.committed);
                    trace.apply = Some(marks.settled.since(marks.committed));
                }
                SentKind::Write => {}
                SentKind::Read | SentKind::Other => trace.confirm = after(marks.settled),
            }
        });
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Relaxed);
        if !self.settled {
            self.note_sent();
        }
        self.shared.places.give_back(self.place);
        if !self.settled {
            self.shared.pending.forget(self.sequence);
            let lock = self.lock.take();
            self.shared.insist(Event::Abandoned { sequence: self.sequence, lock });
        }
    }
}

async fn within<T>(deadline: Option<Deadline>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

pub(super) fn refused(reply: Reply) -> Refusal {
    match reply {
        Reply::Refused(refusal) => refusal,
        other => refusal(Reason::OutcomeUnknown, format!("an answer of another kind: {other:?}")),
    }
}

pub(super) fn overloaded(max: usize) -> Refusal {
    let words = format!("{max} calls wait on this node already: try again later, or elsewhere");
    refusal(Reason::Overloaded, words).with("limit", max)
}

pub(super) fn stopping() -> Refusal {
    refusal(
        Reason::OutcomeUnknown,
        "the node stopped before it knew the outcome: retry elsewhere with the same request id",
    )
}
