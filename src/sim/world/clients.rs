//! Clients: each carries out its intents one after the other, asks another node where one refuses
//! or falls silent, with the same request id, and writes down what it saw.
//!
//! They are as careful as the client library and no more: a refusal after an attempt whose outcome
//! is unknown is unknown too.

use std::collections::{BTreeMap, VecDeque};

use uuid::Uuid;

use crate::{
    machine::{View, store::Store},
    node::{
        calls::{Call as NodeCall, CallKind, Reply},
        places::PlaceId,
        replica::Event,
    },
    pb::command::v1::{Command, Origin, Outcome as Applied, Reason, Refusal, command, outcome},
    raft::RoleKind,
    sim::{
        checker,
        history::{Answer, Call, Outcome},
        invariants::Broken,
        plan::Plan,
        workload::{Client, Planned},
    },
    types::{Duration, Instant, LogIndex, NodeId, Rng, SessionId, Term},
};

use super::{Happening, World, answers, end::Phase, node::Boot, turn::place};

/// How long a call may take in all, waiting in a line aside.
const PATIENCE: Duration = Duration::from_secs(6);
/// How long one node has to answer.
const ATTEMPT: Duration = Duration::from_millis(2_500);
/// A client whose call ended unknown goes on under a number that is so much higher.
const NEW_NUMBER: u64 = 1_000;

/// What is due at a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Its next intent.
    Next,
    /// Its call is to be tried again.
    Retry { call: u64 },
    /// An attempt has taken too long.
    Timeout { call: u64, attempt: u64 },
    /// What it wrote reaches the resource that a lock guards.
    Resource { call: u64 },
}

/// A call as a node knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) client: usize,
    pub(super) call: u64,
    pub(super) attempt: u64,
}

/// All clients, and what they share.
#[derive(Debug)]
pub(super) struct Clients {
    clients: Vec<Actor>,
    root: Rng,
    /// The largest token that each guarded resource has seen.
    resources: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Actor {
    client: Client,
    /// Its number in the history.
    number: u64,
    intents: VecDeque<Planned>,
    rng: Rng,
    node: usize,
    /// Which start of which node answered last: what is read there is no older than that.
    answered_at: Option<(usize, u64)>,
    open: Option<Open>,
}

/// A call that is open.
#[derive(Debug)]
struct Open {
    id: u64,
    call: Call,
    request_id: String,
    began: Instant,
    until: Instant,
    /// When a node was asked last, and what was committed by then.
    asked: Instant,
    committed: (LogIndex, Term),
    /// The attempt under way, where it is and its number there.
    attempt: u64,
    at: Option<(usize, u64, u64)>,
    /// Whether the lock was seen held, and its session is to be renewed.
    renewing: bool,
    /// Whether an attempt ended without anybody knowing how.
    doubtful: bool,
}

impl Clients {
    pub(super) fn new(plan: &Plan) -> Self {
        let root = Rng::new(plan.settings.seed).stream("clients");
        let mut clients: BTreeMap<u64, Actor> = BTreeMap::new();
        for planned in &plan.intents {
            let actor = clients.entry(planned.client).or_insert_with(|| Actor {
                client: Client::new(planned.client),
                number: planned.client,
                intents: VecDeque::new(),
                rng: root.stream(&format!("client {}", planned.client)),
                node: (planned.client % plan.settings.nodes) as usize,
                answered_at: None,
                open: None,
            });
            actor.intents.push_back(planned.clone());
        }
        Self { clients: clients.into_values().collect(), root, resources: BTreeMap::new() }
    }

    /// Adds a client with intents of its own, beginning at a node.
    pub(super) fn add(&mut self, number: u64, node: usize, intents: Vec<Planned>) -> usize {
        let client = Client::new(number);
        let intents = intents.into();
        let rng = self.root.stream(&format!("client {number}"));
        self.clients.push(Actor {
            client,
            number,
            intents,
            rng,
            node,
            answered_at: None,
            open: None,
        });
        self.clients.len() - 1
    }

    /// Whether every client is done with its intents.
    pub(super) fn all_done(&self) -> bool {
        self.clients.iter().all(|actor| actor.open.is_none() && actor.intents.is_empty())
    }

    /// Whoever is late thinks no more.
    pub(super) fn hurry(&mut self) {
        let intents = self.clients.iter_mut().flat_map(|actor| &mut actor.intents);
        intents.for_each(|intent| intent.think_ms = 0);
    }
}

impl World {
    pub(super) fn begin_clients(&mut self) {
        for client in 0..self.clients.clients.len() {
            self.think(client);
        }
    }

    /// A client thinks, then does what it wants next.
    pub(super) fn think(&mut self, client: usize) {
        if let Some(next) = self.clients.clients[client].intents.front() {
            let span = Duration::from_millis(next.think_ms);
            self.after(span, Happening::Client { client, due: Due::Next });
        }
    }

    pub(super) fn client_due(&mut self, client: usize, due: Due) -> Result<(), Broken> {
        match due {
            Due::Next => self.next_intent(client),
            Due::Retry { call } => {
                if self.is_open(client, call) {
                    self.attempt(client);
                }
            }
            Due::Timeout { call, attempt } => self.attempt_timed_out(client, call, attempt),
            Due::Resource { call } => self.resource_reached(client, call),
        }
        Ok(())
    }

    fn is_open(&self, client: usize, call: u64) -> bool {
        self.clients.clients[client].open.as_ref().is_some_and(|open| open.id == call)
    }

    fn next_intent(&mut self, client: usize) {
        let actor = &mut self.clients.clients[client];
        if actor.open.is_some() {
            return;
        }
        let Some(planned) = actor.intents.pop_front() else { return };
        if self.plan.settings.near_leader
            && self.phase == Phase::Faults
            && let Some(process) = self.nodes[actor.node].process.as_deref()
            && let Some(leader) = process.replica.status().leader
        {
            actor.node = place(leader);
        }
        // Who has nothing to release reads instead: every intent is a call.
        let idle = || Call::Get { key: "k0".into(), stale: false };
        let call = actor.client.call(&planned.intent).unwrap_or_else(idle);
        let time = self.now.as_nanos();
        let node = Some(actor.node as u64 + 1);
        let place = Some((actor.node, self.nodes[actor.node].boots));
        if answers::is_stale(&call) && actor.answered_at != place {
            // What another node has, or another start of it, may be older than what was read.
            actor.number += NEW_NUMBER;
        }
        let id = self.recorder.call(time, actor.number, node, call.clone());
        let wait = match &call {
            Call::Acquire { wait_ms, .. } => Duration::from_millis(*wait_ms),
            _ => Duration::ZERO,
        };
        let request_id = Uuid::from_u128(
            u128::from(actor.rng.next_u64()) << 64 | u128::from(actor.rng.next_u64()),
        );
        let until = self.now.after(PATIENCE + wait);
        self.tell(|| format!("c{}: call {id}: {}", client + 1, checker::call_in_words(&call)));
        let guarded = matches!(call, Call::GuardedWrite { .. });
        self.clients.clients[client].open = Some(Open {
            id,
            call,
            request_id: request_id.to_string(),
            began: self.now,
            until,
            asked: self.now,
            committed: (LogIndex::ZERO, Term::ZERO),
            attempt: 0,
            at: None,
            renewing: false,
            doubtful: false,
        });
        if guarded {
            // Now and then it takes long enough for the lock to be lost on the way.
            let rng = &mut self.clients.clients[client].rng;
            let most = if rng.below(5) == 0 { 5_000 } else { 100 };
            let span = Duration::from_millis(rng.below(most));
            self.after(span, Happening::Client { client, due: Due::Resource { call: id } });
        } else {
            self.attempt(client);
        }
    }

    /// The resource outside of the cluster refuses any token below the largest that it has seen.
    fn resource_reached(&mut self, client: usize, call: u64) {
        if !self.is_open(client, call) {
            return;
        }
        let open = self.clients.clients[client].open.as_ref().expect("it is open");
        let Call::GuardedWrite { lock, fencing_token, .. } = &open.call else { return };
        let largest = self.clients.resources.entry(lock.clone()).or_default();
        let accepted = *fencing_token >= *largest;
        *largest = (*largest).max(*fencing_token);
        if !accepted {
            self.counts.count("stale write fenced off");
        }
        self.finish(client, Outcome::Ok(Answer::Guarded { accepted }));
    }

    /// Tries the call of a client at the node that it is at.
    fn attempt(&mut self, client: usize) {
        let actor = &mut self.clients.clients[client];
        let node = actor.node;
        let open = actor.open.as_mut().expect("a call is tried while it is open");
        if self.now >= open.until {
            let reason = "the call's deadline ran out".to_owned();
            let outcome = if open.doubtful {
                Outcome::Unknown { reason }
            } else {
                Outcome::Refused { reason: "UNAVAILABLE".into(), actual: None }
            };
            return self.finish(client, outcome);
        }
        open.attempt += 1;
        let (call, id, attempt) = (open.call.clone(), open.id, open.attempt);
        let request_id = open.request_id.clone();
        let stands = self.nodes[node].process.is_none() || self.nodes[node].paused_until.is_some();
        if stands && answers::is_stale(&call) {
            let outcome = Outcome::Refused { reason: "UNAVAILABLE".into(), actual: None };
            self.clients.clients[client].node = (node + 1) % self.nodes.len();
            return self.finish(client, outcome);
        }
        if self.nodes[node].process.is_none() {
            return self.elsewhere(client);
        }
        let at = Attempt { client, call: id, attempt };
        if answers::is_stale(&call) {
            let process = self.nodes[node].process.as_deref().expect("as just seen");
            let view = View::new(process.store.snapshot());
            let answer = answers::read(&view, &call);
            let open = self.clients.clients[client].open.as_mut().expect("as above");
            open.at = Some((node, self.nodes[node].boots, 0));
            return self.finish(client, Outcome::Ok(answer));
        }
        let op = answers::op(&call, &request_id);
        if op.as_ref().is_some_and(|op| self.refuses_for_room(node, op)) {
            return self.elsewhere(client);
        }
        let sequence = self.open_call(node, at, op.as_ref().map(|op| (op, &call)), &call);
        let open = self.clients.clients[client].open.as_mut().expect("as above");
        let boot = self.nodes[node].boots;
        open.at = Some((node, boot, sequence));
        let patience = match &call {
            Call::Acquire { wait_ms, .. } => ATTEMPT + Duration::from_millis(*wait_ms),
            _ => ATTEMPT,
        };
        self.after(patience, Happening::Client { client, due: Due::Timeout { call: id, attempt } });
    }

    /// Opens a call at a node, as its handle does. Gives its number there.
    fn open_call(
        &mut self,
        node: usize,
        at: Attempt,
        op: Option<(&command::Op, &Call)>,
        call: &Call,
    ) -> u64 {
        let open = self.clients.clients[at.client].open.as_mut().expect("a call is tried");
        (open.asked, open.committed) = (self.now, self.checks.last_committed());
        let renewing = open.renewing;
        let process = self.nodes[node].process.as_deref_mut().expect("it runs");
        process.sequence += 1;
        let sequence = process.sequence;
        process.pending.insert(sequence, at);
        let kind = match (op, call) {
            (Some((op, call)), _) => {
                let origin =
                    Some(Origin { node_id: node as u64 + 1, boot: process.name, sequence });
                let command = Command { version: 1, origin, op: Some(op.clone()) };
                let lock = match call {
                    Call::Acquire { lock, .. } => Some(lock.clone()),
                    _ => None,
                };
                CallKind::Propose { command: prost::Message::encode_to_vec(&command).into(), lock }
            }
            (None, Call::RenewSession { session }) => {
                CallKind::Renew { session: SessionId::new(*session) }
            }
            (None, Call::RenewLock { session, .. }) if renewing => {
                CallKind::Renew { session: SessionId::new(*session) }
            }
            (None, _) => CallKind::Read,
        };
        let shown = self.nodes[node].clock.monotonic(self.now);
        let deadline = shown.after(ATTEMPT);
        let call = NodeCall { sequence, deadline, place: PlaceId::NONE, kind };
        self.give(node, Event::Call(call));
        sequence
    }

    /// The next attempt is at another node: what carries a request id, or changes nothing, may be
    /// tried again though nobody knows how the one before ended.
    fn elsewhere(&mut self, client: usize) {
        let nodes = self.nodes.len();
        let actor = &mut self.clients.clients[client];
        // Who audits a node asks that one alone.
        if !self.phase.is_audit() {
            actor.node = (actor.node + 1) % nodes;
        }
        let open = actor.open.as_mut().expect("it is open");
        (open.at, open.renewing) = (None, false);
        let call = open.id;
        let span = Duration::from_millis(20 + actor.rng.below(100));
        self.after(span, Happening::Client { client, due: Due::Retry { call } });
    }

    fn attempt_timed_out(&mut self, client: usize, call: u64, attempt: u64) {
        if !self.is_open(client, call) {
            return;
        }
        let open = self.clients.clients[client].open.as_mut().expect("it is open");
        if open.attempt != attempt {
            return;
        }
        let lock = match &open.call {
            Call::Acquire { lock, .. } => Some(lock.clone()),
            _ => None,
        };
        open.doubtful = true;
        if let Some((node, boot, sequence)) = open.at.take()
            && let Some(process) = self.nodes[node].running(boot)
        {
            process.pending.remove(&sequence);
            process.reads.retain(|(_, at)| (at.client, at.call) != (client, call));
            self.give(node, Event::Abandoned { sequence, lock });
        }
        self.elsewhere(client);
    }

    /// The process that had an attempt is gone.
    pub(super) fn connection_to_client_broke(&mut self, at: Attempt) {
        if let Some(open) = self.clients.clients[at.client].open.as_mut()
            && (open.id, open.attempt) == (at.call, at.attempt)
        {
            open.doubtful = true;
            self.elsewhere(at.client);
        }
    }

    /// A node answers a call, proposals aside.
    pub(super) fn replied(&mut self, node: usize, sequence: u64, reply: Reply) {
        let Some(process) = self.nodes[node].process.as_deref_mut() else { return };
        let Some(at) = process.pending.remove(&sequence) else { return };
        match reply {
            Reply::Refused(refusal) => self.refused(at, &refusal),
            Reply::ReadIndex(index) => {
                process.reads.push((index, at));
                self.check_read_index(node, at, index);
                self.serve_reads(node);
            }
            Reply::Renewed(_) => {
                if process.replica.status().role == RoleKind::Leader {
                    let open = self.clients.clients[at.client].open.as_ref();
                    let since = open.map_or(Term::ZERO, |open| open.committed.1);
                    self.check_renewal(node, since);
                }
                self.answered(at, Outcome::Ok(Answer::Renewed));
            }
            Reply::Transferred(_) => self.answered(at, Outcome::Ok(Answer::Renewed)),
        }
    }

    /// A read sees whatever was committed anywhere before it was asked for (thesis 6.4).
    fn check_read_index(&mut self, node: usize, at: Attempt, index: LogIndex) {
        let open = self.clients.clients[at.client].open.as_ref();
        let open = open.filter(|open| (open.id, open.attempt) == (at.call, at.attempt));
        if let Some(open) = open.filter(|open| index < open.committed.0) {
            let words = format!(
                "n{} is to answer call {} as of {index:?}; {:?} was committed when it was asked",
                node + 1,
                open.id,
                open.committed.0
            );
            self.found = Some(Broken::new("read-index-is-current", words));
        }
    }

    /// Serves the reads that the state is far enough for.
    pub(super) fn serve_reads(&mut self, node: usize) {
        let process = self.nodes[node].process.as_deref_mut().expect("it runs");
        let applied = process.feed.head().index;
        let far = |(index, _): &(LogIndex, Attempt)| *index <= applied;
        let (ready, waiting) = core::mem::take(&mut process.reads).into_iter().partition(far);
        process.reads = waiting;
        let ready: Vec<(LogIndex, Attempt)> = ready;
        for (_, at) in ready {
            let Some(open) = self.clients.clients[at.client].open.as_ref() else { continue };
            if (open.id, open.attempt) != (at.call, at.attempt) {
                continue;
            }
            let call = open.call.clone();
            let process = self.nodes[node].process.as_deref().expect("it runs");
            let view = View::new(process.store.snapshot());
            if let Call::RenewLock { lock, fencing_token, .. } = &call {
                self.renew_lock(node, at, &view, lock, *fencing_token);
            } else {
                let answer = answers::read(&view, &call);
                self.answered(at, Outcome::Ok(answer));
            }
        }
    }

    /// As the service does: held at a moment after the call began, and renewed after that.
    fn renew_lock(&mut self, node: usize, at: Attempt, view: &View, lock: &str, token: u64) {
        let session = view.lock_session(lock, token).expect("memory is readable");
        if session.is_none() {
            let reason = "WRONG_FENCING_TOKEN".to_owned();
            return self.answered(at, Outcome::Refused { reason, actual: None });
        }
        let open = self.clients.clients[at.client].open.as_mut().expect("it is open");
        open.renewing = true;
        let call = open.call.clone();
        let sequence = self.open_call(node, at, None, &call);
        let boot = self.nodes[node].boots;
        let open = self.clients.clients[at.client].open.as_mut().expect("as above");
        open.at = Some((node, boot, sequence));
    }

    /// A proposal was applied at the node that took it.
    pub(super) fn settled(&mut self, node: usize, sequence: u64, outcome: Applied) {
        let Some(process) = self.nodes[node].process.as_deref_mut() else { return };
        let Some(at) = process.pending.remove(&sequence) else { return };
        match outcome.result {
            Some(outcome::Result::Refusal(refusal)) => self.refused(at, &refusal),
            Some(result) => {
                let Some(open) = self.clients.clients[at.client].open.as_ref() else { return };
                let answer = answers::answer(&open.call, &result);
                self.answered(at, Outcome::Ok(answer));
            }
            None => {}
        }
    }

    fn refused(&mut self, at: Attempt, refusal: &Refusal) {
        let Some(open) = self.clients.clients[at.client].open.as_mut() else { return };
        if (open.id, open.attempt) != (at.call, at.attempt) {
            return;
        }
        match refusal.reason() {
            Reason::NotLeader
            | Reason::NoQuorum
            | Reason::Overloaded
            | Reason::Draining
            | Reason::NoSpace => self.elsewhere(at.client),
            Reason::OutcomeUnknown | Reason::DeadlineExceeded => {
                open.doubtful = true;
                self.elsewhere(at.client);
            }
            reason => {
                let reason = reason.as_str_name().trim_start_matches("REASON_").to_owned();
                let actual = refusal.metadata.get("actual_version");
                let actual = actual.and_then(|actual| actual.parse().ok());
                self.answered(at, Outcome::Refused { reason, actual });
            }
        }
    }

    fn answered(&mut self, at: Attempt, outcome: Outcome) {
        let Some(open) = self.clients.clients[at.client].open.as_ref() else { return };
        if (open.id, open.attempt) != (at.call, at.attempt) {
            return;
        }
        // A refusal speaks of the last attempt alone.
        let outcome = match outcome {
            Outcome::Refused { reason, .. } if open.doubtful => Outcome::Unknown { reason },
            outcome => outcome,
        };
        self.finish(at.client, outcome);
    }

    fn finish(&mut self, client: usize, outcome: Outcome) {
        let time = self.now.as_nanos();
        let actor = &mut self.clients.clients[client];
        let Some(open) = actor.open.take() else { return };
        actor.client.learn(&open.call, &outcome);
        if let (Outcome::Ok(_), Some((node, boot, _))) = (&outcome, open.at) {
            actor.answered_at = Some((node, boot));
        }
        if let Outcome::Ok(answer) = &outcome {
            let times = (open.began, open.asked);
            self.found =
                self.promises.answered(times, &open.call, answer).err().or(self.found.take());
        }
        if self.phase.is_audit() && !matches!(outcome, Outcome::Ok(_)) {
            let words = format!("{:?} was answered {outcome:?} after all faults", open.call);
            self.unserved.get_or_insert(words);
        }
        match &outcome {
            Outcome::Ok(_) => self.counts.operation("answered"),
            Outcome::Refused { .. } => self.counts.operation("refused"),
            Outcome::Unknown { .. } => {
                actor.number += NEW_NUMBER;
                self.counts.operation("unknown");
            }
        }
        self.tell(|| format!("c{}: call {}: {}", client + 1, open.id, told(&outcome)));
        self.recorder.returned(time, open.id, outcome);
        self.think(client);
    }

    /// Asks a node for leadership to be handed over; nobody waits for the answer.
    pub(super) fn ask_transfer(&mut self, node: usize, to: usize) {
        let target = Some(NodeId::new(to as u64 + 1));
        let shown = self.nodes[node].clock.monotonic(self.now);
        let Some(process) = self.nodes[node].process.as_deref_mut() else { return };
        process.sequence += 1;
        let kind = CallKind::Transfer { target };
        let deadline = shown.after(ATTEMPT);
        let (sequence, boot) = (process.sequence, Boot { node, count: process.boot });
        let call = NodeCall { sequence, deadline, place: PlaceId::NONE, kind };
        self.give(node, Event::Call(call));
        self.after(ATTEMPT, Happening::GivesUp { boot, sequence });
    }

    pub(super) fn gives_up(&mut self, boot: Boot, sequence: u64) {
        if self.nodes[boot.node].running(boot.count).is_some() {
            self.give(boot.node, Event::Abandoned { sequence, lock: None });
        }
    }
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Ok(answer) => checker::answer_in_words(answer),
        Outcome::Refused { reason, .. } => format!("refused: {reason}"),
        Outcome::Unknown { reason } => format!("unknown: {reason}"),
    }
}
