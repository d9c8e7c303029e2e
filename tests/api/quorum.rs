//! One node of three: it refuses what needs a majority, and still tells what it knows.

use std::time::Duration;

use quorate::pb::{
    cluster::v1::StatusRequest,
    event::v1::{AppendRequest, ReadRequest},
    kv::v1::RangeRequest,
    lock::v1::AcquireRequest,
    session::v1::OpenSessionRequest,
};
use tonic::Code;

use crate::{
    cli::Cli,
    eventually, settled,
    speech::{Node, drained, event, put, refused},
};

#[tokio::test]
async fn without_a_quorum_nothing_is_proposed_and_stale_reads_work() {
    let mut cluster = settled().await;
    let mut node = Node::of(&cluster, 1).await;
    let written = node.put("a", "1").await;
    let append = || AppendRequest {
        stream: "s".to_owned(),
        events: vec![event("", "T")],
        ..Default::default()
    };
    node.event.append(append()).await.expect("appended");
    cluster.kill(2).await;
    cluster.kill(3).await;
    // A leader notices only when an election timeout passed without its followers.
    eventually("the node to know that nobody leads", async || {
        let status = node.cluster.clone().status(StatusRequest { local: true }).await.ok()?;
        (status.into_inner().leader_id == 0).then_some(())
    })
    .await;

    let before = node.footprint().await;
    let (gone, reason) = (Code::Unavailable, "NO_QUORUM");
    // Each is refused only when the node's patience for a leader is over: all are asked at once.
    let acquire = AcquireRequest { name: "l".to_owned(), ..Default::default() };
    let [mut kv, mut read, mut event, mut lock, mut session] = [(); 5].map(|()| node.clone());
    let (put_again, range, appended, acquired, opened) = tokio::join!(
        kv.kv.put(put("a", "2")),
        read.get("a", false),
        event.event.append(append()),
        lock.lock.acquire(acquire),
        session.session.open_session(OpenSessionRequest::default()),
    );
    refused("put", put_again, gone, reason);
    refused("range", range, gone, reason);
    refused("append", appended, gone, reason);
    refused("acquire", acquired, gone, reason);
    refused("open session", opened, gone, reason);
    let mut short = tonic::Request::new(put("a", "3"));
    short.set_timeout(Duration::from_secs(1));
    let answer = node.kv.put(short).await;
    refused("put within less than a node's patience", answer, gone, reason);
    assert_eq!(node.footprint().await, before, "refusals changed something");
    let cli = Cli::of(&cluster);
    let told = cli.fails(&["--timeout", "3s", "kv", "put", "a", "4"], 78).await;
    assert!(told.contains("no leader has a quorum"), "a node that answers is believed: {told}");

    let stale = RangeRequest { key: "a".into(), stale: true, ..Default::default() };
    let found = node.kv.range(stale).await.expect("a stale read needs nobody").into_inner();
    assert_eq!((found.kvs[0].value.as_ref(), found.revision), (&b"1"[..], written));
    let read = ReadRequest { stream: "s".to_owned(), stale: true, ..Default::default() };
    let events = drained(node.event.read(read).await).await.expect("so does this one");
    assert_eq!(events[0].events.len(), 1);
    let status = node.cluster.status(StatusRequest::default()).await.expect("needs no quorum");
    let down = status.into_inner().nodes.into_iter().filter(|node| !node.reachable);
    let down: Vec<_> = down.map(|node| (node.node_id, node.error.is_empty())).collect();
    assert_eq!(down, [(2, false), (3, false)], "each is listed with the reason");

    cluster.restart(2).await;
    cluster.wait_for_leader().await;
    let value = eventually("a read", async || node.clone().get("a", false).await.ok()).await;
    assert_eq!(value.as_deref(), Some("1"), "what was refused is never applied later");
}
