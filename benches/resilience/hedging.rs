//! One of ten backends is ten times slower. A second copy of a call that takes twice as long as it
//! should goes to the next backend, within a budget: most of the slow one's latency is gone, at the
//! price of one call in ten. The percentile by which hedging goes by default would not help here: with
//! one call in ten slow, the 95th is a slow one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::{Request, Response};
use quorate::{
    layers::{HedgeLayer, Repeatable},
    resilience::hedge::{Config, Delay},
};
use tonic::{Status, body::Body};
use tower::{Layer as _, ServiceExt as _, service_fn};

use crate::{
    plot::{Panel, Plot},
    world::{SAMPLE, Seen, Server, open_loop, quantile, virtually},
};

const SECONDS: f64 = 20.0;
const SLOW_AT: f64 = 5.0;
const LOAD: f64 = 300.0;
const BACKENDS: usize = 10;
const FAST: Duration = Duration::from_millis(20);

pub(crate) fn run() -> String {
    let samples = (SECONDS / SAMPLE.as_secs_f64()) as usize;
    println!("\nOne of ten backends ten times slower, calls by turn, {LOAD}/s\n");
    println!("| hedging | p50, ms | p99, ms | attempts a call |");
    println!("|---|--:|--:|--:|");
    let mut panels = Vec::new();
    for (name, hedges) in [("without hedging", false), ("with hedging", true)] {
        let (seen, attempts) = virtually(|| once(hedges));
        let (p50, p99) = (seen.latency(0.5, samples), seen.latency(0.99, samples));
        // From one second after: the first slow answers have been seen.
        let after = ((SLOW_AT + 1.0) / SAMPLE.as_secs_f64()) as usize;
        let of = |values: &[f64]| quantile(values[after..].to_vec(), 0.5);
        println!("| {name} | {:.0} | {:.0} | {attempts:.2} |", of(&p50), of(&p99));
        let title = format!("{name}: p99 {:.0} ms, {attempts:.2} attempts", of(&p99));
        panels.push(Panel { title, lines: vec![p50, p99] });
    }
    Plot {
        title: "One of ten backends ten times slower",
        unit: "milliseconds",
        lines: &["p50", "p99"],
        marks: &[(SLOW_AT, "slower")],
        seconds: SECONDS,
    }
    .draw(&panels)
}

async fn once(hedges: bool) -> (Seen, f64) {
    let servers: Vec<_> = (0..BACKENDS).map(|_| Server::new(100, FAST)).collect();
    let turn = Arc::new(AtomicUsize::new(0));
    let slow = servers[0].clone();
    let by_turn = Arc::clone(&turn);
    let fleet = service_fn(move |request: Request<Body>| {
        let server = servers[by_turn.fetch_add(1, Relaxed) % BACKENDS].clone();
        async move { server.oneshot(request).await as Result<Response<Body>, Status> }
    });
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs_f64(SLOW_AT)).await;
        slow.takes(FAST * 10);
    });
    let request = || {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Repeatable(true));
        request
    };
    let seen = Seen::new();
    if hedges {
        let config = Config { delay: Delay::Fixed(FAST * 2), ..Config::default() };
        let layer = HedgeLayer::new(config.validate().expect("the figures work"));
        open_loop(layer.layer(fleet), &seen, SECONDS, |_| LOAD, request).await;
    } else {
        open_loop(fleet, &seen, SECONDS, |_| LOAD, request).await;
    }
    let calls = SECONDS * LOAD;
    (seen, turn.load(Relaxed) as f64 / calls)
}
