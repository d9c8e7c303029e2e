//! A service of three processes and a client with every layer on, while one process is stopped where
//! it stands (SIGSTOP) and goes on later. What the layers count is printed each second, what they
//! decide is logged: together they tell the story.
//!
//! `cargo run --example resilient` stops and continues a process itself and ends after 20 s;
//! `cargo run --example resilient -- by-hand` goes on for ten minutes and leaves the signals to you.

mod backend;

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use quorate::{
    client::balance::{Balance, PeakEwma, Static},
    layers::{
        CircuitBreakerHandle, CircuitBreakerLayer, ConcurrencyLimitHandle, ConcurrencyLimitLayer,
        DeadlineLayer, HedgeLayer, Repeatable, RetryLayer,
    },
    resilience::{circuit_breaker, concurrency_limit, deadline, hedge, outlier, retry},
};
use rustix::process::{Signal, kill_process};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};
use tonic::{Request, body::Body, client::GrpcService, codegen::StdError};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::Layer as _;

use crate::backend::Process;

/// Calls under way at once, each caller resting a little between two.
const CALLERS: usize = 24;
const REST: Duration = Duration::from_millis(20);
/// How long a call may take, all attempts together.
const DEADLINE: Duration = Duration::from_secs(1);

const SECONDS: u32 = 20;
const STOPS_AT: u32 = 5;
const GOES_ON_AT: u32 = 13;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let by_hand = match env::args().nth(1).as_deref() {
        Some("serve") => return backend::serve().await,
        Some("by-hand") => true,
        None => false,
        Some(other) => return Err(format!("{other} is not by-hand").into()),
    };
    tracing_subscriber::fmt()
        .with_env_filter("warn,quorate=info")
        .with_writer(std::io::stderr)
        .init();
    let mut processes = BTreeMap::new();
    for name in ["anna", "bert", "cleo"] {
        let process = Process::start()?;
        println!("{name} is process {} at {}", process.id(), process.address);
        processes.insert(name, process);
    }
    // Back soon, so that it can be seen.
    let outlier = outlier::Config {
        interval: Duration::from_millis(500),
        base_ejection_time: Duration::from_secs(2),
        ..outlier::Config::default()
    };
    let balance = Balance::builder()
        .policy(PeakEwma)
        .outlier(outlier.validate()?)
        .resolve(Static::parse(processes.values().map(|process| &*process.address))?);
    let deadline = deadline::Config { default: Some(DEADLINE), ..Default::default() };
    let deadline = DeadlineLayer::new(deadline.validate()?);
    let retry = RetryLayer::new(retry::ValidConfig::default());
    // It is for all three processes together: a few failures in a row may be those of one, which is
    // the balancer's business. Half of all calls are not.
    let breaker = circuit_breaker::Config {
        consecutive_failures: None,
        ..circuit_breaker::Config::default()
    };
    let breaker = CircuitBreakerLayer::new(breaker.validate()?);
    let limit = ConcurrencyLimitLayer::new(concurrency_limit::ValidConfig::default());
    let hedge = HedgeLayer::new(hedge::ValidConfig::default());
    // From the outside in: each call has a deadline, its attempts are retried within a budget, not
    // made at all where nothing answers, bounded in number, and hedged over the balanced processes.
    let hedged = hedge.layer(balance.clone());
    let stack = deadline.layer(retry.layer(breaker.layer(limit.layer(hedged))));

    let counts = Arc::new(Counts::new());
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        callers.spawn(call(HealthClient::new(stack.clone()), Arc::clone(&counts)));
    }
    let mut story = Story {
        addresses: processes.iter().map(|(name, p)| (*name, p.address.clone())).collect(),
        picks: BTreeMap::new(),
        balance,
        retry,
        hedge,
        limit: limit.handle(),
        breaker: breaker.handle(),
        counts,
    };
    if by_hand {
        println!("stop one by `kill -STOP`, let it go on by `kill -CONT`");
    }
    let mut seconds = interval(Duration::from_secs(1));
    seconds.tick().await;
    for second in 1..=if by_hand { 600 } else { SECONDS } {
        seconds.tick().await;
        story.row(second).await;
        let (signal, word) = match second {
            STOPS_AT => (Signal::STOP, "is stopped: it takes calls and answers none"),
            GOES_ON_AT => (Signal::CONT, "goes on"),
            _ => continue,
        };
        if !by_hand {
            kill_process(processes["bert"].pid(), signal)?;
            println!("    -- bert {word}");
        }
    }
    callers.shutdown().await;
    story.end();
    Ok(())
}

struct Counts {
    ok: AtomicU64,
    failed: AtomicU64,
    /// In microseconds, since the last row.
    latencies: Mutex<Histogram<u64>>,
}

impl Counts {
    fn new() -> Self {
        let latencies = Histogram::new(3).expect("three digits are supported");
        Self { ok: AtomicU64::new(0), failed: AtomicU64::new(0), latencies: Mutex::new(latencies) }
    }
}

/// Calls again and again.
async fn call<S>(mut client: HealthClient<S>, counts: Arc<Counts>)
where
    S: GrpcService<Body>,
    S::Error: Into<StdError>,
    S::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    <S::ResponseBody as http_body::Body>::Error: Into<StdError> + Send,
{
    loop {
        let mut request = Request::new(HealthCheckRequest::default());
        // It only reads: being asked twice does no harm.
        request.extensions_mut().insert(Repeatable(true));
        let from = Instant::now();
        match client.check(request).await {
            Ok(_) => _ = counts.ok.fetch_add(1, Relaxed),
            Err(_) => _ = counts.failed.fetch_add(1, Relaxed),
        }
        let micros = u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX);
        counts.latencies.lock().await.record(micros).expect("it holds any");
        sleep_until(Instant::now() + REST).await;
    }
}

/// What is printed each second.
struct Story {
    addresses: Vec<(&'static str, String)>,
    picks: BTreeMap<String, u64>,
    balance: Balance,
    retry: RetryLayer,
    hedge: HedgeLayer,
    limit: ConcurrencyLimitHandle,
    breaker: CircuitBreakerHandle,
    counts: Arc<Counts>,
}

impl Story {
    async fn row(&mut self, second: u32) {
        if second == 1 {
            println!(
                "{:>4} {:>7} {:>6} {:>8} {:>8} {:>7} {:>6} {:>12}  {:<9}{:<24}{:<24}{:<24}",
                "s",
                "ok",
                "failed",
                "p50, ms",
                "p99, ms",
                "retries",
                "hedges",
                "limit, used",
                "breaker",
                "anna",
                "bert",
                "cleo"
            );
        }
        let (p50, p99) = {
            let mut latencies = self.counts.latencies.lock().await;
            let of = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
            let both = (of(0.5), of(0.99));
            latencies.clear();
            both
        };
        let limit = self.limit.stats();
        let mut line = format!(
            "{second:>4} {:>7} {:>6} {p50:>8.1} {p99:>8.1} {:>7} {:>6} {:>12}  {:<9}",
            self.counts.ok.load(Relaxed),
            self.counts.failed.load(Relaxed),
            self.retry.stats().retries,
            self.hedge.stats().hedged,
            format!("{}, {}", limit.limit, limit.in_flight),
            format!("{:?}", self.breaker.state()).split(' ').next().unwrap_or_default(),
        );
        let view = self.balance.view();
        for (_, address) in &self.addresses {
            let cell = view.endpoints.iter().find(|endpoint| endpoint.address == *address);
            let cell = cell.map_or_else(String::new, |endpoint| {
                let before = self.picks.insert(address.clone(), endpoint.picks).unwrap_or(0);
                let state = if endpoint.ejected { "EJECTED" } else { &endpoint.state };
                format!("{}/s {state}", endpoint.picks - before)
            });
            line.push_str(&format!("{cell:<24}"));
        }
        println!("{}", line.trim_end());
    }

    fn end(&self) {
        let (ok, failed) = (self.counts.ok.load(Relaxed), self.counts.failed.load(Relaxed));
        println!("{ok} calls answered, {failed} failed");
        println!("{:?}\n{:?}", self.retry.stats(), self.hedge.stats());
    }
}
