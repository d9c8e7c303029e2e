//! Work of a known size: a loop whose rounds were counted once, so that time in which the thread did
//! not run does not pass for work. And how late a task comes to its turn.

use std::{
    hint::black_box,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream as StdUnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use quorate::types::Rng;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinHandle,
    time::sleep,
};

/// How often the probe asks for an answer.
const PROBE_INTERVAL: Duration = Duration::from_millis(2);

/// Work in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    rounds_per_microsecond: f64,
}

impl Work {
    /// The best of several counts: others may be running.
    pub(crate) fn calibrated() -> Self {
        let rounds = 200_000;
        let once = || {
            let begun = Instant::now();
            spin(rounds);
            begun.elapsed().as_secs_f64() * 1e6
        };
        let least = (0..50).map(|_| once()).fold(f64::INFINITY, f64::min);
        Self { rounds_per_microsecond: rounds as f64 / least }
    }

    pub(crate) fn run(self, micros: f64) {
        spin((micros * self.rounds_per_microsecond) as u64);
    }
}

fn spin(rounds: u64) {
    let mut state = 1_u64;
    for _ in 0..rounds {
        state = black_box(state ^ (state << 13)).wrapping_mul(0x9e37_79b9);
    }
    black_box(state);
}

/// A draw from the exponential distribution, at most eight times the mean.
pub(crate) fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    let unit = ((rng.next_u64() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
    (-unit.ln()).min(8.0) * mean
}

pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are valid")
}

/// Asks a thread for an answer over a socket again and again, as every call over a network does, and
/// notes how long each took to be read, in nanoseconds: the thread's share of that is small, the rest
/// is the runtime's.
pub(crate) struct Probe {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Histogram<u64>>,
}

impl Probe {
    pub(crate) fn start() -> Self {
        let (ours, mut theirs) = StdUnixStream::pair().expect("a pair of sockets");
        thread::spawn(move || {
            let mut byte = [0];
            while theirs.read_exact(&mut byte).is_ok() && theirs.write_all(&byte).is_ok() {}
        });
        ours.set_nonblocking(true).expect("it can be set");
        let mut ours = UnixStream::from_std(ours).expect("the runtime takes it");
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let running = tokio::spawn(async move {
            let (mut turns, mut byte) = (histogram(), [0]);
            while !until.load(Relaxed) {
                sleep(PROBE_INTERVAL).await;
                let asked = Instant::now();
                ours.write_all(&byte).await.expect("it is read");
                ours.read_exact(&mut byte).await.expect("it is answered");
                turns.saturating_record(asked.elapsed().as_nanos() as u64);
            }
            turns
        });
        Self { stop, running }
    }

    pub(crate) async fn stop(self) -> Histogram<u64> {
        self.stop.store(true, Relaxed);
        self.running.await.expect("it does not panic")
    }
}
