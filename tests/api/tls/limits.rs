//! What one caller may take: connections, their first words, streams, headers and messages.

use std::time::Duration;

use quorate::{
    pb::kv::v1::{PutRequest, WatchRequest},
    testing::Cluster,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use super::{counted, logged};
use crate::{
    LIMIT, PROGRAM,
    cli::Cli,
    eventually,
    speech::{Node, put},
};

async fn one_node(settings: &str) -> Cluster {
    Cluster::builder(1).program(PROGRAM).settings(settings).start().await
}

/// Reads to the end of a connection that the node closes.
async fn closed(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _end = timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("it is closed");
}

#[tokio::test]
async fn a_connection_too_many_is_closed_at_once_and_the_others_live() {
    let cluster = one_node("connections_max = 2\nhandshake_timeout = \"1m\"").await;
    let connect = || TcpStream::connect(cluster.endpoint(1));
    let (first, second) = (connect().await.expect("open"), connect().await.expect("open"));
    closed(connect().await.expect("accepted, and closed")).await;
    counted(&cluster, 1, "quorate_connections_refused_total{listener=\"client\"}").await;
    assert!(cluster.log(1).contains("too many are open"), "{}", cluster.log(1));
    counted(&cluster, 1, "quorate_connections_open{listener=\"client\"}").await;
    drop((first, second));
    let cli = Cli::of(&cluster);
    eventually("a place to be free", async || {
        (cli.run(&["kv", "put", "a", "1"]).await.code == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_says_nothing_or_too_little_is_closed() {
    let cluster = one_node("handshake_timeout = \"200ms\"").await;
    let silent = TcpStream::connect(cluster.endpoint(1)).await.expect("open");
    closed(silent).await;
    logged(&cluster, 1, "client", "too_slow").await;
    let mut slow = TcpStream::connect(cluster.endpoint(1)).await.expect("open");
    slow.write_all(b"PRI * HT").await.expect("sent");
    closed(slow).await;
    let peer = TcpStream::connect(cluster.peer_address(1)).await.expect("open");
    closed(peer).await;
    logged(&cluster, 1, "peer", "too_slow").await;
}

#[tokio::test]
async fn a_connection_has_so_many_streams_and_others_wait() {
    let cluster = one_node("streams_per_connection_max = 2").await;
    let mut node = Node::of(&cluster, 1).await;
    let watch = |node: &Node| {
        let mut kv = node.kv.clone();
        let request = WatchRequest { key: "a".to_owned().into(), ..Default::default() };
        async move { kv.watch(request).await }
    };
    let first = watch(&node).await.expect("open");
    let _second = watch(&node).await.expect("open");
    let mut third = Box::pin(watch(&node));
    let other = Node::of(&cluster, 1).await;
    tokio::select! {
        _ = &mut third => panic!("a third stream on one connection"),
        opened = watch(&other) => drop(opened.expect("another connection has its own")),
    }
    drop(first);
    timeout(LIMIT, third).await.expect("a stream ended").expect("open");
    drop(_second);
    node.put("a", "1").await;
}

#[tokio::test]
async fn headers_and_messages_have_a_size() {
    let cluster = one_node("message_bytes_max = 65536\nheader_bytes_max = 4096").await;
    let mut node = Node::of(&cluster, 1).await;
    let value = vec![b'v'; 100_000];
    let large =
        PutRequest { key: "a".to_owned().into(), value: value.into(), ..Default::default() };
    let refused = node.kv.put(large).await.expect_err("too large");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("65536"), "{refused:?}");

    let mut wordy = tonic::Request::new(put("a", "1"));
    wordy.metadata_mut().insert("x-words", "w".repeat(8_000).parse().expect("ascii"));
    wordy.set_timeout(Duration::from_secs(10));
    let refused = node.kv.put(wordy).await.expect_err("too many headers");
    assert_ne!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    node.put("a", "1").await;
}
