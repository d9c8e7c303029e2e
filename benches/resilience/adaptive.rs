//! A server that loses half of its speed for ten seconds. A limit that was set for good times lets a
//! queue grow until every answer is late; one that adapts turns away what it cannot do in time.

use std::time::Duration;

use http::Request;
use quorate::{
    layers::{ConcurrencyLimitLayer, DeadlineLayer},
    resilience::{
        concurrency_limit::{Aimd, Algorithm, Config, Gradient2, Vegas},
        deadline,
    },
};
use tokio::time::sleep;
use tonic::body::Body;
use tower::Layer as _;

use crate::{
    plot::{Panel, Plot},
    world::{SAMPLE, Seen, Server, open_loop, sampled, virtually},
};

const SECONDS: f64 = 30.0;
const HALVES_AT: f64 = 10.0;
const BACK_AT: f64 = 20.0;
/// 20 workers, 20 ms a request: 1,000/s, and half of it.
const LOAD: f64 = 900.0;
const HALF: f64 = 500.0;
const DEADLINE: Duration = Duration::from_millis(250);
/// Ten times the workers, as limits are set by those who do not want to think of them again.
const FIXED: usize = 200;

pub(crate) fn run() -> String {
    let samples = (SECONDS / SAMPLE.as_secs_f64()) as usize;
    println!("\nCapacity halves from 1,000/s for 10 s, {LOAD} calls/s with a deadline of 250 ms\n");
    println!("| limit | good/s before | good/s at half, of 500 | p99 there, ms | limit there |");
    println!("|---|--:|--:|--:|--:|");
    let bounds = |algorithm| Config { algorithm, max: FIXED, ..Config::default() };
    let limits = [
        ("fixed at 200", Config::fixed(FIXED)),
        ("AIMD", bounds(Algorithm::Aimd(Aimd { latency_max: DEADLINE / 2, ..Aimd::default() }))),
        ("Vegas", bounds(Algorithm::Vegas(Vegas::default()))),
        ("Gradient2", bounds(Algorithm::Gradient2(Gradient2::default()))),
    ];
    let mut panels = Vec::new();
    for (name, config) in limits {
        let (seen, limit) = virtually(|| once(config));
        let (good, failed) = (seen.good(samples), seen.failed(samples));
        let per = |seconds: f64| (seconds / SAMPLE.as_secs_f64()) as usize;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let half = per(HALVES_AT + 2.0)..per(BACK_AT);
        let before = mean(&good[per(2.0)..per(HALVES_AT)]);
        let p99 = seen.latency(0.99, samples);
        println!(
            "| {name} | {before:.0} | {:.0} | {:.0} | {:.0} |",
            mean(&good[half.clone()]),
            mean(&p99[half.clone()]),
            mean(&limit[half.clone()]),
        );
        if name == "fixed at 200" || name == "Gradient2" {
            let title = format!("{name}: {:.0}/s of {HALF} at half", mean(&good[half]));
            panels.push(Panel { title, lines: vec![good, failed, limit] });
        }
    }
    Plot {
        title: "A server that loses half of its speed for ten seconds",
        unit: "calls per second; limit",
        lines: &["answered in time/s", "refused or late/s", "limit"],
        marks: &[(HALVES_AT, "half"), (BACK_AT, "whole")],
        seconds: SECONDS,
    }
    .draw(&panels)
}

async fn once(config: Config) -> (Seen, Vec<f64>) {
    let server = Server::new(20, Duration::from_millis(20));
    let limit = ConcurrencyLimitLayer::new(config.validate().expect("the figures work"));
    let deadline = deadline::Config { default: Some(DEADLINE), ..deadline::Config::default() };
    let deadline = DeadlineLayer::new(deadline.validate().expect("the figures work"));
    let stack = deadline.layer(limit.layer(server.clone()));
    let play = async move {
        sleep(Duration::from_secs_f64(HALVES_AT)).await;
        server.takes(Duration::from_millis(40));
        sleep(Duration::from_secs_f64(BACK_AT - HALVES_AT)).await;
        server.takes(Duration::from_millis(20));
    };
    let seen = Seen::new();
    let load = open_loop(stack, &seen, SECONDS, |_| LOAD, || Request::new(Body::empty()));
    let handle = limit.handle();
    let both = async { tokio::join!(load, play) };
    let limits = sampled(both, || handle.stats().limit as f64).await;
    (seen, limits)
}
