//! The threads of a node as one task, for a simulation in which time goes on only when nothing is
//! left to do. Only in the build of the unit tests.
//!
//! Each millisecond of simulated time the driver, the writer of the log and the applier take turns
//! until none has work: the same turns that their threads take. A sync takes no simulated time, and
//! nobody guards the disk's room.

use std::sync::{Arc, mpsc::Receiver};

use tokio::{task::JoinHandle, time::interval};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    node::{
        applier::{Applier, ApplierJob},
        driver::Driver,
        replica::Event,
        shared::{DriverInput, Shared},
        wal_writer::{self, WalJobs},
    },
    storage::Wal,
    types::Duration,
};

/// How often the threads would look.
const STEP: Duration = Duration::from_millis(1);

/// What the threads of a node own.
pub(super) struct Parts {
    pub(super) driver: Driver,
    pub(super) inputs: Receiver<DriverInput>,
    pub(super) wal: Wal,
    pub(super) wal_inputs: Receiver<WalJobs>,
    pub(super) applier: Applier,
    pub(super) applier_jobs: Receiver<ApplierJob>,
    pub(super) shared: Arc<Shared>,
}

/// The task. Dropping it ends the node as a crash would.
#[derive(Debug)]
pub(super) struct Task(AbortOnDropHandle<()>);

impl Task {
    pub(super) fn spawn(mut parts: Parts) -> Self {
        let task: JoinHandle<()> = tokio::spawn(async move {
            parts.driver.publish_status();
            let mut events = Vec::new();
            let mut steps = interval(STEP);
            loop {
                steps.tick().await;
                if !parts.step(&mut events) {
                    return;
                }
            }
        });
        Self(AbortOnDropHandle::new(task))
    }

    /// Lets the node end in order.
    pub(super) async fn stop(self, shared: &Shared) {
        // A driver that is gone already is stopped.
        let _ = shared.driver.try_send(DriverInput::Stop);
        let _ = self.0.await;
    }
}

impl Parts {
    /// Works until nothing is left to do now. `false` is the end.
    fn step(&mut self, events: &mut Vec<Event>) -> bool {
        let clock = self.shared.clock;
        let mut due = self.driver.replica.next_deadline(clock.now(), clock.wall()) <= clock.now();
        loop {
            let mut idle = true;
            while let Ok(first) = self.wal_inputs.try_recv() {
                idle = false;
                if !wal_writer::carry_out(&mut self.wal, first, &self.wal_inputs, &self.shared) {
                    return false;
                }
            }
            let mut next = self.applier_jobs.try_recv().ok();
            while let Some(job) = next.take() {
                idle = false;
                if !self.applier.carry_out(job, &self.applier_jobs, &mut next) {
                    return false;
                }
                next = next.or_else(|| self.applier_jobs.try_recv().ok());
            }
            events.append(&mut self.driver.again);
            let input = self.inputs.try_recv().ok();
            if !self.driver.take_in(input, &self.inputs, events) {
                self.shared.pending.clear();
                return false;
            }
            if !events.is_empty() || core::mem::take(&mut due) {
                idle = false;
                self.driver.turn(events);
            }
            if idle {
                return true;
            }
        }
    }
}

/// Makes the state durable at once.
pub(super) fn persist_state(shared: &Shared) {
    let index = shared.feed.head().index;
    match shared.store.load().persist() {
        Ok(()) => shared.insist(Event::StatePersisted { index }),
        Err(error) => shared.fail(format!("the state cannot be made durable: {error}")),
    }
}
