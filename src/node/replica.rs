//! The replica: consensus, sessions and open calls joined, without any I/O.
//!
//! Takes time as an argument, emits [`Jobs`] and takes their completions as [`Event`]s. The driver
//! carries the jobs out on threads; the simulator with actors that delay, fail and crash. Both run
//! this program. It never waits: a store or disk that stalls never holds up a tick.

mod duties;
mod routing;
mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use crate::{
    machine::{SessionEffect, SessionInfo},
    node::{
        calls::{Call, Calls, Reply},
        lessor::Lessor,
        places::Sent,
        space::Shortage,
    },
    pb::raft::v1::{ForwardRequest, ForwardResponse},
    raft::{
        Append, Campaigned, Config, Entry, HardMark, Held, Input, LogMark, LogStart, Membership,
        Message, Raft, Ready, Restored, RoleKind, SendSnapshot, Status, Ticket,
    },
    types::{Duration, Instant, LogIndex, LogTime, NodeId, SessionId, Term},
};

use self::{duties::LogKeeper, routing::Route, space::Shortages};

/// How a replica behaves; the consensus core's own knobs lie beside these.
#[derive(Clone, Debug)]
pub(crate) struct ReplicaConfig {
    pub(crate) raft: Config,
    /// This process's start: outcomes never reach a later one.
    pub(crate) boot: u64,
    /// How long a call waits for a leader before it is refused.
    pub(crate) patience: Duration,
    /// How many bytes of log are kept behind the durable state, for followers that lag.
    pub(crate) retained_log_bytes: u64,
    /// The cluster's id, should this node be the one to found it.
    pub(crate) new_cluster_id: String,
    /// What this node registers of itself.
    pub(crate) member: crate::pb::command::v1::RegisterMember,
}

/// Everything that can happen to a replica.
#[derive(Debug)]
pub(crate) enum Event {
    /// A member's message.
    Message { from: NodeId, message: Message },
    /// A call of this node's services.
    Call(Call),
    /// Nobody waits for a call any more; an acquire of `lock` is taken back.
    Abandoned { sequence: u64, lock: Option<String> },
    /// A follower passes requests on.
    Forwarded { from: NodeId, request: ForwardRequest },
    /// The leader answers what was passed on.
    Answered { from: NodeId, response: ForwardResponse },
    /// What was passed on was certainly not sent.
    NotForwarded { request: ForwardRequest },
    /// The stream to the leader broke.
    ForwardBroken { leader: NodeId },
    /// The connection to a member stands.
    Connected { peer: NodeId },
    /// The connection to a member broke.
    Disconnected { peer: NodeId },
    /// A snapshot that was being sent has ended.
    SnapshotSent { peer: NodeId, installed: Option<LogIndex> },
    /// A received snapshot replaced the state.
    Installed(Installed),
    /// The disk has everything up to these marks.
    Persisted { hard: HardMark, log: LogMark },
    /// Entries were applied.
    Applied(AppliedReport),
    /// The state is durable up to here.
    StatePersisted { index: LogIndex },
    /// The disk makes no progress, or does again.
    DiskStalled(bool),
    /// This node's disk is short of room, each second again, or is no longer.
    Space(Option<Shortage>),
}

/// A snapshot that replaced the state.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) from: NodeId,
    pub(crate) term: Term,
    pub(crate) index: LogIndex,
    pub(crate) last_term: Term,
    pub(crate) time: LogTime,
    pub(crate) membership: Membership,
    pub(crate) sessions: Vec<SessionInfo>,
    pub(crate) founded: bool,
    pub(crate) registered: bool,
    pub(crate) next_timer: Option<LogTime>,
}

/// What the applier tells of a run of entries.
#[derive(Debug, Default)]
pub(crate) struct AppliedReport {
    pub(crate) index: LogIndex,
    pub(crate) term: Term,
    /// The calls of this process whose outcome was delivered, or would have been.
    pub(crate) completed: Vec<u64>,
    /// Grants that nobody received: the lock's name and the call.
    pub(crate) undelivered: Vec<(String, u64)>,
    /// Calls of this process that are parked now.
    pub(crate) parked: Vec<(u64, SessionId)>,
    pub(crate) sessions: Vec<SessionEffect>,
    pub(crate) next_timer: Option<LogTime>,
    /// Whether the cluster is founded, and this node's disk registered.
    pub(crate) founded: bool,
    pub(crate) registered: bool,
}

/// What the driver is to carry out, in this order.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// For the disk's one FIFO; completed with [`Event::Persisted`].
    pub(crate) wal: Vec<WalJob>,
    /// To be sent now.
    pub(crate) messages: Vec<(NodeId, Message)>,
    /// To be passed on to the leader.
    pub(crate) forwards: Vec<(NodeId, ForwardRequest)>,
    /// To be answered to followers.
    pub(crate) answers: BTreeMap<NodeId, ForwardResponse>,
    /// Snapshots to be sent.
    pub(crate) snapshots: Vec<SendSnapshot>,
    /// Entries to be applied, in order; completed with [`Event::Applied`].
    pub(crate) apply: Vec<Entry>,
    /// Answers to calls.
    pub(crate) replies: Vec<(u64, Reply)>,
    /// The state is to be made durable; completed with [`Event::StatePersisted`].
    pub(crate) persist_state: bool,
    /// Role, term or leader changed.
    pub(crate) role_changed: bool,
    /// The calls that were proposed or passed on.
    pub(crate) sent: Vec<Sent>,
    /// The campaigns that were begun.
    pub(crate) campaigns: Vec<Campaigned>,
}

/// A write to the log on disk.
#[derive(Debug)]
pub(crate) enum WalJob {
    /// Appends, and what the core wants durable beside it.
    Append(Append),
    /// The log up to and including this entry may go.
    Purge(LogStart),
}

/// What a replica starts from.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) raft: Restored,
    pub(crate) sessions: Vec<SessionInfo>,
    pub(crate) founded: bool,
    pub(crate) registered: bool,
    pub(crate) next_timer: Option<LogTime>,
}

/// One group's replica on one node.
#[derive(Debug)]
pub(crate) struct Replica {
    config: ReplicaConfig,
    raft: Raft,
    status: Status,
    held: VecDeque<Held>,
    persisted: (HardMark, LogMark),
    calls: Calls,
    routes: BTreeMap<Ticket, Route>,
    next_ticket: u64,
    /// Renewals that a quorum confirmed and that wait for the state to get there.
    confirmed_renewals: Vec<(LogIndex, Route, SessionId)>,
    lessor: Lessor,
    /// The first index of this node's own term while it leads.
    lead_from: Option<LogIndex>,
    applied: LogIndex,
    keeper: LogKeeper,
    next_timer: Option<LogTime>,
    /// When an entry that moves log time on was proposed last.
    advanced_at: Instant,
    founded: bool,
    registered: bool,
    /// When founding or registering was proposed last.
    introduced_at: Instant,
    /// Calls that could not be passed on are tried again from here on.
    retry_at: Instant,
    shortages: Shortages,
    woken_at: Instant,
}

impl Replica {
    pub(crate) fn new(config: ReplicaConfig, recovered: Recovered, now: Instant) -> Self {
        let applied = recovered.raft.applied;
        let keeper = LogKeeper::new(config.retained_log_bytes, &recovered.raft);
        let persisted = (
            HardMark { term: recovered.raft.hard.term, vote: recovered.raft.hard.vote },
            LogMark::default(),
        );
        let raft = Raft::new(config.raft.clone(), recovered.raft, now);
        let mut lessor = Lessor::default();
        lessor.restore(recovered.sessions);
        Self {
            status: raft.status(),
            raft,
            held: VecDeque::new(),
            persisted,
            calls: Calls::of(config.boot),
            routes: BTreeMap::new(),
            next_ticket: 0,
            confirmed_renewals: Vec::new(),
            lessor,
            lead_from: None,
            applied,
            keeper,
            next_timer: recovered.next_timer,
            advanced_at: Instant::ZERO,
            founded: recovered.founded,
            registered: recovered.registered,
            introduced_at: Instant::ZERO,
            retry_at: Instant::FAR,
            shortages: Shortages::default(),
            woken_at: now,
            config,
        }
    }

    /// How the group stands.
    pub(crate) const fn status(&self) -> &Status {
        &self.status
    }

    /// The consensus core, for those who check it.
    pub(crate) const fn raft(&self) -> &Raft {
        &self.raft
    }

    /// How many of this node's calls are open.
    pub(crate) fn open_calls(&self) -> usize {
        self.calls.len()
    }

    /// Takes in a batch of events and says what is to be done. `wall` is the wall clock.
    pub(crate) fn handle(
        &mut self,
        now: Instant,
        wall: LogTime,
        events: impl IntoIterator<Item = Event>,
        jobs: &mut Jobs,
    ) {
        self.notice_pause(now);
        for event in events {
            self.take(now, wall, event, jobs);
        }
        self.step(now, Input::Tick, jobs);
        self.perform_duties(now, wall, jobs);
        self.refuse_late(now, jobs);
        self.route_calls(now, wall, jobs);
        self.refuse_impatient(now, jobs);
        let doubtful = self.calls.doubtful(now, self.config.patience);
        let words = "the connection to the leader broke before it answered: retry with the same \
                     request id, or read the state";
        self.end_as_unknown(now, doubtful, words, jobs);
        self.status = self.raft.status();
        self.woken_at = now;
    }

    /// When to wake at the latest, with no event if nothing else happens.
    pub(crate) fn next_deadline(&self, now: Instant, wall: LogTime) -> Instant {
        let mut next = self.raft.next_deadline().min(self.lessor.next_deadline());
        next = next.min(self.calls.next_renewal()).min(self.retry_at);
        if self.calls.any_queued() {
            next = next.min(now.after(self.config.raft.heartbeat_interval));
        }
        if let (true, Some(timer)) = (self.lessor.leading(), self.next_timer) {
            let due = now.after(timer.since(wall));
            next = next.min(due.max(self.advanced_at.after(duties::ADVANCE_RETRY)));
        }
        next
    }

    fn take(&mut self, now: Instant, wall: LogTime, event: Event, jobs: &mut Jobs) {
        match event {
            Event::Message { from, message } => {
                self.step(now, Input::Message { from, message }, jobs);
            }
            Event::Call(call) => self.calls.insert(now, call),
            Event::Abandoned { sequence, lock } => self.abandon(now, sequence, lock),
            Event::Forwarded { from, request } => self.forwarded(now, wall, from, request, jobs),
            Event::Answered { from, response } => self.answered(now, from, response, jobs),
            Event::NotForwarded { request } => self.not_forwarded(now, &request),
            Event::ForwardBroken { leader } => {
                self.calls.doubt(now, leader);
                self.calls.leader_lost(now, |to, _| to == leader);
            }
            Event::Connected { peer } => self.step(now, Input::Connected { peer }, jobs),
            Event::Disconnected { peer } => self.step(now, Input::Disconnected { peer }, jobs),
            Event::SnapshotSent { peer, installed } => {
                self.step(now, Input::SnapshotSent { peer, installed }, jobs);
            }
            Event::Installed(installed) => self.installed(now, installed, jobs),
            Event::Persisted { hard, log } => self.persisted(now, hard, log, jobs),
            Event::Applied(report) => self.applied(now, report, jobs),
            Event::StatePersisted { index } => self.state_persisted(now, index, jobs),
            Event::DiskStalled(stalled) => self.step(now, Input::DiskStalled(stalled), jobs),
            Event::Space(own) => self.space_seen(own, jobs),
        }
    }

    /// One step of the core, its results sorted into jobs.
    fn step(&mut self, now: Instant, input: Input, jobs: &mut Jobs) {
        let mut ready = Ready::default();
        self.raft.step(now, input, &mut ready);
        for append in ready.appends {
            self.keeper.appended(&append);
            jobs.wal.push(WalJob::Append(append));
        }
        jobs.wal.extend(ready.purged.map(WalJob::Purge));
        jobs.messages.extend(ready.messages);
        for held in ready.held {
            if self.is_durable(&held) {
                jobs.messages.push((held.to, held.message));
            } else {
                self.held.push_back(held);
            }
        }
        jobs.snapshots.extend(ready.snapshots);
        if let Some(apply) = ready.apply {
            jobs.apply.extend(apply.entries);
        }
        for (ticket, outcome) in ready.proposals {
            self.proposed(now, ticket, outcome, jobs);
        }
        for (ticket, outcome) in ready.reads {
            self.read_answered(now, ticket, outcome, jobs);
        }
        for (ticket, outcome) in ready.transfers {
            self.transfer_answered(now, ticket, outcome, jobs);
        }
        jobs.campaigns.append(&mut ready.campaigns);
        if ready.role_changed {
            self.role_changed(now, jobs);
        }
    }

    fn role_changed(&mut self, now: Instant, jobs: &mut Jobs) {
        let before = core::mem::replace(&mut self.status, self.raft.status());
        jobs.role_changed = true;
        let leads = self.status.role == RoleKind::Leader;
        if !leads || before.term != self.status.term {
            self.lessor.follow();
            self.lead_from = None;
            for (_, route, _) in core::mem::take(&mut self.confirmed_renewals) {
                self.unled(now, route, jobs);
            }
        }
        if leads && self.lead_from.is_none() {
            self.lead_from = Some(self.status.last);
        }
        let (leader, term) = (self.status.leader, self.status.term);
        self.calls
            .leader_lost(now, |to, sent_in| sent_in < term || leader.is_some_and(|l| l != to));
        self.settle_transfers(jobs);
    }

    fn is_durable(&self, held: &Held) -> bool {
        held.hard <= self.persisted.0 && held.log <= self.persisted.1
    }

    fn persisted(&mut self, now: Instant, hard: HardMark, log: LogMark, jobs: &mut Jobs) {
        self.persisted.0 = self.persisted.0.max(hard);
        self.persisted.1 = self.persisted.1.max(log);
        self.step(now, Input::Persisted { hard, log }, jobs);
        for held in core::mem::take(&mut self.held) {
            if self.is_durable(&held) {
                jobs.messages.push((held.to, held.message));
            } else {
                self.held.push_back(held);
            }
        }
    }

    fn applied(&mut self, now: Instant, report: AppliedReport, jobs: &mut Jobs) {
        self.applied = self.applied.max(report.index);
        self.keeper.applied(report.index);
        for effect in &report.sessions {
            self.lessor.apply(now, effect);
        }
        for sequence in report.completed {
            self.calls.finish(sequence);
        }
        for (sequence, session) in report.parked {
            self.calls.park(sequence, session, now.after(duties::PARKED_RENEWAL_INTERVAL));
        }
        for (name, sequence) in report.undelivered {
            self.take_back(now, name, sequence);
        }
        self.calls.resolve_older(now, report.term);
        if self.next_timer != report.next_timer {
            self.next_timer = report.next_timer;
            // What fell due was carried out; what is due still need not wait.
            self.advanced_at = Instant::ZERO;
        }
        self.founded |= report.founded;
        self.registered |= report.registered;
        self.step(now, Input::Applied { index: report.index }, jobs);
        self.begin_leading(now);
        self.renew_confirmed(now, jobs);
    }

    /// Once everything before its term is applied, the leader counts the sessions' time.
    fn begin_leading(&mut self, now: Instant) {
        let ready = self.lead_from.is_some_and(|from| self.applied >= from);
        if ready && !self.lessor.leading() {
            self.lessor.lead(now);
        }
    }

    fn installed(&mut self, now: Instant, installed: Installed, jobs: &mut Jobs) {
        let overtaken = self.calls.overtaken();
        let words = "a snapshot overtook this node: retry with the same request id, or read the \
                     state to learn what came of it";
        self.end_as_unknown(now, overtaken, words, jobs);
        self.lessor.restore(installed.sessions);
        self.next_timer = installed.next_timer;
        self.founded |= installed.founded;
        self.registered |= installed.registered;
        self.applied = self.applied.max(installed.index);
        self.keeper.reset(installed.index);
        let received = Input::SnapshotReceived {
            from: installed.from,
            term: installed.term,
            index: installed.index,
            last_term: installed.last_term,
            time: installed.time,
            membership: installed.membership,
        };
        self.step(now, received, jobs);
        self.step(now, Input::Applied { index: installed.index }, jobs);
    }

    fn state_persisted(&mut self, now: Instant, index: LogIndex, jobs: &mut Jobs) {
        if let Some(through) = self.keeper.state_persisted(index, self.raft.wanted_after()) {
            self.step(now, Input::Purge { through }, jobs);
        }
    }

    /// A process that stood still (SIGSTOP, a suspended machine) could not hear renewals: what
    /// counts down is prolonged by the pause. This only ever delays an expiry.
    fn notice_pause(&mut self, now: Instant) {
        let silence = now.since(self.woken_at);
        if silence > duties::PAUSE_MIN && self.lessor.leading() {
            tracing::warn!(pause_ms = silence.as_millis(), "the process stood still");
            self.lessor.forgive(silence);
        }
    }
}
