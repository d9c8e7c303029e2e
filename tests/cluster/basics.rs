//! A cluster elects, replicates, answers on every node and says how it stands.

use quorate::{client::Client, pb::cluster::v1::StatusRequest, testing::Cluster};
use tonic::transport::Endpoint;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{PROGRAM, eventually, page};

#[tokio::test]
async fn nodes_in_one_process_agree() {
    agree(Cluster::start(3).await).await;
}

#[tokio::test]
async fn processes_agree() {
    agree(Cluster::processes(PROGRAM, 3).await).await;
}

/// One leader, and what is written at one node is read at every other.
async fn agree(mut cluster: Cluster) {
    let leader = cluster.wait_for_leader().await;
    let request = StatusRequest { local: false };
    let status = cluster.client().cluster().status(request).await.expect("a status");
    assert_eq!(status.leader_id, leader);
    assert_eq!(status.nodes.iter().filter(|node| node.leader_id == leader).count(), 3);

    for id in cluster.ids() {
        let (key, value) = (format!("key-{id}"), format!("value-{id}"));
        cluster.client_at(id).kv().set(key, value).await.expect("written");
    }
    for id in cluster.ids() {
        for written in cluster.ids() {
            let value = read(&cluster.client_at(id), &format!("key-{written}")).await;
            assert_eq!(value.as_deref(), Some(format!("value-{written}").as_str()));
        }
    }
}

#[tokio::test]
async fn a_node_alone_is_a_cluster() {
    let cluster = Cluster::start(1).await;
    cluster.client().kv().set("a", "1").await.expect("written");
    assert_eq!(read(&cluster.client(), "a").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn two_clusters_of_one_test_know_nothing_of_each_other() {
    let (one, other) = (Cluster::start(1).await, Cluster::start(1).await);
    one.client().kv().set("a", "1").await.expect("written");
    assert_eq!(read(&other.client(), "a").await, None);
}

#[tokio::test]
async fn killed_leaders_in_one_process_lose_nothing_acknowledged() {
    survive_kills(Cluster::start(3).await).await;
}

#[tokio::test]
async fn killed_processes_lose_nothing_acknowledged() {
    survive_kills(Cluster::processes(PROGRAM, 3).await).await;
}

/// Kills each leader in turn; what it acknowledged is there without it and with it again.
async fn survive_kills(mut cluster: Cluster) {
    let client = cluster.client();
    for round in 0..3 {
        let leader = cluster.wait_for_leader().await;
        let (key, value) = (format!("round-{round}"), format!("by-{leader}"));
        client.kv().set(key.clone(), value.clone()).await.expect("written");
        cluster.kill(leader).await;
        assert!(!cluster.is_running(leader));
        let next = cluster.wait_for_leader().await;
        assert_ne!(next, leader, "a dead node does not lead");
        assert_eq!(read(&client, &key).await.as_ref(), Some(&value));
        cluster.restart(leader).await;
        cluster.wait_until_ready().await;
        assert_eq!(read(&cluster.client_at(leader), &key).await.as_ref(), Some(&value));
    }
}

#[tokio::test]
async fn a_paused_leader_is_replaced_and_follows_when_it_wakes() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let old = cluster.wait_for_leader().await;
    cluster.pause(old);
    let new = cluster.wait_for_leader().await;
    assert_ne!(new, old);
    cluster.resume(old);
    cluster.wait_until_ready().await;
    assert_eq!(cluster.wait_for_leader().await, new);
}

#[tokio::test]
async fn liveness_does_not_depend_on_a_quorum_and_readiness_does() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.wait_for_leader().await;
    let admin = cluster.admin_address(leader);
    assert_eq!(page(admin, "/readyz").expect("an answer").0, 200);

    for id in cluster.ids() {
        if id != leader {
            cluster.kill(id).await;
        }
    }
    let (_, why) = eventually("the node to notice that it is alone", async || {
        page(admin, "/readyz").filter(|(code, _)| *code == 503)
    })
    .await;
    assert!(why.contains("no leader is known"), "{why}");
    assert_eq!(page(admin, "/livez").expect("an answer").0, 200);
    assert_eq!(page(admin, "/nothing").expect("an answer").0, 404);
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.wait_for_leader().await;
    cluster.client_at(leader).kv().set("a", "1").await.expect("written");
    let (code, text) = page(cluster.admin_address(leader), "/metrics").expect("an answer");
    assert_eq!(code, 200);
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not in\n{text}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    };
    assert_eq!(value("quorate_raft_role{role=\"leader\"}"), 1.0);
    assert!(value("quorate_raft_term") >= 1.0);
    assert!(value("quorate_raft_proposals_total") >= 1.0);
    assert!(value("quorate_raft_applied_entries_total") >= 1.0);
    assert!(value("quorate_wal_fsync_seconds_count") >= 1.0);
    let put = "quorate_grpc_requests_total{service=\"quorate.kv.v1.KvService\",method=\"Put\"";
    assert_eq!(value(put), 1.0);
}

#[tokio::test]
async fn both_listeners_answer_for_their_health() {
    let cluster = Cluster::start(1).await;
    let cases = [
        (cluster.endpoint(1), "quorate.kv.v1.KvService"),
        (cluster.peer_address(1).to_string(), "quorate.raft.v1.RaftService"),
    ];
    for (address, service) in cases {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("well formed");
        let mut health = HealthClient::new(endpoint.connect().await.expect("it listens"));
        for name in [service, ""] {
            let request = HealthCheckRequest { service: name.to_owned() };
            let answer = health.check(request).await.expect("it is known").into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{name:?} at {address}");
        }
        let request = HealthCheckRequest { service: "quorate.none.v1.None".to_owned() };
        let unknown = health.check(request).await.expect_err("it is not known");
        assert_eq!(unknown.code(), tonic::Code::NotFound);
    }
}

#[tokio::test]
async fn every_node_registers_itself() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    eventually("three instances of `quorate`", async || {
        let request = quorate::pb::discovery::v1::ResolveRequest {
            service: "quorate".to_owned(),
            ..Default::default()
        };
        let resolved = client.discovery().resolve(request).await.ok()?;
        let mut addresses: Vec<_> =
            resolved.instances.into_iter().map(|instance| instance.address).collect();
        addresses.sort();
        let mut expected = cluster.endpoints();
        expected.sort();
        (addresses == expected).then_some(())
    })
    .await;
}

async fn read(client: &Client, key: &str) -> Option<String> {
    let found = client.kv().get(key.to_owned()).await.expect("read");
    found.map(|found| String::from_utf8_lossy(&found.value).into_owned())
}
