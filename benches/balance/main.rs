//! Every policy, and tonic's own balancer beside them, over three real servers: all healthy, one
//! killed and back, one ten times slower, one failing fast. Then what the balancer adds to a call.
//! Prints the tables of docs/balancing.md and draws its plots.
//!
//! `cargo bench --bench balance`, or `cargo bench --bench balance -- --seconds 6 --svg docs/figures
//! --only slow`; `--only` is one of healthy, killed, slow, failing, cost.

#![allow(missing_docs)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and waits")]

mod backends;
mod cost;
mod load;
mod plot;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use quorate::{
    client::balance::{
        Balance, Endpoint, LeastRequests, Maglev, PeakEwma, PickFirst, Random, RingHash,
        RoundRobin, Static, Weighted, ZoneAware,
    },
    resilience::outlier,
};
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint as TonicEndpoint};

use crate::{backends::Backend, load::Outcome, plot::Panel};

/// Calls under way at once.
const CALLERS: u64 = 64;

/// How long a healthy backend takes to answer; a slow one takes ten times as long.
const DELAY: Duration = Duration::from_millis(20);

/// The zone that all backends are in.
const ZONE: &str = "here";

/// Whose balancer it is; ours by the policy.
const SYSTEMS: [&str; 10] = [
    "least_requests",
    "peak_ewma",
    "round_robin",
    "random",
    "weighted",
    "zone_aware",
    "ring_hash",
    "maglev",
    "pick_first",
    "tonic",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Scenario {
    Healthy,
    Killed,
    Slow,
    Failing,
}

impl Scenario {
    const ALL: [Self; 4] = [Self::Healthy, Self::Killed, Self::Slow, Self::Failing];

    const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Killed => "killed",
            Self::Slow => "slow",
            Self::Failing => "failing",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Healthy => "All three healthy",
            Self::Killed => "The first killed after a third of the time, back after two thirds",
            Self::Slow => "The first ten times slower after a third of the time",
            Self::Failing => "The first failing at once after a third of the time",
        }
    }

    /// From when on calls count. What goes on until it is over counts from when it began.
    fn counts_from(self, third: Duration) -> Duration {
        match self {
            Self::Healthy | Self::Killed => Duration::ZERO,
            Self::Failing => third,
            // What it is like once it has been noticed: the first slow answers have come.
            Self::Slow => third + Duration::from_secs(1),
        }
    }

    /// What happens, and when, in thirds of the time.
    async fn play(self, backends: &[Backend], third: Duration) {
        sleep(third).await;
        let first = &backends[0];
        match self {
            Self::Healthy => {}
            Self::Killed => {
                first.kill();
                sleep(third).await;
                first.restart();
            }
            Self::Slow => first.answers_in(DELAY * 10),
            Self::Failing => first.fails(true),
        }
    }
}

struct Options {
    seconds: f64,
    svg: Option<PathBuf>,
    only: Option<String>,
}

fn options() -> Options {
    let mut options = Options { seconds: 9.0, svg: None, only: None };
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(arg) = args.next() {
        let mut value = || args.next().unwrap_or_else(|| panic!("{arg} takes a value"));
        match arg.as_str() {
            "--seconds" => options.seconds = value().parse().expect("a number of seconds"),
            "--svg" => options.svg = Some(value().into()),
            "--only" => options.only = Some(value()),
            _ => panic!("{arg} is not one of --seconds, --svg and --only"),
        }
    }
    options
}

#[tokio::main]
async fn main() {
    let options = options();
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let time = Duration::from_secs_f64(options.seconds);
    for scenario in Scenario::ALL {
        if !wanted(scenario.name()) {
            continue;
        }
        println!("\n{}, {CALLERS} callers, {} s:\n", scenario.title(), options.seconds);
        println!("| balancer | requests/s | failed | p50, ms | p99, ms | share of each, % |");
        println!("|---|--:|--:|--:|--:|---|");
        let mut outcomes = Vec::new();
        for system in SYSTEMS {
            let outcome = run(system, scenario, time).await;
            print(system, &outcome);
            outcomes.push((system, outcome));
        }
        if let Some(folder) = &options.svg {
            draw(scenario, &outcomes, folder, options.seconds / 3.0);
        }
    }
    if wanted("cost") {
        cost::measure().await;
    }
}

async fn run(system: &str, scenario: Scenario, time: Duration) -> Outcome {
    let backends = Arc::new((0..3).map(|_| Backend::start(DELAY)).collect::<Vec<_>>());
    // The calls that a killed one had in flight eject it. For 30 s would be longer than the run.
    let short = outlier::Config {
        interval: Duration::from_millis(500),
        base_ejection_time: Duration::from_secs(1),
        ..outlier::Config::default()
    };
    let ours = Balance::builder().outlier(short.validate().expect("the figures work"));
    let ours = match system {
        "least_requests" => ours.policy(LeastRequests),
        "peak_ewma" => ours.policy(PeakEwma),
        "round_robin" => ours.policy(RoundRobin::new()),
        "random" => ours.policy(Random),
        "weighted" => ours.policy(Weighted::new()),
        "zone_aware" => ours.policy(ZoneAware::new(ZONE, LeastRequests)),
        "ring_hash" => ours.policy(RingHash::new()),
        "maglev" => ours.policy(Maglev::new()),
        "pick_first" => ours.policy(PickFirst),
        _ => {
            let endpoints = backends.iter().map(|backend| {
                let uri = format!("http://{}", backend.address);
                TonicEndpoint::from_shared(uri).expect("it is an address").tcp_nodelay(true)
            });
            let channel = Channel::balance_list(endpoints);
            return play(channel, scenario, time, &backends).await;
        }
    };
    let endpoint = |backend: &Backend| {
        Endpoint::new(backend.address.to_string()).expect("it is an address").in_zone(ZONE)
    };
    let balance = ours.resolve(Static::new(backends.iter().map(endpoint)));
    balance.ready().await.expect("all serve");
    play(balance, scenario, time, &backends).await
}

async fn play<T: load::Target>(
    target: T,
    scenario: Scenario,
    time: Duration,
    backends: &Arc<Vec<Backend>>,
) -> Outcome {
    let running =
        load::run(target, CALLERS, (time, scenario.counts_from(time / 3)), Arc::clone(backends));
    let (outcome, ()) = tokio::join!(running, scenario.play(backends, time / 3));
    outcome
}

fn print(system: &str, outcome: &Outcome) {
    let millis = |quantile| outcome.latencies.value_at_quantile(quantile) as f64 / 1e3;
    let shares: Vec<_> = (0..3).map(|at| format!("{:.1}", 100.0 * outcome.share(at))).collect();
    println!(
        "| {} | {:.0} | {} ({:.1} %) | {:.1} | {:.1} | {} |",
        if system == "tonic" { "tonic's `Channel::balance_list`" } else { system },
        outcome.rate(),
        outcome.failed,
        outcome.failed_percent(),
        millis(0.5),
        millis(0.99),
        shares.join(" / ")
    );
}

fn draw(scenario: Scenario, outcomes: &[(&str, Outcome)], folder: &std::path::Path, third: f64) {
    let (ours, names, marks) = match scenario {
        Scenario::Killed => (
            "least_requests",
            ["the killed one", "the second", "the third"],
            vec![(third, "killed"), (2.0 * third, "back")],
        ),
        Scenario::Slow => {
            let names = ["the slow one", "the second", "the third"];
            ("peak_ewma", names, vec![(third, "ten times slower")])
        }
        _ => return,
    };
    let panel = |system: &str, name: &str| {
        let (_, outcome) = outcomes.iter().find(|(known, _)| *known == system).expect("it ran");
        let rate = outcome.rate();
        let title = format!("{name}: {rate:.0} answered/s, {} failed", outcome.failed);
        Panel { title, outcome }
    };
    let panels = [panel(ours, &format!("Quorate, {ours}")), panel("tonic", "tonic's balance")];
    let svg = plot::requests(scenario.title(), names, &marks, &panels);
    fs::create_dir_all(folder).expect("the folder can be made");
    let file = folder.join(format!("balance-{}.svg", scenario.name()));
    fs::write(&file, svg).expect("the folder takes files");
    println!("\ndrawn: {}", file.display());
}
