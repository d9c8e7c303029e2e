//! The end of a simulation: faults stop; then the nodes must agree on a leader, take writes on every
//! node, have the same state, and have lost nothing of what clients were told.

use std::collections::BTreeSet;

use crate::{
    machine::View,
    raft::RoleKind,
    sim::{
        invariants::Broken,
        plan::Fault,
        workload::{Intent, Planned},
    },
    types::{Duration, Instant},
};

use super::{Happening, World};

/// After so long without faults clients hurry.
const LATE: Duration = Duration::from_secs(2);
/// How long each step of the end may take: clients may wait in many lines, one after the other.
const HEALS: Duration = Duration::from_secs(240);
/// How long a call may stay open when nothing more happens: longer than anybody waits.
const ENDS: Duration = Duration::from_secs(8);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);
/// The client that reads everything at the end.
const AUDITOR: u64 = 900;

/// How far a simulation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Faults strike.
    Faults,
    /// Faults have stopped; clients finish.
    Healing {
        since: Instant,
    },
    /// Everything is read once more.
    Audit {
        since: Instant,
    },
    /// All nodes must come to the same state.
    Settling {
        since: Instant,
    },
    Over,
}

impl Phase {
    pub(super) const fn is_audit(&self) -> bool {
        matches!(self, Self::Audit { .. })
    }
}

impl World {
    pub(super) fn next_phase(&mut self) -> Result<(), Broken> {
        match self.phase {
            Phase::Faults => {
                self.note(None, "faults stop");
                self.end_faults();
                self.phase = Phase::Healing { since: self.now };
            }
            Phase::Healing { since } => {
                let waited = self.now.since(since);
                if waited > LATE {
                    self.clients.hurry();
                }
                if self.clients.all_done() && self.leader().is_some() {
                    self.begin_audit();
                    self.phase = Phase::Audit { since: self.now };
                } else if waited > HEALS {
                    return Err(self.does_not_heal("a leader, and an answer for every client"));
                }
            }
            Phase::Audit { since } => {
                if let Some(words) = self.unserved.take() {
                    return Err(Broken::new("serves-again", words));
                }
                if self.clients.all_done() {
                    self.phase = Phase::Settling { since: self.now };
                } else if self.now.since(since) > HEALS {
                    return Err(self.does_not_heal("an answer to the last reads and writes"));
                }
            }
            Phase::Settling { since } => {
                let open = self.open_ends();
                if self.agree() && self.readers_caught_up() && open.is_empty() {
                    self.check_end()?;
                    self.phase = Phase::Over;
                } else if let (Some(open), true) = (open.first(), self.now.since(since) > ENDS) {
                    return Err(Broken::new("every-call-ends", open.clone()));
                } else if self.now.since(since) > HEALS {
                    return Err(self.does_not_heal("all nodes, and all readers, to catch up"));
                }
            }
            Phase::Over => {}
        }
        self.after(LOOK, Happening::Phase);
        Ok(())
    }

    fn does_not_heal(&self, what: &str) -> Broken {
        let stand = |(at, node): (usize, &super::node::Node)| match &node.process {
            Some(process) => {
                let status = process.replica.status();
                format!(
                    "n{} is {:?} in {:?}, last {:?}, commit {:?}, applied {:?}",
                    at + 1,
                    status.role,
                    status.term,
                    status.last,
                    status.commit,
                    process.feed.head().index
                )
            }
            None if node.lost => format!("n{} lost its disk", at + 1),
            None => format!("n{} does not run", at + 1),
        };
        let nodes: Vec<String> = self.nodes.iter().enumerate().map(stand).collect();
        Broken::new("heals", format!("waited in vain for {what}: {}", nodes.join("; ")))
    }

    /// The leader that serves, where there is one.
    pub(super) fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| {
            node.process.as_ref().is_some_and(|process| {
                let status = process.replica.status();
                status.role == RoleKind::Leader && status.leader_ready
            })
        })
    }

    /// A write and reads of everything, through each node that is whole; and each lock is free, or
    /// becomes it within a TTL.
    fn begin_audit(&mut self) {
        let (mut keys, mut locks) = (BTreeSet::new(), BTreeSet::new());
        let (mut services, mut streams) = (BTreeSet::new(), BTreeSet::new());
        for planned in &self.plan.intents {
            match &planned.intent {
                Intent::Get { key, .. }
                | Intent::Put { key }
                | Intent::PutLocked { key, .. }
                | Intent::Delete { key }
                | Intent::Cas { key } => drop(keys.insert(key.clone())),
                Intent::Txn { keys: some } => keys.extend(some.iter().cloned()),
                Intent::Acquire { lock, .. } => drop(locks.insert(lock.clone())),
                Intent::Register { service, .. } => drop(services.insert(service.clone())),
                Intent::Append { stream, .. } => drop(streams.insert(stream.clone())),
                _ => {}
            }
        }
        let want = |client, intent| Planned { client, think_ms: 0, intent };
        let ttl = |planned: &Planned| match planned.intent {
            Intent::Acquire { ttl_ms, .. } | Intent::OpenSession { ttl_ms } => ttl_ms,
            _ => 0,
        };
        let longest = self.plan.intents.iter().map(ttl).max().unwrap_or(0).max(5_000);
        let mut first = true;
        for node in 0..self.nodes.len() {
            if self.nodes[node].lost {
                continue;
            }
            let number = AUDITOR + node as u64;
            let mut intents = vec![Intent::Put { key: "end".into() }];
            intents.extend(keys.iter().map(|key| Intent::Get { key: key.clone(), stale: false }));
            intents.extend(services.iter().map(|s| Intent::Resolve { service: s.clone() }));
            intents.extend(streams.iter().map(|s| Intent::ReadStream { stream: s.clone() }));
            intents.push(Intent::ReadStream { stream: String::new() });
            if core::mem::take(&mut first) {
                for lock in &locks {
                    let lock = lock.clone();
                    // The longest TTL of the workload, and an election.
                    let acquire = Intent::Acquire {
                        lock: lock.clone(),
                        ttl_ms: 5_000,
                        wait_ms: longest + 10_000,
                        in_session: false,
                    };
                    intents.extend([acquire, Intent::Release { lock }]);
                }
            }
            let intents = intents.into_iter().map(|intent| want(number, intent)).collect();
            let client = self.clients.add(number, node, intents);
            self.think(client);
        }
    }

    /// What nodes still owe an answer.
    fn open_ends(&self) -> Vec<String> {
        let running = self.nodes.iter().enumerate();
        let running = running.filter_map(|(at, node)| Some((at, node.process.as_ref()?)));
        let ends = running.flat_map(|(at, process)| {
            let ends = process.replica.open_ends().into_iter();
            ends.map(move |end| format!("n{} has {end}", at + 1))
        });
        ends.collect()
    }

    /// Whether all nodes that are whole stand at the same entry with the same state.
    fn agree(&self) -> bool {
        let mut stands = BTreeSet::new();
        for node in self.nodes.iter().filter(|node| !node.lost) {
            let Some(process) = &node.process else { return false };
            let status = process.replica.status();
            if status.commit != process.feed.head().index || status.last != status.commit {
                return false;
            }
            stands.insert((status.term, status.commit));
        }
        stands.len() == 1
    }

    fn check_end(&mut self) -> Result<(), Broken> {
        let whole = || self.nodes.iter().filter(|node| !node.lost);
        let mut hashes = whole().filter_map(|node| {
            let process = node.process.as_ref()?;
            let view = View::new(crate::machine::store::Store::snapshot(process.store.as_ref()));
            let head = view.head().expect("memory is readable");
            let hash = view.state_hash(head.revision).expect("memory is readable");
            Some((process.store.hash(), hash.expect("the head is never compacted")))
        });
        let first = hashes.next();
        if hashes.any(|hash| Some(&hash) != first.as_ref()) {
            return Err(Broken::new("state-equal", "the nodes' states differ at the end"));
        }
        drop(hashes);
        let rafts: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|node| node.process.as_ref())
            .map(|process| process.replica.raft())
            .collect();
        self.checks.ended(&rafts)?;
        let asked_away =
            |fault: &Fault| matches!(fault, Fault::Wipe { .. } | Fault::BitFlip { .. });
        let lost = self.nodes.iter().any(|node| node.lost);
        let may = self.plan.faults.iter().any(|timed| asked_away(&timed.fault));
        if lost && !may {
            return Err(Broken::new("disk-opens", "a node lost its disk that no fault took"));
        }
        Ok(())
    }
}
