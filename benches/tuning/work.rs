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

/// Another task in the runtime. It waits for a timer, and then for an answer over a socket, again and
/// again. The answer is a thread's: where the tasks keep every core busy, that thread waits for the
/// operating system too, and only the timer tells of the runtime alone.
pub(crate) struct Probe {
    stop: Arc<AtomicBool>,
    running: JoinHandle<Seen>,
}

/// What the probe saw, in nanoseconds.
pub(crate) struct Seen {
    /// From asking to having read the answer.
    pub(crate) answers: Histogram<u64>,
    /// How late the timer came. tokio's are up to a millisecond late by themselves.
    pub(crate) late: Histogram<u64>,
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
            let (mut seen, mut byte) = (Seen { answers: histogram(), late: histogram() }, [0]);
            while !until.load(Relaxed) {
                let due = Instant::now() + PROBE_INTERVAL;
                sleep(PROBE_INTERVAL).await;
                seen.late.saturating_record(due.elapsed().as_nanos() as u64);
                let asked = Instant::now();
                ours.write_all(&byte).await.expect("it is read");
                ours.read_exact(&mut byte).await.expect("it is answered");
                seen.answers.saturating_record(asked.elapsed().as_nanos() as u64);
            }
            seen
        });
        Self { stop, running }
    }

    pub(crate) async fn stop(self) -> Seen {
        self.stop.store(true, Relaxed);
        self.running.await.expect("it does not panic")
    }
}
