//! A small deterministic cluster: members, their disks and the links between them.
//!
//! Nothing moves on its own. A test steps, delivers, persists and applies what it wants, in the
//! order that it wants, or lets [`Network::settle`] and [`Network::run`] do it. After every step
//! the members' invariants are checked and those across members.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate::{
    raft::{
        Append, Config, Entry, HardMark, HardState, Held, Input, LogMark, LogStart, Membership,
        Message, Payload, ProposeOutcome, Raft, ReadOutcome, Ready, Restored, RoleKind,
        SendSnapshot, Ticket, TransferOutcome,
    },
    types::{Duration, Instant, LogIndex, LogTime, NodeId, Term},
};

pub fn n(id: u64) -> NodeId {
    NodeId::new(id)
}

pub fn i(index: u64) -> LogIndex {
    LogIndex::new(index)
}

pub fn t(term: u64) -> Term {
    Term::new(term)
}

pub fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a member's disk holds.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub hard: HardState,
    pub start: LogStart,
    pub entries: Vec<Entry>,
    pub membership: Membership,
    /// The last entry that was applied.
    pub applied: LogStart,
    /// A snapshot that was received and is not installed yet.
    pub incoming: Option<Snapshot>,
    /// What was applied, in order; the whole state of this machine.
    pub state: Vec<(LogIndex, Term, Payload)>,
}

/// A snapshot: where it stands, the membership in it, and the state.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub start: LogStart,
    pub membership: Membership,
    pub state: Vec<(LogIndex, Term, Payload)>,
}

/// One member with everything that its driver would keep.
#[derive(Debug)]
pub struct Node {
    pub raft: Raft,
    pub disk: Disk,
    pub up: bool,
    /// Writes that the disk has not done yet.
    pub writes: VecDeque<Append>,
    /// Messages that wait for it.
    pub held: Vec<Held>,
    pub durable: (HardMark, LogMark),
    /// Pieces that the state machine has not applied yet.
    pub pieces: VecDeque<Piece>,
    pub snapshots: Vec<SendSnapshot>,
    pub proposals: Vec<(Ticket, ProposeOutcome)>,
    pub reads: Vec<(Ticket, ReadOutcome)>,
    pub transfers: Vec<(Ticket, TransferOutcome)>,
}

#[derive(Debug)]
pub enum Piece {
    Entries(Vec<Entry>),
    Snapshot,
}

#[derive(Clone, Debug)]
pub struct Packet {
    pub from: NodeId,
    pub to: NodeId,
    pub message: Message,
}

#[derive(Debug)]
pub struct Network {
    pub now: Instant,
    pub nodes: BTreeMap<NodeId, Node>,
    pub packets: VecDeque<Packet>,
    /// Directed links that drop everything.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// Whether `settle` and `run` let this member's disk work.
    pub disk_stands: BTreeSet<NodeId>,
    configs: BTreeMap<NodeId, Config>,
    leaders: BTreeMap<Term, NodeId>,
    committed: BTreeMap<LogIndex, (Term, Payload)>,
    tickets: u64,
}

impl Network {
    /// A fresh cluster of `size` voters.
    pub fn new(size: u64) -> Self {
        let voters = Membership::of((1..=size).map(n));
        let restored = Restored { membership: voters, ..Restored::default() };
        Self::restored((1..=size).map(|id| (Config::new(n(id)), restored.clone())))
    }

    /// A cluster whose members' logs have entries of these terms.
    pub fn with_logs(logs: &[&[u64]]) -> Self {
        let voters = Membership::of((1..=logs.len() as u64).map(n));
        let members = logs.iter().zip(1..).map(|(terms, id)| {
            let entries: Vec<Entry> =
                terms.iter().zip(1..).map(|(&term, at)| entry(at, term)).collect();
            let hard =
                HardState { term: t(terms.last().copied().unwrap_or(0)), ..HardState::default() };
            let membership = voters.clone();
            (Config::new(n(id)), Restored { hard, entries, membership, ..Restored::default() })
        });
        Self::restored(members)
    }

    pub fn restored(members: impl IntoIterator<Item = (Config, Restored)>) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let mut network = Self {
            now,
            nodes: BTreeMap::new(),
            packets: VecDeque::new(),
            cut: BTreeSet::new(),
            disk_stands: BTreeSet::new(),
            configs: BTreeMap::new(),
            leaders: BTreeMap::new(),
            committed: BTreeMap::new(),
            tickets: 0,
        };
        for (config, restored) in members {
            let id = config.id;
            let start = LogStart {
                index: restored.purged_index,
                term: restored.purged_term,
                time: restored.last_time,
            };
            let at = restored.entries.iter().find(|entry| entry.index == restored.applied);
            let applied =
                at.map_or(start, |e| LogStart { index: e.index, term: e.term, time: e.time });
            let disk = Disk {
                hard: restored.hard,
                start,
                entries: restored.entries.clone(),
                membership: restored.membership.clone(),
                applied,
                incoming: None,
                state: Vec::new(),
            };
            network.configs.insert(id, config);
            let node = network.boot(id, disk);
            network.nodes.insert(id, node);
        }
        network
    }

    fn boot(&self, id: NodeId, mut disk: Disk) -> Node {
        disk.recover();
        let restored = Restored {
            hard: disk.hard,
            purged_index: disk.start.index,
            purged_term: disk.start.term,
            last_time: disk.start.time,
            entries: disk.entries.clone(),
            applied: disk.applied.index,
            membership: disk.membership.clone(),
        };
        Node {
            raft: Raft::new(self.configs[&id].clone(), restored, self.now),
            disk,
            up: true,
            writes: VecDeque::new(),
            held: Vec::new(),
            durable: (HardMark::default(), LogMark::default()),
            pieces: VecDeque::new(),
            snapshots: Vec::new(),
            proposals: Vec::new(),
            reads: Vec::new(),
            transfers: Vec::new(),
        }
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&n(id)]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("the node exists")
    }

    pub fn raft(&self, id: u64) -> &Raft {
        &self.node(id).raft
    }

    pub fn role(&self, id: u64) -> RoleKind {
        self.raft(id).status().role
    }

    pub fn term(&self, id: u64) -> Term {
        self.raft(id).status().term
    }

    pub fn commit(&self, id: u64) -> LogIndex {
        self.raft(id).status().commit
    }

    /// The terms of a member's entries.
    pub fn terms(&self, id: u64) -> Vec<u64> {
        self.raft(id).entries().map(|entry| entry.term.value()).collect()
    }

    /// The commands that a member has applied.
    pub fn applied(&self, id: u64) -> Vec<String> {
        let state = self.node(id).disk.state.iter();
        let commands = state.filter_map(|(_, _, payload)| match payload {
            Payload::Command(data) => Some(String::from_utf8_lossy(data).into_owned()),
            _ => None,
        });
        commands.collect()
    }

    /// The one leader of the latest term among those that are up, if there is one.
    pub fn leader(&self) -> Option<u64> {
        let up = self.nodes.iter().filter(|(_, node)| node.up);
        let leaders = up.filter(|(_, node)| node.raft.status().role == RoleKind::Leader);
        leaders.max_by_key(|(_, node)| node.raft.status().term).map(|(id, _)| id.value())
    }

    /// One step of one member, and everything that must hold after it.
    pub fn step(&mut self, id: u64, input: Input) {
        let (id, now) = (n(id), self.now);
        let node = self.node_mut(id);
        if !node.up {
            return;
        }
        let mut ready = Ready::default();
        node.raft.step(now, input, &mut ready);
        node.raft.check_invariants();
        self.carry_out(id, ready);
        self.check(id);
    }

    fn carry_out(&mut self, from: NodeId, ready: Ready) {
        let node = self.node_mut(from);
        node.writes.extend(ready.appends);
        node.held.extend(ready.held);
        node.snapshots.extend(ready.snapshots);
        if ready.install.is_some() {
            node.pieces.clear();
            node.pieces.push_back(Piece::Snapshot);
        }
        node.pieces.extend(ready.apply.map(|apply| Piece::Entries(apply.entries)));
        if let Some(start) = ready.purged {
            // A real disk would do this behind the writes; the entries are applied either way.
            node.disk.entries.retain(|entry| entry.index > start.index);
            node.disk.start = start;
        }
        node.proposals.extend(ready.proposals);
        node.reads.extend(ready.reads);
        node.transfers.extend(ready.transfers);
        for (to, message) in ready.messages {
            self.send(from, to, message);
        }
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        if !self.cut.contains(&(from, to)) && self.nodes.contains_key(&to) {
            self.packets.push_back(Packet { from, to, message });
        }
    }

    /// The disk does its oldest write. Returns whether there was one.
    pub fn persist_one(&mut self, id: u64) -> bool {
        let node = self.node_mut(n(id));
        let Some(write) = node.writes.pop_front() else { return false };
        node.disk.write(&write);
        node.durable.0 = node.durable.0.max(write.hard_mark);
        node.durable.1 = node.durable.1.max(write.log_mark);
        let (hard, log) = node.durable;
        let ripe = |held: &Held| held.hard <= hard && held.log <= log;
        let (out, held): (Vec<Held>, Vec<Held>) = node.held.drain(..).partition(ripe);
        node.held = held;
        for held in out {
            self.send(n(id), held.to, held.message);
        }
        self.step(id, Input::Persisted { hard, log });
        true
    }

    pub fn persist(&mut self, id: u64) {
        while self.persist_one(id) {}
    }

    /// The state machine applies its oldest piece. Returns whether there was one.
    pub fn apply_one(&mut self, id: u64) -> bool {
        let node = self.node_mut(n(id));
        let Some(piece) = node.pieces.pop_front() else { return false };
        match piece {
            Piece::Entries(entries) => node.disk.apply(entries),
            Piece::Snapshot => node.disk.install(),
        }
        let index = self.node(id).disk.applied.index;
        self.step(id, Input::Applied { index });
        true
    }

    /// Sends the snapshots that a leader owes, whole and at once.
    pub fn send_snapshots(&mut self, id: u64) -> bool {
        let owed = std::mem::take(&mut self.node_mut(n(id)).snapshots);
        let any = !owed.is_empty();
        for SendSnapshot { to, term } in owed {
            let disk = &self.node(id).disk;
            let (start, membership) = (disk.applied, disk.membership.clone());
            let snapshot = Snapshot { start, membership, state: disk.state.clone() };
            let from = n(id);
            let busy = self.nodes[&to].disk.incoming.is_some();
            let arrives = !self.cut.contains(&(from, to)) && self.nodes[&to].up && !busy;
            if arrives {
                self.receive_snapshot(from, to, term, snapshot);
            }
            let installed = arrives.then_some(start.index);
            self.step(id, Input::SnapshotSent { peer: to, installed });
        }
        any
    }

    pub fn receive_snapshot(&mut self, from: NodeId, to: NodeId, term: Term, snapshot: Snapshot) {
        let membership = snapshot.membership.clone();
        let LogStart { index, term: last_term, time } = snapshot.start;
        self.node_mut(to).disk.incoming = Some(snapshot);
        let input = Input::SnapshotReceived { from, term, index, last_term, time, membership };
        self.step(to.value(), input);
        let node = self.node_mut(to);
        if !node.pieces.iter().any(|piece| matches!(piece, Piece::Snapshot)) {
            node.disk.incoming = None;
        }
    }

    /// Delivers the oldest packet. Returns whether there was one.
    pub fn deliver_one(&mut self) -> bool {
        let Some(packet) = self.packets.pop_front() else { return false };
        self.deliver(packet);
        true
    }

    pub fn deliver(&mut self, Packet { from, to, message }: Packet) {
        if !self.cut.contains(&(from, to)) {
            self.step(to.value(), Input::Message { from, message });
        }
    }

    /// Delivers everything to one member and leaves its answers where they are.
    pub fn deliver_to(&mut self, id: u64) {
        let (mine, rest) = self.packets.drain(..).partition(|packet| packet.to == n(id));
        self.packets = rest;
        let mine: VecDeque<Packet> = mine;
        for packet in mine {
            self.deliver(packet);
        }
    }

    /// Puts a message on its way, as if a member had sent it.
    pub fn inject(&mut self, from: u64, to: u64, message: Message) {
        self.step(to, Input::Message { from: n(from), message });
    }

    /// Everything that can happen without time going by.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let ids: Vec<u64> = self.nodes.keys().map(|id| id.value()).collect();
            let mut moved = self.deliver_one();
            for id in ids {
                moved |= !self.disk_stands.contains(&n(id)) && self.persist_one(id);
                moved |= self.apply_one(id);
                moved |= self.send_snapshots(id);
            }
            if !moved {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    /// Time goes by, deadline after deadline.
    pub fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        loop {
            self.settle();
            let up = self.nodes.iter().filter(|(_, node)| node.up);
            let next = up.map(|(&id, node)| (node.raft.next_deadline(), id)).min();
            match next {
                Some((at, id)) if at <= end => {
                    self.now = self.now.max(at);
                    self.step(id.value(), Input::Tick);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Time goes by for one member alone until its next deadline, and nothing is delivered.
    pub fn time_out(&mut self, id: u64) {
        self.now = self.now.max(self.raft(id).next_deadline());
        self.step(id, Input::Tick);
    }

    /// Makes a member campaign, and lets the election run its course.
    pub fn elect(&mut self, id: u64) {
        // The others have heard nothing for long enough.
        self.now = self.now.after(ms(300));
        self.now = self.now.max(self.raft(id).next_deadline());
        self.step(id, Input::Tick);
        self.settle();
        assert_eq!(self.role(id), RoleKind::Leader, "{id} is elected");
    }

    /// Runs until there is a leader that every member follows which is up.
    pub fn await_leader(&mut self) -> u64 {
        for _ in 0..1_000 {
            self.run(ms(50));
            let Some(leader) = self.leader() else { continue };
            let status = self.raft(leader).status();
            let members = status.membership.members();
            let mut up = self.nodes.iter().filter(|(id, node)| node.up && members.contains(id));
            if up.all(|(_, node)| node.raft.status().leader == status.leader) && status.leader_ready
            {
                return leader;
            }
        }
        panic!("no leader in 50 s: {:?}", self.nodes.values().map(|n| n.raft.status()));
    }

    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    pub fn propose(&mut self, id: u64, command: &str) -> Ticket {
        let ticket = self.ticket();
        let commands = vec![(ticket, command.to_owned().into())];
        let time = LogTime::from_millis(self.now.as_nanos() / 1_000_000);
        self.step(id, Input::Propose { time, expected_term: None, commands });
        ticket
    }

    pub fn read(&mut self, id: u64) -> Ticket {
        let ticket = self.ticket();
        self.step(id, Input::Read { ticket });
        ticket
    }

    pub fn transfer(&mut self, id: u64, target: Option<u64>) -> Ticket {
        let ticket = self.ticket();
        self.step(id, Input::Transfer { ticket, target: target.map(n) });
        ticket
    }

    pub fn read_outcome(&self, id: u64, ticket: Ticket) -> Option<&ReadOutcome> {
        let mut found = self.node(id).reads.iter().filter(|(t, _)| *t == ticket);
        let outcome = found.next().map(|(_, outcome)| outcome);
        assert!(found.next().is_none(), "one outcome for each read");
        outcome
    }

    pub fn transfer_outcome(&self, id: u64, ticket: Ticket) -> Option<&TransferOutcome> {
        let mut found = self.node(id).transfers.iter().filter(|(t, _)| *t == ticket);
        let outcome = found.next().map(|(_, outcome)| outcome);
        assert!(found.next().is_none(), "one outcome for each transfer");
        outcome
    }

    pub fn proposal(&self, id: u64, ticket: Ticket) -> Option<&ProposeOutcome> {
        let mut found = self.node(id).proposals.iter().filter(|(t, _)| *t == ticket);
        let outcome = found.next().map(|(_, outcome)| outcome);
        assert!(found.next().is_none(), "one outcome for each proposal");
        outcome
    }

    /// Cuts a member off from everyone, silently.
    pub fn isolate(&mut self, id: u64) {
        for other in self.nodes.keys().copied().filter(|&other| other != n(id)) {
            self.cut.insert((n(id), other));
            self.cut.insert((other, n(id)));
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// The process ends; what the disk had not done is lost. The others' connections break.
    pub fn crash(&mut self, id: u64) {
        self.crash_silently(id);
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|&o| o != n(id)).collect();
        for other in others {
            self.step(other.value(), Input::Disconnected { peer: n(id) });
        }
    }

    pub fn crash_silently(&mut self, id: u64) {
        let node = self.node_mut(n(id));
        node.up = false;
        node.writes.clear();
        node.held.clear();
        node.pieces.clear();
        self.packets.retain(|packet| packet.from != n(id) && packet.to != n(id));
    }

    /// It comes back with what its disk holds.
    pub fn restart(&mut self, id: u64) {
        let disk = self.node(id).disk.clone();
        let node = self.boot(n(id), disk);
        self.nodes.insert(n(id), node);
        let others: Vec<NodeId> = self.nodes.keys().copied().filter(|&o| o != n(id)).collect();
        for other in others {
            self.step(other.value(), Input::Connected { peer: n(id) });
            self.step(id, Input::Connected { peer: other });
        }
    }

    /// What holds across members: election safety, leader completeness, log matching and that
    /// what is committed never changes (Raft figure 3).
    fn check(&mut self, id: NodeId) {
        let status = self.nodes[&id].raft.status();
        if status.role == RoleKind::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "two leaders in {:?}", status.term);
        }
        let raft = &self.nodes[&id].raft;
        for entry in raft.entries().filter(|entry| entry.index <= status.commit) {
            let value = (entry.term, entry.payload.clone());
            let known = self.committed.entry(entry.index).or_insert_with(|| value.clone());
            assert_eq!(*known, value, "{:?} was committed otherwise", entry.index);
        }
        if status.role == RoleKind::Leader {
            let ahead = self.committed.range(status.first..).find(|&(&index, &(ref term, _))| {
                *term < status.term && raft.term_at(index) != Some(*term)
            });
            assert!(ahead.is_none(), "{id:?} leads {:?} without {ahead:?}", status.term);
        }
    }

    /// Log matching between every two members: costs more, for the end of a run.
    pub fn check_log_matching(&self) {
        for (a, one) in &self.nodes {
            for (b, other) in self.nodes.range(a.next()..) {
                let mut agree = false;
                let mut entries: Vec<&Entry> = one.raft.entries().collect();
                entries.reverse();
                for entry in entries {
                    let same = other.raft.term_at(entry.index) == Some(entry.term);
                    let cut = other.raft.term_at(entry.index).is_none();
                    assert!(same || !agree || cut, "{a:?} and {b:?} part below {:?}", entry.index);
                    agree |= same;
                }
            }
        }
    }
}

impl Disk {
    pub fn write(&mut self, write: &Append) {
        self.hard = write.hard;
        if let Some(start) = write.reset_to {
            let connects =
                self.entries.iter().any(|e| e.index == start.index && e.term == start.term);
            self.entries.retain(|entry| connects && entry.index > start.index);
            self.start = start;
        }
        if let Some(from) = write.truncate_from {
            self.entries.retain(|entry| entry.index < from);
        }
        for entry in &write.entries {
            let next = self.entries.last().map_or(self.start.index, |last| last.index).next();
            assert_eq!(entry.index, next, "the disk is written in order");
            self.entries.push(entry.clone());
        }
    }

    fn install(&mut self) {
        let snapshot = self.incoming.take().expect("it was received");
        self.applied = snapshot.start;
        self.membership = snapshot.membership;
        self.state = snapshot.state;
    }

    /// Finishes what a crash left half done: the log learnt of a snapshot and the state did not,
    /// or the other way round.
    fn recover(&mut self) {
        if self.start.index > self.applied.index {
            self.install();
        }
        self.incoming = None;
        let applied = self.applied;
        let connects = |entry: &Entry| (entry.index, entry.term) == (applied.index, applied.term);
        if applied.index > self.start.index && !self.entries.iter().any(connects) {
            self.entries.clear();
            self.start = applied;
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let LogStart { index: applied, .. } = self.applied;
            assert_eq!(entry.index, applied.next(), "entries are applied in order, once");
            let last = self.entries.last().map_or(self.start.index, |last| last.index);
            assert!(entry.index <= last, "what is applied is durable");
            self.applied = LogStart { index: entry.index, term: entry.term, time: entry.time };
            if let Payload::Membership(membership) = &entry.payload {
                self.membership = membership.clone();
            }
            self.state.push((entry.index, entry.term, entry.payload));
        }
    }
}

/// An entry whose command names its place and term.
pub fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index: i(index),
        term: t(term),
        time: LogTime::ZERO,
        payload: Payload::Command(format!("{index}.{term}").into()),
    }
}
