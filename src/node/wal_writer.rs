//! The thread that owns the log on disk: everything that waits is written and synced at once.
//!
//! A write or sync that fails ends the node; it is never tried again (rule 26).

use std::sync::{Arc, mpsc::Receiver};

use crate::{
    node::{
        replica::WalJob,
        shared::{DriverInput, Shared},
    },
    observe::WalBatch,
    raft::{HardMark, LogMark},
    storage::{Step, Wal, reached},
    types::{GroupId, Instant},
};

/// What one turn of the driver wants written.
#[derive(Debug)]
pub(crate) struct WalJobs {
    pub(crate) jobs: Vec<WalJob>,
    /// When it was handed over.
    pub(crate) handed: Instant,
}

/// The most batches that one sync covers.
const BATCHES_PER_SYNC_MAX: u64 = 1_024;

/// Runs until the driver is gone or the disk fails.
pub(crate) fn run(mut wal: Wal, jobs: &Receiver<WalJobs>, shared: &Arc<Shared>) {
    while let Ok(first) = jobs.recv() {
        if !carry_out(&mut wal, first, jobs, shared) {
            return;
        }
    }
    // Everything is durable already; this only tells later damage from a torn tail.
    if let Err(error) = wal.close() {
        tracing::warn!(%error, "the log was not closed");
    }
}

/// Writes and syncs a batch and those that wait behind it. `false` ends the thread.
pub(crate) fn carry_out(
    wal: &mut Wal,
    first: WalJobs,
    jobs: &Receiver<WalJobs>,
    shared: &Arc<Shared>,
) -> bool {
    let written = write_all(wal, first, jobs, shared);
    if let Err(error) = &written {
        shared.fail(format!("the log cannot be written, this node stops: {error}"));
    }
    written.is_ok()
}

fn write_all(
    wal: &mut Wal,
    first: WalJobs,
    jobs: &Receiver<WalJobs>,
    shared: &Arc<Shared>,
) -> Result<(), crate::storage::Error> {
    let (handed, mut handed_last) = (first.handed, first.handed);
    let mut written = Written::default();
    let mut batches = 0;
    let mut next = Some(first);
    while let Some(batch) = next {
        handed_last = batch.handed;
        write(wal, batch.jobs, &mut written)?;
        if written.reset {
            reached(Step::LogWritten);
        }
        batches += 1;
        next = if batches < BATCHES_PER_SYNC_MAX { jobs.try_recv().ok() } else { None };
    }
    let (full, bytes) = (shared.clock.now(), wal.unsynced_bytes());
    wal.sync()?;
    let Written { hard, log, entries, reset } = written;
    if reset {
        reached(Step::LogSynced);
    }
    let fsync = shared.clock.now().since(full);
    let append = full.since(handed);
    let batch = WalBatch { handed, handed_last, append, fsync, entries, bytes };
    shared.metrics.observe_wal_batch(batch);
    // The driver is gone only when the node stops; then nobody needs to know.
    let _ = shared.driver.send(DriverInput::Synced { hard, log, batches });
    Ok(())
}

/// What was written and waits for its sync.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// How far terms and votes are durable with the sync.
    pub(crate) hard: HardMark,
    /// How far the log is.
    pub(crate) log: LogMark,
    pub(crate) entries: usize,
    /// Whether the log begins anew behind a snapshot.
    pub(crate) reset: bool,
}

/// Takes a turn's writes into the log's buffer, in their order (rule 16).
pub(crate) fn write(
    wal: &mut Wal,
    jobs: Vec<WalJob>,
    written: &mut Written,
) -> Result<(), crate::storage::Error> {
    for job in jobs {
        match job {
            WalJob::Append(append) => {
                written.hard = written.hard.max(append.hard_mark);
                written.log = written.log.max(append.log_mark);
                written.entries += append.entries.len();
                wal.append(GroupId::SYSTEM, &append)?;
                written.reset |= append.reset_to.is_some();
            }
            WalJob::Purge(start) => {
                wal.purge(GroupId::SYSTEM, start.index, start.term, start.time)?;
            }
        }
    }
    Ok(())
}
