//! A cluster of three processes that is asked for twice what it can do, with its overload control and
//! without: what is answered in time, what is shed, and whether sessions live through it.
//!
//! For each way: a closed loop finds the peak, then an open loop sends at twice that rate, whatever
//! comes back, with a deadline on each call and nothing retried, while sessions are kept alive beside
//! it. Load and nodes share the machine, as told at the top of the output.
//!
//! `cargo bench --bench overload`, or `-- --seconds 10 --deadline-ms 1000 --times 2 --only adaptive`.

#![allow(missing_docs)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and waits")]

mod load;
mod sessions;

use std::{sync::Arc, time::Duration};

use quorate::testing::Cluster;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    load::{Op, Outcome, Target},
    sessions::Sessions,
};

/// Calls under way at once in the closed loops; the best of them is the peak.
const CALLERS: [usize; 3] = [32, 96, 256];

/// Sessions that are kept alive.
const SESSIONS: usize = 60;

struct Options {
    seconds: u64,
    deadline: Duration,
    times: f64,
    only: String,
}

impl Options {
    fn parse() -> Self {
        let mut options =
            Self { seconds: 10, deadline: Duration::from_secs(1), times: 2.0, only: String::new() };
        let mut args = std::env::args().skip(1);
        while let Some(flag) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{flag} wants a value"));
            match flag.as_str() {
                "--seconds" => options.seconds = value().parse().expect("a number of seconds"),
                "--deadline-ms" => {
                    let millis = value().parse().expect("a number of milliseconds");
                    options.deadline = Duration::from_millis(millis);
                }
                "--times" => options.times = value().parse().expect("a factor"),
                "--only" => options.only = value(),
                // From cargo.
                "--bench" => {}
                flag => panic!("there is no flag {flag}"),
            }
        }
        options
    }
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let Options { seconds, deadline, times, .. } = options;
    println!(
        "three nodes and the load on {cores} cores; {} % lists, {} % puts, {} % reads, {} % locks; \
         {SESSIONS} sessions; a deadline of {deadline:?}",
        Op::Lists.percent(),
        Op::Puts.percent(),
        Op::Gets.percent(),
        Op::Locks.percent(),
    );
    println!(
        "{:<9} {:>7} {:>9} {:>9} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>18}",
        "control",
        "peak/s",
        "offered/s",
        "in time/s",
        "share",
        "p50 ms",
        "p99 ms",
        "refused",
        "late",
        "failed",
        "sessions expired"
    );
    for control in ["fixed", "adaptive"] {
        if options.only.is_empty() || options.only == control {
            run(control, seconds, deadline, times).await;
        }
    }
}

/// One way, with a cluster of its own.
async fn run(control: &str, seconds: u64, deadline: Duration, times: f64) {
    let settings = format!("overload_control = \"{control}\"\nslow_request = \"0\"\n");
    let program = env!("CARGO_BIN_EXE_quorate");
    let mut cluster = Cluster::builder(3).program(program).settings(settings).start().await;
    cluster.wait_until_ready().await;
    let target = Arc::new(Target::connect(&cluster.endpoints()).await);
    target.fill().await;
    let mut peak = 0.0_f64;
    for callers in CALLERS {
        let span = Duration::from_secs(seconds.div_ceil(2).max(3));
        let outcome = load::closed(&target, callers, span, deadline).await;
        peak = peak.max(outcome.good_per_second());
    }
    let rate = peak * times;
    let sessions = Sessions::open(&cluster.endpoints(), SESSIONS).await;
    let outcome = load::open(&target, rate, Duration::from_secs(seconds), deadline).await;
    let gauges = gauges(&cluster).await;
    let sessions = sessions.close().await;
    let Outcome { refused, late, failed, .. } = outcome.totals();
    let expired = format!("{} of {SESSIONS}", sessions.expired);
    println!(
        "{control:<9} {peak:>7.0} {rate:>9.0} {:>9.0} {:>6.0}% {:>8.1} {:>8.1} {refused:>8} {late:>8} {failed:>8} {expired:>18}",
        outcome.good_per_second(),
        100.0 * outcome.good_per_second() / peak,
        outcome.percentile_ms(50.0),
        outcome.percentile_ms(99.0),
    );
    for op in Op::ALL {
        let of = outcome.of(op);
        println!(
            "          {:<8} in time {:>7}, refused {:>7}, late {:>7}, failed {:>5}",
            op.name(),
            of.good,
            of.refused,
            of.late,
            of.failed
        );
    }
    println!(
        "          sessions: {} renewals, the slowest {:.0} ms, {} refused; at the end {gauges}",
        sessions.renewals,
        sessions.slowest.as_secs_f64() * 1e3,
        sessions.refused
    );
}

/// How the nodes' protection stands.
async fn gauges(cluster: &Cluster) -> String {
    let mut told = Vec::new();
    for id in cluster.ids() {
        let page = page(cluster, id).await.unwrap_or_default();
        let gauge = |name: &str| {
            let row = page.lines().find_map(|line| line.strip_prefix(name));
            row.map_or("?", str::trim).to_owned()
        };
        let limit = gauge("quorate_overload_limit ");
        told.push(format!(
            "node {id}: {} of {limit}, pressure {}",
            gauge("quorate_overload_in_flight "),
            gauge("quorate_overload_pressure ")
        ));
    }
    told.join("; ")
}

async fn page(cluster: &Cluster, id: u64) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(cluster.admin_address(id)).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}
