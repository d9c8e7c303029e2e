//! What one operation costs in allocations, fsyncs, and reads and writes of the system.
//!
//! Three nodes and their clients in this one process, so allocations and system calls are those of
//! all four together; fsyncs are counted by the nodes themselves. Prints a table and judges nothing.
//! Run with `cargo bench --bench counters`.

use std::{
    alloc::System,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use quorate::{client::Client, testing::Cluster};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Operations of a measurement, over all clients.
const OPERATIONS: u64 = 4_000;

/// Bytes of a value.
const VALUE_BYTES: usize = 256;

/// Counts that only grow.
#[derive(Clone, Copy, Debug)]
struct Counts {
    allocations: u64,
    bytes: u64,
    fsyncs: u64,
    reads: u64,
    writes: u64,
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(async {
        let mut cluster = Cluster::start(3).await;
        cluster.wait_for_leader().await;
        println!(
            "{:<12} {:>7} {:>12} {:>10} {:>8} {:>8} {:>8}",
            "operation", "clients", "allocations", "KiB", "fsyncs", "reads", "writes"
        );
        for clients in [1, 64] {
            for operation in ["put", "get"] {
                measure(&cluster, operation, clients).await;
            }
        }
    });
}

/// Runs the operations and prints what each took at the mean.
async fn measure(cluster: &Cluster, operation: &'static str, clients: u64) {
    // Connections stand before anything is counted.
    let open: Vec<Client> = cluster.ids().into_iter().map(|id| cluster.client_at(id)).collect();
    for client in &open {
        client.kv().set("warm", "up").await.expect("written");
    }
    let before = Counts::now(cluster);
    let mut running = JoinSet::new();
    for number in 0..clients {
        let client = open[usize::try_from(number).expect("a small number") % open.len()].clone();
        running.spawn(async move {
            for n in 0..OPERATIONS / clients {
                let key = format!("key-{}", (number * 1_000 + n) % 500);
                if operation == "put" {
                    client.kv().set(key, vec![b'x'; VALUE_BYTES]).await.expect("written");
                } else {
                    client.kv().get(key).await.expect("read");
                }
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("no client panicked");
    }
    let after = Counts::now(cluster);
    #[expect(clippy::cast_precision_loss, reason = "counts of a short run")]
    let each = |of: fn(&Counts) -> u64| {
        let done = OPERATIONS / clients * clients;
        (of(&after) - of(&before)) as f64 / done as f64
    };
    println!(
        "{operation:<12} {clients:>7} {:>12.1} {:>10.1} {:>8.2} {:>8.2} {:>8.2}",
        each(|counts| counts.allocations),
        each(|counts| counts.bytes) / 1_024.0,
        each(|counts| counts.fsyncs),
        each(|counts| counts.reads),
        each(|counts| counts.writes),
    );
}

impl Counts {
    fn now(cluster: &Cluster) -> Self {
        let ids = cluster.ids();
        let fsyncs = ids.iter().map(|id| fsyncs(cluster.admin_address(*id))).sum();
        let memory = ALLOCATOR.stats();
        let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
        Self {
            allocations: (memory.allocations + memory.reallocations) as u64,
            bytes: memory.bytes_allocated as u64,
            fsyncs,
            reads: number(&io, "syscr: "),
            writes: number(&io, "syscw: "),
        }
    }
}

/// How many fsyncs of its log a node counted.
fn fsyncs(admin: SocketAddr) -> u64 {
    let mut stream = TcpStream::connect(admin).expect("the node runs");
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: quorate\r\nConnection: close\r\n\r\n")
        .expect("the node takes it");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the node answers");
    number(&text, "quorate_wal_fsync_seconds_count ")
}

/// The number behind the start of a line; 0 where there is none.
fn number(text: &str, start: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(start)?.trim().parse().ok());
    found.unwrap_or(0)
}
