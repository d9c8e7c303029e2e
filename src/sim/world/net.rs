//! The network: messages of the core may be lost, repeated and overtake each other; what travels on
//! streams (forwarded calls, their answers, snapshots) arrives in order or its connection breaks.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    node::replica::Event,
    pb::raft::v1::{ForwardRequest, ForwardResponse},
    raft::Message,
    sim::{invariants::Broken, words},
    types::{Duration, Instant, LogIndex, NodeId, Rng, Term},
};

use super::{Happening, World};

/// A stream on which nothing gets through breaks after this at the latest.
const KEEPALIVE: Duration = Duration::from_secs(4);
/// A stream sends again after this what did not get through.
const SENT_AGAIN: Duration = Duration::from_millis(200);
/// What a transfer of a snapshot takes for each chunk, about.
const CHUNK_US: u64 = 2_000;

/// What travels.
#[derive(Clone, Debug)]
pub(super) enum Cargo {
    Message(Message),
    Forward(ForwardRequest),
    Answer(ForwardResponse),
    Snapshot(Transfer),
    /// A snapshot's receiver tells its sender how it ended.
    SnapshotDone(Option<LogIndex>),
}

/// A snapshot on its way.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) from: usize,
    pub(super) term: Term,
    pub(super) index: LogIndex,
    pub(super) last_term: Term,
    pub(super) chunks: Vec<Bytes>,
}

/// Something on its way.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    from: usize,
    to: usize,
    cargo: Cargo,
    /// The connection that it travels on.
    epoch: u64,
    /// Which starts of both processes it is between.
    boots: (u64, u64),
}

/// The links.
#[derive(Debug)]
pub(super) struct Net {
    latency_us: (u64, u64),
    rngs: BTreeMap<(usize, usize), Rng>,
    /// How many faults cut each way.
    cut: BTreeMap<(usize, usize), u32>,
    pairs: BTreeMap<(usize, usize), Pair>,
    /// When the last packet of each lane arrives.
    lanes: BTreeMap<(usize, usize, u8), Instant>,
    /// Until when a stream waits to be sent again.
    held: BTreeMap<(usize, usize, u8), Instant>,
    /// Who sends whom a snapshot.
    transfers: BTreeSet<(usize, usize)>,
    pub(super) loss: Vec<u64>,
    pub(super) duplicate: Vec<u64>,
    pub(super) reorder: Vec<u64>,
    pub(super) delay_ms: Vec<u64>,
}

/// A connection between two nodes, the lower first.
#[derive(Clone, Copy, Debug, Default)]
struct Pair {
    up: bool,
    /// Grows each time that it breaks.
    epoch: u64,
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl Net {
    pub(super) fn new(nodes: u64, latency_us: (u64, u64), rng: &Rng) -> Self {
        let nodes = usize::try_from(nodes).expect("a few nodes");
        let links = (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b)));
        let links: Vec<_> = links.filter(|(a, b)| a != b).collect();
        let rngs = links.iter().map(|&(a, b)| ((a, b), rng.stream(&format!("link {a} {b}"))));
        Self {
            latency_us,
            rngs: rngs.collect(),
            cut: BTreeMap::new(),
            pairs: links.iter().map(|&(a, b)| (pair(a, b), Pair::default())).collect(),
            lanes: BTreeMap::new(),
            held: BTreeMap::new(),
            transfers: BTreeSet::new(),
            loss: Vec::new(),
            duplicate: Vec::new(),
            reorder: Vec::new(),
            delay_ms: Vec::new(),
        }
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.get(&(from, to)).is_some_and(|cuts| *cuts > 0)
    }

    fn link(&self, a: usize, b: usize) -> Pair {
        self.pairs.get(&pair(a, b)).copied().unwrap_or_default()
    }

    /// Whether chance strikes that strikes so many times of a hundred each.
    fn strikes(&mut self, from: usize, to: usize, which: fn(&Self) -> &Vec<u64>) -> bool {
        let percents = which(self).clone();
        let rng = self.rngs.get_mut(&(from, to)).expect("a link");
        percents.iter().any(|percent| rng.below(100) < *percent)
    }

    fn latency(&mut self, from: usize, to: usize) -> Duration {
        let (least, most) = self.latency_us;
        let delays = self.delay_ms.clone();
        let rng = self.rngs.get_mut(&(from, to)).expect("a link");
        let extra: u64 = delays.iter().map(|up_to| rng.below(up_to * 1_000 + 1)).sum();
        Duration::from_micros(least + rng.below(most - least + 1) + extra)
    }
}

impl World {
    /// Sends a packet, or loses it.
    pub(super) fn send(&mut self, from: usize, to: usize, cargo: Cargo) {
        if from == to || to >= self.nodes.len() {
            return;
        }
        let loose = matches!(cargo, Cargo::Message(_));
        let link = self.net.link(from, to);
        let (Some(sender), receiver) = (&self.nodes[from].process, &self.nodes[to].process) else {
            return;
        };
        let boots = (sender.boot, receiver.as_ref().map_or(0, |process| process.boot));
        if !link.up {
            return;
        }
        if loose && self.net.is_cut(from, to) {
            self.counts.count("message cut off");
            return;
        }
        if loose && self.net.strikes(from, to, |net| &net.loss) {
            self.counts.count("message lost");
            return;
        }
        let span = self.net.latency(from, to) + cargo_span(&cargo);
        let mut at = self.now.after(span);
        if !self.net.delay_ms.is_empty() {
            self.counts.count("message delayed");
        }
        let packet = Packet { from, to, cargo, epoch: link.epoch, boots };
        if loose && self.net.strikes(from, to, |net| &net.duplicate) {
            let again = self.now.after(self.net.latency(from, to) * 3);
            self.counts.count("message repeated");
            self.at(again, Happening::Arrives(Box::new(packet.clone())));
        }
        if loose && self.net.strikes(from, to, |net| &net.reorder) {
            self.counts.count("message overtaken");
            at = at.after(self.net.latency(from, to) * 4);
        } else {
            let lane = self.net.lanes.entry((from, to, lane(&packet.cargo))).or_default();
            at = at.max(*lane);
            *lane = at;
        }
        self.at(at, Happening::Arrives(Box::new(packet)));
    }

    /// Passes calls on to the leader; given back where there is no connection.
    pub(super) fn forward(&mut self, from: usize, to: usize, request: ForwardRequest) {
        if to >= self.nodes.len() || !self.net.link(from, to).up {
            self.give(from, Event::NotForwarded { request });
        } else {
            self.send(from, to, Cargo::Forward(request));
        }
    }

    /// Sends a snapshot.
    pub(super) fn transfer(&mut self, to: usize, transfer: Transfer) {
        let from = transfer.from;
        let reaches = self.net.link(from, to).up && !self.net.is_cut(from, to);
        if reaches {
            self.net.transfers.insert((from, to));
            self.send(from, to, Cargo::Snapshot(transfer));
        } else {
            let peer = NodeId::new(to as u64 + 1);
            self.give(from, Event::SnapshotSent { peer, installed: None });
        }
    }

    /// The receiver of a snapshot is done with it.
    pub(super) fn transfer_ends(&mut self, node: usize, transfer: &Transfer, installed: bool) {
        let installed = installed.then_some(transfer.index);
        self.send(node, transfer.from, Cargo::SnapshotDone(installed));
    }

    pub(super) fn arrives(&mut self, packet: Packet) -> Result<(), Broken> {
        let (from, to, epoch, boots) = (packet.from, packet.to, packet.epoch, packet.boots);
        let stream = !matches!(packet.cargo, Cargo::Message(_));
        if !stream && self.net.is_cut(from, to) {
            self.counts.count("message cut off");
            return Ok(());
        }
        let running = |world: &Self, node: usize| {
            world.nodes[node].process.as_ref().map_or(0, |process| process.boot)
        };
        let same = (running(self, from), running(self, to)) == boots;
        let connected = self.net.link(from, to).epoch == epoch;
        if running(self, to) == 0 || stream && !(same && connected) {
            return Ok(());
        }
        if stream && self.is_held(&packet) {
            return Ok(());
        }
        let cargo = packet.cargo;
        if !self.is_known(from, to) {
            return Ok(());
        }
        let peer = NodeId::new(from as u64 + 1);
        match cargo {
            Cargo::Message(message) => {
                self.tell(|| format!("n{} -> n{}: {}", from + 1, to + 1, words::message(&message)));
                self.give(to, Event::Message { from: peer, message });
            }
            Cargo::Forward(request) => {
                self.tell(|| format!("n{} -> n{}: passes calls on", from + 1, to + 1));
                self.renewals_arrived(to, from, &request);
                self.give(to, Event::Forwarded { from: peer, request });
            }
            Cargo::Answer(response) => {
                self.tell(|| format!("n{} -> n{}: answers calls", from + 1, to + 1));
                self.give(to, Event::Answered { from: peer, response });
            }
            Cargo::Snapshot(transfer) => {
                self.tell(|| format!("n{} -> n{}: a snapshot", from + 1, to + 1));
                self.snapshot_arrived(to, transfer)?;
            }
            Cargo::SnapshotDone(installed) => {
                self.net.transfers.remove(&(to, from));
                self.give(to, Event::SnapshotSent { peer, installed });
            }
        }
        Ok(())
    }

    /// A stream sends again what did not get through, and everything behind it waits.
    fn is_held(&mut self, packet: &Packet) -> bool {
        let key = (packet.from, packet.to, lane(&packet.cargo));
        let held = self.net.held.get(&key).copied().unwrap_or_default();
        let until = if held > self.now {
            held
        } else if self.net.is_cut(packet.from, packet.to) {
            self.now.after(SENT_AGAIN)
        } else {
            return false;
        };
        self.counts.count("stream held up");
        self.net.held.insert(key, until);
        let lane = self.net.lanes.entry(key).or_default();
        *lane = until.max(*lane);
        self.at(until, Happening::Arrives(Box::new(packet.clone())));
        true
    }

    /// Whether the receiver takes the sender for whom it says it is (rule 20). Only a wiped disk can
    /// make a difference.
    fn is_known(&mut self, from: usize, to: usize) -> bool {
        if !self.nodes[from].wiped && !self.nodes[to].wiped {
            return true;
        }
        let (Some(sender), Some(receiver)) = (&self.nodes[from].process, &self.nodes[to].process)
        else {
            return false;
        };
        let identity = sender.directory.identity(NodeId::new(to as u64 + 1));
        let Err(words) = receiver.directory.check(Some(&identity)) else { return true };
        self.tell(|| format!("n{} refuses n{}: {words}", to + 1, from + 1));
        self.counts.count("wiped disk refused");
        self.nodes[from].refused_by.insert(to);
        // A node that a majority refuses ends, with their words.
        if self.nodes[from].refused_by.len() * 2 > self.nodes.len() {
            self.die(from, "stops: its disk was wiped, the others refuse it");
            self.lose(from);
        }
        false
    }

    /// Cuts a way, or takes the cut back.
    pub(super) fn cut(&mut self, from: usize, to: usize, cut: bool) {
        if from == to {
            return;
        }
        let cuts = self.net.cut.entry((from, to)).or_default();
        *cuts = if cut { *cuts + 1 } else { cuts.saturating_sub(1) };
        let epoch = self.net.link(from, to).epoch;
        if cut {
            // A silent way breaks the streams on it after a while.
            self.after(KEEPALIVE, Happening::ConnectionBreaks { a: from, b: to, epoch });
        } else {
            self.connect_soon(from, to);
        }
    }

    /// Nothing is cut any more.
    pub(super) fn mend(&mut self) {
        self.net.cut.clear();
        self.net.loss.clear();
        self.net.duplicate.clear();
        self.net.reorder.clear();
        self.net.delay_ms.clear();
        let pairs: Vec<_> = self.net.pairs.keys().copied().collect();
        for (a, b) in pairs {
            self.connect_soon(a, b);
        }
    }

    /// Breaks a connection; both ends hear of it in a moment.
    pub(super) fn break_connection(&mut self, a: usize, b: usize) {
        if a == b {
            return;
        }
        let link = self.net.pairs.get_mut(&pair(a, b)).expect("a pair of nodes");
        if !link.up {
            return;
        }
        link.up = false;
        link.epoch += 1;
        let peer = |of: usize| NodeId::new(of as u64 + 1);
        for (node, other) in [(a, b), (b, a)] {
            self.give(node, Event::Disconnected { peer: peer(other) });
            self.give(node, Event::ForwardBroken { leader: peer(other) });
            if self.net.transfers.remove(&(node, other)) {
                self.give(node, Event::SnapshotSent { peer: peer(other), installed: None });
            }
        }
        self.tell(|| format!("n{} and n{} lose their connection", a + 1, b + 1));
        self.connect_soon(a, b);
    }

    pub(super) fn connection_breaks(&mut self, a: usize, b: usize, epoch: u64) {
        let cut = self.net.is_cut(a, b) || self.net.is_cut(b, a);
        if cut && self.net.link(a, b).epoch == epoch {
            self.break_connection(a, b);
        }
    }

    fn connect_soon(&mut self, a: usize, b: usize) {
        let epoch = self.net.link(a, b).epoch;
        let rng = self.net.rngs.get_mut(&(a, b)).expect("a link");
        let span = Duration::from_millis(5 + rng.below(150));
        self.after(span, Happening::Connects { a, b, epoch });
    }

    pub(super) fn connects(&mut self, a: usize, b: usize, epoch: u64) {
        let link = self.net.link(a, b);
        let runs = |node: &super::node::Node| node.process.is_some();
        let cut = self.net.is_cut(a, b) || self.net.is_cut(b, a);
        if link.up || link.epoch != epoch || cut || !runs(&self.nodes[a]) || !runs(&self.nodes[b]) {
            return;
        }
        if !self.is_known(a, b) || !self.is_known(b, a) {
            self.connect_soon(a, b);
            return;
        }
        self.net.pairs.insert(pair(a, b), Pair { up: true, ..link });
        for (node, other) in [(a, b), (b, a)] {
            self.give(node, Event::Connected { peer: NodeId::new(other as u64 + 1) });
        }
    }

    /// A process ended: its connections break at once.
    pub(super) fn cut_off(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.break_connection(node, other);
        }
    }

    /// A process started: it and the others connect.
    pub(super) fn reconnect(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if other != node {
                self.connect_soon(node, other);
            }
        }
    }
}

/// The lane of a cargo: what is on one lane stays in order.
fn lane(cargo: &Cargo) -> u8 {
    match cargo {
        Cargo::Message(Message::AppendRequest(_) | Message::AppendResponse(_)) => 1,
        Cargo::Message(_) => 0,
        Cargo::Forward(_) => 2,
        Cargo::Answer(_) => 3,
        Cargo::Snapshot(_) | Cargo::SnapshotDone(_) => 4,
    }
}

fn cargo_span(cargo: &Cargo) -> Duration {
    match cargo {
        Cargo::Snapshot(transfer) => Duration::from_micros(CHUNK_US * transfer.chunks.len() as u64),
        _ => Duration::ZERO,
    }
}
