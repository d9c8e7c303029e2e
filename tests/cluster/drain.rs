//! A node that is told to stop leaves so that nobody loses anything by it.

use std::time::Duration;

use quorate::{
    pb::kv::v1::{WatchRequest, kv_service_client::KvServiceClient},
    testing::Cluster,
    wire::status,
};
use tokio::time::{Instant, timeout};

use crate::{LIMIT, PROGRAM, eventually};

/// A drain's own limit; one that had to give something up would take this long.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_leader_hands_over_before_it_goes() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let leader = cluster.wait_for_leader().await;
    let began = Instant::now();
    cluster.stop(leader).await;
    assert!(began.elapsed() < DRAIN_LIMIT, "the drain gave something up");
    let log = cluster.log(leader);
    assert!(log.contains("leadership handed over"), "{log}");
    assert!(log.trim_end().ends_with("stopped"), "{log}");
    assert_ne!(cluster.wait_for_leader().await, leader);
}

#[tokio::test]
async fn an_open_stream_ends_with_a_status_that_sends_the_client_on() {
    let mut cluster = Cluster::start(3).await;
    let connected = KvServiceClient::connect(format!("http://{}", cluster.endpoint(1))).await;
    let mut client = connected.expect("it listens");
    let request = WatchRequest { key: "a".into(), ..WatchRequest::default() };
    let mut stream = client.watch(request).await.expect("it answers").into_inner();
    let ended = tokio::spawn(async move {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    });
    let began = Instant::now();
    cluster.stop(1).await;
    assert!(began.elapsed() < DRAIN_LIMIT, "the stream held the drain up");
    let ended = timeout(LIMIT, ended).await.expect("the stream ends").expect("no panic");
    let ended = ended.expect("it ends with a status");
    assert_eq!(ended.code(), tonic::Code::Unavailable);
    let reason = status::reason(&ended).expect("a status of ours");
    assert_eq!(reason.as_str_name(), "REASON_DRAINING");
}

#[tokio::test]
async fn a_node_that_stopped_is_no_longer_found() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client();
    let instances = async || {
        let request = quorate::pb::discovery::v1::ResolveRequest {
            service: "quorate".to_owned(),
            ..Default::default()
        };
        client.discovery().resolve(request).await.map(|found| found.instances.len()).ok()
    };
    eventually("three instances", async || (instances().await == Some(3)).then_some(())).await;
    cluster.stop(2).await;
    assert_eq!(instances().await, Some(2), "it took its registration back before it went");
    cluster.restart(2).await;
    eventually("three instances", async || (instances().await == Some(3)).then_some(())).await;
}

#[tokio::test]
async fn a_stop_without_a_quorum_is_bounded_as_well() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    let began = Instant::now();
    cluster.stop(3).await;
    assert!(began.elapsed() < DRAIN_LIMIT + Duration::from_secs(2));
}
