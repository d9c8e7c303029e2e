//! A cluster of replicas over a perfect network and disks, in virtual time: how calls fare.

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
        replica::{
            AppliedReport, Event, Installed, Jobs, Recovered, Replica, ReplicaConfig, WalJob,
        },
    },
    pb::{
        command::v1::{Command, Origin, Outcome, Reason, RegisterMember, command, outcome},
        kv::v1::{HeldLock, PutRequest, RangeRequest},
        lock::v1::{AcquireRequest, ReleaseRequest},
        session::v1::OpenSessionRequest,
    },
    raft::{Config, Membership, Restored, RoleKind},
    types::{Duration, Instant, LogTime, NodeId, SessionId},
};

const STEP: Duration = Duration::from_millis(5);
/// Where the wall clock stands when the monotonic one starts.
const EPOCH_MS: u64 = 1_700_000_000_000;

struct Node {
    replica: Replica,
    machine: Machine,
    inbox: VecDeque<Event>,
    outcomes: BTreeMap<u64, Outcome>,
    replies: BTreeMap<u64, Reply>,
    up: bool,
}

struct World {
    now: Instant,
    nodes: BTreeMap<NodeId, Node>,
    /// Pairs that cannot speak, in either direction.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Pairs of which the first cannot pass requests on to the second.
    deaf: BTreeSet<(NodeId, NodeId)>,
    sequence: u64,
}

fn n(id: u64) -> NodeId {
    NodeId::new(id)
}

impl World {
    fn new() -> Self {
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
            sequence: 0,
        }
    }

    fn wall(&self) -> LogTime {
        LogTime::from_millis(EPOCH_MS).after(self.now.since(Instant::ZERO))
    }

    /// Lets time pass until something holds; fails after a minute of it.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let end = self.now.after(Duration::from_secs(60));
        while !holds(self) {
            assert!(self.now < end, "waited in vain until {what}");
            self.pass();
        }
    }

    fn pass_for(&mut self, span: Duration) {
        let end = self.now.after(span);
        while self.now < end {
            self.pass();
        }
    }

    fn pass(&mut self) {
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

    fn leader(&self) -> Option<NodeId> {
        let leads = |node: &Node| node.up && node.replica.status().role == RoleKind::Leader;
        let mut leaders = self.nodes.iter().filter(|(_, node)| leads(node));
        leaders.next_back().map(|(&id, _)| id)
    }

    fn wait_for_leader(&mut self) -> NodeId {
        self.until("a leader is elected", |world| {
            world.leader().is_some_and(|id| world.nodes[&id].replica.status().leader_ready)
        });
        self.leader().expect("just seen")
    }

    fn call(&mut self, on: NodeId, kind: CallKind) -> u64 {
        self.sequence += 1;
        let call = Call { sequence: self.sequence, deadline: Instant::FAR, kind };
        self.nodes.get_mut(&on).expect("three nodes").inbox.push_back(Event::Call(call));
        self.sequence
    }

    fn propose(&mut self, on: NodeId, op: command::Op) -> u64 {
        let lock = match &op {
            command::Op::Acquire(request) => Some(request.name.clone()),
            _ => None,
        };
        let sequence = self.sequence + 1;
        let origin = Some(Origin { node_id: on.value(), boot: on.value(), sequence });
        let command = Command { version: 1, origin, op: Some(op) }.encode_to_vec();
        self.call(on, CallKind::Propose { command: command.into(), lock })
    }

    fn outcome(&mut self, on: NodeId, sequence: u64) -> outcome::Result {
        self.until("a call has its outcome", |world| {
            world.nodes[&on].outcomes.contains_key(&sequence)
        });
        let outcome = self.nodes.get_mut(&on).and_then(|node| node.outcomes.remove(&sequence));
        outcome.and_then(|outcome| outcome.result).expect("an outcome has a result")
    }

    fn value(&self, on: NodeId, key: &'static str) -> Option<Bytes> {
        let view = View::new(self.nodes[&on].machine.store().snapshot());
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        let range = view.range(&request).expect("the store works").expect("a plain range");
        range.kvs.first().map(|kv| kv.value.clone())
    }

    fn others(&self, than: NodeId) -> [NodeId; 2] {
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

fn put(key: &'static str, value: &'static str) -> command::Op {
    command::Op::Put(PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() })
}

fn acquire(name: &str) -> command::Op {
    let ttl = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    command::Op::Acquire(AcquireRequest { name: name.into(), ttl, ..AcquireRequest::default() })
}

#[test]
fn a_follower_passes_a_write_on_and_answers_it_from_its_own_apply() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let sequence = world.propose(follower, put("a", "1"));
    assert!(matches!(world.outcome(follower, sequence), outcome::Result::Put(_)));
    assert_eq!(world.value(follower, "a"), Some("1".into()));
    assert!(!world.nodes[&leader].outcomes.contains_key(&sequence));
}

#[test]
fn the_cluster_is_founded_once_and_every_disk_registers() {
    let mut world = World::new();
    world.until("all are registered", |world| {
        world.nodes.values().all(|node| {
            let view = View::new(node.machine.store().snapshot());
            view.members().is_ok_and(|members| members.len() == 3)
        })
    });
    let ids: BTreeSet<_> = world
        .nodes
        .values()
        .map(|node| {
            let view = View::new(node.machine.store().snapshot());
            view.cluster_id().expect("the store works")
        })
        .collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn a_write_lost_with_its_leader_is_proposed_anew_and_applied_once() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    // The leader takes the write and reaches nobody any more.
    let sequence = world.propose(follower, put("a", "1"));
    world.pass();
    world.pass();
    world.cut.extend([(leader, follower), (leader, other)]);
    assert!(matches!(world.outcome(follower, sequence), outcome::Result::Put(_)));
    world.cut.clear();
    world.until("the old leader has it too", |world| world.value(leader, "a").is_some());
    let view = View::new(world.nodes[&leader].machine.store().snapshot());
    let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    let range = view.range(&request).expect("the store works").expect("a plain range");
    assert_eq!(range.kvs[0].version, 1);
}

#[test]
fn without_a_quorum_calls_are_refused_after_a_while_and_never_carried_out() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    for node in [leader, other] {
        world.nodes.get_mut(&node).expect("three nodes").up = false;
    }
    world.until("the follower lost its leader", |world| {
        world.nodes[&follower].replica.status().leader.is_none()
    });
    let sequence = world.propose(follower, put("a", "1"));
    world.until("it is refused", |world| world.nodes[&follower].replies.contains_key(&sequence));
    let Reply::Refused(refusal) = &world.nodes[&follower].replies[&sequence] else {
        panic!("not a refusal");
    };
    assert_eq!(refusal.reason(), Reason::NoQuorum);
    for node in [leader, other] {
        world.nodes.get_mut(&node).expect("three nodes").up = true;
    }
    world.pass_for(Duration::from_secs(5));
    assert_eq!(world.value(follower, "a"), None);
}

#[test]
fn a_node_that_does_not_reach_its_leader_names_it() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    world.deaf.insert((follower, leader));
    let sequence = world.propose(follower, put("a", "1"));
    world.until("it is refused", |world| world.nodes[&follower].replies.contains_key(&sequence));
    let Reply::Refused(refusal) = &world.nodes[&follower].replies[&sequence] else {
        panic!("not a refusal");
    };
    assert_eq!(refusal.reason(), Reason::NotLeader);
    assert_eq!(refusal.metadata["leader_id"], leader.value().to_string());
}

#[test]
fn rule_18_requests_that_a_snapshot_overtakes_get_an_answer() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    let sequence = world.propose(follower, put("a", "1"));
    world.pass();
    world.pass();
    world.cut.extend([(follower, leader), (follower, other)]);
    world.until("the others have it", |world| world.value(other, "a").is_some());
    // The follower is given the others' state; what came of its call went by unseen.
    let head = world.nodes[&other].machine.head().clone();
    let installed = Event::Installed(Installed {
        from: leader,
        term: head.term,
        index: head.index,
        last_term: head.term,
        time: head.time,
        membership: Membership::of((1..=3).map(n)),
        sessions: Vec::new(),
        founded: true,
        registered: true,
        next_timer: None,
    });
    world.nodes.get_mut(&follower).expect("three nodes").inbox.push_back(installed);
    world.until("it is answered", |world| world.nodes[&follower].replies.contains_key(&sequence));
    let Reply::Refused(refusal) = &world.nodes[&follower].replies[&sequence] else {
        panic!("not a refusal");
    };
    assert_eq!(refusal.reason(), Reason::OutcomeUnknown);
}

#[test]
fn a_read_index_covers_what_was_acknowledged_before() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let write = world.propose(leader, put("a", "1"));
    world.outcome(leader, write);
    let acknowledged = world.nodes[&leader].machine.head().index;
    let read = world.call(follower, CallKind::Read);
    world.until("the read is answered", |world| world.nodes[&follower].replies.contains_key(&read));
    let Reply::ReadIndex(index) = world.nodes[&follower].replies[&read] else {
        panic!("not a read index");
    };
    assert!(index >= acknowledged);
}

#[test]
fn rule_29_a_deposed_leader_prolongs_no_session() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    let ttl = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let open = OpenSessionRequest { ttl, ..OpenSessionRequest::default() };
    let sequence = world.propose(leader, command::Op::OpenSession(open));
    let outcome::Result::OpenSession(opened) = world.outcome(leader, sequence) else {
        panic!("no session");
    };
    world.cut.extend([(leader, follower), (leader, other)]);
    let session = SessionId::new(opened.session_id);
    let renewal = world.call(leader, CallKind::Renew { session });
    world.pass_for(Duration::from_secs(8));
    let renewed = world.nodes[&leader].replies.get(&renewal);
    assert!(!matches!(renewed, Some(Reply::Renewed(_))), "{renewed:?}");
    let view = View::new(world.nodes[&follower].machine.store().snapshot());
    assert_eq!(view.session(session).expect("the store works"), None, "it expired");
}

#[test]
fn a_renewed_session_lives_and_one_that_is_not_renewed_ends() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let ttl = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    let open = OpenSessionRequest { ttl, ..OpenSessionRequest::default() };
    let sequence = world.propose(follower, command::Op::OpenSession(open));
    let outcome::Result::OpenSession(opened) = world.outcome(follower, sequence) else {
        panic!("no session");
    };
    let session = SessionId::new(opened.session_id);
    let lives = |world: &World| {
        let view = View::new(world.nodes[&follower].machine.store().snapshot());
        view.session(session).expect("the store works").is_some()
    };
    for _ in 0..5 {
        world.pass_for(Duration::from_secs(1));
        let renewal = world.call(follower, CallKind::Renew { session });
        world.until("it is renewed", |world| {
            matches!(world.nodes[&follower].replies.get(&renewal), Some(Reply::Renewed(_)))
        });
    }
    assert!(lives(&world));
    world.pass_for(Duration::from_secs(3));
    assert!(!lives(&world));
}

#[test]
fn a_parked_waiter_survives_its_leader_and_is_granted_by_the_next() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [holder, waiter] = world.others(leader);
    let first = world.propose(holder, acquire("l"));
    let outcome::Result::Acquire(first) = world.outcome(holder, first) else {
        panic!("not granted");
    };
    let second = world.propose(waiter, acquire("l"));
    world.pass_for(Duration::from_secs(1));
    world.nodes.get_mut(&leader).expect("three nodes").up = false;
    world.cut.clear();
    world.until("another leads", |world| world.leader().is_some_and(|id| id != leader));
    // Longer than the session of a waiter that nobody renews; the holder's own runs out.
    world.pass_for(Duration::from_secs(20));
    let outcome::Result::Acquire(second) = world.outcome(waiter, second) else {
        panic!("not granted");
    };
    assert!(second.fencing_token > first.fencing_token);
}

#[test]
fn l6_a_holder_that_overslept_its_ttl_writes_nothing() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [sleeper, other] = world.others(leader);
    let granted = |world: &mut World, on| {
        let sequence = world.propose(on, acquire("l"));
        let outcome::Result::Acquire(grant) = world.outcome(on, sequence) else {
            panic!("not granted");
        };
        grant.fencing_token
    };
    let stale = granted(&mut world, sleeper);
    // Nobody renews it, so the next in line gets it, while its holder still believes in it.
    let token = granted(&mut world, other);
    let mut write = |on, fencing_token, value: &'static str| {
        let lock = HeldLock { name: "l".into(), fencing_token };
        let put = PutRequest {
            key: "guarded".into(),
            value: value.into(),
            require_lock: Some(lock),
            ..PutRequest::default()
        };
        let sequence = world.propose(on, command::Op::Put(put));
        world.outcome(on, sequence)
    };
    assert!(matches!(write(other, token, "new"), outcome::Result::Put(_)));
    let outcome::Result::Refusal(refusal) = write(sleeper, stale, "old") else {
        panic!("a stale write was accepted");
    };
    assert_eq!(refusal.reason(), Reason::WrongFencingToken);
    assert_eq!(world.value(other, "guarded"), Some("new".into()));
}

#[test]
fn l9_after_healing_a_free_lock_is_granted_within_its_ttl_and_an_election() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [waiter, _] = world.others(leader);
    let first = world.propose(leader, acquire("l"));
    world.outcome(leader, first);
    let second = world.propose(waiter, acquire("l"));
    world.pass_for(Duration::from_secs(1));
    // Holder and leader die at once; the next leader gives the holder its whole TTL again.
    world.nodes.get_mut(&leader).expect("three nodes").up = false;
    let died = world.now;
    world.outcome(waiter, second);
    let (ttl, election) = (Duration::from_secs(5), Duration::from_secs(2));
    assert!(world.now.since(died) <= ttl + election, "{:?}", world.now.since(died));
}

#[test]
fn an_abandoned_waiter_leaves_the_line() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [holder, waiter] = world.others(leader);
    let first = world.propose(holder, acquire("l"));
    let outcome::Result::Acquire(first) = world.outcome(holder, first) else {
        panic!("not granted");
    };
    let second = world.propose(waiter, acquire("l"));
    let waiting = |world: &World| {
        let view = View::new(world.nodes[&leader].machine.store().snapshot());
        view.lock("l").expect("the store works").lock.map_or(0, |lock| lock.waiter_count)
    };
    world.until("it waits", |world| waiting(world) == 1);
    let gone = Event::Abandoned { sequence: second, lock: Some("l".into()) };
    world.nodes.get_mut(&waiter).expect("three nodes").inbox.push_back(gone);
    world.until("it is gone", |world| waiting(world) == 0);
    let release = ReleaseRequest {
        name: "l".into(),
        fencing_token: first.fencing_token,
        ..ReleaseRequest::default()
    };
    let release = world.propose(holder, command::Op::Release(release));
    assert!(matches!(world.outcome(holder, release), outcome::Result::Release(_)));
}
