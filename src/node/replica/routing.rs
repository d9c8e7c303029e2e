//! Calls find the leader: proposed here, or passed on, one hop only.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::refusal,
    node::{
        calls::{Call, CallKind, Reply, is_internal},
        places::{PlaceId, Sent},
        replica::{Jobs, Replica},
    },
    pb::{
        command::v1::{CancelAcquire, Command, Origin, Reason, Refusal, command},
        raft::v1::{
            ForwardRequest, ForwardResponse,
            forward_request::{Propose, ReadIndex, Renew},
            forward_response::{Accepted, Answer, answer},
        },
    },
    raft::{Input, ProposeOutcome, ReadOutcome, RoleKind, Ticket, TransferOutcome},
    types::{Duration, Instant, LogIndex, LogTime, NodeId, Planted, SessionId, Term, planted},
};

/// Calls that could not be passed on are tried again after this.
const FORWARD_RETRY: Duration = Duration::from_millis(20);
/// How many bytes of calls one message to the leader carries; a larger call travels alone. Well
/// below what a node decodes.
const FORWARD_BYTES_MAX: usize = 1 << 20;

/// Whose request a ticket of the core stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// A call of this node.
    Local { sequence: u64 },
    /// A call that a follower passed on, a proposal with the term that it expected.
    Remote { from: NodeId, sequence: u64, term: Term },
    /// A renewal, by whichever way it came.
    Renewal { session: SessionId, whose: Box<Self> },
    /// A command of the leader's own; nobody waits for it.
    Nobody,
}

impl Route {
    /// Whether it stands for a renewal of a node's own; one is under way every few seconds.
    fn is_internal(&self) -> bool {
        match self {
            Self::Renewal { whose, .. } => whose.is_internal(),
            Self::Local { sequence } | Self::Remote { sequence, .. } => is_internal(*sequence),
            Self::Nobody => false,
        }
    }
}

impl Replica {
    /// A ticket that stands for `route` until the core answers it.
    pub(super) fn ticket(&mut self, route: Route) -> Ticket {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.routes.insert(ticket, route);
        ticket
    }

    /// Sends every queued call to the leader, where there is one.
    pub(super) fn route_calls(&mut self, now: Instant, wall: LogTime, jobs: &mut Jobs) {
        if self.retry_at <= now {
            self.retry_at = Instant::FAR;
        }
        if !self.calls.any_queued() || self.retry_at != Instant::FAR {
            return;
        }
        match self.status.leader {
            Some(_) if self.status.role == RoleKind::Leader => self.call_here(now, wall, jobs),
            Some(leader) if leader != self.config.raft.id => self.pass_on(leader, jobs),
            _ => {}
        }
    }

    fn call_here(&mut self, now: Instant, wall: LogTime, jobs: &mut Jobs) {
        let (me, term) = (self.config.raft.id, self.status.term);
        let mut commands = Vec::new();
        let (mut inputs, mut renewals) = (Vec::new(), Vec::new());
        for sequence in self.calls.queued() {
            let Some(call) = self.calls.call(sequence) else { continue };
            let kind = call.kind.clone();
            let sent = Sent { place: call.place, leader: me, kind: kind.sent() };
            if let CallKind::Propose { command, .. } = &kind
                && let Some(refusal) = self.shortages.refuse(command)
            {
                self.reply(sequence, Reply::Refused(refusal), jobs);
                continue;
            }
            jobs.sent.push(sent);
            self.calls.sent(sequence, me, term);
            let route = Route::Local { sequence };
            match kind {
                CallKind::Propose { command, .. } => commands.push((self.ticket(route), command)),
                CallKind::Read => inputs.push(Input::Read { ticket: self.ticket(route) }),
                CallKind::Renew { session } => renewals.push((session, route)),
                CallKind::Transfer { target } => {
                    inputs.push(Input::Transfer { ticket: self.ticket(route), target });
                }
            }
        }
        if !commands.is_empty() {
            let propose = Input::Propose { time: wall, expected_term: Some(term), commands };
            self.step(now, propose, jobs);
        }
        for input in inputs {
            self.step(now, input, jobs);
        }
        for (session, whose) in renewals {
            self.renew_here(now, session, whose, jobs);
        }
    }

    /// A renewal is asked of this node: a read tells whether it still leads (rule 29).
    fn renew_here(&mut self, now: Instant, session: SessionId, whose: Route, jobs: &mut Jobs) {
        if planted(Planted::RenewalWithoutQuorum) && self.lessor.leading() {
            self.confirmed_renewals.push((self.applied, whose, session));
            return self.renew_confirmed(now, jobs);
        }
        let ticket = self.ticket(Route::Renewal { session, whose: Box::new(whose) });
        self.step(now, Input::Read { ticket }, jobs);
    }

    fn pass_on(&mut self, leader: NodeId, jobs: &mut Jobs) {
        let term = self.status.term;
        let mut batch = ForwardRequest::default();
        let mut bytes = 0;
        for sequence in self.calls.queued() {
            let Some(call) = self.calls.call(sequence) else { continue };
            bytes += call.bytes();
            if bytes > FORWARD_BYTES_MAX {
                jobs.forwards.push((leader, core::mem::take(&mut batch)));
                bytes = call.bytes();
            }
            jobs.sent.push(Sent { place: call.place, leader, kind: call.kind.sent() });
            match &call.kind {
                CallKind::Propose { command, .. } => batch.proposals.push(Propose {
                    sequence,
                    command: command.clone(),
                    expected_term: term.value(),
                }),
                CallKind::Read => batch.reads.push(ReadIndex { sequence }),
                CallKind::Renew { session } => {
                    batch.renewals.push(Renew { sequence, session_id: session.value() });
                }
                CallKind::Transfer { target } => {
                    if batch.transfer_sequence != 0 {
                        continue; // One a message; the next goes with the next batch.
                    }
                    batch.transfer_sequence = sequence;
                    batch.transfer_target = target.map_or(0, NodeId::value);
                }
            }
            self.calls.sent(sequence, leader, term);
        }
        jobs.forwards.push((leader, batch));
    }

    /// A follower passes requests on to this node.
    pub(super) fn forwarded(
        &mut self,
        now: Instant,
        wall: LogTime,
        from: NodeId,
        request: ForwardRequest,
        jobs: &mut Jobs,
    ) {
        if let Some(space) = &request.space {
            self.space_heard(now, from, space);
        }
        let mut by_term: Vec<(Term, Vec<(Ticket, Bytes)>)> = Vec::new();
        for Propose { sequence, command, expected_term } in request.proposals {
            let term = Term::new(expected_term);
            let route = Route::Remote { from, sequence, term };
            // One that does not lead in this term says so below.
            let leads = self.status.role == RoleKind::Leader && self.status.term == term;
            if leads && let Some(refusal) = self.shortages.refuse(&command) {
                self.refuse(route, refusal, jobs);
                continue;
            }
            let ticket = self.ticket(route);
            match by_term.last_mut() {
                Some((last, commands)) if *last == term => commands.push((ticket, command)),
                _ => by_term.push((term, vec![(ticket, command)])),
            }
        }
        for (term, commands) in by_term {
            let propose = Input::Propose { time: wall, expected_term: Some(term), commands };
            self.step(now, propose, jobs);
        }
        let term = Term::ZERO;
        for ReadIndex { sequence } in request.reads {
            let ticket = self.ticket(Route::Remote { from, sequence, term });
            self.step(now, Input::Read { ticket }, jobs);
        }
        for Renew { sequence, session_id } in request.renewals {
            let whose = Route::Remote { from, sequence, term };
            self.renew_here(now, SessionId::new(session_id), whose, jobs);
        }
        if request.transfer_sequence != 0 {
            let sequence = request.transfer_sequence;
            let ticket = self.ticket(Route::Remote { from, sequence, term });
            let target = Some(NodeId::new(request.transfer_target)).filter(|node| !node.is_zero());
            self.step(now, Input::Transfer { ticket, target }, jobs);
        }
    }

    /// The leader answers what this node passed on.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        from: NodeId,
        response: ForwardResponse,
        jobs: &mut Jobs,
    ) {
        for Answer { sequence, result, expected_term } in response.answers {
            if !self.calls.awaits(sequence, from, Term::new(expected_term)) {
                continue; // To an attempt that was given up.
            }
            let reply = match result {
                Some(answer::Result::Accepted(_)) => {
                    self.calls.accepted(sequence);
                    continue;
                }
                None => continue,
                Some(answer::Result::ReadIndex(index)) => Reply::ReadIndex(LogIndex::new(index)),
                Some(answer::Result::RenewedTtlMs(ttl)) => {
                    Reply::Renewed(Duration::from_millis(ttl))
                }
                Some(answer::Result::TransferredTo(leader)) => {
                    Reply::Transferred(NodeId::new(leader))
                }
                Some(answer::Result::Refusal(bytes)) => match Refusal::decode(bytes) {
                    Ok(refusal) if refusal.reason() == Reason::NotLeader => {
                        self.calls.requeue(now, sequence);
                        self.retry_at = self.retry_at.min(now.after(FORWARD_RETRY));
                        continue;
                    }
                    Ok(refusal) => Reply::Refused(refusal),
                    Err(_) => continue,
                },
            };
            self.reply(sequence, reply, jobs);
        }
    }

    /// What was passed on did not leave this node.
    pub(super) fn not_forwarded(&mut self, now: Instant, request: &ForwardRequest) {
        let proposals = request.proposals.iter().map(|propose| propose.sequence);
        let reads = request.reads.iter().map(|read| read.sequence);
        let renewals = request.renewals.iter().map(|renew| renew.sequence);
        for sequence in proposals.chain(reads).chain(renewals).chain([request.transfer_sequence]) {
            self.calls.queue_again(sequence);
        }
        self.retry_at = now.after(FORWARD_RETRY);
    }

    pub(super) fn proposed(
        &mut self,
        now: Instant,
        ticket: Ticket,
        outcome: ProposeOutcome,
        jobs: &mut Jobs,
    ) {
        let Some(route) = self.routes.remove(&ticket) else { return };
        match outcome {
            ProposeOutcome::Accepted { index, term } => {
                if matches!(route, Route::Remote { .. }) {
                    let accepted = Accepted { index: index.value(), term: term.value() };
                    answer_to(jobs, &route, answer::Result::Accepted(accepted));
                }
            }
            ProposeOutcome::NotLeader { .. } | ProposeOutcome::Transferring { .. } => {
                self.unled(now, route, jobs);
            }
            ProposeOutcome::Overloaded => {
                let words = "too much waits to be replicated: try again later";
                self.refuse(route, refusal(Reason::Overloaded, words), jobs);
            }
        }
    }

    pub(super) fn read_answered(
        &mut self,
        now: Instant,
        ticket: Ticket,
        outcome: ReadOutcome,
        jobs: &mut Jobs,
    ) {
        let Some(route) = self.routes.remove(&ticket) else { return };
        match (outcome, route) {
            (ReadOutcome::NotLeader { .. }, route) => self.unled(now, route, jobs),
            (ReadOutcome::Ready { index }, Route::Local { sequence }) => {
                self.reply(sequence, Reply::ReadIndex(index), jobs);
            }
            (ReadOutcome::Ready { index }, route @ Route::Remote { .. }) => {
                answer_to(jobs, &route, answer::Result::ReadIndex(index.value()));
            }
            (ReadOutcome::Ready { index }, Route::Renewal { session, whose }) => {
                self.confirmed_renewals.push((index, *whose, session));
                self.renew_confirmed(now, jobs);
            }
            (ReadOutcome::Ready { .. }, Route::Nobody) => {}
        }
    }

    /// Renews the sessions whose renewals a quorum has confirmed, once the state is far enough to
    /// know whether they live (rule 29).
    pub(super) fn renew_confirmed(&mut self, now: Instant, jobs: &mut Jobs) {
        if !self.lessor.leading() {
            return;
        }
        for (index, whose, session) in core::mem::take(&mut self.confirmed_renewals) {
            if index > self.applied {
                self.confirmed_renewals.push((index, whose, session));
                continue;
            }
            match (self.lessor.renew(now, session), whose) {
                (Some(ttl), Route::Local { sequence }) => {
                    self.reply(sequence, Reply::Renewed(ttl), jobs);
                }
                (Some(ttl), route @ Route::Remote { .. }) => {
                    let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                    answer_to(jobs, &route, answer::Result::RenewedTtlMs(ttl));
                }
                (Some(_), _) => {}
                (None, whose) => {
                    let words = format!(
                        "session {session} has expired or never was: open another, or acquire anew"
                    );
                    let refusal =
                        refusal(Reason::SessionNotFound, words).with("session_id", session);
                    self.refuse(whose, refusal, jobs);
                }
            }
        }
    }

    pub(super) fn transfer_answered(
        &mut self,
        now: Instant,
        ticket: Ticket,
        outcome: TransferOutcome,
        jobs: &mut Jobs,
    ) {
        let Some(route) = self.routes.remove(&ticket) else { return };
        match outcome {
            TransferOutcome::Done { leader } => match route {
                Route::Local { sequence } => {
                    self.reply(sequence, Reply::Transferred(leader), jobs);
                }
                Route::Remote { .. } => {
                    answer_to(jobs, &route, answer::Result::TransferredTo(leader.value()));
                }
                Route::Renewal { .. } | Route::Nobody => {}
            },
            TransferOutcome::NotLeader { .. } => self.unled(now, route, jobs),
            TransferOutcome::NotAVoter => {
                let words = "the target is not a voter of this cluster, or there is no other: see \
                             `quorate status` for the nodes";
                self.refuse(route, refusal(Reason::NotAVoter, words), jobs);
            }
            TransferOutcome::TimedOut => {
                let words = "the target did not take over in time; the old leader leads on: check \
                             that the target runs and try again";
                self.refuse(route, refusal(Reason::TransferAborted, words), jobs);
            }
        }
    }

    /// This node does not lead: its own calls look for the leader again, others' are sent back.
    pub(super) fn unled(&mut self, now: Instant, route: Route, jobs: &mut Jobs) {
        match route {
            Route::Local { sequence } => {
                self.calls.requeue(now, sequence);
                // The core may still name this node while it hands over: do not spin.
                self.retry_at = self.retry_at.min(now.after(FORWARD_RETRY));
            }
            Route::Renewal { whose, .. } => self.unled(now, *whose, jobs),
            route => self.refuse(route, not_leader(self.status.leader), jobs),
        }
    }

    fn refuse(&mut self, route: Route, refusal: Refusal, jobs: &mut Jobs) {
        match route {
            Route::Local { sequence } => self.reply(sequence, Reply::Refused(refusal), jobs),
            Route::Remote { .. } => {
                let refusal = refusal.encode_to_vec().into();
                answer_to(jobs, &route, answer::Result::Refusal(refusal));
            }
            Route::Renewal { whose, .. } => self.refuse(*whose, refusal, jobs),
            Route::Nobody => {}
        }
    }

    fn reply(&mut self, sequence: u64, reply: Reply, jobs: &mut Jobs) {
        if is_internal(sequence) && matches!(reply, Reply::Refused(_)) && self.is_own(sequence) {
            // A command of the node's own is proposed until it is applied.
            self.calls.queue_again(sequence);
            self.retry_at = self.retry_at.min(self.woken_at.after(FORWARD_RETRY));
        } else if self.calls.finish(sequence).is_some() && !is_internal(sequence) {
            jobs.replies.push((sequence, reply));
        }
    }

    /// Clients' calls that are open here, and tickets that the core owes an outcome, in words: for
    /// those who check that every call ends.
    pub(crate) fn open_ends(&self) -> Vec<String> {
        let calls = self.calls.open().map(|call| format!("open: {call:?}"));
        let routes = self.routes.values().filter(|route| !route.is_internal());
        calls.chain(routes.map(|route| format!("without an outcome: {route:?}"))).collect()
    }

    fn is_own(&self, sequence: u64) -> bool {
        let call = self.calls.call(sequence);
        call.is_some_and(|call| matches!(call.kind, CallKind::Propose { .. }))
    }

    /// Ends calls of which nobody can say what became of them. A waiter that may stand in a line is
    /// taken out; a command of the node's own, which may be repeated, is.
    pub(super) fn end_as_unknown(
        &mut self,
        now: Instant,
        calls: Vec<Call>,
        words: &str,
        jobs: &mut Jobs,
    ) {
        for call in calls {
            if is_internal(call.sequence) {
                self.calls.insert(now, call);
                continue;
            }
            let refusal = refusal(Reason::OutcomeUnknown, words);
            jobs.replies.push((call.sequence, Reply::Refused(refusal)));
            if let CallKind::Propose { lock: Some(name), .. } = call.kind {
                self.take_back(now, name, call.sequence);
            }
        }
    }

    /// Another node leads: transfers that were asked of its predecessor are over.
    pub(super) fn settle_transfers(&mut self, jobs: &mut Jobs) {
        let Some(leader) = self.status.leader else { return };
        for (sequence, target) in self.calls.transferred(self.status.term) {
            let reply = if target.is_none_or(|target| target == leader) {
                Reply::Transferred(leader)
            } else {
                let words = format!("node {leader} was elected instead: try again");
                Reply::Refused(refusal(Reason::TransferAborted, words))
            };
            self.reply(sequence, reply, jobs);
        }
    }

    /// Refuses the calls whose deadline passed before their turn came: they are not proposed.
    pub(super) fn refuse_late(&mut self, now: Instant, jobs: &mut Jobs) {
        if !self.calls.any_queued() {
            return;
        }
        for call in self.calls.late(now) {
            if is_internal(call.sequence) {
                continue;
            }
            let words = "the deadline passed before the call was proposed: nothing was done";
            let refusal = refusal(Reason::DeadlineExceeded, words);
            jobs.replies.push((call.sequence, Reply::Refused(refusal)));
        }
    }

    /// Refuses the calls that waited for a leader in vain.
    pub(super) fn refuse_impatient(&mut self, now: Instant, jobs: &mut Jobs) {
        // Queued calls are looked at every heartbeat interval at least.
        let spare = self.config.raft.heartbeat_interval * 2;
        let elsewhere = self.status.leader.filter(|&leader| leader != self.config.raft.id);
        for call in self.calls.impatient(now, self.config.patience, spare) {
            if is_internal(call.sequence) {
                continue;
            }
            let refusal = match elsewhere {
                Some(leader) => {
                    let words = format!(
                        "this node does not lead and does not reach node {leader}, which does: \
                         ask that node"
                    );
                    refusal(Reason::NotLeader, words).with("leader_id", leader)
                }
                None => refusal(
                    Reason::NoQuorum,
                    "no leader has a quorum: check that a majority of the nodes runs and that \
                     they reach each other",
                ),
            };
            let refusal =
                refusal.with("node_id", self.config.raft.id).with("term", self.status.term);
            jobs.replies.push((call.sequence, Reply::Refused(refusal)));
        }
    }

    /// Nobody waits for a call any more. What is parked, may yet be granted, or was granted a
    /// moment ago, is taken back.
    pub(super) fn abandon(&mut self, now: Instant, sequence: u64, lock: Option<String>) {
        let queued = self.calls.is_queued(sequence);
        self.calls.finish(sequence);
        if let (Some(name), false) = (lock, queued) {
            self.take_back(now, name, sequence);
        }
    }

    /// Takes a waiter out of a lock's line, or releases a grant that nobody received.
    pub(super) fn take_back(&mut self, now: Instant, name: String, sequence: u64) {
        let attachment = Some(self.origin(sequence));
        let op = command::Op::CancelAcquire(CancelAcquire { name, attachment });
        self.call_own(now, op);
    }

    /// Proposes a command of the node's own, wherever the leader is, until it is applied.
    pub(super) fn call_own(&mut self, now: Instant, op: command::Op) {
        let sequence = self.calls.internal_sequence();
        let command = Command { version: 1, origin: Some(self.origin(sequence)), op: Some(op) };
        let kind = CallKind::Propose { command: command.encode_to_vec().into(), lock: None };
        let place = PlaceId::NONE;
        self.calls.insert(now, Call { sequence, deadline: Instant::FAR, place, kind });
    }

    fn origin(&self, sequence: u64) -> Origin {
        Origin { node_id: self.config.raft.id.value(), boot: self.config.boot, sequence }
    }
}

fn not_leader(leader: Option<NodeId>) -> Refusal {
    let refusal = refusal(Reason::NotLeader, "this node does not lead: ask the leader");
    match leader {
        Some(leader) => refusal.with("leader_id", leader),
        None => refusal,
    }
}

/// Answers what a follower passed on.
fn answer_to(jobs: &mut Jobs, route: &Route, result: answer::Result) {
    let Route::Remote { from, sequence, term } = *route else { return };
    let answer = Answer { sequence, result: Some(result), expected_term: term.value() };
    jobs.answers.entry(from).or_default().answers.push(answer);
}
