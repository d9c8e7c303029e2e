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

use crate::{
    checks::Checks,
    disk::{Disk, Snapshot, entry},
    speech::write_in_words,
};

pub(crate) fn n(id: u64) -> NodeId {
    NodeId::new(id)
}

pub(crate) fn i(index: u64) -> LogIndex {
    LogIndex::new(index)
}

pub(crate) fn t(term: u64) -> Term {
    Term::new(term)
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// One member with everything that its driver would keep.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) raft: Raft,
    pub(crate) disk: Disk,
    pub(crate) up: bool,
    /// Writes that the disk has not done yet.
    pub(crate) writes: VecDeque<Append>,
    /// Messages that wait for it.
    pub(crate) held: Vec<Held>,
    pub(crate) durable: (HardMark, LogMark),
    /// Pieces that the state machine has not applied yet.
    pub(crate) pieces: VecDeque<Piece>,
    pub(crate) snapshots: Vec<SendSnapshot>,
    pub(crate) proposals: Vec<(Ticket, ProposeOutcome)>,
    pub(crate) reads: Vec<(Ticket, ReadOutcome)>,
    pub(crate) transfers: Vec<(Ticket, TransferOutcome)>,
}

#[derive(Debug)]
pub(crate) enum Piece {
    Entries(Vec<Entry>),
    Snapshot,
}

#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) message: Message,
}

#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) now: Instant,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) packets: VecDeque<Packet>,
    /// Directed links that drop everything.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Whether `settle` and `run` let this member's disk work.
    pub(crate) disk_stands: BTreeSet<NodeId>,
    /// What happened, in words, where someone wants to read it.
    pub(crate) trace: Option<Vec<String>>,
    /// Whether that includes what beats all the time.
    pub(crate) tells_heartbeats: bool,
    configs: BTreeMap<NodeId, Config>,
    pub(crate) checks: Checks,
    tickets: u64,
}

impl Network {
    /// A fresh cluster of `size` voters.
    pub(crate) fn new(size: u64) -> Self {
        let voters = Membership::of((1..=size).map(n));
        let restored = Restored { membership: voters, ..Restored::default() };
        Self::restored((1..=size).map(|id| (Config::new(n(id)), restored.clone())))
    }

    /// A cluster whose members' logs have entries of these terms.
    pub(crate) fn with_logs(logs: &[&[u64]]) -> Self {
        Self::with_logs_and(logs, |_| {})
    }

    /// A cluster whose members all restored the same.
    pub(crate) fn of(size: u64, restored: &Restored, configure: impl Fn(&mut Config)) -> Self {
        Self::restored((1..=size).map(|id| {
            let mut config = Config::new(n(id));
            configure(&mut config);
            (config, restored.clone())
        }))
    }

    pub(crate) fn with_logs_and(logs: &[&[u64]], configure: impl Fn(&mut Config)) -> Self {
        // Nobody led a term that a majority does not know of.
        let term = logs.iter().filter_map(|terms| terms.last()).max().copied().unwrap_or(0);
        let voters = Membership::of((1..=logs.len() as u64).map(n));
        let members = logs.iter().zip(1..).map(|(terms, id)| {
            let entries: Vec<Entry> =
                terms.iter().zip(1..).map(|(&term, at)| entry(at, term)).collect();
            let hard = HardState { term: t(term), ..HardState::default() };
            let mut config = Config::new(n(id));
            configure(&mut config);
            let membership = voters.clone();
            (config, Restored { hard, entries, membership, ..Restored::default() })
        });
        Self::restored(members)
    }

    pub(crate) fn restored(members: impl IntoIterator<Item = (Config, Restored)>) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let mut network = Self {
            now,
            nodes: BTreeMap::new(),
            packets: VecDeque::new(),
            cut: BTreeSet::new(),
            disk_stands: BTreeSet::new(),
            trace: None,
            tells_heartbeats: false,
            configs: BTreeMap::new(),
            checks: Checks::default(),
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

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[&n(id)]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("the node exists")
    }

    pub(crate) fn raft(&self, id: u64) -> &Raft {
        &self.node(id).raft
    }

    pub(crate) fn role(&self, id: u64) -> RoleKind {
        self.raft(id).status().role
    }

    pub(crate) fn term(&self, id: u64) -> Term {
        self.raft(id).status().term
    }

    pub(crate) fn commit(&self, id: u64) -> LogIndex {
        self.raft(id).status().commit
    }

    /// The terms of a member's entries.
    pub(crate) fn terms(&self, id: u64) -> Vec<u64> {
        self.raft(id).entries().map(|entry| entry.term.value()).collect()
    }

    /// The commands that a member has applied.
    pub(crate) fn applied(&self, id: u64) -> Vec<String> {
        let state = self.node(id).disk.state.iter();
        let commands = state.filter_map(|(_, _, payload)| match payload {
            Payload::Command(data) => Some(String::from_utf8_lossy(data).into_owned()),
            _ => None,
        });
        commands.collect()
    }

    /// The one leader of the latest term among those that are up, if there is one.
    pub(crate) fn leader(&self) -> Option<u64> {
        let up = self.nodes.iter().filter(|(_, node)| node.up);
        let leaders = up.filter(|(_, node)| node.raft.status().role == RoleKind::Leader);
        leaders.max_by_key(|(_, node)| node.raft.status().term).map(|(id, _)| id.value())
    }

    /// One step of one member, and everything that must hold after it.
    pub(crate) fn step(&mut self, id: u64, input: Input) {
        let (id, now) = (n(id), self.now);
        let node = self.node_mut(id);
        if !node.up {
            return;
        }
        let mut ready = Ready::default();
        let before = node.raft.status();
        node.raft.step(now, input, &mut ready);
        node.raft.check_invariants();
        self.tell_step(id, &before, &ready);
        self.checks.answered(id, &ready);
        self.checks.stepped(id, &self.nodes);
        self.carry_out(id, ready);
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
        self.tell_message(from, to, &message);
        if !self.cut.contains(&(from, to)) && self.nodes.contains_key(&to) {
            self.packets.push_back(Packet { from, to, message });
        }
    }

    /// The disk does its oldest write. Returns whether there was one.
    pub(crate) fn persist_one(&mut self, id: u64) -> bool {
        let node = self.node_mut(n(id));
        let Some(write) = node.writes.pop_front() else { return false };
        let before = node.disk.hard;
        node.disk.write(&write);
        self.tell(|| format!("n{id} disk: {}", write_in_words(before, &write)));
        let node = self.node_mut(n(id));
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

    pub(crate) fn persist(&mut self, id: u64) {
        while self.persist_one(id) {}
    }

    /// The state machine applies its oldest piece. Returns whether there was one.
    pub(crate) fn apply_one(&mut self, id: u64) -> bool {
        let node = self.node_mut(n(id));
        let Some(piece) = node.pieces.pop_front() else { return false };
        match piece {
            Piece::Entries(entries) => node.disk.apply(entries),
            Piece::Snapshot => node.disk.install(),
        }
        let index = self.node(id).disk.applied.index;
        self.tell(|| format!("n{id} applied through {index:?}"));
        self.step(id, Input::Applied { index });
        true
    }

    /// Forgets the snapshots that a leader owes.
    pub(crate) fn take_snapshots(&mut self, id: u64) {
        self.node_mut(n(id)).snapshots.clear();
    }

    /// Sends the snapshots that a leader owes, whole and at once.
    pub(crate) fn send_snapshots(&mut self, id: u64) -> bool {
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

    pub(crate) fn receive_snapshot(
        &mut self,
        from: NodeId,
        to: NodeId,
        term: Term,
        snapshot: Snapshot,
    ) {
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
    pub(crate) fn deliver_one(&mut self) -> bool {
        let Some(packet) = self.packets.pop_front() else { return false };
        self.deliver(packet);
        true
    }

    pub(crate) fn deliver(&mut self, Packet { from, to, message }: Packet) {
        if !self.cut.contains(&(from, to)) {
            self.step(to.value(), Input::Message { from, message });
        }
    }

    /// Delivers everything to one member and leaves its answers where they are.
    pub(crate) fn deliver_to(&mut self, id: u64) {
        let (mine, rest) = self.packets.drain(..).partition(|packet| packet.to == n(id));
        self.packets = rest;
        let mine: VecDeque<Packet> = mine;
        for packet in mine {
            self.deliver(packet);
        }
    }

    /// What a member has sent and nobody has received; it is taken off the network.
    pub(crate) fn sent(&mut self, id: u64) -> Vec<(u64, Message)> {
        let (mine, rest) = self.packets.drain(..).partition(|packet| packet.from == n(id));
        self.packets = rest;
        let mine: VecDeque<Packet> = mine;
        mine.into_iter().map(|packet| (packet.to.value(), packet.message)).collect()
    }

    /// Puts a message on its way, as if a member had sent it.
    /// What holds across members is not checked from here on: this one never said it.
    pub(crate) fn inject(&mut self, from: u64, to: u64, message: Message) {
        self.checks.forged = true;
        self.step(to, Input::Message { from: n(from), message });
    }

    /// Everything that can happen without time going by.
    pub(crate) fn settle(&mut self) {
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
    pub(crate) fn run(&mut self, span: Duration) {
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

    /// Time goes by until a member's next deadline, and that member notices. The others' patience
    /// begins anew, so that they do not campaign at the same time.
    pub(crate) fn time_out(&mut self, id: u64) {
        self.now = self.now.max(self.raft(id).next_deadline());
        for other in self.others(id).into_iter().map(NodeId::value) {
            if self.role(other) != RoleKind::Leader {
                // A member whose disk stands does not campaign when its time is up, but waits on.
                self.step(other, Input::DiskStalled(true));
                self.step(other, Input::DiskStalled(false));
            }
        }
        self.step(id, Input::Tick);
    }

    /// Lets a member time out and win the election that follows.
    pub(crate) fn elect(&mut self, id: u64) {
        if let Some(leader) = self.leader() {
            self.transfer(leader, Some(id));
            self.settle();
            return;
        }
        // Long enough that nobody feels bound to the leader before.
        self.now = self.now.after(ms(300));
        self.time_out(id);
        self.settle();
        assert_eq!(self.role(id), RoleKind::Leader, "{id} is elected");
    }

    fn others(&self, id: u64) -> Vec<NodeId> {
        self.nodes.keys().copied().filter(|&other| other != n(id)).collect()
    }

    /// Runs until there is a leader that every member follows which is up.
    pub(crate) fn await_leader(&mut self) -> u64 {
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

    /// A ticket for a request to a member.
    pub(crate) fn ask(&mut self, id: u64) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        if self.node(id).up {
            self.checks.asked(ticket, n(id));
        }
        ticket
    }

    pub(crate) fn propose(&mut self, id: u64, command: &str) -> Ticket {
        let ticket = self.ask(id);
        let commands = vec![(ticket, command.to_owned().into())];
        let time = LogTime::from_millis(self.now.as_nanos() / 1_000_000);
        self.step(id, Input::Propose { time, expected_term: None, commands });
        ticket
    }

    pub(crate) fn read(&mut self, id: u64) -> Ticket {
        let ticket = self.ask(id);
        self.step(id, Input::Read { ticket });
        ticket
    }

    pub(crate) fn transfer(&mut self, id: u64, target: Option<u64>) -> Ticket {
        let ticket = self.ask(id);
        self.step(id, Input::Transfer { ticket, target: target.map(n) });
        ticket
    }

    pub(crate) fn read_outcome(&self, id: u64, ticket: Ticket) -> Option<&ReadOutcome> {
        self.node(id).reads.iter().find(|(t, _)| *t == ticket).map(|(_, outcome)| outcome)
    }

    pub(crate) fn transfer_outcome(&self, id: u64, ticket: Ticket) -> Option<&TransferOutcome> {
        self.node(id).transfers.iter().find(|(t, _)| *t == ticket).map(|(_, outcome)| outcome)
    }

    pub(crate) fn proposal(&self, id: u64, ticket: Ticket) -> Option<&ProposeOutcome> {
        self.node(id).proposals.iter().find(|(t, _)| *t == ticket).map(|(_, outcome)| outcome)
    }

    /// Cuts a member off from everyone, silently.
    pub(crate) fn isolate(&mut self, id: u64) {
        for other in self.others(id) {
            self.cut.insert((n(id), other));
            self.cut.insert((other, n(id)));
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }

    /// The process ends; what the disk had not done is lost. The others' connections break.
    pub(crate) fn crash(&mut self, id: u64) {
        self.crash_silently(id);
        for other in self.others(id) {
            self.step(other.value(), Input::Disconnected { peer: n(id) });
        }
    }

    pub(crate) fn crash_silently(&mut self, id: u64) {
        let node = self.node_mut(n(id));
        node.up = false;
        node.writes.clear();
        node.held.clear();
        node.pieces.clear();
        self.checks.crashed(n(id));
        self.packets.retain(|packet| packet.from != n(id) && packet.to != n(id));
    }

    /// It comes back with what its disk holds.
    pub(crate) fn restart(&mut self, id: u64) {
        let disk = self.node(id).disk.clone();
        let node = self.boot(n(id), disk);
        self.nodes.insert(n(id), node);
        for other in self.others(id) {
            self.step(other.value(), Input::Connected { peer: n(id) });
            self.step(id, Input::Connected { peer: other });
        }
    }
}
