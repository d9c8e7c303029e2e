//! A node that is asked for too much says so at once, proposes none of it, and goes on.

use quorate::{
    pb::{
        kv::v1::WatchRequest,
        lock::v1::{AcquireRequest, DescribeRequest},
    },
    testing::Cluster,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::{
    PROGRAM, eventually, settle,
    speech::{Node, first, put, refused, span},
};

const SMALL: &str = "calls_max = 4\nwaits_max = 2\nstreams_max = 2\n";

async fn small() -> Cluster {
    settle(Cluster::builder(3).program(PROGRAM).settings(SMALL).start().await).await
}

#[tokio::test]
async fn a_full_queue_refuses_what_it_will_not_do() {
    let mut cluster = small().await;
    let leader = cluster.wait_for_leader().await;
    let mut node = Node::of(&cluster, leader).await;
    let before = node.footprint().await;
    let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    // Without a majority nothing commits, so that calls stay open.
    others.iter().for_each(|id| cluster.pause(*id));
    let mut calls = JoinSet::new();
    for number in 0..12 {
        let mut kv = node.kv.clone();
        calls.spawn(async move {
            let key = format!("key-{number}");
            let answer = kv.put(put(&key, "1")).await;
            (key, answer)
        });
    }
    let (mut over, mut unsettled): (Vec<String>, Vec<(String, Status)>) = Default::default();
    // What is too much is refused while the others wait: eight at least.
    while over.len() < 8 {
        let (key, answer) = calls.join_next().await.expect("twelve calls").expect("no panic");
        let status = answer.expect_err("there is no majority");
        if status.code() == Code::ResourceExhausted {
            refused::<()>("put", Err(status), Code::ResourceExhausted, "OVERLOADED");
            over.push(key);
        } else {
            unsettled.push((key, status));
        }
    }
    others.iter().for_each(|id| cluster.resume(*id));
    cluster.wait_for_leader().await;
    while let Some(ended) = calls.join_next().await {
        let (key, answer) = ended.expect("no panic");
        match answer {
            Ok(_) => {}
            Err(status) => unsettled.push((key, status)),
        }
    }
    assert!(unsettled.len() <= 4, "at most what was admitted is unsettled: {unsettled:?}");
    for key in &over {
        assert_eq!(read(&mut node, key).await, None, "{key} was refused and written");
    }
    eventually("writes to be taken again", async || {
        node.kv.clone().put(put("after", "1")).await.ok()
    })
    .await;
    assert_ne!(node.footprint().await, before, "and a footprint shows a write");
}

/// Reads a key of a node whose queue may be full for a moment.
async fn read(node: &mut Node, key: &str) -> Option<String> {
    let node = node.clone();
    eventually("a read", async || node.clone().get(key, false).await.ok()).await
}

#[tokio::test]
async fn waiters_beyond_the_limit_are_refused_and_get_no_place_in_line() {
    let cluster = small().await;
    let mut node = Node::of(&cluster, 1).await;
    let request = AcquireRequest { name: "busy".to_owned(), ..Default::default() };
    let held = AcquireRequest { wait: span(0, 0), ..request.clone() };
    node.lock.acquire(held).await.expect("granted");
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let (mut lock, request) = (node.lock.clone(), request.clone());
        waiting.spawn(async move { lock.acquire(request).await });
    }
    let describe = || DescribeRequest { name: "busy".to_owned(), stale: false };
    let in_line = async |node: &Node| {
        let answer = node.lock.clone().describe(describe()).await.ok()?;
        Some(answer.into_inner().lock?.waiter_count)
    };
    eventually("two waiters", async || (in_line(&node).await == Some(2)).then_some(())).await;
    let before = node.footprint().await;
    let answer = node.lock.acquire(request).await;
    refused("a third waiter", answer, Code::ResourceExhausted, "OVERLOADED");
    assert_eq!(in_line(&node).await, Some(2));
    assert_eq!(node.footprint().await, before);
    // One that gives up makes room for another.
    waiting.abort_all();
    eventually("the line to be empty", async || (in_line(&node).await == Some(0)).then_some(()))
        .await;
    let held = AcquireRequest { name: "busy".to_owned(), wait: span(0, 0), ..Default::default() };
    let answer = node.lock.acquire(held).await;
    refused("a try", answer, Code::FailedPrecondition, "LOCK_HELD");
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_until_one_ends() {
    let cluster = small().await;
    let mut node = Node::of(&cluster, 1).await;
    let request = || WatchRequest { key: "a".into(), ..Default::default() };
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = node.kv.watch(request()).await.expect("room").into_inner();
        stream.message().await.expect("it is registered");
        open.push(stream);
    }
    let before = node.footprint().await;
    let answer = first(node.kv.watch(request()).await).await;
    refused("a third stream", answer, Code::ResourceExhausted, "OVERLOADED");
    assert_eq!(node.footprint().await, before);
    open.pop();
    let node = node.clone();
    eventually("room for a stream", async || {
        first(node.clone().kv.watch(request()).await).await.ok()
    })
    .await;
}
