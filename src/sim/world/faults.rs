//! The faults of the plan strike and end. What needs a process to strike is passed over where none
//! runs, and not counted as fired.

use crate::{
    sim::plan::{DiskFault, Fault, LEADER},
    storage::files::{Fault as FileFault, Files as _},
    types::{Duration, Instant},
};

use super::{Happening, World, end::Phase};

impl World {
    pub(super) fn strike(&mut self, at: usize) {
        if self.phase != Phase::Faults {
            return;
        }
        let mut fault = self.plan.faults[at].fault.clone();
        if fault.nodes().contains(&LEADER) {
            let Some(leader) = self.leader() else { return };
            fault = fault.aimed_at(leader as u64 + 1);
            self.plan.faults[at].fault.clone_from(&fault);
        }
        let fired = self.carry_fault_out(&fault);
        if fired {
            self.counts.fault(&fault);
            if let Some(span) = fault.lasts_ms() {
                self.after(Duration::from_millis(span), Happening::FaultEnds(at));
            }
        }
    }

    /// Whether it struck anything.
    fn carry_fault_out(&mut self, fault: &Fault) -> bool {
        let until = |for_ms: u64| self.now.after(Duration::from_millis(for_ms));
        match *fault {
            Fault::Crash { node, for_ms } => {
                let node = index(node);
                let ran = self.crash(node);
                self.start_again(node, for_ms, ran, "loses power")
            }
            Fault::Kill { node, for_ms } => {
                let node = index(node);
                let ran = self.kill_in_write(node);
                self.start_again(node, for_ms, ran, "is killed")
            }
            Fault::Wipe { node, for_ms } => self.wipe(index(node), for_ms),
            Fault::BitFlip { node, for_ms } => self.flip_bit(index(node), for_ms),
            Fault::Pause { node, for_ms } => {
                let (node, until) = (index(node), until(for_ms));
                let me = &mut self.nodes[node];
                let runs = me.process.is_some() && me.paused_until.is_none();
                if runs {
                    me.paused_until = Some(until);
                    self.note(Some(node), "stands still");
                }
                runs
            }
            Fault::Disk { node, kind, after, .. } => {
                let node = index(node);
                let runs = self.nodes[node].process.is_some();
                if runs {
                    let kind = match kind {
                        DiskFault::Write => FileFault::Write,
                        DiskFault::Sync => FileFault::Sync,
                        DiskFault::SyncDirectory => FileFault::SyncDirectory,
                        DiskFault::Full => FileFault::Full,
                    };
                    self.nodes[node].files.fail(kind, after);
                }
                runs
            }
            Fault::Stall { node, for_ms } => {
                let (node, until) = (index(node), until(for_ms));
                self.nodes[node].stalled_until = until.max(self.nodes[node].stalled_until);
                self.note(Some(node), "its disk stands still");
                true
            }
            Fault::SlowApply { node, for_ms } => {
                let (node, until) = (index(node), until(for_ms));
                self.nodes[node].slow_until = until.max(self.nodes[node].slow_until);
                true
            }
            Fault::Short { node, for_ms } => {
                let (node, until) = (index(node), until(for_ms));
                self.nodes[node].short_until = until;
                self.note(Some(node), "is short of room");
                self.look_at_room(node);
                let looks = for_ms / 1_000;
                for look in 1..=looks {
                    let at = Self::look_interval() * u32::try_from(look).unwrap_or(1);
                    self.after(at, Happening::Room { node });
                }
                true
            }
            Fault::Partition { ref side, silent, .. } => {
                let cuts = self.cut_side(side, true);
                if !silent {
                    for &(a, b) in &cuts {
                        self.break_connection(a, b);
                    }
                }
                if !cuts.is_empty() {
                    self.note(None, &format!("partition: {side:?} and the others"));
                }
                !cuts.is_empty()
            }
            Fault::OneWay { from, to, .. } => {
                self.cut(index(from), index(to), true);
                self.note(None, &format!("nothing gets from n{from} to n{to}"));
                from != to
            }
            Fault::Break { a, b } => {
                self.break_connection(index(a), index(b));
                true
            }
            Fault::Loss { percent, .. } => add(&mut self.net.loss, percent),
            Fault::Duplicate { percent, .. } => add(&mut self.net.duplicate, percent),
            Fault::Reorder { percent, .. } => add(&mut self.net.reorder, percent),
            Fault::Delay { up_to_ms, .. } => add(&mut self.net.delay_ms, up_to_ms),
            Fault::Jump { node, by_ms } => {
                self.nodes[index(node)].clock.jump(by_ms);
                self.note(Some(index(node)), &format!("its wall clock jumps by {by_ms} ms"));
                true
            }
            Fault::Transfer { to } => {
                let asked = (index(to) + 1) % self.nodes.len();
                let runs = self.nodes[asked].process.is_some();
                self.ask_transfer(asked, index(to));
                runs
            }
        }
    }

    pub(super) fn fault_ends(&mut self, at: usize) {
        if self.phase != Phase::Faults {
            return;
        }
        match self.plan.faults[at].fault.clone() {
            Fault::Pause { node, .. } => {
                let node = index(node);
                if self.nodes[node].paused_until.is_some_and(|until| until <= self.now) {
                    self.resume(node);
                }
            }
            Fault::Disk { node, .. } => {
                let node = index(node);
                self.nodes[node].files.heal();
                self.after(Duration::ZERO, Happening::Start { node });
            }
            Fault::Short { node, .. } => self.look_at_room(index(node)),
            Fault::Partition { side, .. } => {
                self.cut_side(&side, false);
                self.note(None, &format!("partition of {side:?} ends"));
            }
            Fault::OneWay { from, to, .. } => {
                self.cut(index(from), index(to), false);
            }
            Fault::Loss { percent, .. } => remove(&mut self.net.loss, percent),
            Fault::Duplicate { percent, .. } => remove(&mut self.net.duplicate, percent),
            Fault::Reorder { percent, .. } => remove(&mut self.net.reorder, percent),
            Fault::Delay { up_to_ms, .. } => remove(&mut self.net.delay_ms, up_to_ms),
            _ => {}
        }
    }

    /// Everything that still lasts ends.
    pub(super) fn end_faults(&mut self) {
        self.mend();
        for node in 0..self.nodes.len() {
            let me = &mut self.nodes[node];
            me.files.heal();
            (me.stalled_until, me.slow_until, me.short_until) =
                (Instant::ZERO, Instant::ZERO, Instant::ZERO);
            self.resume(node);
            self.look_at_room(node);
            self.after(Duration::ZERO, Happening::Start { node });
        }
    }

    fn resume(&mut self, node: usize) {
        if self.nodes[node].paused_until.take().is_some() {
            self.note(Some(node), "goes on");
            self.wake(node, Duration::ZERO);
        }
    }

    fn start_again(&mut self, node: usize, for_ms: u64, ran: bool, words: &str) -> bool {
        if ran {
            self.note(Some(node), words);
            self.after(Duration::from_millis(for_ms), Happening::Start { node });
        }
        ran
    }

    /// The disk is emptied, once the log knows it: before that nobody could tell (decision 5).
    fn wipe(&mut self, node: usize, for_ms: u64) -> bool {
        let me = &self.nodes[node];
        let known = me.process.as_ref().is_some_and(|process| process.directory.is_registered());
        if me.lost || !known {
            return false;
        }
        self.crash(node);
        let me = &mut self.nodes[node];
        me.files = crate::storage::files::MemoryFiles::new();
        me.store = std::sync::Arc::default();
        me.incarnation = super::node::uuid(&mut me.rng);
        me.cluster = None;
        me.wiped = true;
        me.durable.lost();
        self.start_again(node, for_ms, true, "loses its disk")
    }

    /// A bit turns below what the log itself says to be durable.
    fn flip_bit(&mut self, node: usize, for_ms: u64) -> bool {
        let me = &mut self.nodes[node];
        let Some(process) = me.process.as_deref() else { return false };
        let proven = process.wal.as_ref().map(crate::storage::Wal::proven);
        let (sequence, offset) = proven.unwrap_or_default();
        let mut spans: Vec<(String, u64)> = Vec::new();
        for name in me.files.list().unwrap_or_default() {
            let Some(of) = name.strip_suffix(".wal") else { continue };
            let of = u64::from_str_radix(of, 16).unwrap_or(u64::MAX);
            let bytes = me.files.read(&name).map_or(0, |bytes| bytes.len() as u64);
            let below = if of < sequence { bytes } else { offset };
            if of <= sequence && below > 0 {
                spans.push((name, below));
            }
        }
        spans.sort();
        if spans.is_empty() {
            return false;
        }
        let place = usize::try_from(me.rng.below(spans.len() as u64)).expect("a few files");
        let (name, below) = &spans[place];
        let (at, bit) = (me.rng.below(*below), me.rng.below(8));
        me.files.damage(name, at, 1 << bit);
        me.damaged = true;
        self.kill(node);
        self.start_again(node, for_ms, true, "a bit of its log turns")
    }

    /// Cuts the ways between a side and the others, or mends them. Gives the pairs.
    fn cut_side(&mut self, side: &[u64], cut: bool) -> Vec<(usize, usize)> {
        let inside = |node: usize| side.contains(&(node as u64 + 1));
        let nodes = 0..self.nodes.len();
        let pairs: Vec<(usize, usize)> = nodes
            .clone()
            .filter(|&a| inside(a))
            .flat_map(|a| nodes.clone().filter(|&b| !inside(b)).map(move |b| (a, b)))
            .collect();
        for &(a, b) in &pairs {
            self.cut(a, b, cut);
            self.cut(b, a, cut);
        }
        pairs
    }
}

fn index(node: u64) -> usize {
    usize::try_from(node).expect("a few nodes") - 1
}

fn add(of: &mut Vec<u64>, value: u64) -> bool {
    of.push(value);
    true
}

fn remove(of: &mut Vec<u64>, value: u64) {
    if let Some(at) = of.iter().position(|other| *other == value) {
        of.swap_remove(at);
    }
}
