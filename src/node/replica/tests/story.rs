//! What happens in a world of replicas, told line by line for those who read scenarios.
//!
//! A state machine of the story's own applies each committed entry once, alone, so that every
//! effect is told under the entry that caused it.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;

use crate::{
    machine::{
        Applied, ChangeKind, Machine, MachineConfig, SessionEffect, Space, testing::MapStore,
    },
    node::{
        calls::{Reply, is_internal},
        replica::Status,
    },
    pb::{
        command::v1::{Command, Origin, Outcome, Reason, Refusal, command::Op, outcome},
        event::v1::{ExpectedState, append_request::Expected},
        raft::v1::ForwardRequest,
    },
    raft::{Append, Entry, Payload, RoleKind},
    types::{Duration, Instant, LogIndex, NodeId},
};

pub(super) struct Story {
    lines: Vec<String>,
    /// When the clock of the story started, and where it stands.
    zero: Instant,
    now: Instant,
    /// Applies what is committed, once.
    machine: Machine,
    /// What scenarios call their sessions.
    sessions: BTreeMap<u64, String>,
    /// Whether anything is told at all.
    pub(super) told: bool,
}

impl Story {
    pub(super) fn new() -> Self {
        let store = Arc::new(MapStore::default());
        let machine = Machine::open(store, MachineConfig::default()).expect("an empty store");
        let (zero, now) = (Instant::ZERO, Instant::ZERO);
        Self { lines: Vec::new(), zero, now, machine, sessions: BTreeMap::new(), told: false }
    }

    /// From now on things are told, and the clock starts.
    pub(super) fn begin(&mut self, now: Instant) {
        (self.zero, self.now, self.told) = (now, now, true);
    }

    pub(super) fn at(&mut self, now: Instant) {
        self.now = now;
    }

    pub(super) fn take(&mut self) -> Vec<String> {
        core::mem::take(&mut self.lines)
    }

    pub(super) fn tell(&mut self, line: impl Into<String>) {
        if self.told {
            let seconds = self.now.since(self.zero).as_millis();
            let (whole, rest) = (seconds / 1_000, seconds % 1_000);
            self.lines.push(format!("{whole:>3}.{rest:03}s  {}", line.into()));
        }
    }

    /// Told under the line before.
    fn add(&mut self, line: impl AsRef<str>) {
        if self.told {
            self.lines.push(format!("          | {}", line.as_ref()));
        }
    }

    pub(super) fn name_session(&mut self, session: u64, name: &str) {
        self.sessions.insert(session, name.to_owned());
    }

    fn session(&self, session: u64) -> String {
        self.sessions.get(&session).cloned().unwrap_or_else(|| format!("s{session}"))
    }

    pub(super) fn role(&mut self, id: NodeId, before: &Status, after: &Status) {
        let leads = |status: &Status| status.role == RoleKind::Leader;
        match (leads(before), leads(after)) {
            (false, true) => self.tell(format!("{id:?} leads {:?}", after.term)),
            (true, false) => self.tell(format!("{id:?} leads no longer")),
            _ => {}
        }
    }

    pub(super) fn forwarded(&mut self, from: NodeId, to: NodeId, request: &ForwardRequest) {
        let proposals = request.proposals.iter().map(|propose| propose.sequence);
        let reads = request.reads.iter().map(|read| read.sequence);
        let renewals = request.renewals.iter().map(|renew| renew.sequence);
        for call in proposals.chain(reads).chain(renewals).filter(|call| !is_internal(*call)) {
            self.tell(format!("{from:?} passes call {call} on to {to:?}"));
        }
    }

    pub(super) fn replied(&mut self, id: NodeId, call: u64, reply: &Reply) {
        let words = match reply {
            Reply::Refused(refusal) => refused(refusal),
            Reply::ReadIndex(index) => format!("read once {index:?} is applied"),
            Reply::Renewed(ttl) => format!("renewed for {}", span(*ttl)),
            Reply::Transferred(leader) => format!("{leader:?} leads"),
        };
        self.tell(format!("{id:?} answers call {call}: {words}"));
    }

    pub(super) fn answered(&mut self, id: NodeId, call: u64, outcome: &Outcome) {
        if is_internal(call) {
            if let Some(outcome::Result::Refusal(refusal)) = &outcome.result
                && refusal.reason() == Reason::WrongIdentity
            {
                self.tell(format!("{id:?} stops: {}", refusal.message));
            }
            return;
        }
        let words = self.outcome_in_words(outcome);
        self.tell(format!("{id:?} answers call {call}: {words}"));
    }

    /// What a leader writes into its log of its own accord, and what any node cuts off its own.
    pub(super) fn written(&mut self, id: NodeId, append: &Append) {
        if let Some(from) = append.truncate_from {
            self.tell(format!("{id:?} cuts its log from {from:?}"));
        }
        for entry in append.entries.iter().filter(|entry| entry.term == append.hard.term) {
            let Payload::Command(data) = &entry.payload else { continue };
            let command = Command::decode(data.clone()).expect("the commands are well made");
            if let (None, true, Some(op)) =
                (command.origin, append.hard.vote == Some(id), command.op)
            {
                let words = self.op_in_words(&op);
                self.tell(format!("{id:?} writes {:?} {:?}: {words}", entry.index, entry.term));
            }
        }
    }

    /// Entries that some node applies: those that none applied before are told.
    pub(super) fn applied(&mut self, entries: &[Entry]) {
        for entry in entries {
            if entry.index != self.machine.head().index.next() {
                continue;
            }
            let revision = self.machine.head().revision;
            let applied =
                self.machine.apply(core::slice::from_ref(entry)).expect("the store works");
            let words = self.entry_in_words(entry);
            self.tell(format!("committed {:?} {:?}: {words}", entry.index, entry.term));
            self.effects(&applied);
            let now = applied.head.revision;
            assert!(now >= revision, "revisions grow");
        }
    }

    /// How far the story's own state machine came.
    pub(super) fn index(&self) -> LogIndex {
        self.machine.head().index
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    fn effects(&mut self, applied: &Applied) {
        for change in &applied.changes {
            let key = String::from_utf8_lossy(&change.kv.key).into_owned();
            let revision = change.kv.mod_revision;
            match (change.space, change.kind) {
                (Space::User, ChangeKind::Put) => {
                    let value = String::from_utf8_lossy(&change.kv.value);
                    self.add(format!("revision {revision}: {key} = {value}"));
                }
                (Space::User, ChangeKind::Delete) => {
                    self.add(format!("revision {revision}: {key} is deleted"));
                }
                (Space::Locks, ChangeKind::Put) => {
                    self.add(format!("lock {key} is granted with token {revision}"));
                }
                (Space::Locks, ChangeKind::Delete) => self.add(format!("lock {key} is free")),
                (Space::Instances | Space::Members, _) => {}
            }
        }
        for event in &applied.events {
            let data = String::from_utf8_lossy(&event.data).into_owned();
            let (stream, version, position) = (&event.stream, event.version, event.position);
            self.add(format!("event {data} is {stream}@{version}, position {position}"));
        }
        for (origin, session) in &applied.parked {
            let session = self.session(session.value());
            self.add(format!("{} waits in line with session {session}", caller(origin)));
        }
        for effect in &applied.sessions {
            match effect {
                SessionEffect::Started { session, ttl, epoch, .. } => {
                    let session = self.session(session.value());
                    let ttl = span(*ttl);
                    self.add(format!("session {session} has {ttl} from now on, epoch {epoch}"));
                }
                SessionEffect::Closed { session } => {
                    let session = self.session(session.value());
                    self.add(format!("session {session} ends"));
                }
            }
        }
        for (origin, outcome) in &applied.outcomes {
            if matches!(&outcome.result, Some(outcome::Result::Refusal(_))) {
                let words = self.outcome_in_words(outcome);
                self.add(format!("{}: {words}", caller(origin)));
            }
        }
    }

    fn entry_in_words(&self, entry: &Entry) -> String {
        let data = match &entry.payload {
            Payload::Noop => return "the new leader's first entry".to_owned(),
            Payload::Membership(_) => return "a membership".to_owned(),
            Payload::Command(data) => data,
        };
        let command = Command::decode(data.clone()).expect("the scenarios' commands are well made");
        let who = command.origin.as_ref().map_or_else(|| "the leader".to_owned(), caller);
        let what = self.op_in_words(command.op.as_ref().expect("it has one"));
        format!("{who} {what}")
    }

    fn op_in_words(&self, op: &Op) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match op {
            Op::Put(put) => {
                let held = put.require_lock.as_ref().map_or_else(String::new, |lock| {
                    format!(", if {} is held with token {}", lock.name, lock.fencing_token)
                });
                format!(
                    "puts {} = {}{held}{}",
                    text(&put.key),
                    text(&put.value),
                    id(&put.request_id)
                )
            }
            Op::DeleteRange(delete) => format!("deletes {}", text(&delete.key)),
            Op::Compact(compact) => format!("compacts through revision {}", compact.revision),
            Op::OpenSession(_) => "opens a session".to_owned(),
            Op::CloseSession(close) => format!("closes session {}", self.session(close.session_id)),
            Op::Acquire(acquire) => {
                format!("acquires lock {}{}", acquire.name, id(&acquire.request_id))
            }
            Op::Release(release) => {
                format!("releases lock {} with token {}", release.name, release.fencing_token)
            }
            Op::CancelAcquire(cancel) => {
                let whose = cancel.attachment.as_ref().map_or_else(String::new, caller);
                format!("takes back the acquire of lock {} by {whose}", cancel.name)
            }
            Op::Append(append) => {
                let events: Vec<String> = append.events.iter().map(|e| text(&e.data)).collect();
                let expected = match &append.expected {
                    Some(Expected::ExpectedVersion(version)) => format!(" at version {version}"),
                    Some(Expected::ExpectedState(state)) => match ExpectedState::try_from(*state) {
                        Ok(ExpectedState::NoStream) => " as a new stream".to_owned(),
                        _ => " as a stream that exists".to_owned(),
                    },
                    None => String::new(),
                };
                format!("appends {} to {}{expected}", events.join(", "), append.stream)
            }
            Op::ExpireSessions(expire) => {
                let sessions = expire.sessions.iter().map(|expired| {
                    format!("{} of epoch {}", self.session(expired.session_id), expired.epoch)
                });
                let sessions = sessions.collect::<Vec<_>>().join(", ");
                format!("finds expired, in t{}: {sessions}", expire.term)
            }
            Op::CheckpointSessions(left) => {
                let sessions = left.sessions.iter().map(|left| {
                    let remaining = span(Duration::from_millis(left.remaining_ms));
                    format!("{} has {remaining} left", self.session(left.session_id))
                });
                format!("records: {}", sessions.collect::<Vec<_>>().join(", "))
            }
            Op::AdvanceTime(_) => "moves log time on".to_owned(),
            Op::RegisterMember(member) => {
                format!("registers node {} with disk {}", member.node_id, member.incarnation)
            }
            other => format!("{other:?}"),
        }
    }

    fn outcome_in_words(&self, outcome: &Outcome) -> String {
        match outcome.result.as_ref().expect("an outcome has a result") {
            outcome::Result::Refusal(refusal) => refused(refusal),
            outcome::Result::Put(put) => format!("written at revision {}", put.revision),
            outcome::Result::Done(_) => "done".to_owned(),
            outcome::Result::DeleteRange(done) => format!("deleted at revision {}", done.revision),
            outcome::Result::Compact(_) => "compacted".to_owned(),
            outcome::Result::OpenSession(open) => {
                format!("session {}", self.session(open.session_id))
            }
            outcome::Result::CloseSession(_) => "closed".to_owned(),
            outcome::Result::Acquire(grant) => {
                format!("{} is yours, token {}", grant.name, grant.fencing_token)
            }
            outcome::Result::Release(_) => "released".to_owned(),
            outcome::Result::Append(append) => {
                let again = if append.duplicate { ", as before" } else { "" };
                let (first, last) = (append.first_version, append.last_version);
                format!("appended as versions {first} to {last}{again}")
            }
            other => format!("{other:?}"),
        }
    }
}

fn caller(origin: &Origin) -> String {
    if is_internal(origin.sequence) {
        format!("n{} itself", origin.node_id)
    } else {
        format!("n{}'s call {}", origin.node_id, origin.sequence)
    }
}

fn id(request_id: &str) -> String {
    if request_id.is_empty() {
        return String::new();
    }
    format!(" as request {}", request_id.trim_start_matches(['0', '-']))
}

/// The reason alone, and the sentence.
pub(super) fn refused(refusal: &Refusal) -> String {
    let reason = refusal.reason().as_str_name().trim_start_matches("REASON_").to_owned();
    format!("refused, {reason}: {}", refusal.message)
}

pub(super) fn span(span: Duration) -> String {
    format!("{}.{:03}s", span.as_secs(), span.subsec_millis())
}
