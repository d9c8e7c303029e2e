//! The API as programs and people meet it: statuses, grpcurl's view and the command line.
//!
//! All against real processes. Every wait is for a condition and has a deadline, ten times what is
//! expected, so that a slow machine fails nothing.

mod cli;
mod commands;
mod grpcurl;
mod lab;
mod malformed;
mod observability;
mod overload;
mod quorum;
mod refusals;
mod retention;
mod speech;
mod tls;
mod watching;

use std::time::Duration;

use quorate::{
    pb::{cluster::v1::StatusRequest, discovery::v1::ResolveRequest},
    testing::Cluster,
};
use tokio::time::{Instant, interval};

/// The binary under test.
const PROGRAM: &str = env!("CARGO_BIN_EXE_quorate");

/// How long to wait for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// Three processes that have said all they say by themselves at a start.
async fn settled() -> Cluster {
    settle(Cluster::processes(PROGRAM, 3).await).await
}

/// Waits until every node has registered its disk and itself, and all have applied that: from then on state moves
/// by requests only.
async fn settle(cluster: Cluster) -> Cluster {
    let client = cluster.client();
    eventually("the nodes to register themselves", async || {
        let request = ResolveRequest { service: "quorate".to_owned(), ..Default::default() };
        let found = client.discovery().resolve(request).await.ok()?;
        // The founding, the disk of each other member, and an instance a node take a revision each.
        let last = 2 * u64::try_from(cluster.ids().len()).expect("a few");
        let status = client.cluster().status(StatusRequest::default()).await.ok()?;
        let behind = status.nodes.iter().any(|node| node.revision < last);
        (found.instances.len() == cluster.ids().len() && !behind).then_some(())
    })
    .await;
    cluster
}

/// Waits until `done` gives something.
async fn eventually<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + LIMIT;
    let mut ticks = interval(Duration::from_millis(20));
    loop {
        ticks.tick().await;
        if let Some(value) = done().await {
            return value;
        }
        assert!(Instant::now() < give_up, "waited {LIMIT:?} for {what}");
    }
}
