//! How long a node takes from its start until it serves, with a million keys and a million events:
//! after a clean stop, and after writes and kill -9. A real process on a real disk, filled through
//! its own API. `TMPDIR` says which disk; the page cache is warm, as after a restart of the process.
//!
//! `cargo bench --bench restart`, or with other sizes `cargo bench --bench restart -- KEYS EVENTS`.

#![allow(missing_docs)]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quorate::{
    client::Client,
    pb::{
        event::v1::{AppendRequest, Event},
        kv::v1::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request},
    },
    testing::Cluster,
};
use tokio::task::JoinSet;

/// Keys are of 16 bytes.
const KEYS: u64 = 1_000_000;
const EVENTS: u64 = 1_000_000;
/// The size of a value and of an event's data, in bytes.
const CONTENT_BYTES: usize = 256;
/// Keys written by one transaction, and events by one append.
const KEYS_PER_CALL: u64 = 128;
const EVENTS_PER_CALL: u64 = 500;
/// Calls under way at once.
const CALLS: usize = 8;
/// How often the node is killed.
const KILLS: u32 = 5;
/// Writes that a node has taken since its start when it is killed.
const CALLS_BEFORE_KILL: u64 = 400;

#[tokio::main]
async fn main() {
    let mut sizes = std::env::args().filter_map(|arg| arg.parse::<u64>().ok());
    let (keys, events) = (sizes.next().unwrap_or(KEYS), sizes.next().unwrap_or(EVENTS));
    let program = env!("CARGO_BIN_EXE_quorate");
    let mut cluster = Cluster::builder(1).program(program).start().await;
    let started = Instant::now();
    fill(&cluster.client(), keys.div_ceil(KEYS_PER_CALL), put).await;
    fill(&cluster.client(), events.div_ceil(EVENTS_PER_CALL), append).await;
    println!(
        "{keys} keys of 16 bytes and {events} events, {CONTENT_BYTES} bytes each, written in {:.0} s",
        started.elapsed().as_secs_f64()
    );
    cluster.stop(1).await;
    print!("state {} MB, ", bytes(&cluster.data_dir(1).join("state")) / 1_000_000);
    println!("log {} MB", bytes(&cluster.data_dir(1).join("wal")) / 1_000_000);
    println!("{:<28} {:>9} {:>14}", "", "open, s", "peak RSS, MB");
    for _ in 0..3 {
        restart(&mut cluster, "after a clean stop").await;
        check(&cluster.client(), keys).await;
        cluster.stop(1).await;
    }
    cluster.restart(1).await;
    cluster.wait_until_ready().await;
    for round in 0..KILLS {
        let client = cluster.client();
        let writing = tokio::spawn(async move {
            let (from, mut calls) = (keys.div_ceil(KEYS_PER_CALL), JoinSet::new());
            for call in (from..).take(CALLS_BEFORE_KILL as usize * (1 + round as usize)) {
                while calls.len() >= CALLS {
                    calls.join_next().await;
                }
                let client = client.clone();
                // Keys that are there already: the state keeps its size.
                calls.spawn(async move { put(&client, call % from).await });
            }
            calls.join_all().await;
        });
        writing.await.expect("the writes are taken");
        cluster.kill(1).await;
        restart(&mut cluster, "after writes and kill -9").await;
        check(&cluster.client(), keys).await;
    }
}

/// Starts the node and prints how long it took to be ready.
async fn restart(cluster: &mut Cluster, how: &str) {
    let started = Instant::now();
    cluster.restart(1).await;
    cluster.wait_until_ready().await;
    let took = started.elapsed();
    let rss = peak_rss_kb(cluster.data_dir(1)).map_or(0, |kb| kb / 1_000);
    println!("{how:<28} {:>9.2} {rss:>14}", took.as_secs_f64());
}

async fn fill<F>(client: &Client, calls: u64, call: impl Fn(&Client, u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut open = JoinSet::new();
    for number in 0..calls {
        while open.len() >= CALLS {
            open.join_next().await.expect("one is open").expect("it is written");
        }
        open.spawn(call(client, number));
    }
    while let Some(done) = open.join_next().await {
        done.expect("it is written");
    }
}

fn put(client: &Client, call: u64) -> impl Future<Output = ()> + Send + use<> {
    let client = client.with_timeout(Duration::from_secs(60));
    let put = |number: u64| {
        let number = call * KEYS_PER_CALL + number;
        let request = PutRequest {
            key: format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).into(),
            value: content(number),
            ..PutRequest::default()
        };
        RequestOp { request: Some(Request::Put(request)) }
    };
    let txn = TxnRequest { success: (0..KEYS_PER_CALL).map(put).collect(), ..Default::default() };
    async move {
        client.kv().txn(txn).await.expect("written");
    }
}

fn append(client: &Client, call: u64) -> impl Future<Output = ()> + Send + use<> {
    let client = client.with_timeout(Duration::from_secs(60));
    let event = |number: u64| Event {
        r#type: "Measured".to_owned(),
        data: content(call * EVENTS_PER_CALL + number),
        ..Event::default()
    };
    let events = (0..EVENTS_PER_CALL).map(event).collect();
    let stream = format!("sensor-{:04}", call % 1_000);
    async move {
        let request = AppendRequest { stream, events, ..Default::default() };
        client.events().append(request).await.expect("appended");
    }
}

/// Bytes that do not compress and are the same in every run.
fn content(number: u64) -> Bytes {
    let mut state = number | 1;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(CONTENT_BYTES / 8).flatten().collect()
}

/// Everything is there after the start.
async fn check(client: &Client, keys: u64) {
    let all = RangeRequest { range_end: "\0".into(), count_only: true, ..Default::default() };
    let request = RangeRequest { key: "\0".into(), ..all };
    let client = client.with_timeout(Duration::from_secs(60));
    let found = client.kv().range(request).await.expect("it serves").count;
    assert_eq!(found, keys.div_ceil(KEYS_PER_CALL) * KEYS_PER_CALL, "keys");
}

fn bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir).expect("it is there").flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

/// The most memory that the node has had resident; the node's lock names its process.
fn peak_rss_kb(data_dir: &Path) -> Option<u64> {
    let pid = fs::read_to_string(data_dir.join("lock")).ok()?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim())).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
