//! The driver's thread as an actor: it wakes when something came or is due, lets the replica turn,
//! and carries its jobs out. After each turn the invariants are checked.

use crate::{
    node::{
        replica::{Event, Jobs, WalJob},
        space::Shortage,
    },
    raft::{Append, RoleKind},
    sim::invariants::Broken,
    types::{Duration, NodeId},
};

use super::{
    Happening, World,
    net::Cargo,
    node::{ApplyJob, Boot},
};

/// The most events that one turn takes in.
const EVENTS_PER_TURN_MAX: usize = 1_024;
/// The longest sleep of a driver.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// When a node stops leading because its disk stands still.
const DISK_STALL: Duration = Duration::from_secs(2);
/// How often the guard of the disk's room looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

impl World {
    /// Lets a node's driver wake in a while, or earlier where it wakes earlier anyway.
    pub(super) fn wake(&mut self, node: usize, span: Duration) {
        let at = self.now.after(span);
        let Some(process) = self.nodes[node].process.as_deref_mut() else { return };
        if at >= process.wakes_at {
            return;
        }
        process.wakes_at = at;
        process.wake += 1;
        let (boot, wake) = (Boot { node, count: process.boot }, process.wake);
        self.at(at, Happening::Turn { boot, wake });
    }

    pub(super) fn turn(&mut self, boot: Boot, wake: u64) -> Result<(), Broken> {
        let node = boot.node;
        let (now, me) = (self.now, &mut self.nodes[node]);
        let clock = me.clock;
        let paused = me.paused_until;
        let Some(process) = me.running(boot.count) else { return Ok(()) };
        if process.wake != wake {
            return Ok(());
        }
        process.wakes_at = crate::types::Instant::FAR;
        if let Some(until) = paused {
            self.wake(node, until.since(now));
            return Ok(());
        }
        let (shown, wall) = (clock.monotonic(now), clock.wall(now));
        let many = process.inbox.len().min(EVENTS_PER_TURN_MAX);
        let mut events: Vec<Event> = process.inbox.drain(..many).collect();
        if let Some(stalled) = process.disk.check(shown, DISK_STALL) {
            events.push(Event::DiskStalled(stalled));
        }
        let mut jobs = Jobs::default();
        let before = process.replica.status().clone();
        process.replica.handle(shown, wall, events, &mut jobs);
        let after = process.replica.status();
        if (after.role, after.term) != (before.role, before.term) {
            let line = format!("n{}: is {:?} in {:?}", node + 1, after.role, after.term);
            if after.role == RoleKind::Leader {
                self.counts.count("leaders elected");
            }
            self.tell(|| line);
        }
        self.check_turn(node, &jobs)?;
        self.carry_out(node, jobs);
        let process = self.nodes[node].process.as_deref().expect("nothing ends it here");
        let deadline = process.replica.next_deadline(shown, wall);
        let more = !process.inbox.is_empty();
        let span = clock.reaches(deadline).since(now).min(SLEEP_MAX);
        self.wake(node, if more { Duration::ZERO } else { span });
        Ok(())
    }

    fn check_turn(&mut self, node: usize, jobs: &Jobs) -> Result<(), Broken> {
        let process = self.nodes[node].process.as_deref_mut().expect("it took a turn");
        process.replica.raft().check_invariants();
        let Some(process) = self.nodes[node].process.as_deref() else { return Ok(()) };
        let durable: Vec<_> = self.nodes.iter().map(|node| &node.durable).collect();
        let (raft, status) = (process.replica.raft(), process.replica.status());
        let appends: Vec<&Append> = jobs
            .wal
            .iter()
            .filter_map(|job| match job {
                WalJob::Append(append) => Some(append),
                _ => None,
            })
            .collect();
        self.checks.appended(node, raft, &appends)?;
        let grown = self.checks.stepped(node, raft, status, &process.grown, &durable)?;
        self.nodes[node].process.as_deref_mut().expect("as above").grown = grown;
        Ok(())
    }

    fn carry_out(&mut self, node: usize, jobs: Jobs) {
        let shown = self.nodes[node].clock.monotonic(self.now);
        let process = self.nodes[node].process.as_deref_mut().expect("it took a turn");
        if !jobs.wal.is_empty() {
            process.disk.handed_over(shown);
            process.writes.push_back(jobs.wal);
        }
        process.jobs.extend(jobs.snapshots.into_iter().map(ApplyJob::Send));
        if !jobs.apply.is_empty() {
            process.jobs.push_back(ApplyJob::Apply(jobs.apply));
        }
        for (to, message) in jobs.messages {
            self.send(node, place(to), Cargo::Message(message));
        }
        for (to, request) in jobs.forwards {
            self.forward(node, place(to), request);
        }
        for (to, response) in jobs.answers {
            self.check_renewals(node, place(to), &response);
            self.send(node, place(to), Cargo::Answer(response));
        }
        self.write_log(node);
        self.work(node);
        for (sequence, reply) in jobs.replies {
            self.replied(node, sequence, reply);
        }
        if jobs.persist_state {
            self.persist_state(node);
        }
    }

    /// The guard of a node's room looks, each second for as long as there is too little.
    pub(super) fn look_at_room(&mut self, node: usize) {
        if let Some(until) = self.nodes[node].paused_until {
            return self.at(until, Happening::Room { node });
        }
        let short = self.now < self.nodes[node].short_until;
        let shortage = short.then(|| Shortage {
            node: NodeId::new(node as u64 + 1),
            free: 1,
            reusable: 0,
            needed: 2,
        });
        self.give(node, Event::Space(shortage));
    }

    pub(super) const fn look_interval() -> Duration {
        LOOK_INTERVAL
    }
}

/// Where a node stands among the nodes.
pub(super) fn place(node: NodeId) -> usize {
    usize::try_from(node.value()).expect("a few nodes") - 1
}
