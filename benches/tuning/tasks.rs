//! Many tasks: what each takes in memory, what spawning takes, and how long another task waits
//! for an answer and for a timer beside them while they wait, tick or work.

use std::{
    alloc::System,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, yield_now},
    time::{MissedTickBehavior, interval_at, sleep},
};

use crate::{
    Options, median,
    plot::{self, Curve, Panel},
    runtime,
    work::{Probe, Work},
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const COUNTS: [usize; 6] = [1, 10, 100, 1_000, 10_000, 100_000];

/// More busy tasks than that have no turn within a run.
const BUSY_MAX: usize = 10_000;

/// Fewer tasks than that are lost among what else is allocated meanwhile.
const MEMORY_TOLD_FROM: usize = 1_000;

/// Long enough for some answers beside the most busy tasks.
const RUN: Duration = Duration::from_millis(1_500);

/// What a busy task does before it gives way, in microseconds.
const SLICE: f64 = 5.0;

/// What the tasks do.
#[derive(Clone, Copy)]
enum Kind {
    /// Nothing: each waits to be told to end.
    Idle,
    /// Each wakes up once a second.
    Ticking,
    /// Each works for 5 µs and gives way, all the time.
    Busy,
}

impl Kind {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Idle, "waiting"), (Self::Ticking, "ticking once a second"), (Self::Busy, "busy")];
}

struct Run {
    spawned_nanos: f64,
    bytes_each: f64,
    answer_p50: f64,
    answer_p99: f64,
    late_p50: f64,
    late_p99: f64,
    slices: f64,
}

pub(crate) fn measure(options: &Options, work: Work) {
    let mut turns = Vec::new();
    for (kind, name) in Kind::ALL {
        println!("\nTasks, all {name}:\n");
        println!(
            "| tasks | to spawn each, ns | memory of each, bytes | answer p50, µs | answer p99, µs | timer late p50, ms | timer late p99, ms | work done, % of a processor |"
        );
        println!("|--:|--:|--:|--:|--:|--:|--:|--:|");
        let mut curve = Vec::new();
        for count in COUNTS {
            if count > BUSY_MAX && matches!(kind, Kind::Busy) {
                continue;
            }
            let runs: Vec<_> = (0..options.rounds).map(|_| run(count, kind, work)).collect();
            let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
            let (p50, p99) = (of(|run| run.answer_p50), of(|run| run.answer_p99));
            let memory = of(|run| run.bytes_each).round().to_string();
            let memory = if count < MEMORY_TOLD_FROM { "" } else { &memory };
            println!(
                "| {count} | {:.0} | {memory} | {} | {} | {:.1} | {:.1} | {:.0} |",
                of(|run| run.spawned_nanos),
                answer(p50),
                answer(p99),
                of(|run| run.late_p50),
                of(|run| run.late_p99),
                of(|run| run.slices) * SLICE / RUN.as_secs_f64() / 1e4
            );
            curve.push((count as f64, of(|run| run.late_p99)));
        }
        turns.push(Curve { name: name.to_owned(), points: curve });
    }
    options.plot("tasks", || {
        let title = "A timer of another task late, p99".to_owned();
        let panel = Panel { title, unit: "ms", logarithmic: true, curves: turns };
        plot::draw("Scheduling by number of tasks", "tasks", &[panel])
    });
}

fn answer(micros: f64) -> String {
    if micros == 0.0 { "none came".to_owned() } else { format!("{micros:.0}") }
}

fn run(count: usize, kind: Kind, work: Work) -> Run {
    let runtime = runtime();
    let ran = runtime.block_on(async move {
        let (stop, slices) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let end = Arc::new(Semaphore::new(0));
        let memory = Region::new(&INSTRUMENTED_SYSTEM);
        let mut tasks = JoinSet::new();
        let begun = Instant::now();
        for at in 0..count {
            let (stop, slices, end) = (Arc::clone(&stop), Arc::clone(&slices), Arc::clone(&end));
            tasks.spawn(async move {
                match kind {
                    Kind::Idle => drop(end.acquire().await),
                    Kind::Ticking => {
                        // Spread over the second, as those of many clients are.
                        let first = Duration::from_secs_f64(at as f64 / count as f64);
                        let second = Duration::from_secs(1);
                        let mut ticks = interval_at(tokio::time::Instant::now() + first, second);
                        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        loop {
                            tokio::select! {
                                _ = end.acquire() => return,
                                _ = ticks.tick() => {}
                            }
                        }
                    }
                    Kind::Busy => {
                        while !stop.load(Relaxed) {
                            work.run(SLICE);
                            slices.fetch_add(1, Relaxed);
                            yield_now().await;
                        }
                    }
                }
            });
        }
        let spawned_nanos = begun.elapsed().as_nanos() as f64 / count as f64;
        // Each is to have begun, for it is then that it takes what it needs.
        sleep(Duration::from_millis(200)).await;
        let taken = memory.change();
        let bytes = taken.bytes_allocated as f64 - taken.bytes_deallocated as f64;
        let bytes_each = bytes / count as f64;
        let probe = Probe::start();
        let slices_before = slices.load(Relaxed);
        sleep(RUN).await;
        let slices = (slices.load(Relaxed) - slices_before) as f64;
        stop.store(true, Relaxed);
        let seen = probe.stop().await;
        end.close();
        tasks.join_all().await;
        let micros = |quantile| seen.answers.value_at_quantile(quantile) as f64 / 1e3;
        let millis = |quantile| seen.late.value_at_quantile(quantile) as f64 / 1e6;
        Run {
            spawned_nanos,
            bytes_each,
            answer_p50: micros(0.5),
            answer_p99: micros(0.99),
            late_p50: millis(0.5),
            late_p99: millis(0.99),
            slices,
        }
    });
    runtime.shutdown_background();
    ran
}
