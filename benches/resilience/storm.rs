//! A retry storm: five seconds of overload, after which the load is again what the server can bear.
//! Without a budget the retries of the calls that time out keep it busy with work for nobody, for
//! ever; with one it recovers.

use std::time::Duration;

use http::Request;
use quorate::{
    layers::{Repeatable, RetryLayer},
    resilience::retry,
};
use tonic::body::Body;
use tower::Layer as _;

use crate::{
    plot::{Panel, Plot},
    world::{AttemptLimit, SAMPLE, Seen, Server, open_loop, virtually},
};

const SECONDS: f64 = 60.0;
/// What the server can do in a second: 20 workers, 20 ms a request.
const CAPACITY: f64 = 1_000.0;
const LOAD: f64 = 600.0;
const OVERLOAD: f64 = 2_500.0;
const OVERLOAD_AT: f64 = 5.0;
const OVERLOAD_ENDS: f64 = 10.0;
/// When callers give up an attempt.
const ATTEMPT: Duration = Duration::from_millis(500);

pub(crate) fn run() -> String {
    let samples = (SECONDS / SAMPLE.as_secs_f64()) as usize;
    println!(
        "\n5 s at {OVERLOAD}/s, before and after {LOAD}/s, of {CAPACITY}/s; 4 attempts of 500 ms\n"
    );
    println!(
        "| retries | good/s before | good/s in the last 10 s | attempts a call | wasted work |"
    );
    println!("|---|--:|--:|--:|--:|");
    let mut panels = Vec::new();
    for (name, budget) in [("without a budget", false), ("with a budget", true)] {
        let (good, failed, useful, wasted, attempts) = virtually(|| once(budget, samples));
        let before = good[2..10].iter().sum::<f64>() / 8.0;
        let last = good[samples - 20..].iter().sum::<f64>() / 20.0;
        let share = 100.0 * wasted / (useful + wasted);
        println!("| {name} | {before:.0} | {last:.0} | {attempts:.2} | {share:.0} % |");
        panels.push(Panel {
            title: format!("{name}: {last:.0}/s at the end"),
            lines: vec![good, failed],
        });
    }
    Plot {
        title: "A retry storm: 5 s of overload, then 60 % of what the server can do",
        unit: "calls per second",
        lines: &["answered in time", "failed"],
        marks: &[(OVERLOAD_AT, "overload"), (OVERLOAD_ENDS, "over")],
        seconds: SECONDS,
    }
    .draw(&panels)
}

/// Good and failed calls over time, useful and wasted work in all, attempts a call.
async fn once(budget: bool, samples: usize) -> (Vec<f64>, Vec<f64>, f64, f64, f64) {
    let server = Server::new(20, Duration::from_millis(20));
    let config = retry::Config { attempts_max: 4, ..retry::Config::default() };
    let mut layer = RetryLayer::new(config.validate().expect("the figures work"));
    if !budget {
        layer = layer.budget(None);
    }
    let stack = layer.layer(AttemptLimit(server.clone(), ATTEMPT));
    let seen = Seen::new();
    let rate = |at: f64| {
        if (OVERLOAD_AT..OVERLOAD_ENDS).contains(&at) { OVERLOAD } else { LOAD }
    };
    open_loop(stack, &seen, SECONDS, rate, || {
        let mut request = Request::new(Body::empty());
        request.extensions_mut().insert(Repeatable(true));
        request
    })
    .await;
    let (useful, wasted) = server.work();
    let stats = layer.stats();
    let attempts = 1.0 + stats.retries as f64 / stats.calls.max(1) as f64;
    let sum = |counts: Vec<f64>| counts.into_iter().sum::<f64>();
    (seen.good(samples), seen.failed(samples), sum(useful), sum(wasted), attempts)
}
