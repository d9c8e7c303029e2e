//! A cluster of replicas over a perfect network and disks, in virtual time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::{Applied, Machine, MachineConfig, View, testing::MapStore},
    node::{
        calls::{Call, CallKind, Reply},
        places::PlaceId,
        replica::{AppliedReport, Event, Jobs, Recovered, Replica, ReplicaConfig, WalJob},
    },
    pb::{
        command::v1::{Command, Origin, Outcome, RegisterMember, command, outcome},
        kv::v1::{PutRequest, RangeRequest},
        lock::v1::{AcquireRequest, Lock},
        session::v1::OpenSessionRequest,
    },
    raft::{Config, Membership, Restored, RoleKind},
    types::{Duration, Instant, LogTime, NodeId, SessionId},
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
}

pub(super) fn n(id: u64) -> NodeId {
    NodeId::new(id)
}

impl World {
    pub(super) fn new() -> Self {
        let members = Membership::of((1..=3).map(n));
        let node = |id: u64| {
            let config = ReplicaConfig {
                raft: Config { id: n(id), seed: id, ..Config::default() },
                boot: id,
                patience: Duration::from_secs(2),
                retained_log_bytes: 1 << 20,
                new_cluster_id: uuid::Uuid::from_u128(u128::from(id)).to_string(),
                member: RegisterMember {
                    node_id: id,
                    incarnation: uuid::Uuid::from_u128(u128::from(100 + id)).to_string(),
                    ..RegisterMember::default()
                },
            };
            let recovered = Recovered {
                raft: Restored { membership: members.clone(), ..Restored::default() },
                sessions: Vec::new(),
                founded: false,
                registered: false,
                next_timer: None,
            };
            let store = Arc::new(MapStore::default());
            let node = Node {
                replica: Replica::new(config, recovered, Instant::from_nanos(1)),
                machine: Machine::open(store, MachineConfig::default()).expect("an empty store"),
                inbox: VecDeque::new(),
                outcomes: BTreeMap::new(),
                replies: BTreeMap::new(),
                up: true,
            };
            (n(id), node)
        };
        let nodes = (1..=3).map(node).collect();
        Self {
            now: Instant::from_nanos(1),
            nodes,
            cut: BTreeSet::new(),
            deaf: BTreeSet::new(),
            swallow: false,
            sequence: 0,
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
        for id in (1..=3).map(n) {
            let node = self.nodes.get_mut(&id).expect("three nodes");
            if !node.up {
                node.inbox.clear();
                continue;
            }
            let events: Vec<Event> = node.inbox.drain(..).collect();
            let mut jobs = Jobs::default();
            node.replica.handle(now, wall, events, &mut jobs);
            self.carry_out(id, jobs);
        }
    }

    fn carry_out(&mut self, id: NodeId, jobs: Jobs) {
        let node = self.nodes.get_mut(&id).expect("three nodes");
        for job in jobs.wal {
            if let WalJob::Append(append) = job {
                let (hard, log) = (append.hard_mark, append.log_mark);
                node.inbox.push_back(Event::Persisted { hard, log });
            }
        }
        if !jobs.apply.is_empty() {
            let applied = node.machine.apply(&jobs.apply).expect("the store works");
            let report = node.report(id, applied);
            node.inbox.push_back(Event::Applied(report));
        }
        node.replies.extend(jobs.replies);
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
            if self.deaf.contains(&(id, to)) || !self.deliver(id, to, event) {
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
        let origin = Some(Origin { node_id: on.value(), boot: on.value(), sequence });
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
    fn report(&mut self, id: NodeId, applied: Applied) -> AppliedReport {
        let ours = |origin: &Origin| origin.node_id == id.value() && origin.boot == id.value();
        let view = View::new(self.machine.store().snapshot());
        let members = view.members().expect("the store works");
        let mut report = AppliedReport {
            index: applied.head.index,
            term: applied.head.term,
            sessions: applied.sessions,
            next_timer: applied.next_timer,
            founded: view.cluster_id().expect("the store works").is_some(),
            registered: members.iter().any(|member| member.node_id == id.value()),
            ..AppliedReport::default()
        };
        for (origin, outcome) in applied.outcomes.into_iter().filter(|(origin, _)| ours(origin)) {
            report.completed.push(origin.sequence);
            let again = self.outcomes.insert(origin.sequence, outcome);
            assert!(again.is_none(), "call {} was answered twice", origin.sequence);
        }
        let parked = applied.parked.into_iter().filter(|(origin, _)| ours(origin));
        report.parked = parked.map(|(origin, session)| (origin.sequence, session)).collect();
        report
    }
}

pub(super) fn put(key: &'static str, value: &'static str) -> command::Op {
    command::Op::Put(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() })
}

pub(super) fn acquire(name: &str) -> command::Op {
    let ttl = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    command::Op::Acquire(AcquireRequest { name: name.into(), ttl, ..AcquireRequest::default() })
}
