//! Breaks the cluster by chance from a seed, and counts what really happened.
//!
//! Faults are drawn from a deck, so that each comes before any comes again. Those of links are put
//! into the nodes' transports with a lease, and counted by the nodes themselves.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use quorate::{
    pb::{
        cluster::v1::{StatusRequest, TransferLeadershipRequest},
        lab::v1::{Direction, LinkFault, LinkFaultCount, MessageKind},
    },
    testing::Cluster,
    types::Rng,
};
use tokio::time::{Instant, sleep_until, timeout};

use crate::{LIMIT, record::Record};

/// How long a node is asked for anything while it may be broken.
const PATIENCE: Duration = Duration::from_secs(2);

/// What can be done to a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// SIGKILL, and a start over the same data.
    Kill,
    /// The same to all nodes at once.
    KillAll,
    /// SIGSTOP and SIGCONT.
    Pause,
    /// What one node sends, or what is sent to it, vanishes.
    OneWay,
    /// One node, or one pair of nodes, hears nothing of the other side; connections stand.
    Partition,
    /// Connections between two nodes break and are refused, in one direction or both.
    Cut,
    /// A share of messages is lost.
    Drop,
    /// Messages are late.
    Delay,
    /// Messages come twice.
    Duplicate,
    /// Messages overtake each other.
    Reorder,
    /// Leadership is handed over.
    Transfer,
}

/// Who breaks the cluster.
pub(crate) struct Driver<'a> {
    cluster: &'a mut Cluster,
    record: Arc<Record>,
    rng: Rng,
    fired: BTreeMap<Fault, u64>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(cluster: &'a mut Cluster, record: Arc<Record>, rng: Rng) -> Self {
        Self { cluster, record, rng, fired: BTreeMap::new() }
    }

    /// Breaks the cluster with these faults for `span`, and for longer where one of them has not
    /// fired yet. At the end all nodes run; what broke links ends by itself.
    pub(crate) async fn run(mut self, faults: &[Fault], span: Duration) -> BTreeMap<Fault, u64> {
        let (end, give_up) = (Instant::now() + span, Instant::now() + span + LIMIT);
        let mut deck = Vec::new();
        loop {
            if Instant::now() >= end {
                let idle: Vec<_> =
                    faults.iter().filter(|fault| !self.fired.contains_key(fault)).collect();
                if idle.is_empty() {
                    break;
                }
                assert!(Instant::now() < give_up, "these faults never fired: {idle:?}");
            }
            if deck.is_empty() {
                deck = self.shuffled(faults);
            }
            let fault = deck.pop().expect("a scenario has faults");
            self.strike(fault).await;
            self.wait(30, 250).await;
        }
        self.fired
    }

    async fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => self.kill().await,
            Fault::KillAll => self.kill_all().await,
            Fault::Pause => self.pause().await,
            Fault::Transfer => self.transfer().await,
            Fault::OneWay | Fault::Partition => self.isolate(fault).await,
            Fault::Cut | Fault::Drop | Fault::Delay | Fault::Duplicate | Fault::Reorder => {
                self.links(fault).await;
            }
        }
    }

    /// A link fault has fired when the nodes count more of what it does than before.
    async fn fired_since(&mut self, fault: Fault, before: u64) {
        let more = self.effect(fault).await.saturating_sub(before);
        if more > 0 {
            *self.fired.entry(fault).or_default() += more;
        }
    }

    async fn kill(&mut self) {
        let id = self.victim().await;
        self.record.note(Some(id), "killed");
        self.record.life_changes(id);
        self.cluster.kill(id).await;
        self.record.life_changes(id);
        self.wait(20, 900).await;
        self.record.note(Some(id), "started again");
        self.cluster.restart(id).await;
        self.count(Fault::Kill);
        self.wait(100, 700).await;
    }

    async fn kill_all(&mut self) {
        self.record.note(None, "all killed");
        for id in self.cluster.ids() {
            self.record.life_changes(id);
            self.cluster.kill(id).await;
            self.record.life_changes(id);
        }
        self.wait(0, 200).await;
        for id in self.cluster.ids() {
            self.cluster.restart(id).await;
        }
        self.record.note(None, "all started again");
        self.count(Fault::KillAll);
        self.wait(400, 1_200).await;
    }

    async fn pause(&mut self) {
        let id = self.victim().await;
        self.cluster.pause(id);
        self.record.note(Some(id), "paused");
        self.wait(100, 2_000).await;
        self.record.note(Some(id), "goes on");
        self.cluster.resume(id);
        self.count(Fault::Pause);
        self.wait(50, 500).await;
    }

    async fn transfer(&mut self) {
        let target_id = self.someone();
        self.record.note(Some(target_id), "leadership is handed to it");
        let cluster = self.cluster.client().with_timeout(PATIENCE).cluster();
        let request = TransferLeadershipRequest { target_id };
        if cluster.transfer_leadership(request).await.is_ok() {
            self.count(Fault::Transfer);
        }
        self.wait(0, 300).await;
    }

    /// Cuts one node off from both others, or from one of them, without a trace.
    async fn isolate(&mut self, fault: Fault) {
        let id = self.victim().await;
        let mut peers: Vec<_> = self.cluster.ids().into_iter().filter(|peer| *peer != id).collect();
        if self.rng.below(3) == 0 {
            peers.truncate(1);
        }
        let both = [Direction::ToPeer, Direction::FromPeer];
        let ways = match (fault, self.rng.below(2)) {
            (Fault::Partition, _) => &both[..],
            (_, 0) => &both[..1],
            _ => &both[1..],
        };
        let lease = self.lease();
        let before = self.effect(fault).await;
        for peer_id in peers {
            for way in ways {
                let direction = i32::from(*way);
                let fault = LinkFault { peer_id, direction, drop: 1.0, ..Default::default() };
                self.break_link(id, fault, lease).await;
            }
        }
        self.sit_out(lease).await;
        self.fired_since(fault, before).await;
    }

    /// Spoils the ways between the leader, or another node, and a peer.
    async fn links(&mut self, fault: Fault) {
        let id = self.victim().await;
        let lease = self.lease();
        let before = self.effect(fault).await;
        for peer_id in self.cluster.ids().into_iter().filter(|peer| *peer != id) {
            if self.rng.below(4) == 0 {
                continue;
            }
            for direction in [Direction::ToPeer, Direction::FromPeer] {
                if self.rng.below(4) == 0 {
                    continue;
                }
                let fault = self.spoilt(fault, peer_id, direction);
                self.break_link(id, fault, lease).await;
            }
        }
        self.sit_out(lease).await;
        self.fired_since(fault, before).await;
    }

    fn spoilt(&mut self, fault: Fault, peer_id: u64, direction: Direction) -> LinkFault {
        let direction = direction.into();
        let seed = self.rng.next_u64();
        let whole = LinkFault { peer_id, direction, seed, ..Default::default() };
        if fault == Fault::Cut {
            return LinkFault { cut: true, ..whole };
        }
        // Twentieths, from one to fourteen.
        let parts = u32::try_from(self.rng.below(14)).expect("small") + 1;
        let share = f64::from(parts) / 20.0;
        let kinds = self.kinds(fault);
        let mut millis = |most| {
            let span = Duration::from_millis(1 + self.rng.below(most));
            prost_types::Duration::try_from(span).ok()
        };
        match fault {
            Fault::Drop => LinkFault { drop: share, kinds, ..whole },
            Fault::Delay => LinkFault { delay: millis(120), jitter: millis(200), kinds, ..whole },
            Fault::Duplicate => LinkFault { duplicate: share, kinds, ..whole },
            _ => LinkFault { reorder: share, kinds, ..whole },
        }
    }

    /// Which kinds of messages a fault concerns: all, or a few that belong together.
    fn kinds(&mut self, fault: Fault) -> Vec<i32> {
        use MessageKind as Kind;
        let some: &[Kind] = match self.rng.below(6) {
            0 => &[Kind::Heartbeat, Kind::HeartbeatAnswer],
            1 => &[Kind::Append, Kind::AppendAnswer],
            2 => &[Kind::AppendAnswer, Kind::HeartbeatAnswer],
            3 if matches!(fault, Fault::Drop | Fault::Delay) => {
                &[Kind::Forward, Kind::ForwardAnswer]
            }
            4 => &[Kind::Vote, Kind::VoteAnswer, Kind::Transfer, Kind::Heartbeat],
            _ => &[],
        };
        some.iter().map(|kind| (*kind).into()).collect()
    }

    async fn break_link(&mut self, id: u64, fault: LinkFault, lease: Duration) {
        let words = format!("{:?}", WithoutDefaults(&fault));
        // A node that is starting may not answer yet; then there is no fault this time.
        let asked = timeout(PATIENCE, self.cluster.break_link(id, fault, lease)).await;
        if matches!(asked, Ok(Ok(_))) {
            self.record.note(Some(id), format!("link fault for {lease:?}: {words}"));
        }
    }

    /// Waits for a part of a lease, so that faults overlap at times; or heals before its end.
    async fn sit_out(&mut self, lease: Duration) {
        let whole = u64::try_from(lease.as_millis()).expect("seconds");
        self.wait(whole / 2, whole + 200).await;
        if self.rng.below(4) == 0 {
            self.cluster.heal_links().await;
        }
    }

    fn lease(&mut self) -> Duration {
        self.rng.between(Duration::from_millis(300), Duration::from_millis(2_000))
    }

    /// The leader, or any node.
    async fn victim(&mut self) -> u64 {
        let any = self.someone();
        if self.rng.below(2) == 0 {
            return any;
        }
        let cluster = self.cluster.client_at(any).with_timeout(PATIENCE).cluster();
        let status = cluster.status(StatusRequest { local: true });
        let leader = timeout(PATIENCE, status).await.ok().and_then(Result::ok);
        leader.map(|status| status.leader_id).filter(|id| *id > 0).unwrap_or(any)
    }

    fn someone(&mut self) -> u64 {
        let ids = self.cluster.ids();
        ids[self.below(ids.len())]
    }

    fn shuffled(&mut self, faults: &[Fault]) -> Vec<Fault> {
        let mut deck = faults.to_vec();
        for left in (1..deck.len()).rev() {
            let other = self.below(left + 1);
            deck.swap(left, other);
        }
        deck
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.rng.below(bound as u64)).expect("it was a length")
    }

    async fn wait(&mut self, from_ms: u64, to_ms: u64) {
        let ms = Duration::from_millis;
        let pause = self.rng.between(ms(from_ms), ms(to_ms));
        sleep_until(Instant::now() + pause).await;
    }

    fn count(&mut self, fault: Fault) {
        *self.fired.entry(fault).or_default() += 1;
    }

    /// What link faults of this kind did at all nodes since these started.
    async fn effect(&self, fault: Fault) -> u64 {
        let effect = |count: &LinkFaultCount| match fault {
            Fault::OneWay | Fault::Partition | Fault::Drop => count.dropped,
            Fault::Cut => count.cut,
            Fault::Delay => count.delayed,
            Fault::Duplicate => count.duplicated,
            Fault::Reorder => count.reordered,
            Fault::Kill | Fault::KillAll | Fault::Pause | Fault::Transfer => 0,
        };
        let mut sum = 0;
        for id in self.cluster.ids() {
            if let Ok(Ok(faults)) = timeout(PATIENCE, self.cluster.link_faults(id)).await {
                sum += faults.counts.iter().map(effect).sum::<u64>();
            }
        }
        sum
    }
}

/// A fault in as few words as it takes.
struct WithoutDefaults<'a>(&'a LinkFault);

impl core::fmt::Debug for WithoutDefaults<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let fault = self.0;
        write!(f, "{} {}", fault.direction().as_str_name(), fault.peer_id)?;
        for kind in fault.kinds() {
            write!(f, " {}", kind.as_str_name().trim_start_matches("MESSAGE_KIND_"))?;
        }
        if fault.cut {
            write!(f, " cut")?;
        }
        for (name, share) in
            [("drop", fault.drop), ("duplicate", fault.duplicate), ("reorder", fault.reorder)]
        {
            if share > 0.0 {
                write!(f, " {name} {share}")?;
            }
        }
        for (name, span) in [("delay", fault.delay), ("jitter", fault.jitter)] {
            if let Some(span) = span {
                write!(f, " {name} {}ms", span.nanos / 1_000_000)?;
            }
        }
        Ok(())
    }
}
