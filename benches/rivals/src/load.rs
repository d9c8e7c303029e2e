//! The closed loop that every cell runs: each client sends its next operation when the last one
//! was answered. What is answered before the warm-up ends or after the end is not counted.

use std::{future::Future, sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};
use tonic::Status;

use crate::Error;

/// How long the operations that are under way at the end may take.
const GRACE: Duration = Duration::from_secs(30);

/// How often one cell may fail before it is given up.
const ERRORS_MAX: u64 = 1_000;

/// The times of a cell.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// What a cell measured.
#[derive(Debug)]
pub struct Measured {
    /// Operations a second.
    pub rate: f64,
    pub p50_micros: u64,
    pub p99_micros: u64,
    pub errors: u64,
}

/// Runs a cell. `operation` gets the client's number and how many it has carried out before.
pub async fn run<S, F>(
    clients: usize,
    times: Times,
    shared: Arc<S>,
    operation: fn(Arc<S>, usize, u64) -> F,
) -> Result<Measured, Error>
where
    S: Send + Sync + 'static,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let from = Instant::now() + times.warm_up;
    let until = from + times.measured;
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let shared = shared.clone();
        tasks.spawn(async move {
            let mut latencies = histogram();
            let (mut sequence, mut errors, mut why) = (0, 0, None);
            loop {
                let began = Instant::now();
                if began >= until || errors > ERRORS_MAX {
                    break;
                }
                let asked = operation(shared.clone(), client, sequence);
                let answered = timeout_at(until + GRACE, asked).await;
                sequence += 1;
                let now = Instant::now();
                match answered {
                    Ok(Ok(())) if now >= from && now < until => {
                        let micros = u64::try_from((now - began).as_micros()).unwrap_or(u64::MAX);
                        latencies.record(micros.max(1)).expect("the histogram grows");
                    }
                    Ok(Ok(())) => {}
                    Ok(Err(status)) => {
                        errors += 1;
                        why = Some(status);
                        // A refusal must not become a storm.
                        tokio::time::sleep_until(now + Duration::from_millis(5)).await;
                    }
                    Err(_) => {
                        errors += 1;
                        why = Some(Status::deadline_exceeded("no answer"));
                    }
                }
            }
            (latencies, errors, why)
        });
    }
    let mut all = histogram();
    let (mut errors, mut why) = (0, None);
    while let Some(ended) = tasks.join_next().await {
        let (latencies, failed, reason) = ended?;
        all.add(&latencies)?;
        errors += failed;
        why = why.or(reason);
    }
    if let Some(why) = why {
        eprintln!("      {errors} errors, such as: {:?} {}", why.code(), why.message());
        if all.is_empty() {
            return Err(format!("no operation succeeded: {}", why.message()).into());
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = all.len() as f64 / times.measured.as_secs_f64();
    Ok(Measured {
        rate,
        p50_micros: all.value_at_quantile(0.5),
        p99_micros: all.value_at_quantile(0.99),
        errors,
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

/// A number that looks random and is the same in every run: SplitMix64.
pub const fn scattered(client: usize, sequence: u64) -> u64 {
    let mut z = (client as u64).wrapping_mul(0x9e37_79b9).wrapping_add(sequence);
    z = z.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
