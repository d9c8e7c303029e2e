//! A server and its callers in virtual time: the layers are those that ship, the clock is tokio's,
//! paused, and chance comes from a seed. So a minute takes a second, and each run is the same.

use std::{
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use quorate::layers::{BoxFuture, Due};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Code, Status, body::Body};
use tower::{Service, ServiceExt as _};

/// How finely time is drawn.
pub(crate) const SAMPLE: Duration = Duration::from_millis(500);

/// How much sooner than the deadline the work has to be done: timers tick in milliseconds.
const SLACK: Duration = Duration::from_millis(2);

/// Runs an experiment in a runtime of its own whose clock goes as fast as there is nothing to do.
pub(crate) fn virtually<F: Future>(run: impl FnOnce() -> F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("threads are to be had");
    runtime.block_on(async { run().await })
}

/// A server of so many workers and an endless queue. What it has begun, or has queued, it works on
/// to the end, whether or not its caller is still there: as servers do that nobody tells.
#[derive(Clone)]
pub(crate) struct Server(Arc<Works>);

struct Works {
    workers: Arc<Semaphore>,
    /// How long a request takes a worker.
    service: Mutex<Duration>,
    /// Whether it takes requests and never answers.
    hangs: AtomicBool,
    /// Whether a worker begins only what it can finish by the deadline.
    heeds_deadlines: bool,
    began: Instant,
    useful: Mutex<Vec<f64>>,
    wasted: Mutex<Vec<f64>>,
    queued: AtomicU64,
}

impl Server {
    pub(crate) fn new(workers: usize, service: Duration) -> Self {
        Self::build(workers, service, false)
    }

    /// One that begins nothing that it cannot finish in time.
    pub(crate) fn heeding_deadlines(workers: usize, service: Duration) -> Self {
        Self::build(workers, service, true)
    }

    fn build(workers: usize, service: Duration, heeds_deadlines: bool) -> Self {
        Self(Arc::new(Works {
            workers: Arc::new(Semaphore::new(workers)),
            service: Mutex::new(service),
            hangs: AtomicBool::new(false),
            heeds_deadlines,
            began: Instant::now(),
            useful: Mutex::default(),
            wasted: Mutex::default(),
            queued: AtomicU64::new(0),
        }))
    }

    pub(crate) fn takes(&self, service: Duration) {
        *self.0.service.lock().expect("nobody panics with it") = service;
    }

    pub(crate) fn hangs(&self, hangs: bool) {
        self.0.hangs.store(hangs, Relaxed);
    }

    /// Requests that it finished for callers that were still there, and for nobody, in each sample.
    pub(crate) fn work(&self) -> (Vec<f64>, Vec<f64>) {
        let of = |counts: &Mutex<Vec<f64>>| counts.lock().expect("nobody panics with it").clone();
        (of(&self.0.useful), of(&self.0.wasted))
    }
}

impl Service<Request<Body>> for Server {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let works = Arc::clone(&self.0);
        let due = Due::of(&request);
        let (answer, answered) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            works.queued.fetch_add(1, Relaxed);
            let worker = works.workers.acquire().await.expect("it is never closed");
            works.queued.fetch_sub(1, Relaxed);
            if works.hangs.load(Relaxed) {
                // Its caller gives up; the worker is not lost for good.
                drop(worker);
                return std::future::pending().await;
            }
            let service = *works.service.lock().expect("nobody panics with it");
            if works.heeds_deadlines && due.is_some_and(|due| due.left() < service + SLACK) {
                let _ = answer.send(Status::deadline_exceeded("late").into_http());
                return;
            }
            sleep(service).await;
            drop(worker);
            let useful = answer.send(Status::ok("").into_http()).is_ok();
            add(if useful { &works.useful } else { &works.wasted }, works.began, 1.0);
        });
        Box::pin(async move { answered.await.map_err(|_| Status::unavailable("it is gone")) })
    }
}

/// Counts in the sample of now.
fn add(counts: &Mutex<Vec<f64>>, began: Instant, count: f64) {
    let at = (began.elapsed().as_secs_f64() / SAMPLE.as_secs_f64()) as usize;
    let mut counts = counts.lock().expect("nobody panics with it");
    if counts.len() <= at {
        counts.resize(at + 1, 0.0);
    }
    counts[at] += count;
}

/// What came of calls, by the sample in which they ended.
#[derive(Clone)]
pub(crate) struct Seen(Arc<Counts>);

struct Counts {
    began: Instant,
    good: Mutex<Vec<f64>>,
    failed: Mutex<Vec<f64>>,
    in_flight: AtomicU64,
    /// Of the calls that were good: the sample, and the milliseconds.
    latencies: Mutex<Vec<(usize, f64)>>,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Counts {
            began: Instant::now(),
            good: Mutex::default(),
            failed: Mutex::default(),
            in_flight: AtomicU64::new(0),
            latencies: Mutex::default(),
        }))
    }

    /// Calls a second that were good, in each of `samples`.
    pub(crate) fn good(&self, samples: usize) -> Vec<f64> {
        rates(&self.0.good.lock().expect("nobody panics with it"), samples)
    }

    pub(crate) fn failed(&self, samples: usize) -> Vec<f64> {
        rates(&self.0.failed.lock().expect("nobody panics with it"), samples)
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.0.in_flight.load(Relaxed)
    }

    /// A quantile of the good calls' milliseconds in each sample; zero where there was none.
    pub(crate) fn latency(&self, quantile: f64, samples: usize) -> Vec<f64> {
        let mut of = vec![Vec::new(); samples];
        for (at, millis) in &*self.0.latencies.lock().expect("nobody panics with it") {
            if let Some(of) = of.get_mut(*at) {
                of.push(*millis);
            }
        }
        of.into_iter().map(|values| self::quantile(values, quantile)).collect()
    }

    /// One call, whatever becomes of it.
    async fn call<S>(self, service: S, request: Request<Body>)
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let counts = &*self.0;
        let from = Instant::now();
        counts.in_flight.fetch_add(1, Relaxed);
        let answer = service.oneshot(request).await;
        counts.in_flight.fetch_sub(1, Relaxed);
        let is_good = answer.is_ok_and(|answer| {
            Status::from_header_map(answer.headers()).is_some_and(|s| s.code() == Code::Ok)
        });
        add(if is_good { &counts.good } else { &counts.failed }, counts.began, 1.0);
        if is_good {
            let at = (counts.began.elapsed().as_secs_f64() / SAMPLE.as_secs_f64()) as usize;
            let millis = from.elapsed().as_secs_f64() * 1e3;
            counts.latencies.lock().expect("nobody panics with it").push((at, millis));
        }
    }
}

fn rates(counts: &[f64], samples: usize) -> Vec<f64> {
    (0..samples)
        .map(|at| counts.get(at).copied().unwrap_or_default() / SAMPLE.as_secs_f64())
        .collect()
}

pub(crate) fn quantile(mut values: Vec<f64>, quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (values.len() as f64 * quantile) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Calls that come evenly, however many are under way: `rate` a second as it is at each moment.
pub(crate) async fn open_loop<S>(
    service: S,
    seen: &Seen,
    seconds: f64,
    rate: impl Fn(f64) -> f64,
    request: impl Fn() -> Request<Body>,
) where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    let began = Instant::now();
    let mut at = 0.0;
    while at < seconds {
        sleep_until(began + Duration::from_secs_f64(at)).await;
        tokio::spawn(seen.clone().call(service.clone(), request()));
        at += 1.0 / rate(at);
    }
}

/// What the samples of a value are that is looked at while something runs.
pub(crate) async fn sampled<F: Future>(run: F, value: impl Fn() -> f64) -> Vec<f64> {
    tokio::pin!(run);
    let mut values = Vec::new();
    while timeout(SAMPLE, &mut run).await.is_err() {
        values.push(value());
    }
    values
}

/// One attempt may take so long; then it counts as broken: nobody knows whether it was carried out.
#[derive(Clone)]
pub(crate) struct AttemptLimit<S>(pub(crate) S, pub(crate) Duration);

impl<S> Service<Request<Body>> for AttemptLimit<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Status>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = timeout(self.1, self.0.call(request));
        Box::pin(async move {
            let silent = |_| Err(Status::unavailable("no answer to this attempt"));
            answer.await.unwrap_or_else(silent)
        })
    }
}
