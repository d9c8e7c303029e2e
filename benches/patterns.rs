//! What tokio's parts cost, by the figure that one chooses for them: capacity of a channel, permits of
//! a semaphore, branches of a select, number of tasks, size of the work, number of receivers. Behind
//! docs/tuning.md. `cargo bench --bench patterns`, about 2 minutes; `-- --quick` takes about 20 s, and
//! a word such as `-- mpsc` runs only what has it in its name.
//!
//! A mean of a stable repetition is all that is asked here; benches/tuning asks for throughput and
//! latency under load.

#![allow(missing_docs)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    future::{pending, ready},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::AcqRel},
    },
    time::{Duration, Instant},
};

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use quorate::layers::scope::Scope;
use tokio::{
    runtime::Runtime,
    sync::{Notify, Semaphore, broadcast, mpsc, watch},
    task::{JoinSet, yield_now},
};
use tokio_util::sync::CancellationToken;

/// Messages of one repetition of a channel.
const MESSAGES: usize = 10_000;

/// Acquisitions of one repetition of a semaphore.
const ACQUISITIONS: usize = 10_000;

/// Repetitions of a select of one measurement.
const SELECTS: u64 = 100;

/// Pieces of work that are spawned or not.
const PIECES: usize = 64;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("it starts")
}

/// A group whose points take about a second each.
fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sample_size(15)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    group
}

/// Runs a body on a worker of the runtime, as a server's code does.
fn on_worker<T: Send + 'static>(
    runtime: &Runtime,
    body: impl Future<Output = T> + Send + 'static,
) -> T {
    runtime.block_on(async { tokio::spawn(body).await.expect("it does not panic") })
}

fn channel(criterion: &mut Criterion) {
    let runtime = runtime();
    for producers in [1, 4] {
        let mut group = group(criterion, &format!("mpsc/{producers}_producers"));
        group.throughput(Throughput::Elements(MESSAGES as u64));
        for capacity in [1, 4, 16, 64, 128, 256, 1024, 4096] {
            group.bench_function(BenchmarkId::from_parameter(capacity), |bencher| {
                bencher.iter(|| on_worker(&runtime, bounded(capacity, producers)));
            });
        }
        group.bench_function("unbounded", |bencher| {
            bencher.iter(|| on_worker(&runtime, unbounded(producers)));
        });
        group.finish();
    }
}

async fn bounded(capacity: usize, producers: usize) {
    let (sender, mut receiver) = mpsc::channel(capacity);
    for _ in 0..producers {
        let sender = sender.clone();
        tokio::spawn(async move {
            for at in 0..MESSAGES / producers {
                sender.send(at).await.expect("it is received");
            }
        });
    }
    drop(sender);
    while let Some(message) = receiver.recv().await {
        black_box(message);
    }
}

async fn unbounded(producers: usize) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    for _ in 0..producers {
        let sender = sender.clone();
        tokio::spawn(async move {
            for at in 0..MESSAGES / producers {
                sender.send(at).expect("it is received");
            }
        });
    }
    drop(sender);
    while let Some(message) = receiver.recv().await {
        black_box(message);
    }
}

/// Tasks that take a permit, give way to the others while they hold it, and give it back.
fn semaphore(criterion: &mut Criterion) {
    let runtime = runtime();
    for tasks in [8, 64, 1000] {
        let mut group = group(criterion, &format!("semaphore/{tasks}_tasks"));
        group.throughput(Throughput::Elements((ACQUISITIONS / tasks * tasks) as u64));
        for permits in [1, 2, 4, 8, 64, 1024] {
            group.bench_function(BenchmarkId::from_parameter(permits), |bencher| {
                bencher.iter(|| on_worker(&runtime, contend(permits, tasks)));
            });
        }
        group.finish();
    }
}

async fn contend(permits: usize, tasks: usize) {
    let semaphore = Arc::new(Semaphore::new(permits));
    let mut running = JoinSet::new();
    for _ in 0..tasks {
        let semaphore = Arc::clone(&semaphore);
        running.spawn(async move {
            for _ in 0..ACQUISITIONS / tasks {
                let _permit = semaphore.acquire().await.expect("it is open");
                yield_now().await;
            }
        });
    }
    running.join_all().await;
}

/// One select of so many branches, of which only the last is ready.
macro_rules! last_ready {
    (biased; $($waits:expr),*) => {
        tokio::select! {
            biased;
            $(() = $waits => 0,)*
            value = ready(1) => value,
        }
    };
    ($($waits:expr),*) => {
        tokio::select! {
            $(() = $waits => 0,)*
            value = ready(1) => value,
        }
    };
}

fn select(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it starts");
    let mut group = group(criterion, "select");
    group.throughput(Throughput::Elements(SELECTS));
    macro_rules! point {
        ($name:expr, $select:expr) => {
            group.bench_function($name, |bencher| {
                bencher.iter(|| {
                    runtime.block_on(async {
                        for _ in 0..SELECTS {
                            black_box($select);
                        }
                    });
                });
            });
        };
    }
    point!("fair/2", last_ready!(pending()));
    point!("biased/2", last_ready!(biased; pending()));
    point!("fair/4", last_ready!(pending(), pending(), pending()));
    point!("biased/4", last_ready!(biased; pending(), pending(), pending()));
    point!(
        "fair/8",
        last_ready!(pending(), pending(), pending(), pending(), pending(), pending(), pending())
    );
    point!(
        "biased/8",
        last_ready!(
            biased; pending(), pending(), pending(), pending(), pending(), pending(), pending()
        )
    );
    // The loop that every server has: stop, or go on with what came.
    let stop = CancellationToken::new();
    point!("fair/stop_or_work", last_ready!(stop.cancelled()));
    point!("biased/stop_first", last_ready!(biased; stop.cancelled()));
    point!(
        "biased/work_first",
        tokio::select! {
            biased;
            value = ready(1) => value,
            () = stop.cancelled() => 0,
        }
    );
    group.finish();
}

/// Tasks that give way once and end, waited for by different means.
fn tasks(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = group(criterion, "tasks");
    for tasks in [1_usize, 10, 100, 1_000, 10_000, 100_000] {
        group.throughput(Throughput::Elements(tasks as u64));
        group.bench_function(BenchmarkId::new("join_handles", tasks), |bencher| {
            bencher.iter(|| {
                on_worker(&runtime, async move {
                    let handles: Vec<_> = (0..tasks).map(|_| tokio::spawn(yield_now())).collect();
                    for handle in handles {
                        handle.await.expect("it does not panic");
                    }
                });
            });
        });
        group.bench_function(BenchmarkId::new("join_set", tasks), |bencher| {
            bencher.iter(|| {
                on_worker(&runtime, async move {
                    let mut set = JoinSet::new();
                    (0..tasks).for_each(|_| drop(set.spawn(yield_now())));
                    while let Some(ended) = set.join_next().await {
                        ended.expect("it does not panic");
                    }
                });
            });
        });
        group.bench_function(BenchmarkId::new("scope", tasks), |bencher| {
            bencher.iter(|| {
                on_worker(&runtime, async move {
                    let scope = Scope::new();
                    (0..tasks).for_each(|_| drop(scope.spawn("task", yield_now())));
                    assert!(scope.join().await.is_ok());
                });
            });
        });
    }
    group.finish();
}

/// How many rounds of [`spin`] take a microsecond. The best of several, for others may be running.
fn rounds_per_microsecond() -> f64 {
    let rounds = 200_000;
    let once = || {
        let begun = Instant::now();
        spin(rounds);
        begun.elapsed().as_secs_f64() * 1e6
    };
    f64::from(rounds) / (0..20).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn spin(rounds: u32) {
    let mut state = 1_u64;
    for _ in 0..rounds {
        state = black_box(state ^ (state << 13)).wrapping_mul(0x9e37_79b9);
    }
    black_box(state);
}

/// The same pieces of work one after the other, each in a task, and in one task a core.
fn spawn(criterion: &mut Criterion) {
    let runtime = runtime();
    let speed = rounds_per_microsecond();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = group(criterion, "spawn");
    group.throughput(Throughput::Elements(PIECES as u64));
    for tenths in [0_u32, 1, 5, 10, 50, 100, 1_000] {
        let work = f64::from(tenths) / 10.0;
        let rounds = (work * speed) as u32;
        group.bench_function(BenchmarkId::new("inline", work), |bencher| {
            bencher.iter(|| {
                on_worker(&runtime, async move { (0..PIECES).for_each(|_| spin(rounds)) });
            });
        });
        for (name, parts) in [("task_each", PIECES), ("task_a_core", cores)] {
            group.bench_function(BenchmarkId::new(name, work), |bencher| {
                bencher.iter(|| {
                    on_worker(&runtime, async move {
                        let mut set = JoinSet::new();
                        for part in 0..parts {
                            let pieces = PIECES * (part + 1) / parts - PIECES * part / parts;
                            set.spawn(async move { (0..pieces).for_each(|_| spin(rounds)) });
                        }
                        set.join_all().await;
                    });
                });
            });
        }
    }
    group.finish();
}

/// Counts down the receivers that have not seen a value.
struct Arrivals {
    missing: AtomicUsize,
    all: Notify,
}

impl Arrivals {
    fn new() -> Arc<Self> {
        Arc::new(Self { missing: AtomicUsize::new(0), all: Notify::new() })
    }

    fn expect(&self, receivers: usize) {
        self.missing.store(receivers, std::sync::atomic::Ordering::Release);
    }

    fn arrived(&self) {
        if self.missing.fetch_sub(1, AcqRel) == 1 {
            self.all.notify_one();
        }
    }
}

/// One value to all receivers; the next when all have seen it.
fn fan_out(criterion: &mut Criterion) {
    let runtime = runtime();
    let mut group = group(criterion, "fan_out");
    for receivers in [1_usize, 10, 100, 1_000] {
        group.throughput(Throughput::Elements(receivers as u64));
        let arrivals = Arrivals::new();
        let reach_all = |send: &dyn Fn()| {
            arrivals.expect(receivers);
            runtime.block_on(async {
                send();
                arrivals.all.notified().await;
            });
        };
        let each = |receive: &dyn Fn(Arc<Arrivals>)| {
            let _inside = runtime.enter();
            (0..receivers).for_each(|_| receive(Arc::clone(&arrivals)));
        };

        let sender = broadcast::Sender::new(64);
        each(&|arrivals| {
            let mut receiver = sender.subscribe();
            tokio::spawn(async move {
                while receiver.recv().await.is_ok() {
                    arrivals.arrived();
                }
            });
        });
        group.bench_function(BenchmarkId::new("broadcast", receivers), |bencher| {
            bencher.iter(|| reach_all(&|| drop(sender.send(1_u64))));
        });
        drop(sender);

        let sender = watch::Sender::new(0_u64);
        each(&|arrivals| {
            let mut receiver = sender.subscribe();
            tokio::spawn(async move {
                while receiver.changed().await.is_ok() {
                    black_box(*receiver.borrow_and_update());
                    arrivals.arrived();
                }
            });
        });
        // Receivers that begin only now would miss the first value.
        runtime.block_on(async {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(20) {
                yield_now().await;
            }
        });
        group.bench_function(BenchmarkId::new("watch", receivers), |bencher| {
            bencher.iter(|| reach_all(&|| sender.send_modify(|value| *value += 1)));
        });
        drop(sender);

        let senders = std::cell::RefCell::new(Vec::new());
        each(&|arrivals| {
            let (sender, mut receiver) = mpsc::channel(64);
            senders.borrow_mut().push(sender);
            tokio::spawn(async move {
                while receiver.recv().await.is_some() {
                    arrivals.arrived();
                }
            });
        });
        group.bench_function(BenchmarkId::new("mpsc_each", receivers), |bencher| {
            let senders = senders.borrow();
            bencher.iter(|| {
                reach_all(&|| {
                    senders.iter().for_each(|sender| sender.try_send(1_u64).expect("it has room"));
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, channel, semaphore, select, tasks, spawn, fan_out);
criterion_main!(benches);
