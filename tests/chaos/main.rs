//! Real processes under kills, pauses and broken links, judged by the simulator's checkers.
//!
//! The workloads and both oracles are those of `quorate sim`; here they meet fsync, TCP, threads and
//! the real client library. Then the faults stop, and the cluster must heal, serve at every node, be
//! of one state and have lost nothing. Chance chooses the faults, so a failure leaves its history:
//! the file and the command that judges it again are printed. `QUORATE_CHAOS_SECONDS` and
//! `QUORATE_CHAOS_SEED` ask for more.

mod driver;
mod executor;
mod judge;
mod lives;
mod load;
mod record;
mod scenario;
mod snapshots;

use std::time::Duration;

use tokio::time::{Instant, interval};

use crate::{
    driver::Fault::{
        Cut, Delay, Drop, Duplicate, Kill, KillAll, OneWay, Partition, Pause, Reorder, Transfer,
    },
    scenario::Scenario,
};

/// The binary under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_quorate");

/// How long to wait for anything that must come about; far beyond what a slow machine needs.
const LIMIT: Duration = Duration::from_secs(90);

/// Waits until `done` gives something.
async fn eventually<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + LIMIT;
    let mut ticks = interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < give_up, "waited {LIMIT:?} for {what}");
    }
}

#[tokio::test]
async fn kills() {
    Scenario { name: "kills", faults: &[Kill, KillAll, Transfer] }.run().await;
}

#[tokio::test]
async fn pauses() {
    Scenario { name: "pauses", faults: &[Pause, Transfer] }.run().await;
}

#[tokio::test]
async fn partitions() {
    Scenario { name: "partitions", faults: &[OneWay, Partition, Cut] }.run().await;
}

#[tokio::test]
async fn messages_lost_late_doubled_and_overtaken() {
    Scenario { name: "messages", faults: &[Drop, Delay, Duplicate, Reorder] }.run().await;
}

#[tokio::test]
async fn everything_at_once() {
    let faults =
        &[Kill, KillAll, Pause, OneWay, Partition, Cut, Drop, Delay, Duplicate, Reorder, Transfer];
    Scenario { name: "everything", faults }.run().await;
}
