//! A producer and a consumer that both work on every message, and the channel between them: how much
//! goes through, and how long a message lies in it.

use std::time::{Duration, Instant};

use quorate::types::Rng;
use tokio::sync::mpsc;

use crate::{
    Options, median,
    plot::{self, Curve, Panel},
    runtime,
    work::{Work, exponential, histogram},
};

const CAPACITIES: [usize; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096];

/// Of the work on each side, in microseconds.
const WORKS: [f64; 4] = [0.0, 1.0, 10.0, 100.0];

/// How long a run takes, about.
const RUN: Duration = Duration::from_millis(300);

/// What came of one run.
struct Run {
    per_second: f64,
    /// In microseconds.
    waited_p50: f64,
    waited_p99: f64,
}

pub(crate) fn measure(options: &Options, work: Work) {
    let mut drawn = Vec::new();
    for (kind, is_even) in [("the same for each message", true), ("of exponential size", false)] {
        let (mut rates, mut waits) = (Vec::new(), Vec::new());
        println!("\nChannel between producer and consumer, work on both sides {kind}:\n");
        println!("| capacity | {} |", WORKS.map(|micros| format!("{micros} µs")).join(" | "));
        println!("|--:|{}", "--:|".repeat(WORKS.len()));
        let mut rows = vec![Vec::new(); CAPACITIES.len()];
        for micros in WORKS {
            if micros == 0.0 && !is_even {
                rows.iter_mut().for_each(|row| row.push("".to_owned()));
                continue;
            }
            let (mut rate, mut wait) = (Vec::new(), Vec::new());
            for (row, capacity) in CAPACITIES.into_iter().enumerate() {
                let runs: Vec<_> =
                    (0..options.rounds).map(|_| run(capacity, micros, is_even, work)).collect();
                let of = |figure: fn(&Run) -> f64| median(runs.iter().map(figure).collect());
                let per_second = of(|run| run.per_second);
                let (p50, p99) = (of(|run| run.waited_p50), of(|run| run.waited_p99));
                rows[row].push(format!("{:.0}k/s, {p50:.0}/{p99:.0} µs", per_second / 1e3));
                rate.push((capacity as f64, per_second));
                wait.push((capacity as f64, p99.max(0.1)));
            }
            let best = rate.iter().map(|point| point.1).fold(0.0, f64::max);
            let shares = rate.iter().map(|(x, y)| (*x, 100.0 * y / best)).collect();
            let name = format!("{micros} µs");
            rates.push(Curve { name: name.clone(), points: shares });
            waits.push(Curve { name, points: wait });
        }
        for (capacity, row) in CAPACITIES.iter().zip(rows) {
            println!("| {capacity} | {} |", row.join(" | "));
        }
        drawn.push((is_even, rates, waits));
    }
    for (is_even, rates, waits) in drawn {
        let (name, words) = if is_even { ("even", "even") } else { ("uneven", "exponential") };
        options.plot(&format!("channel-{name}"), || {
            let panels = [
                Panel {
                    title: "Throughput".to_owned(),
                    unit: "% of the best",
                    logarithmic: false,
                    curves: rates,
                },
                Panel {
                    title: "Time in the channel, p99".to_owned(),
                    unit: "µs",
                    logarithmic: true,
                    curves: waits,
                },
            ];
            let title = format!("A channel by its capacity; {words} work on both sides");
            plot::draw(&title, "capacity", &panels)
        });
    }
}

fn run(capacity: usize, micros: f64, is_even: bool, work: Work) -> Run {
    let (sender, mut receiver) = mpsc::channel::<Instant>(capacity);
    let size = move |rng: &mut Rng| if is_even { micros } else { exponential(rng, micros) };
    runtime().block_on(async move {
        let begun = Instant::now();
        let producer = tokio::spawn(async move {
            let mut rng = Rng::new(1);
            while begun.elapsed() < RUN {
                work.run(size(&mut rng));
                sender.send(Instant::now()).await.expect("it is received");
            }
        });
        let consumer = tokio::spawn(async move {
            let (mut rng, mut waited) = (Rng::new(2), histogram());
            while let Some(sent) = receiver.recv().await {
                waited.saturating_record(sent.elapsed().as_nanos() as u64);
                work.run(size(&mut rng));
            }
            (waited, begun.elapsed())
        });
        producer.await.expect("it does not panic");
        let (waited, elapsed) = consumer.await.expect("it does not panic");
        let micros = |quantile| waited.value_at_quantile(quantile) as f64 / 1e3;
        Run {
            per_second: waited.len() as f64 / elapsed.as_secs_f64(),
            waited_p50: micros(0.5),
            waited_p99: micros(0.99),
        }
    })
}
