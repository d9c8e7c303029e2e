//! A slow request says where its time went, on the node that leads and on one that passes it on,
//! and each stage is counted.

use quorate::{client::Client, observe::TraceParent, testing::Cluster};

use crate::{PROGRAM, eventually, page};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The fields of the node's first line about a slow request to `method`.
fn told(cluster: &Cluster, node: u64, method: &str, about: &str) -> Option<serde_json::Value> {
    let log = cluster.log(node);
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut slow = lines.filter(|line| line["message"] == "slow request");
    slow.find(|line| line["method"] == method && line["about"] == about)
}

#[tokio::test]
async fn a_slow_request_is_logged_with_its_stages_and_its_trace() {
    let settings = "slow_request = \"1ns\"\nlog_format = \"json\"\n";
    let mut cluster = Cluster::builder(3).program(PROGRAM).settings(settings).start().await;
    let leader = cluster.wait_for_leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let parent: TraceParent = parent.parse().expect("well formed");
    let at = |id| cluster.client_at(id).with_trace_parent(parent);

    let put = "quorate.kv.v1.KvService/Put";
    at(leader).kv().set("at-the-leader", "secret").await.expect("written");
    let line =
        eventually("the leader's line", async || told(&cluster, leader, put, "at-the-leader"));
    let line = line.await;
    assert_eq!((&line["level"], &line["code"]), (&"WARN".into(), &"OK".into()), "{line}");
    assert_eq!(line["trace_id"], TRACE);
    for stage in ["total", "before", "queue", "append", "fsync", "replicate", "apply", "answer"] {
        assert!(line[format!("{stage}_ms")].is_number(), "{stage} in {line}");
    }

    at(follower).kv().set("passed-on", "secret").await.expect("written");
    let line =
        eventually("the follower's line", async || told(&cluster, follower, put, "passed-on"));
    let line = line.await;
    assert_eq!(line["passed_on_to"], leader, "{line}");
    assert!(line["leader_ms"].is_number() && line["fsync_ms"].is_null(), "{line}");

    at(follower).kv().get("passed-on").await.expect("read");
    let range = "quorate.kv.v1.KvService/Range";
    let line = eventually("a read's line", async || told(&cluster, follower, range, "passed-on"));
    assert!(line.await["read_index_ms"].is_number());
    for id in cluster.ids() {
        assert!(!cluster.log(id).contains("secret"), "values are never logged");
    }
}

#[tokio::test]
async fn a_write_without_a_majority_says_what_it_waits_for() {
    let settings = "slow_request = \"100ms\"\nlog_format = \"json\"\n";
    let mut cluster = Cluster::builder(3).program(PROGRAM).settings(settings).start().await;
    let leader = cluster.wait_for_leader().await;
    for id in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.pause(id);
    }
    let client: Client =
        cluster.client_at(leader).with_timeout(std::time::Duration::from_millis(250));
    client.kv().set("stuck", "x").await.expect_err("no majority has it");
    let put = "quorate.kv.v1.KvService/Put";
    let line = eventually("the line", async || told(&cluster, leader, put, "stuck")).await;
    assert_eq!(line["unfinished"], "replicate", "{line}");
    assert!(line["queue_ms"].is_number() && line["replicate_ms"].is_null(), "{line}");
}

#[tokio::test]
async fn each_stage_of_a_write_is_counted() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.wait_for_leader().await;
    for n in 0..5 {
        cluster.client_at(leader).kv().set(format!("k{n}"), "v").await.expect("written");
        cluster.client_at(leader).kv().get("k0").await.expect("read");
    }
    let admin = cluster.admin_address(leader);
    eventually("every stage", async || {
        let (_, text) = page(admin, "/metrics")?;
        let count = |row: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(row))?;
            line.trim().parse().ok()
        };
        let stage = |kind: &str, stage: &str| {
            count(&format!("quorate_{kind}_stage_seconds_count{{stage=\"{stage}\"}} "))
        };
        let stages = ["queue", "append", "fsync", "replicate", "apply", "answer"];
        let all = stages.iter().all(|name| stage("write", name).is_some_and(|n| n >= 5));
        let reads = ["queue", "confirm"].iter().all(|n| stage("read", n).is_some_and(|n| n >= 5));
        let fsyncs = count("quorate_wal_fsync_seconds_count ")? >= 5;
        let elected = text.contains("quorate_raft_elections_total{reason=");
        (all && reads && fsyncs && elected).then_some(())
    })
    .await;
}
