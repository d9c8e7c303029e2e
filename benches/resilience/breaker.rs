//! A backend that takes calls and never answers for ten seconds: without a breaker every caller waits
//! out its deadline; with one they are told at once, and it closes again when a probe is answered.

use std::time::Duration;

use http::Request;
use quorate::{
    layers::{CircuitBreakerLayer, DeadlineLayer},
    resilience::{backoff, circuit_breaker, deadline},
};
use tokio::time::sleep;
use tonic::body::Body;
use tower::Layer as _;

use crate::{
    plot::{Panel, Plot},
    world::{SAMPLE, Seen, Server, open_loop, sampled, virtually},
};

const SECONDS: f64 = 25.0;
const HANGS_AT: f64 = 5.0;
const BACK_AT: f64 = 15.0;
const LOAD: f64 = 200.0;

pub(crate) fn run() -> String {
    let samples = (SECONDS / SAMPLE.as_secs_f64()) as usize;
    println!("\nA backend that hangs for 10 s, {LOAD} calls/s with a deadline of 1 s\n");
    println!("| breaker | most calls waiting | answered | failed | back after |");
    println!("|---|--:|--:|--:|--:|");
    let mut panels = Vec::new();
    for (name, breaks) in [("without a breaker", false), ("with a breaker", true)] {
        let (seen, waiting) = virtually(|| once(breaks));
        let (good, failed) = (seen.good(samples), seen.failed(samples));
        let most = waiting.iter().copied().fold(0.0, f64::max);
        let sum = |rates: &[f64]| rates.iter().sum::<f64>() * SAMPLE.as_secs_f64();
        let back = (BACK_AT / SAMPLE.as_secs_f64()) as usize;
        let again = good[back..].iter().position(|rate| *rate >= 0.9 * LOAD);
        let again = again.map_or("never".to_owned(), |at| {
            format!("{:.1} s", (at + 1) as f64 * SAMPLE.as_secs_f64())
        });
        println!("| {name} | {most:.0} | {:.0} | {:.0} | {again} |", sum(&good), sum(&failed));
        panels.push(Panel {
            title: format!("{name}: at most {most:.0} calls wait"),
            lines: vec![good, failed, waiting],
        });
    }
    Plot {
        title: "A backend that takes calls and never answers",
        unit: "calls per second; calls",
        lines: &["answered/s", "failed/s", "waiting"],
        marks: &[(HANGS_AT, "hangs"), (BACK_AT, "back")],
        seconds: SECONDS,
    }
    .draw(&panels)
}

async fn once(breaks: bool) -> (Seen, Vec<f64>) {
    let server = Server::new(50, Duration::from_millis(20));
    let deadline =
        deadline::Config { default: Some(Duration::from_secs(1)), ..deadline::Config::default() };
    let deadline = DeadlineLayer::new(deadline.validate().expect("the figures work"));
    // Open for 2 s at most, so that it is soon back: a probe each 2 s costs nothing.
    let open =
        backoff::Config { max: Duration::from_secs(2), ..circuit_breaker::Config::default().open };
    let config = circuit_breaker::Config { open, ..circuit_breaker::Config::default() };
    let breaker = CircuitBreakerLayer::new(config.validate().expect("the figures work")).seed(1);
    let seen = Seen::new();
    let request = || Request::new(Body::empty());
    let plays = server.clone();
    let play = async move {
        sleep(Duration::from_secs_f64(HANGS_AT)).await;
        plays.hangs(true);
        sleep(Duration::from_secs_f64(BACK_AT - HANGS_AT)).await;
        plays.hangs(false);
    };
    let load = async {
        let inner = deadline.layer(server);
        if breaks {
            open_loop(breaker.layer(inner), &seen, SECONDS, |_| LOAD, request).await;
        } else {
            open_loop(inner, &seen, SECONDS, |_| LOAD, request).await;
        }
    };
    let both = async { tokio::join!(load, play) };
    let waiting = sampled(both, || seen.in_flight() as f64).await;
    (seen, waiting)
}
