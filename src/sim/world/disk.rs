//! The threads of a node's disk, as actors: the log's writer, and whoever makes the state durable.
//!
//! What waits is written and synced together when a sync ends; the marks are told only then.

use crate::{
    node::{
        replica::{Event, WalJob},
        wal_writer::{self, Written},
    },
    sim::invariants::Broken,
    types::Duration,
};

use super::{
    Happening, World,
    node::{Boot, Persist},
};

/// What a log's writer is writing: the jobs of some turns of the driver.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) jobs: Vec<Vec<WalJob>>,
}

impl World {
    /// The writer takes what waits, where it is idle.
    pub(super) fn write_log(&mut self, node: usize) {
        let (from, to) = self.plan.settings.sync_us;
        let me = &mut self.nodes[node];
        let Some(process) = me.process.as_deref_mut() else { return };
        if process.writing.is_some() || process.writes.is_empty() {
            return;
        }
        process.writing = Some(Writing { jobs: process.writes.drain(..).collect() });
        let boot = Boot { node, count: process.boot };
        let span = Duration::from_micros(from + me.sync_rng.below(to - from + 1));
        let at = self.now.after(span).max(me.stalled_until);
        self.at(at, Happening::Synced { boot });
    }

    /// A sync has ended, one way or the other.
    pub(super) fn log_synced(&mut self, boot: Boot) -> Result<(), Broken> {
        if self.defer(boot, Happening::Synced { boot }) {
            return Ok(());
        }
        let node = boot.node;
        let me = &mut self.nodes[node];
        if me.process.as_deref().is_some_and(|process| process.boot == boot.count)
            && self.now < me.stalled_until
        {
            let at = me.stalled_until;
            self.at(at, Happening::Synced { boot });
            return Ok(());
        }
        let Some(process) = me.running(boot.count) else { return Ok(()) };
        let Some(Writing { jobs }) = process.writing.take() else { return Ok(()) };
        let batches = jobs.len() as u64;
        let jobs: Vec<WalJob> = jobs.into_iter().flatten().collect();
        let wal = process.wal.as_mut().expect("a process has its log");
        let mut durable = Vec::with_capacity(jobs.len());
        durable.extend(jobs.iter().map(crate::sim::invariants::DurableChange::of));
        let mut written = Written::default();
        let done = wal_writer::write(wal, jobs, &mut written).and_then(|()| wal.sync());
        if let Err(error) = done {
            // Whatever of it got as far as the disk may be there.
            me.in_flight = durable;
            self.counts.count("disk failed");
            self.die(node, &format!("stops: {error}"));
            return Ok(());
        }
        let Written { hard, log, .. } = written;
        process.disk.synced(batches);
        let segments = process.wal.as_ref().map_or(0, crate::storage::Wal::recycled);
        for change in durable {
            me.durable.change(change);
        }
        self.counts.at_least("segments used again", segments);
        self.tell(|| format!("n{}: is durable to {hard:?} {log:?}", node + 1));
        self.give(node, Event::Persisted { hard, log });
        self.write_log(node);
        Ok(())
    }

    /// A thread makes the state durable.
    pub(super) fn persist_state(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        let Some(process) = me.process.as_deref_mut() else { return };
        let store = std::sync::Arc::clone(&process.store);
        let job = Persist { index: process.feed.head().index, commits: store.commits(), store };
        let boot = Boot { node, count: process.boot };
        let span = Duration::from_micros(500 + me.sync_rng.below(50_000));
        let at = self.now.after(span).max(me.stalled_until);
        self.at(at, Happening::Persisted { boot, job });
    }

    pub(super) fn state_persisted(&mut self, boot: Boot, job: Persist) {
        let runs = self.nodes[boot.node].running(boot.count).is_some();
        if let (true, Some(until)) = (runs, self.nodes[boot.node].paused_until) {
            self.at(until, Happening::Persisted { boot, job });
            return;
        }
        if self.nodes[boot.node].running(boot.count).is_some() {
            job.store.persist_through(job.commits);
            self.give(boot.node, Event::StatePersisted { index: job.index });
        }
    }

    /// A process that stands still does it later. Whether it was put off.
    pub(super) fn defer(&mut self, boot: Boot, what: Happening) -> bool {
        let me = &mut self.nodes[boot.node];
        match (me.running(boot.count).is_some(), me.paused_until) {
            (true, Some(until)) => {
                self.at(until, what);
                true
            }
            _ => false,
        }
    }
}
