//! Twice the load that a server can bear, of four classes. Without control all are late alike; with it
//! the least important ones are turned away first, and what is admitted is answered in time.

use std::time::Duration;

use http::Request;
use quorate::{
    layers::{ConcurrencyLimitLayer, DeadlineLayer, LoadShedLayer},
    resilience::{concurrency_limit::Config, deadline, load_shed},
};
use tonic::{Status, body::Body};
use tower::{Layer as _, Service};

use crate::{
    plot::{Panel, Plot},
    world::{SAMPLE, Seen, Server, open_loop, virtually},
};

const SECONDS: f64 = 20.0;
const OVERLOAD_AT: f64 = 5.0;
const OVERLOAD_ENDS: f64 = 15.0;
const WORKERS: usize = 20;
/// 20 workers, 20 ms a request.
const CAPACITY: f64 = 1_000.0;
/// Calls a second of each class under overload, the most important first; else 40 % of it.
const CLASSES: [(&str, f64); 4] =
    [("sessions", 100.0), ("locks", 200.0), ("keys", 700.0), ("lists", 1_000.0)];
const CALM: f64 = 0.4;

/// The class of a request, from 0.
#[derive(Clone, Copy)]
struct Class(u8);

pub(crate) fn run() -> String {
    let samples = (SECONDS / SAMPLE.as_secs_f64()) as usize;
    println!("\n2,000 calls/s of four classes for 10 s, of {CAPACITY}/s, deadline 250 ms\n");
    println!("| control | good/s under overload | sessions | locks | keys | lists |");
    println!("|---|--:|--:|--:|--:|--:|");
    let mut panels = Vec::new();
    for (name, sheds) in [("none", false), ("CoDel by class", true)] {
        let seen = virtually(|| once(sheds));
        let good: Vec<_> = seen.iter().map(|seen| seen.good(samples)).collect();
        let during = (OVERLOAD_AT / SAMPLE.as_secs_f64()) as usize
            ..(OVERLOAD_ENDS / SAMPLE.as_secs_f64()) as usize;
        let mean = |rates: &[f64]| rates[during.clone()].iter().sum::<f64>() / during.len() as f64;
        let all: f64 = good.iter().map(|rates| mean(rates)).sum();
        let shares: Vec<_> = good
            .iter()
            .zip(CLASSES)
            .map(|(rates, (_, rate))| format!("{:.0} %", 100.0 * mean(rates) / rate))
            .collect();
        println!("| {name} | {all:.0} | {} |", shares.join(" | "));
        panels.push(Panel { title: format!("{name}: {all:.0}/s in time"), lines: good });
    }
    Plot {
        title: "Twice the load that a server can bear, by class",
        unit: "answered in time per second",
        lines: &CLASSES.map(|(name, _)| name),
        marks: &[(OVERLOAD_AT, "twice the load"), (OVERLOAD_ENDS, "over")],
        seconds: SECONDS,
    }
    .draw(&panels)
}

async fn once(sheds: bool) -> Vec<Seen> {
    let server = Server::new(WORKERS, Duration::from_millis(20));
    if !sheds {
        return loads(server).await;
    }
    let class = |request: &Request<Body>| request.extensions().get().map_or(0, |Class(at)| *at);
    // A queue as long as one request takes is none that stands.
    let target = Duration::from_millis(20);
    let shed = load_shed::Config { target, ..load_shed::Config::default() };
    let shed = LoadShedLayer::new(shed.validate().expect("the figures work")).by_class(class);
    let handle = shed.handle();
    // As many at once as there are workers: what waits, waits here, and its delay is known.
    let limit = Config {
        queue_max: 500,
        queue_wait_max: Duration::from_millis(200),
        ..Config::fixed(WORKERS)
    };
    let limit = limit.validate().expect("the figures work");
    let limit =
        ConcurrencyLimitLayer::telling(limit, move |class, delay| handle.observe(class, delay));
    loads(shed.layer(limit.by_class(class).layer(server))).await
}

async fn loads<S>(service: S) -> Vec<Seen>
where
    S: Service<Request<Body>, Response = http::Response<Body>, Error = Status>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let deadline = Some(Duration::from_millis(250));
    let deadline = deadline::Config { default: deadline, ..deadline::Config::default() };
    let deadline = DeadlineLayer::new(deadline.validate().expect("the figures work"));
    let stack = deadline.layer(service);
    let seen: Vec<_> = CLASSES.iter().map(|_| Seen::new()).collect();
    let loads = (0..).zip(CLASSES).zip(&seen).map(|((class, (_, rate)), seen)| {
        let rate = move |at: f64| {
            let over = (OVERLOAD_AT..OVERLOAD_ENDS).contains(&at);
            rate * if over { 1.0 } else { CALM }
        };
        let request = move || {
            let mut request = Request::new(Body::empty());
            request.extensions_mut().insert(Class(class));
            request
        };
        open_loop(stack.clone(), seen, SECONDS, rate, request)
    });
    let mut loads: Vec<_> = loads.map(Box::pin).collect();
    let [a, b, c, d] = loads.as_mut_slice() else { unreachable!("there are four classes") };
    tokio::join!(a, b, c, d);
    drop(loads);
    seen
}
