//! Many callers and a semaphore: what its permits for each core do to throughput, to the time that a
//! job takes once it was let in, and to a timer of another task beside it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, yield_now},
    time::sleep,
};

use crate::{
    Options, cores, median,
    plot::{self, Curve, Panel},
    runtime,
    work::{Probe, Work, histogram},
};

/// Callers that want a permit all the time.
const CALLERS: usize = 512;

/// Permits for each core.
const PERMITS: [f64; 9] = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

const RUN: Duration = Duration::from_millis(600);

/// What a job does with its permit.
#[derive(Clone, Copy)]
enum Job {
    /// 200 µs of work, giving way to others ten times.
    Computes,
    /// 100 µs of work around a wait of 1 ms.
    Mixed,
    /// 20 µs of work around a wait of 5 ms.
    Waits,
}

impl Job {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Computes, "200 µs of work"),
        (Self::Mixed, "100 µs of work, 1 ms of waiting"),
        (Self::Waits, "20 µs of work, 5 ms of waiting"),
    ];

    async fn run(self, work: Work) {
        match self {
            Self::Computes => {
                for _ in 0..10 {
                    work.run(20.0);
                    yield_now().await;
                }
            }
            Self::Mixed => {
                work.run(50.0);
                sleep(Duration::from_millis(1)).await;
                work.run(50.0);
            }
            Self::Waits => {
                work.run(10.0);
                sleep(Duration::from_millis(5)).await;
                work.run(10.0);
            }
        }
    }
}

struct Run {
    per_second: f64,
    /// From the permit to the end, in milliseconds.
    job_p50: f64,
    job_p99: f64,
    /// From the wish for a permit to the end.
    all_p50: f64,
    /// How late a timer of another task was.
    late_p99: f64,
}

pub(crate) fn measure(options: &Options, work: Work) {
    let (mut rates, mut times) = (Vec::new(), Vec::new());
    for (job, name) in Job::ALL {
        println!("\nPermits for each core, {CALLERS} callers, a job is {name}:\n");
        println!(
            "| permits a core | jobs/s | job p50, ms | job p99, ms | with its wait p50, ms | \
             timer late p99, ms |"
        );
        println!("|--:|--:|--:|--:|--:|--:|");
        let (mut rate, mut time) = (Vec::new(), Vec::new());
        for permits in PERMITS {
            let count = ((permits * cores() as f64) as usize).max(1);
            let runs: Vec<_> = (0..options.rounds).map(|_| run(count, job, work)).collect();
            let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
            let per_second = of(|run| run.per_second);
            let job_p99 = of(|run| run.job_p99);
            println!(
                "| {permits} | {per_second:.0} | {:.2} | {job_p99:.2} | {:.1} | {:.2} |",
                of(|run| run.job_p50),
                of(|run| run.all_p50),
                of(|run| run.late_p99)
            );
            rate.push((permits, per_second));
            time.push((permits, job_p99.max(0.001)));
        }
        let best = rate.iter().map(|point| point.1).fold(0.0, f64::max);
        let shares = rate.iter().map(|(x, y)| (*x, 100.0 * y / best)).collect();
        rates.push(Curve { name: name.to_owned(), points: shares });
        times.push(Curve { name: name.to_owned(), points: time });
    }
    options.plot("permits", || {
        let panels = [
            Panel {
                title: "Throughput".to_owned(),
                unit: "% of the best",
                logarithmic: false,
                curves: rates,
            },
            Panel {
                title: "Time of a job once let in, p99".to_owned(),
                unit: "ms",
                logarithmic: true,
                curves: times,
            },
        ];
        plot::draw("A semaphore by its permits", "permits for each core", &panels)
    });
}

fn run(permits: usize, job: Job, work: Work) -> Run {
    let runtime = runtime();
    let ran = runtime.block_on(async move {
        let semaphore = Arc::new(Semaphore::new(permits));
        let probe = Probe::start();
        let begun = Instant::now();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call(Arc::clone(&semaphore), job, work, begun + RUN));
        }
        let ended = callers.join_all().await;
        let elapsed = begun.elapsed();
        let (mut jobs, mut all) = (histogram(), histogram());
        for (job, whole) in ended.into_iter().flatten() {
            jobs.saturating_record(job.as_nanos() as u64);
            all.saturating_record(whole.as_nanos() as u64);
        }
        let seen = probe.stop().await;
        let millis = |of: &Histogram<u64>, quantile| of.value_at_quantile(quantile) as f64 / 1e6;
        Run {
            per_second: jobs.len() as f64 / elapsed.as_secs_f64(),
            job_p50: millis(&jobs, 0.5),
            job_p99: millis(&jobs, 0.99),
            all_p50: millis(&all, 0.5),
            late_p99: millis(&seen.late, 0.99),
        }
    });
    runtime.shutdown_background();
    ran
}

/// Wants a permit again and again. How long each job took, without and with its wait for the permit;
/// what does not get one by `until` does not count.
async fn call(
    semaphore: Arc<Semaphore>,
    job: Job,
    work: Work,
    until: Instant,
) -> Vec<(Duration, Duration)> {
    let mut took = Vec::new();
    loop {
        let wanted = Instant::now();
        let _permit = semaphore.acquire().await.expect("it is open");
        let begun = Instant::now();
        if begun >= until {
            return took;
        }
        job.run(work).await;
        took.push((begun.elapsed(), wanted.elapsed()));
    }
}
