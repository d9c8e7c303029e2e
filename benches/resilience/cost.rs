//! What each layer adds to a real unary call, and all of them: against a bare tonic channel to the same
//! server, which answers at once, in turn and in the same run.

use std::{sync::Arc, time::Duration};

use quorate::{
    client::balance::{Balance, Static},
    layers::{
        CircuitBreakerLayer, ConcurrencyLimitLayer, DeadlineLayer, HedgeLayer, LoadShedLayer,
        RateLimitLayer, RetryLayer,
    },
    resilience::{
        circuit_breaker, concurrency_limit, deadline, hedge, load_shed, rate_limit, retry,
    },
};
use tonic::transport::{Channel, Endpoint};
use tower::Layer as _;

use crate::{
    backends::Backend,
    load::{self, Target},
};

/// How often both are measured, in turn.
const ROUNDS: usize = 12;
/// How long one of them is measured in a round.
const ROUND: Duration = Duration::from_millis(400);
const CALLERS: [u64; 2] = [1, 64];

pub(crate) fn measure() {
    let runtime = tokio::runtime::Runtime::new().expect("threads are to be had");
    runtime.block_on(rows());
}

async fn rows() {
    println!("\nAdded to a unary call, {ROUNDS} rounds of both in turn, medians:\n");
    println!("| what | callers | bare channel, calls/s | with it, calls/s | added to a call |");
    println!("|---|--:|--:|--:|--:|");
    let backends = Arc::new(vec![Backend::start(Duration::ZERO)]);
    let address = backends[0].address.to_string();
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("it is an address");
    let bare = endpoint.tcp_nodelay(true).connect().await.expect("it serves");
    let deadline = DeadlineLayer::new(deadline::ValidConfig::default());
    let retry = RetryLayer::new(retry::ValidConfig::default());
    let hedge = HedgeLayer::new(hedge::ValidConfig::default());
    let breaker = CircuitBreakerLayer::new(circuit_breaker::ValidConfig::default());
    // Neither refuses anything here: it is the price of counting that is asked for.
    let limit = concurrency_limit::Config { initial: 200, min: 100, ..Default::default() };
    let limit = ConcurrencyLimitLayer::new(limit.validate().expect("the figures work"));
    let rate = rate_limit::Config { rate: 1_000_000, burst: 1_000_000, ..Default::default() };
    let rate = RateLimitLayer::new(rate.validate().expect("the figures work"));
    let shed = LoadShedLayer::new(load_shed::ValidConfig::default());
    let channel = || bare.clone();
    row("nothing", channel(), channel(), &backends).await;
    row("deadline", channel(), deadline.layer(channel()), &backends).await;
    row("retry", channel(), retry.layer(channel()), &backends).await;
    row("hedge", channel(), hedge.layer(channel()), &backends).await;
    row("circuit breaker", channel(), breaker.layer(channel()), &backends).await;
    row("concurrency limit", channel(), limit.layer(channel()), &backends).await;
    row("rate limit", channel(), rate.layer(channel()), &backends).await;
    row("load shedding", channel(), shed.layer(channel()), &backends).await;
    let balance = Balance::over(Static::parse([&address]).expect("it is an address"));
    balance.ready().await.expect("it serves");
    row("balance", channel(), balance.clone(), &backends).await;
    let stack = deadline.layer(retry.layer(breaker.layer(limit.layer(balance))));
    row("deadline, retry, breaker, limit, balance", channel(), stack, &backends).await;
}

async fn row<T: Target>(what: &str, bare: Channel, with: T, backends: &Arc<Vec<Backend>>) {
    for callers in CALLERS {
        let mut rounds = Vec::new();
        // The first warms up both.
        for round in 0..=ROUNDS {
            let time = (ROUND, Duration::ZERO);
            let theirs = || async {
                load::run(bare.clone(), callers, time, Arc::clone(backends)).await.rate()
            };
            let ours = || async {
                load::run(with.clone(), callers, time, Arc::clone(backends)).await.rate()
            };
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
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
