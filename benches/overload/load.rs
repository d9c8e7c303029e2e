//! The load: a mix of calls, in a closed loop and in an open one.
//!
//! Nothing is retried. A call's time counts from when it was due, also where the load itself was late.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use quorate::pb::{
    kv::v1::{PutRequest, RangeRequest, kv_service_client::KvServiceClient},
    lock::v1::{AcquireRequest, ReleaseRequest, lock_service_client::LockServiceClient},
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

/// Connections to each node.
const CONNECTIONS: usize = 4;

/// Keys that a list returns, and keys that puts and reads go over.
const LISTED: u64 = 100;
const KEYS: u64 = 1_000;

/// The size of a value.
const VALUE_BYTES: usize = 100;

/// Before what is measured the load runs for so long.
const WARM_UP: Duration = Duration::from_secs(2);

/// A call that takes so much longer than its deadline was forgotten by somebody.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Lists,
    Puts,
    Gets,
    Locks,
}

impl Op {
    pub(crate) const ALL: [Self; 4] = [Self::Lists, Self::Puts, Self::Gets, Self::Locks];

    pub(crate) const fn percent(self) -> u64 {
        match self {
            Self::Lists => 20,
            Self::Puts => 50,
            Self::Gets => 25,
            Self::Locks => 5,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lists => "lists",
            Self::Puts => "puts",
            Self::Gets => "reads",
            Self::Locks => "locks",
        }
    }

    /// The call with this number: the mix, evenly spread.
    fn of(number: u64) -> Self {
        // Coprime to 100, so that a hundred calls in a row are the mix.
        match number * 37 % 100 {
            0..20 => Self::Lists,
            20..70 => Self::Puts,
            70..95 => Self::Gets,
            _ => Self::Locks,
        }
    }
}

/// What came of the calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) good: u64,
    pub(crate) refused: u64,
    pub(crate) late: u64,
    pub(crate) failed: u64,
}

pub(crate) struct Outcome {
    by_op: [Counts; 4],
    pub(crate) refused: u64,
    pub(crate) late: u64,
    pub(crate) failed: u64,
    /// Of what was answered in time, in microseconds.
    times: Histogram<u64>,
    span: Duration,
}

impl Outcome {
    fn new(span: Duration) -> Self {
        let times = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds that fit");
        Self { by_op: [Counts::default(); 4], refused: 0, late: 0, failed: 0, times, span }
    }

    pub(crate) const fn of(&self, op: Op) -> Counts {
        self.by_op[op as usize]
    }

    /// Itself with the sums over all kinds of calls.
    pub(crate) fn totals(&self) -> Self {
        let sum = |of: fn(&Counts) -> u64| self.by_op.iter().map(of).sum();
        let (refused, late) = (sum(|counts| counts.refused), sum(|counts| counts.late));
        let failed = sum(|counts| counts.failed);
        Self { refused, late, failed, times: self.times.clone(), ..*self }
    }

    pub(crate) fn good_per_second(&self) -> f64 {
        let good: u64 = self.by_op.iter().map(|counts| counts.good).sum();
        good as f64 / self.span.as_secs_f64()
    }

    pub(crate) fn percentile_ms(&self, percentile: f64) -> f64 {
        self.times.value_at_percentile(percentile) as f64 / 1e3
    }

    fn add(&mut self, op: Op, ended: &Result<(), Status>, took: Duration, deadline: Duration) {
        let counts = &mut self.by_op[op as usize];
        match ended {
            Ok(()) if took <= deadline => {
                counts.good += 1;
                self.times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
            Ok(()) => counts.late += 1,
            Err(status) => match status.code() {
                Code::ResourceExhausted => counts.refused += 1,
                // The client's own timer says CANCELLED.
                Code::DeadlineExceeded | Code::Cancelled => counts.late += 1,
                _ => counts.failed += 1,
            },
        }
    }
}

/// Where calls go: connections to every node.
pub(crate) struct Target {
    lines: Vec<(KvServiceClient<Channel>, LockServiceClient<Channel>)>,
}

impl Target {
    pub(crate) async fn connect(endpoints: &[String]) -> Self {
        let mut lines = Vec::new();
        for _ in 0..CONNECTIONS {
            for endpoint in endpoints {
                let endpoint =
                    Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
                let channel = endpoint.tcp_nodelay(true).connect().await.expect("it listens");
                let lock = LockServiceClient::new(channel.clone());
                lines.push((KvServiceClient::new(channel), lock));
            }
        }
        Self { lines }
    }

    /// Writes what lists return.
    pub(crate) async fn fill(&self) {
        for number in 0..LISTED {
            let (mut kv, _) = self.lines[0].clone();
            kv.put(put(format!("list/{number:04}"))).await.expect("it is written");
        }
        for number in 0..KEYS {
            let (mut kv, _) = self.lines[0].clone();
            kv.put(put(format!("key/{number:04}"))).await.expect("it is written");
        }
    }

    async fn call(&self, number: u64, timeout: Duration) -> Result<(), Status> {
        fn within<T>(timeout: Duration, message: T) -> Request<T> {
            let mut request = Request::new(message);
            request.set_timeout(timeout);
            request
        }
        let (mut kv, mut lock) = self.lines[number as usize % self.lines.len()].clone();
        let key = || format!("key/{:04}", number % KEYS);
        match Op::of(number) {
            Op::Lists => {
                let (key, range_end) = ("list/".into(), "list0".into());
                let request = RangeRequest { key, range_end, ..Default::default() };
                kv.range(within(timeout, request)).await.map(drop)
            }
            Op::Puts => kv.put(within(timeout, put(key()))).await.map(drop),
            Op::Gets => {
                let request = RangeRequest { key: key().into(), ..Default::default() };
                kv.range(within(timeout, request)).await.map(drop)
            }
            Op::Locks => {
                let name = format!("lock/{number}");
                let wait = Some(prost_types::Duration::default());
                let request = AcquireRequest { name: name.clone(), wait, ..Default::default() };
                let got = lock.acquire(within(timeout, request)).await?.into_inner();
                let fencing_token = got.fencing_token;
                let request = ReleaseRequest { name, fencing_token, ..Default::default() };
                lock.release(within(timeout, request)).await.map(drop)
            }
        }
    }
}

fn put(key: String) -> PutRequest {
    PutRequest { key: key.into(), value: vec![b'x'; VALUE_BYTES].into(), ..Default::default() }
}

/// So many callers, each of which calls again when it was answered.
pub(crate) async fn closed(
    target: &Arc<Target>,
    callers: usize,
    span: Duration,
    deadline: Duration,
) -> Outcome {
    let (start, mut tasks) = (Instant::now() + WARM_UP, JoinSet::new());
    let (ended, results) = mpsc::unbounded_channel();
    for caller in 0..callers {
        let (target, ended) = (Arc::clone(target), ended.clone());
        tasks.spawn(async move {
            // Far from what others and the open loop number.
            let mut number = 1_000_000_000 + caller as u64 * 10_000_019;
            loop {
                let began = Instant::now();
                if began >= start + span {
                    break;
                }
                number += 1;
                let answer = target.call(number, deadline).await;
                if began >= start {
                    let _ = ended.send((Op::of(number), answer, began.elapsed()));
                }
            }
        });
    }
    drop(ended);
    let outcome = tokio::spawn(collect(results, span, deadline));
    tasks.join_all().await;
    outcome.await.expect("it counts")
}

/// So many calls a second, evenly, whatever comes back.
pub(crate) async fn open(
    target: &Arc<Target>,
    rate: f64,
    span: Duration,
    deadline: Duration,
) -> Outcome {
    let (begin, mut sent) = (Instant::now(), 0_u64);
    let (ended, results) = mpsc::unbounded_channel();
    let outcome = tokio::spawn(collect(results, span, deadline));
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    while begin.elapsed() < WARM_UP + span {
        tick.tick().await;
        let due = (begin.elapsed().as_secs_f64() * rate) as u64;
        while sent < due {
            let at = begin + Duration::from_secs_f64(sent as f64 / rate);
            let (target, ended, number) = (Arc::clone(target), ended.clone(), sent);
            sent += 1;
            tokio::spawn(async move {
                let left = deadline.saturating_sub(at.elapsed()).max(Duration::from_millis(1));
                let call = target.call(number, left);
                let answer = tokio::time::timeout(deadline + GRACE, call).await;
                let answer = answer.unwrap_or_else(|_| Err(Status::unknown("never answered")));
                if at >= begin + WARM_UP {
                    let _ = ended.send((Op::of(number), answer, at.elapsed()));
                }
            });
        }
    }
    drop(ended);
    outcome.await.expect("it counts")
}

async fn collect(
    mut results: mpsc::UnboundedReceiver<(Op, Result<(), Status>, Duration)>,
    span: Duration,
    deadline: Duration,
) -> Outcome {
    let mut outcome = Outcome::new(span);
    while let Some((op, answer, took)) = results.recv().await {
        outcome.add(op, &answer, took, deadline);
    }
    outcome
}
