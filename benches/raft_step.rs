//! What the core costs for each committed batch, all members together: the leader appends and
//! sends, the followers append and answer, everyone applies. No disk, no wire, no clock.
//! `cargo bench --bench raft_step`.

#![allow(missing_docs)]

use std::collections::VecDeque;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate::{
    raft::{Config, Input, Membership, Raft, Ready, Restored, RoleKind, Ticket},
    types::{Duration, Instant, LogIndex, LogTime, NodeId},
};

/// How many bytes a command has.
const COMMAND_BYTES: usize = 256;

/// How many entries each member keeps.
const KEPT: u64 = 10_000;

/// A group whose disks and links take no time.
struct Group {
    members: Vec<Raft>,
    now: Instant,
    inputs: VecDeque<(usize, Input)>,
    leader: usize,
}

impl Group {
    fn of(size: u64) -> Self {
        let ids = (1..=size).map(NodeId::new);
        let membership = Membership::of(ids.clone());
        let member = |id| {
            let restored = Restored { membership: membership.clone(), ..Restored::default() };
            Raft::new(Config::new(id), restored, Instant::ZERO)
        };
        let members = ids.map(member).collect();
        let mut group = Self { members, now: Instant::ZERO, inputs: VecDeque::new(), leader: 0 };
        group.elect();
        group
    }

    /// Lets time go by until somebody leads.
    fn elect(&mut self) {
        loop {
            let first = self.members.iter().map(Raft::next_deadline).min();
            self.now = first.expect("there are members");
            for member in 0..self.members.len() {
                self.inputs.push_back((member, Input::Tick));
            }
            self.settle();
            let leads = |raft: &Raft| raft.status().role == RoleKind::Leader;
            if let Some(leader) = self.members.iter().position(leads) {
                self.leader = leader;
                return;
            }
        }
    }

    /// Proposes a batch and delivers until nothing is under way. Time stands almost still, so that
    /// heartbeats do not count.
    fn commit(&mut self, commands: Vec<(Ticket, Bytes)>) {
        self.now = self.now.after(Duration::from_nanos(1));
        let time = LogTime::from_millis(self.now.as_nanos() / 1_000_000);
        let propose = Input::Propose { time, expected_term: None, commands };
        self.inputs.push_back((self.leader, propose));
        self.settle();
    }

    fn settle(&mut self) {
        while let Some((member, input)) = self.inputs.pop_front() {
            let mut ready = Ready::default();
            self.members[member].step(self.now, input, &mut ready);
            self.carry_out(member, ready);
        }
    }

    fn carry_out(&mut self, member: usize, ready: Ready) {
        if let Some(last) = ready.appends.last() {
            let (hard, log) = (last.hard_mark, last.log_mark);
            self.inputs.push_back((member, Input::Persisted { hard, log }));
        }
        let from = NodeId::new(member as u64 + 1);
        let held = ready.held.into_iter().map(|held| (held.to, held.message));
        for (to, message) in ready.messages.into_iter().chain(held) {
            let to = usize::try_from(to.value() - 1).expect("few members");
            self.inputs.push_back((to, Input::Message { from, message }));
        }
        if let Some(last) = ready.apply.and_then(|apply| apply.entries.last().map(|e| e.index)) {
            self.inputs.push_back((member, Input::Applied { index: last }));
        }
    }

    fn purge(&mut self) {
        let applied = self.members[self.leader].status().applied.value();
        for member in 0..self.members.len() {
            let through = LogIndex::new(applied.saturating_sub(KEPT));
            self.inputs.push_back((member, Input::Purge { through }));
        }
        self.settle();
    }
}

fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("raft_step");
    let command = Bytes::from(vec![7; COMMAND_BYTES]);
    for (members, batch) in [(3, 1), (3, 64), (3, 512), (5, 1), (5, 64), (5, 512)] {
        let mut raft = Group::of(members);
        let mut since_purge = 0;
        group.throughput(Throughput::Elements(batch));
        let name = BenchmarkId::new(format!("{members} members"), batch);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let commands = (0..batch).map(|at| (Ticket(at), command.clone())).collect();
                raft.commit(commands);
                since_purge += batch;
                if since_purge >= KEPT {
                    since_purge = 0;
                    raft.purge();
                }
            });
        });
        let status = raft.members[raft.leader].status();
        assert_eq!(status.applied, status.last, "everything was committed and applied");
    }
    group.finish();
}

criterion_group!(benches, commits);
criterion_main!(benches);
