//! What the balancer costs a call: the same unary call through tonic's channel and through ours, in
//! turn, to one backend that answers at once; and a read of a one-node cluster through a client that
//! tonic generated and through Quorate's client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quorate::{
    client::{
        Client,
        balance::{Balance, Static},
    },
    pb::kv::v1::{RangeRequest, kv_service_client::KvServiceClient},
    testing::Cluster,
};
use tokio::{task::JoinSet, time::sleep};
use tonic::transport::{Channel, Endpoint};

use crate::{backends::Backend, load};

/// How often both are measured, in turn.
const ROUNDS: usize = 12;

/// How long one of them is measured in a round.
const ROUND: Duration = Duration::from_millis(700);

const CALLERS: [u64; 2] = [1, 64];

pub(crate) async fn measure() {
    println!("\nAdded to a unary call, {ROUNDS} rounds of both in turn, medians:\n");
    println!("| what | callers | tonic's channel, calls/s | ours, calls/s | added to a call |");
    println!("|---|--:|--:|--:|--:|");
    balancer().await;
    client().await;
}

async fn balancer() {
    let backends = Arc::new(vec![Backend::start(Duration::ZERO)]);
    let address = backends[0].address.to_string();
    let channel = channel(&address).await;
    let balance = Balance::over(Static::parse([&address]).expect("it is an address"));
    balance.ready().await.expect("it serves");
    for callers in CALLERS {
        let theirs = || {
            let (target, backends) = (channel.clone(), Arc::clone(&backends));
            async move { load::run(target, callers, (ROUND, Duration::ZERO), backends).await.rate() }
        };
        let ours = || {
            let (target, backends) = (balance.clone(), Arc::clone(&backends));
            async move { load::run(target, callers, (ROUND, Duration::ZERO), backends).await.rate() }
        };
        row("`Balance` over one endpoint", callers, theirs, ours).await;
    }
}

async fn client() {
    let cluster = Cluster::start(1).await;
    let channel = channel(&cluster.endpoint(1)).await;
    let client = cluster.client();
    client.kv().set("key", "value").await.expect("it is written");
    for callers in CALLERS {
        let theirs = || looped(callers, KvServiceClient::new(channel.clone()), read_bare);
        let ours = || looped(callers, client.clone(), read);
        row("a read through `Client`", callers, theirs, ours).await;
    }
}

async fn channel(address: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("it is an address");
    endpoint.tcp_nodelay(true).connect().await.expect("it serves")
}

fn request() -> RangeRequest {
    RangeRequest { key: "key".into(), stale: true, ..Default::default() }
}

async fn read_bare(mut client: KvServiceClient<Channel>) {
    client.range(request()).await.expect("it answers");
}

async fn read(client: Client) {
    client.kv().range(request()).await.expect("it answers");
}

/// Calls a second.
async fn looped<C, F>(callers: u64, client: C, call: fn(C) -> F) -> f64
where
    C: Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let stop = Arc::new(AtomicBool::new(false));
    let mut running = JoinSet::new();
    let from = Instant::now();
    for _ in 0..callers {
        let (stop, client) = (Arc::clone(&stop), client.clone());
        running.spawn(async move {
            let mut calls = 0_u64;
            while !stop.load(Relaxed) {
                call(client.clone()).await;
                calls += 1;
            }
            calls
        });
    }
    sleep(ROUND).await;
    stop.store(true, Relaxed);
    let calls: u64 = running.join_all().await.into_iter().sum();
    calls as f64 / from.elapsed().as_secs_f64()
}

async fn row<F, G>(what: &str, callers: u64, theirs: impl Fn() -> F, ours: impl Fn() -> G)
where
    F: Future<Output = f64>,
    G: Future<Output = f64>,
{
    let mut rounds = Vec::new();
    // The first warms up both.
    for round in 0..=ROUNDS {
        let pair = if round % 2 == 0 {
            let theirs = theirs().await;
            (theirs, ours().await)
        } else {
            let ours = ours().await;
            (theirs().await, ours)
        };
        if round > 0 {
            rounds.push(pair);
        }
    }
    let theirs = median(rounds.iter().map(|(theirs, _)| *theirs));
    let ours = median(rounds.iter().map(|(_, ours)| *ours));
    let added = median(rounds.iter().map(|(theirs, ours)| (theirs / ours - 1.0) * 100.0));
    println!("| {what} | {callers} | {theirs:.0} | {ours:.0} | {added:+.1} % |");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
