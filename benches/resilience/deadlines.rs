//! Callers that leave after 100 ms, a service in front, and one behind it that has more to do than it
//! can. Told nothing, the one behind works for callers who left; told the deadline, for those who wait.

use std::{convert::Infallible, time::Duration};

use http::{Request, Response};
use quorate::{
    layers::{BoxError, DeadlineLayer, ServerDeadlineLayer},
    resilience::deadline,
};
use tokio::time::sleep;
use tonic::{Status, body::Body};
use tower::{Layer as _, ServiceExt as _, service_fn, util::BoxCloneService};

use crate::{
    plot::{Panel, Plot},
    world::{SAMPLE, Seen, Server, open_loop, virtually},
};

const SECONDS: f64 = 20.0;
/// 4 workers, 20 ms a request: 200/s.
const CAPACITY: f64 = 200.0;
const LOAD: f64 = 300.0;

type Stack = BoxCloneService<Request<Body>, Response<Body>, BoxError>;

pub(crate) fn run() -> String {
    let samples = (SECONDS / SAMPLE.as_secs_f64()) as usize;
    println!(
        "\nCallers leave after 100 ms, {LOAD} calls/s through a service to one that does {CAPACITY}/s\n"
    );
    println!("| deadlines | good/s | worked on in vain |");
    println!("|---|--:|--:|");
    let mut panels = Vec::new();
    for (name, passed_on) in [("not passed on", false), ("passed on", true)] {
        let (good, useful, wasted) = virtually(|| once(passed_on, samples));
        let rate = good.iter().sum::<f64>() / samples as f64;
        let sum = |counts: &[f64]| counts.iter().fold(0.0, |sum, count| sum + count);
        let share = 100.0 * sum(&wasted) / (sum(&useful) + sum(&wasted));
        println!("| {name} | {rate:.0} | {share:.0} % |");
        let a_second = |counts: Vec<f64>| -> Vec<f64> {
            let rate = |at| counts.get(at).copied().unwrap_or_default() / SAMPLE.as_secs_f64();
            (0..samples).map(rate).collect()
        };
        let title = format!("{name}: {share:.0} % of the work for nobody");
        panels.push(Panel { title, lines: vec![a_second(useful), a_second(wasted)] });
    }
    Plot {
        title: "Callers leave after 100 ms: what the service behind works on",
        unit: "requests per second",
        lines: &["for a caller who waits", "for one who left"],
        marks: &[],
        seconds: SECONDS,
    }
    .draw(&panels)
}

async fn once(passed_on: bool, samples: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let unbounded = deadline::Config { default: None, ..deadline::Config::default() };
    let unbounded = unbounded.validate().expect("the figures work");
    let server = Server::heeding_deadlines(4, Duration::from_millis(20));
    let back = if passed_on {
        boxed(ServerDeadlineLayer::new(unbounded).layer(server.clone()))
    } else {
        boxed(server.clone())
    };
    let back = wire(back);
    let to_back = if passed_on { boxed(DeadlineLayer::new(unbounded).layer(back)) } else { back };
    let front = service_fn(move |_: Request<Body>| {
        let to_back = to_back.clone();
        async move {
            sleep(Duration::from_millis(5)).await;
            Ok::<_, Infallible>(match to_back.oneshot(Request::new(Body::empty())).await {
                Ok(answer) => answer,
                Err(error) => Status::from_error(error).into_http(),
            })
        }
    });
    let front = wire(boxed(ServerDeadlineLayer::new(unbounded).layer(front)));
    let leaves = Some(Duration::from_millis(100));
    let caller = deadline::Config { default: leaves, ..deadline::Config::default() };
    let caller = DeadlineLayer::new(caller.validate().expect("the figures work"));
    let seen = Seen::new();
    let request = || Request::new(Body::empty());
    open_loop(caller.layer(front), &seen, SECONDS, |_| LOAD, request).await;
    let (useful, wasted) = server.work();
    (seen.good(samples), useful, wasted)
}

fn boxed<S>(service: S) -> Stack
where
    S: tower::Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    BoxCloneService::new(service.map_err(Into::into))
}

/// What two processes do not share: extensions stay behind, headers go over.
fn wire(inner: Stack) -> Stack {
    boxed(service_fn(move |mut request: Request<Body>| {
        request.extensions_mut().clear();
        inner.clone().oneshot(request)
    }))
}
