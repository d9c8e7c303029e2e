//! A closed loop of callers over any gRPC client service, and what came of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body::Body as HttpBody;
use quorate::client::balance::HashKey;
use tokio::{task::JoinSet, time::sleep_until};
use tonic::{Request, body::Body, client::GrpcService, codegen::StdError};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::backends::Backend;

/// How often the backends' counters are looked at.
pub(crate) const SAMPLE: Duration = Duration::from_millis(250);

/// What came of a run, or of the part of it that counts.
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) ok: u64,
    pub(crate) failed: u64,
    /// In microseconds, of the calls that were answered.
    pub(crate) latencies: Histogram<u64>,
    /// Calls that each backend took, in each [`SAMPLE`].
    pub(crate) samples: Vec<Vec<u64>>,
    /// How many of the samples were before the part that counts.
    before: usize,
}

impl Outcome {
    pub(crate) fn share(&self, backend: usize) -> f64 {
        let taken =
            |at: usize| self.samples.iter().skip(self.before).map(|sample| sample[at]).sum::<u64>();
        let all: u64 = (0..self.samples.first().map_or(0, Vec::len)).map(taken).sum();
        taken(backend) as f64 / all.max(1) as f64
    }

    pub(crate) fn failed_percent(&self) -> f64 {
        100.0 * self.failed as f64 / (self.ok + self.failed).max(1) as f64
    }

    pub(crate) fn rate(&self) -> f64 {
        self.ok as f64 / self.seconds
    }
}

/// What is called.
pub(crate) trait Target:
    GrpcService<
        Body,
        ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
        Error: Into<StdError>,
        Future: Send,
    > + Clone
    + Send
    + 'static
{
}

impl<T> Target for T where
    T: GrpcService<
            Body,
            ResponseBody: HttpBody<Data = Bytes, Error: Into<StdError> + Send> + Send + 'static,
            Error: Into<StdError>,
            Future: Send,
        > + Clone
        + Send
        + 'static
{
}

/// So many callers, one call after the other each, for so long. Each call has a key of its own.
/// Calls that began before `counts_from` are only plotted.
pub(crate) async fn run<T: Target>(
    target: T,
    callers: u64,
    (time, counts_from): (Duration, Duration),
    backends: Arc<Vec<Backend>>,
) -> Outcome {
    let (stop, keys) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut running = JoinSet::new();
    let start = Instant::now();
    for _ in 0..callers {
        let client = HealthClient::new(target.clone());
        running.spawn(calls(client, start + counts_from, Arc::clone(&stop), Arc::clone(&keys)));
    }
    let mut samples = Vec::new();
    let mut before: Vec<u64> = backends.iter().map(Backend::taken).collect();
    let rounds = (time.as_secs_f64() / SAMPLE.as_secs_f64()).round() as u32;
    for round in 1..=rounds {
        sleep_until((start + SAMPLE * round).into()).await;
        let now: Vec<u64> = backends.iter().map(Backend::taken).collect();
        samples.push(now.iter().zip(&before).map(|(now, before)| now - before).collect());
        before = now;
    }
    stop.store(true, Relaxed);
    let seconds = (start.elapsed() - counts_from).as_secs_f64();
    let before = (counts_from.as_secs_f64() / SAMPLE.as_secs_f64()).round() as usize;
    let latencies = Histogram::new(3).expect("three digits are supported");
    let mut outcome = Outcome { seconds, ok: 0, failed: 0, latencies, samples, before };
    while let Some(ended) = running.join_next().await {
        let (latencies, failed) = ended.expect("no caller panics");
        outcome.ok += latencies.len();
        outcome.failed += failed;
        outcome.latencies.add(latencies).expect("both hold anything");
    }
    outcome
}

async fn calls<T: Target>(
    mut client: HealthClient<T>,
    counts_from: Instant,
    stop: Arc<AtomicBool>,
    keys: Arc<AtomicU64>,
) -> (Histogram<u64>, u64) {
    let mut latencies = Histogram::new(3).expect("three digits are supported");
    let mut failed = 0;
    while !stop.load(Relaxed) {
        let mut request = Request::new(HealthCheckRequest::default());
        request.extensions_mut().insert(HashKey(keys.fetch_add(1, Relaxed)));
        let from = Instant::now();
        let answer = client.check(request).await;
        let counts = from >= counts_from;
        match answer {
            Ok(_) if counts => {
                latencies.record(from.elapsed().as_micros() as u64).expect("it holds any")
            }
            Ok(_) => {}
            Err(_) => {
                failed += u64::from(counts);
                // Where failing takes no time, nobody else would run.
                tokio::task::yield_now().await;
            }
        }
    }
    (latencies, failed)
}
