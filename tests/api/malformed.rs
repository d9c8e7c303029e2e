//! Requests that make no sense whatever the state: refused as such, and nothing changes.

use std::{collections::BTreeMap, fmt::Debug};

use quorate::{
    pb::{
        discovery::v1::{RegisterRequest, SetInstanceStateRequest},
        event::v1::{AppendRequest, Event, SubscribeRequest},
        kv::v1::{
            Compare, DeleteRangeRequest, HeldLock, PutRequest, RangeRequest, RequestOp, TxnRequest,
            WatchRequest, compare::Target, request_op,
        },
        lock::v1::{AcquireRequest, DescribeRequest, ReleaseRequest},
        session::v1::OpenSessionRequest,
    },
    testing::Cluster,
};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    settled,
    speech::{Node, event, first, put, refused, span},
};

async fn any_node() -> (Cluster, Node) {
    let cluster = settled().await;
    let node = Node::of(&cluster, 2).await;
    (cluster, node)
}

fn malformed<T: Debug>(what: &str, answer: Result<T, Status>) {
    refused(what, answer, Code::InvalidArgument, "INVALID_ARGUMENT");
}

fn too_large<T: Debug>(what: &str, answer: Result<T, Status>) {
    refused(what, answer, Code::InvalidArgument, "TOO_LARGE");
}

#[tokio::test]
async fn of_keys() {
    let (_cluster, mut node) = any_node().await;
    let before = node.footprint().await;
    malformed("an empty key", node.kv.put(put("", "1")).await);
    malformed("a long key", node.kv.put(put(&"k".repeat(8_193), "1")).await);
    malformed("an empty range", node.kv.range(RangeRequest::default()).await);
    malformed("an empty delete", node.kv.delete_range(DeleteRangeRequest::default()).await);
    malformed("an empty watch", first(node.kv.watch(WatchRequest::default()).await).await);
    for id in ["x", "1:2", "0:1:1", "1:2:3", "1:2:3:4", "00000000-0000-0000-0000-00000000000g"] {
        let request = PutRequest { request_id: id.to_owned(), ..put("k", "1") };
        malformed(&format!("request id {id:?}"), node.kv.put(request).await);
    }
    let nameless = HeldLock { name: String::new(), fencing_token: 1 };
    let request = PutRequest { require_lock: Some(nameless), ..put("k", "1") };
    malformed("a lock without a name", node.kv.put(request).await);

    let write = |key: &str| RequestOp { request: Some(request_op::Request::Put(put(key, "1"))) };
    let txns = [
        ("an empty operation", vec![RequestOp::default()], vec![]),
        ("a key written twice", vec![write("k"), write("k")], vec![]),
        ("too many operations", (0..129).map(|n| write(&n.to_string())).collect(), vec![]),
        ("a comparison without a target", vec![], vec![Compare::default()]),
        (
            "a comparison without an operator",
            vec![],
            vec![Compare {
                key: "k".into(),
                target: Some(Target::Version(1)),
                ..Default::default()
            }],
        ),
    ];
    for (what, success, compare) in txns {
        let request = TxnRequest { compare, success, ..Default::default() };
        malformed(what, node.kv.txn(request).await);
    }
    assert_eq!(node.footprint().await, before, "refusals changed something");
}

#[tokio::test]
async fn of_locks_and_sessions() {
    let (_cluster, mut node) = any_node().await;
    let before = node.footprint().await;
    let named = |name: &str| AcquireRequest { name: name.to_owned(), ..Default::default() };
    malformed("no name", node.lock.acquire(named("")).await);
    malformed("a long name", node.lock.acquire(named(&"n".repeat(513))).await);
    let ttls = [
        ("short", span(0, 999_000_000)),
        ("long", span(24 * 3_600, 1_000_000)),
        ("negative", span(-5, 0)),
        ("of mixed signs", span(5, -1)),
        ("beyond the second", span(5, 1_000_000_000)),
    ];
    for (what, ttl) in ttls {
        let request = AcquireRequest { ttl, ..named("n") };
        malformed(&format!("a ttl that is {what}"), node.lock.acquire(request).await);
        let request = OpenSessionRequest { ttl, ..Default::default() };
        malformed(&format!("a ttl that is {what}"), node.session.open_session(request).await);
    }
    let request = AcquireRequest { wait: span(-1, 0), ..named("n") };
    malformed("a negative wait", node.lock.acquire(request).await);
    let request = AcquireRequest { owner: "o".repeat(257), ..named("n") };
    too_large("a long owner", node.lock.acquire(request).await);
    malformed("no name", node.lock.release(ReleaseRequest::default()).await);
    malformed("no name", node.lock.describe(DescribeRequest::default()).await);
    let request = OpenSessionRequest { request_id: "7:1:1".to_owned(), ..Default::default() };
    malformed("a sequence of no session yet", node.session.open_session(request).await);
    assert_eq!(node.footprint().await, before, "refusals changed something");
}

#[tokio::test]
async fn of_instances() {
    let (_cluster, mut node) = any_node().await;
    let before = node.footprint().await;
    let good = || RegisterRequest {
        service: "web".to_owned(),
        address: "127.0.0.1:9000".to_owned(),
        ..Default::default()
    };
    let address = |address: &str| RegisterRequest { address: address.to_owned(), ..good() };
    let metadata: BTreeMap<_, _> = (0..65).map(|n| (n.to_string(), String::new())).collect();
    let wrong = [
        ("no service", RegisterRequest { service: String::new(), ..good() }),
        ("a long service", RegisterRequest { service: "s".repeat(257), ..good() }),
        ("no address", address("")),
        ("an address without a port", address("127.0.0.1")),
        ("an address with a large port", address("127.0.0.1:65536")),
        ("a large weight", RegisterRequest { weight: 65_536, ..good() }),
        ("an unknown state", RegisterRequest { state: 3, ..good() }),
        ("a short ttl", RegisterRequest { ttl: span(0, 1), ..good() }),
        ("a ttl and a session", RegisterRequest { ttl: span(5, 0), session_id: 1, ..good() }),
    ];
    for (what, request) in wrong {
        malformed(what, node.discovery.register(request).await);
    }
    for state in [0, 3, -1] {
        let request = SetInstanceStateRequest {
            service: "web".to_owned(),
            instance_id: "one".to_owned(),
            state,
            ..Default::default()
        };
        malformed("a state that is none", node.discovery.set_instance_state(request).await);
    }
    let request = RegisterRequest { metadata, ..good() };
    let told = node.discovery.register(request).await.expect_err("too much metadata");
    assert_eq!(told.code(), Code::InvalidArgument, "{told:?}");
    assert_eq!(node.footprint().await, before, "refusals changed something");
    node.discovery.register(good()).await.expect("what was varied is right");
}

#[tokio::test]
async fn of_events() {
    let (_cluster, mut node) = any_node().await;
    let before = node.footprint().await;
    let append = |stream: &str, events: Vec<Event>| AppendRequest {
        stream: stream.to_owned(),
        events,
        ..Default::default()
    };
    let id = Uuid::new_v4().to_string();
    let good = || vec![event("", "T")];
    let wrong = [
        ("no stream", append("", good())),
        ("a long stream", append(&"s".repeat(513), good())),
        ("a reserved stream", append("$all", good())),
        ("no events", append("s", vec![])),
        ("no type", append("s", vec![event("", "")])),
        ("an id that is none", append("s", vec![event("1", "T")])),
        ("an id given twice", append("s", vec![event(&id, "T"), event(&id, "T")])),
    ];
    for (what, request) in wrong {
        malformed(what, node.event.append(request).await);
    }
    let both = SubscribeRequest { from: 1, from_end: true, ..Default::default() };
    malformed("two places to begin", first(node.event.subscribe(both).await).await);
    assert_eq!(node.footprint().await, before, "refusals changed something");
}

#[tokio::test]
async fn of_size() {
    let (_cluster, mut node) = any_node().await;
    let before = node.footprint().await;
    let value = |bytes: usize| PutRequest { value: vec![7; bytes].into(), ..put("large", "") };
    too_large("a value over 1 MiB", node.kv.put(value((1 << 20) + 1)).await);
    too_large("a request over 4 MiB", node.kv.put(value(5 << 20)).await);
    too_large("a request that is not even decoded", node.kv.put(value(9 << 20)).await);
    let data = vec![7; 1 << 20];
    let events = vec![Event { data: data.clone().into(), ..event("", "T") }; 5];
    let request = AppendRequest { stream: "s".to_owned(), events, ..Default::default() };
    too_large("an append over 4 MiB", node.event.append(request).await);
    let events = vec![event("", "T"); 1_001];
    let request = AppendRequest { stream: "s".to_owned(), events, ..Default::default() };
    too_large("more than 1,000 events", node.event.append(request).await);
    assert_eq!(node.footprint().await, before, "refusals changed something");
    node.kv.put(value(1 << 20)).await.expect("the largest value fits");
    let found = node.kv.range(RangeRequest { key: "large".into(), ..Default::default() }).await;
    assert_eq!(found.expect("read").into_inner().kvs[0].value.len(), 1 << 20);
}
