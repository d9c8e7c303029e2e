//! A cluster of replicas over a perfect network and disks, in virtual time.
//!
//! What a node's log would hold on disk is kept, so that a node can crash and come back.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;

use super::story::Story;
use crate::{
    machine::{
        Applied, Machine, MachineConfig, SnapshotLoader, SnapshotWriter, View, testing::MapStore,
    },
    node::{
        calls::{Call, CallKind, Reply},
        places::PlaceId,
        replica::{
            AppliedReport, Event, Installed, Jobs, Recovered, Replica, ReplicaConfig, WalJob,
        },
    },
    pb::{
        command::v1::{Command, Origin, Outcome, Reason, RegisterMember, command, outcome},
        kv::v1::{PutRequest, RangeRequest},
        lock::v1::{AcquireRequest, Lock},
        session::v1::OpenSessionRequest,
    },
    raft::{
        Append, Config, Entry, HardState, LogStart, Membership, Restored, RoleKind, SendSnapshot,
    },
    types::{Duration, Instant, LogTime, NodeId, SessionId, Term},
};

const STEP: Duration = Duration::from_millis(5);
/// Where the wall clock stands when the monotonic one starts.
const EPOCH_MS: u64 = 1_700_000_000_000;

pub(super) struct Node {
    pub(super) replica: Replica,
    pub(super) machine: Machine,
    pub(super) inbox: VecDeque<Event>,
    pub(super) outcomes: BTreeMap<u64, Outcome>,
    pub(super) replies: BTreeMap<u64, Reply>,
    pub(super) up: bool,
    /// This process's start.
    boot: u64,
    /// The calls that nobody waits for any more.
    pub(super) gone: BTreeSet<u64>,
    config: ReplicaConfig,
    disk: Disk,
}

/// What a node's log holds on disk; it is written at once.
#[derive(Clone, Default)]
struct Disk {
    hard: HardState,
    start: LogStart,
    entries: Vec<Entry>,
}

pub(super) struct World {
    pub(super) now: Instant,
    pub(super) nodes: BTreeMap<NodeId, Node>,
    /// Pairs that cannot speak, in either direction.
    pub(super) cut: BTreeSet<(NodeId, NodeId)>,
    /// Pairs of which the first cannot pass requests on to the second.
    pub(super) deaf: BTreeSet<(NodeId, NodeId)>,
    /// Whether what is passed on is lost on its way.
    pub(super) swallow: bool,
    pub(super) sequence: u64,
    /// What happens, in words.
    pub(super) story: Story,
}

pub(super) fn n(id: u64) -> NodeId {
    NodeId::new(id)
}

impl World {
    pub(super) fn new() -> Self {
        Self::keeping(1 << 20)
    }

    /// A cluster whose nodes keep about so many bytes of log.
    pub(super) fn keeping(retained_log_bytes: u64) -> Self {
        let nodes = (1..=3).map(|id| (n(id), Node::new(id, retained_log_bytes))).collect();
        Self {
            now: Instant::from_nanos(1),
            nodes,
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            swallow: false,
            sequence: 0,
            story: Story::new(),
        }
    }

    fn wall(&self) -> LogTime {
        LogTime::from_millis(EPOCH_MS).after(self.now.since(Instant::ZERO))
    }

    /// Lets time pass until something holds; fails after a minute of it.
    pub(super) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let end = self.now.after(Duration::from_secs(60));
        while !holds(self) {
            assert!(self.now < end, "waited in vain until {what}");
            self.pass();
        }
    }

    pub(super) fn pass_for(&mut self, span: Duration) {
        let end = self.now.after(span);
        while self.now < end {
            self.pass();
        }
    }

    pub(super) fn pass(&mut self) {
        self.now = self.now.after(STEP);
        let (now, wall) = (self.now, self.wall());
        self.story.at(now);
        for id in (1..=3).map(n) {
            let node = self.nodes.get_mut(&id).expect("three nodes");
            if !node.up {
                node.inbox.clear();
                continue;
            }
            let events: Vec<Event> = node.inbox.drain(..).collect();
            let mut jobs = Jobs::default();
            let before = node.replica.status().clone();
            node.replica.handle(now, wall, events, &mut jobs);
            self.story.role(id, &before, node.replica.status());
            self.carry_out(id, jobs);
        }
    }

    fn carry_out(&mut self, id: NodeId, jobs: Jobs) {
        let node = self.nodes.get_mut(&id).expect("three nodes");
        for job in jobs.wal {
            match job {
                WalJob::Append(append) => {
                    self.story.written(id, &append);
                    node.disk.append(&append);
                    let (hard, log) = (append.hard_mark, append.log_mark);
                    node.inbox.push_back(Event::Persisted { hard, log });
                }
                WalJob::Purge(start) => node.disk.purge(start),
            }
        }
        if !jobs.apply.is_empty() {
            self.story.applied(&jobs.apply);
            let applied = node.machine.apply(&jobs.apply).expect("the store works");
            let report = node.report(id, applied, &mut self.story);
            node.inbox.push_back(Event::Applied(report));
        }
        if jobs.persist_state {
            let index = node.machine.head().index;
            node.inbox.push_back(Event::StatePersisted { index });
        }
        for (sequence, reply) in jobs.replies {
            self.story.replied(id, sequence, &reply);
            node.replies.insert(sequence, reply);
        }
        for SendSnapshot { to, term } in jobs.snapshots {
            self.send_snapshot(id, to, term);
        }
        for (to, message) in jobs.messages {
            self.deliver(id, to, Event::Message { from: id, message });
        }
        for (to, request) in jobs.forwards {
            if self.swallow {
                continue;
            }
            let bytes = request.encoded_len();
            assert!(bytes < 2 << 20, "{bytes} bytes in one message to the leader");
            let event = Event::Forwarded { from: id, request: request.clone() };
            if !self.deaf.contains(&(id, to)) && self.deliver(id, to, event) {
                self.story.forwarded(id, to, &request);
            } else {
                let node = self.nodes.get_mut(&id).expect("three nodes");
                node.inbox.push_back(Event::NotForwarded { request });
            }
        }
        for (to, response) in jobs.answers {
            self.deliver(id, to, Event::Answered { from: id, response });
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, event: Event) -> bool {
        let cut = self.cut.contains(&(from, to)) || self.cut.contains(&(to, from));
        let node = self.nodes.get_mut(&to).expect("three nodes");
        let delivered = node.up && !cut;
        if delivered {
            node.inbox.push_back(event);
        }
        delivered
    }

    /// A snapshot arrives whole and at once, or not at all.
    fn send_snapshot(&mut self, from: NodeId, to: NodeId, term: Term) {
        let chunks = SnapshotWriter::new(self.nodes[&from].machine.store().snapshot());
        let cut = self.cut.contains(&(from, to)) || self.cut.contains(&(to, from));
        let target = self.nodes.get_mut(&to).expect("three nodes");
        let mut installed = None;
        if target.up && !cut {
            let store = Arc::new(MapStore::default());
            let mut loader = SnapshotLoader::new(store.as_ref());
            for chunk in chunks {
                loader.feed(&chunk.expect("the store works")).expect("it was just written");
            }
            let head = loader.finish().expect("it was just written");
            installed = Some(head.index);
            self.story.tell(format!("{from:?} sends {to:?} a snapshot of {:?}", head.index));
            if head.index > target.machine.head().index {
                target.machine = Machine::open(store, MachineConfig::default()).expect("it opens");
                let event = Event::Installed(target.installed(from, term));
                target.inbox.push_back(event);
            }
        }
        let node = self.nodes.get_mut(&from).expect("three nodes");
        node.inbox.push_back(Event::SnapshotSent { peer: to, installed });
    }

    /// The process ends. Whoever waits for one of its calls learns nothing.
    pub(super) fn crash(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("three nodes");
        node.up = false;
        node.inbox.clear();
    }

    /// Another process starts on the same disk, or on an empty one that was put in its place.
    pub(super) fn restart(&mut self, id: NodeId, wiped: bool) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).expect("three nodes");
        if wiped {
            let fresh = Node::new(id.value(), node.config.retained_log_bytes);
            node.machine = fresh.machine;
            node.disk = Disk::default();
            let incarnation = uuid::Uuid::from_u128(u128::from(200 + id.value()));
            node.config.member.incarnation = incarnation.to_string();
        }
        node.boot += 10;
        node.config.boot = node.boot;
        node.disk.connect(&node.machine);
        let recovered = node.recovered();
        node.replica = Replica::new(node.config.clone(), recovered, now);
        node.up = true;
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        let leads = |node: &Node| node.up && node.replica.status().role == RoleKind::Leader;
        let mut leaders = self.nodes.iter().filter(|(_, node)| leads(node));
        leaders.next_back().map(|(&id, _)| id)
    }

    pub(super) fn wait_for_leader(&mut self) -> NodeId {
        self.until("a leader is elected", |world| {
            world.leader().is_some_and(|id| world.nodes[&id].replica.status().leader_ready)
        });
        self.leader().expect("just seen")
    }

    /// Waits until this node leads, the cluster is founded and everyone is registered, and nothing
    /// is on its way.
    pub(super) fn wait_until_led_by(&mut self, wanted: NodeId) {
        let leader = self.wait_for_leader();
        if leader != wanted {
            self.call(leader, CallKind::Transfer { target: Some(wanted) });
        }
        self.until("it leads, and all are registered", |world| {
            let node = &world.nodes[&wanted];
            let view = View::new(node.machine.store().snapshot());
            let registered = view.members().is_ok_and(|members| members.len() == 3);
            registered && node.replica.status().leader_ready
        });
        self.pass_for(Duration::from_millis(500));
    }

    pub(super) fn call(&mut self, on: NodeId, kind: CallKind) -> u64 {
        self.sequence += 1;
        let (sequence, place) = (self.sequence, PlaceId::NONE);
        let call = Call { sequence, deadline: Instant::FAR, place, kind };
        self.nodes.get_mut(&on).expect("three nodes").inbox.push_back(Event::Call(call));
        self.sequence
    }

    pub(super) fn propose(&mut self, on: NodeId, op: command::Op) -> u64 {
        let lock = match &op {
            command::Op::Acquire(request) => Some(request.name.clone()),
            _ => None,
        };
        let sequence = self.sequence + 1;
        let boot = self.nodes[&on].boot;
        let origin = Some(Origin { node_id: on.value(), boot, sequence });
        let command = Command { version: 1, origin, op: Some(op) }.encode_to_vec();
        self.call(on, CallKind::Propose { command: command.into(), lock })
    }

    pub(super) fn outcome(&mut self, on: NodeId, sequence: u64) -> outcome::Result {
        self.until("a call has its outcome", |world| {
            world.nodes[&on].outcomes.contains_key(&sequence)
        });
        let outcome = self.nodes.get_mut(&on).and_then(|node| node.outcomes.remove(&sequence));
        outcome.and_then(|outcome| outcome.result).expect("an outcome has a result")
    }

    /// Acquires the lock `l` and waits for its token.
    pub(super) fn granted(&mut self, on: NodeId) -> u64 {
        let sequence = self.propose(on, acquire("l"));
        let outcome::Result::Acquire(grant) = self.outcome(on, sequence) else {
            panic!("not granted");
        };
        grant.fencing_token
    }

    /// Opens a session that lives for two seconds.
    pub(super) fn session(&mut self, on: NodeId) -> SessionId {
        let ttl = Some(prost_types::Duration { seconds: 2, nanos: 0 });
        let open = OpenSessionRequest { ttl, ..OpenSessionRequest::default() };
        let sequence = self.propose(on, command::Op::OpenSession(open));
        let outcome::Result::OpenSession(opened) = self.outcome(on, sequence) else {
            panic!("no session");
        };
        SessionId::new(opened.session_id)
    }

    /// The lock `l` as a node knows it.
    pub(super) fn lock(&self, on: NodeId) -> Lock {
        let view = View::new(self.nodes[&on].machine.store().snapshot());
        view.lock("l").expect("the store works").lock.expect("a lock is described")
    }

    pub(super) fn tell(&mut self, node: NodeId, event: Event) {
        self.nodes.get_mut(&node).expect("three nodes").inbox.push_back(event);
    }

    pub(super) fn value(&self, on: NodeId, key: &'static str) -> Option<Bytes> {
        let view = View::new(self.nodes[&on].machine.store().snapshot());
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        let range = view.range(&request).expect("the store works").expect("a plain range");
        range.kvs.first().map(|kv| kv.value.clone())
    }

    pub(super) fn others(&self, than: NodeId) -> [NodeId; 2] {
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|&id| id != than).collect();
        others.try_into().expect("three nodes")
    }
}

impl Node {
    fn new(id: u64, retained_log_bytes: u64) -> Self {
        let config = ReplicaConfig {
            raft: Config { id: n(id), seed: id, ..Config::default() },
            boot: id,
            patience: Duration::from_secs(2),
            retained_log_bytes,
            new_cluster_id: uuid::Uuid::from_u128(u128::from(id)).to_string(),
            member: RegisterMember {
                node_id: id,
                incarnation: uuid::Uuid::from_u128(u128::from(100 + id)).to_string(),
                ..RegisterMember::default()
            },
        };
        let recovered = Recovered {
            raft: Restored { membership: founders(), ..Restored::default() },
            sessions: Vec::new(),
            founded: false,
            registered: false,
            next_timer: None,
        };
        let store = Arc::new(MapStore::default());
        Self {
            replica: Replica::new(config.clone(), recovered, Instant::from_nanos(1)),
            machine: Machine::open(store, MachineConfig::default()).expect("an empty store"),
            inbox: VecDeque::new(),
            outcomes: BTreeMap::new(),
            replies: BTreeMap::new(),
            up: true,
            boot: id,
            gone: BTreeSet::new(),
            config,
            disk: Disk::default(),
        }
    }

    /// What a process finds on this disk.
    fn recovered(&self) -> Recovered {
        let view = View::new(self.machine.store().snapshot());
        let Disk { hard, start, entries } = self.disk.clone();
        let raft = Restored {
            hard,
            purged_index: start.index,
            purged_term: start.term,
            last_time: start.time,
            entries,
            applied: self.machine.head().index,
            membership: founders(),
        };
        Recovered {
            raft,
            sessions: view.sessions().expect("the store works"),
            founded: self.is_founded(),
            registered: self.is_registered(),
            next_timer: self.machine.next_timer(),
        }
    }

    /// What the applier tells of the snapshot that it has just put in the state's place.
    fn installed(&self, from: NodeId, term: Term) -> Installed {
        let head = self.machine.head().clone();
        let view = View::new(self.machine.store().snapshot());
        Installed {
            from,
            term,
            index: head.index,
            last_term: head.term,
            time: head.time,
            membership: founders(),
            sessions: view.sessions().expect("the store works"),
            founded: self.is_founded(),
            registered: self.is_registered(),
            next_timer: self.machine.next_timer(),
        }
    }

    fn is_founded(&self) -> bool {
        let view = View::new(self.machine.store().snapshot());
        view.cluster_id().expect("the store works").is_some()
    }

    fn is_registered(&self) -> bool {
        let view = View::new(self.machine.store().snapshot());
        let members = view.members().expect("the store works");
        let own = &self.config.member;
        members
            .iter()
            .any(|member| (member.node_id, &member.incarnation) == (own.node_id, &own.incarnation))
    }

    fn report(&mut self, id: NodeId, applied: Applied, story: &mut Story) -> AppliedReport {
        let boot = self.boot;
        let ours = |origin: &Origin| origin.node_id == id.value() && origin.boot == boot;
        let mut report = AppliedReport {
            index: applied.head.index,
            term: applied.head.term,
            sessions: applied.sessions,
            next_timer: applied.next_timer,
            founded: self.is_founded(),
            registered: self.is_registered(),
            ..AppliedReport::default()
        };
        for (origin, outcome) in applied.outcomes.into_iter().filter(|(origin, _)| ours(origin)) {
            report.completed.push(origin.sequence);
            if self.gone.contains(&origin.sequence) {
                if let Some(outcome::Result::Acquire(grant)) = &outcome.result {
                    report.undelivered.push((grant.name.clone(), origin.sequence));
                }
                continue;
            }
            story.answered(id, origin.sequence, &outcome);
            // A refused registration is the end (rule 20).
            self.up &= !is_wrong_identity(&outcome);
            let again = self.outcomes.insert(origin.sequence, outcome);
            assert!(again.is_none(), "call {} was answered twice", origin.sequence);
        }
        let parked = applied.parked.into_iter().filter(|(origin, _)| ours(origin));
        report.parked = parked.map(|(origin, session)| (origin.sequence, session)).collect();
        report
    }
}

impl Disk {
    fn append(&mut self, append: &Append) {
        self.hard = append.hard;
        if let Some(start) = append.reset_to {
            let connects =
                self.entries.iter().any(|e| (e.index, e.term) == (start.index, start.term));
            self.entries.retain(|entry| connects && entry.index > start.index);
            self.start = start;
        }
        if let Some(from) = append.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        self.entries.extend(append.entries.iter().cloned());
    }

    fn purge(&mut self, start: LogStart) {
        self.entries.retain(|entry| entry.index > start.index);
        self.start = start;
    }

    /// Where a snapshot was installed and the log did not learn of it, the log starts anew there.
    fn connect(&mut self, machine: &Machine) {
        let head = machine.head();
        let at = (head.index, head.term);
        let connects = self.entries.iter().any(|entry| (entry.index, entry.term) == at);
        if head.index > self.start.index && !connects {
            self.entries.clear();
            self.start = LogStart { index: head.index, term: head.term, time: head.time };
        }
    }
}

fn founders() -> Membership {
    Membership::of((1..=3).map(n))
}

fn is_wrong_identity(outcome: &Outcome) -> bool {
    matches!(&outcome.result, Some(outcome::Result::Refusal(refusal))
        if refusal.reason() == Reason::WrongIdentity)
}

pub(super) fn put(key: &'static str, value: &'static str) -> command::Op {
    command::Op::Put(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() })
}

pub(super) fn acquire(name: &str) -> command::Op {
    let ttl = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    command::Op::Acquire(AcquireRequest { name: name.into(), ttl, ..AcquireRequest::default() })
}
