//! Processes are killed under load: nothing that was acknowledged is lost, nothing is done twice,
//! and service comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use quorate::{
    client::Client,
    pb::cluster::v1::{NodeStatus, Role, StateHashRequest, StatusRequest},
    testing::Cluster,
    types::Rng,
};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use crate::{
    LIMIT, PROGRAM, eventually,
    load::{Load, WRITERS},
};

/// How long writes may stand still after the leader was killed: ten times what is promised.
const OUTAGE_MAX: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_term_has_one_leader_and_every_node_agrees() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let stop = CancellationToken::new();
    let clients = cluster.ids().into_iter().map(|id| cluster.client_at(id)).collect();
    let leaders = tokio::spawn(watch_leaders(clients, stop.clone()));
    let mut agreed = BTreeMap::new();
    for _ in 0..3 {
        let leader = cluster.wait_for_leader().await;
        agreed.insert(all_agree_on(&cluster, leader).await, leader);
        cluster.kill(leader).await;
        assert_ne!(cluster.wait_for_leader().await, leader);
        cluster.restart(leader).await;
        cluster.wait_until_ready().await;
    }
    stop.cancel();
    assert_eq!(agreed.len(), 3, "each failover is a new term");
    let mut leaders = leaders.await.expect("the observer does not panic");
    assert!(!leaders.is_empty(), "the observer saw nobody lead");
    for (term, leader) in agreed {
        leaders.entry(term).or_default().insert(leader);
    }
    for (term, nodes) in &leaders {
        assert_eq!(nodes.len(), 1, "term {term} has the leaders {nodes:?}");
    }
}

/// Notes which nodes say that they lead, and in which terms.
async fn watch_leaders(
    clients: Vec<Client>,
    stop: CancellationToken,
) -> BTreeMap<u64, BTreeSet<u64>> {
    let mut leaders: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    let mut ticks = interval(Duration::from_millis(10));
    while !stop.is_cancelled() {
        ticks.tick().await;
        for client in &clients {
            let Some(node) = status_of(client).await else { continue };
            if node.role() == Role::Leader {
                leaders.entry(node.term).or_default().insert(node.node_id);
            }
        }
    }
    leaders
}

/// Waits until every node follows this leader in one term, which it returns.
async fn all_agree_on(cluster: &Cluster, leader: u64) -> u64 {
    eventually("every node to agree", async || {
        let mut terms = BTreeSet::new();
        for id in cluster.ids() {
            let node = status_of(&cluster.client_at(id)).await?;
            let role = if id == leader { Role::Leader } else { Role::Follower };
            if node.leader_id != leader || node.role() != role {
                return None;
            }
            terms.insert(node.term);
        }
        terms.pop_first().filter(|_| terms.is_empty())
    })
    .await
}

/// How a node describes itself; nothing where it does not answer at once.
async fn status_of(client: &Client) -> Option<NodeStatus> {
    let client = client.with_timeout(Duration::from_millis(500));
    let status = client.cluster().status(StatusRequest { local: true }).await.ok()?;
    status.nodes.into_iter().find(|node| node.node_id == status.node_id)
}

#[tokio::test]
async fn a_killed_leader_under_16_writers_loses_nothing_and_doubles_nothing() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut load = Load::start(&cluster, WRITERS);
    for _ in 0..2 {
        load.progress(200).await;
        let leader = cluster.wait_for_leader().await;
        cluster.kill(leader).await;
        // Every writer has at most one call under way, of which one may just have been answered.
        let outage = load.progress(2 * WRITERS as u64).await;
        assert!(outage < OUTAGE_MAX, "writes stood still for {outage:?}");
        load.progress(200).await;
        cluster.restart(leader).await;
        cluster.wait_until_ready().await;
    }
    let written = load.stop().await;
    written.check(&cluster.client()).await;
    same_state(&cluster).await;
}

#[tokio::test]
async fn every_node_is_killed_in_turn_under_load() {
    every_node_in_turn(async |cluster, id| cluster.kill(id).await).await;
}

#[tokio::test]
async fn every_node_is_stopped_in_turn_under_load() {
    every_node_in_turn(async |cluster, id| cluster.stop(id).await).await;
}

async fn every_node_in_turn(end: impl AsyncFn(&mut Cluster, u64)) {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut load = Load::start(&cluster, WRITERS);
    for id in cluster.ids() {
        load.progress(100).await;
        end(&mut cluster, id).await;
        load.progress(100).await;
        cluster.restart(id).await;
        cluster.wait_until_ready().await;
    }
    load.progress(100).await;
    let written = load.stop().await;
    for id in cluster.ids() {
        written.check(&cluster.client_at(id)).await;
    }
    same_state(&cluster).await;
}

#[tokio::test]
async fn all_nodes_killed_at_once_come_back_with_everything() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut load = Load::start(&cluster, WRITERS);
    for _ in 0..2 {
        load.progress(200).await;
        for id in cluster.ids() {
            cluster.kill(id).await;
        }
        for id in cluster.ids() {
            cluster.restart(id).await;
        }
        cluster.wait_until_ready().await;
        load.progress(100).await;
    }
    let written = load.stop().await;
    written.check(&cluster.client()).await;
    same_state(&cluster).await;
}

#[tokio::test]
async fn kills_at_random_moments_heal() {
    const SEED: u64 = 20_261_122;
    let mut rng = Rng::new(SEED);
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut load = Load::start(&cluster, WRITERS);
    for round in 0..8 {
        load.progress(1 + rng.below(60)).await;
        let id = 1 + rng.below(3);
        println!("seed {SEED}, round {round}: node {id} is killed");
        cluster.kill(id).await;
        if rng.below(2) == 0 {
            // A second one, so that there is no majority until one is back.
            cluster.kill(1 + id % 3).await;
            cluster.restart(1 + id % 3).await;
        }
        cluster.restart(id).await;
    }
    cluster.wait_until_ready().await;
    load.progress(100).await;
    let written = load.stop().await;
    written.check(&cluster.client()).await;
    same_state(&cluster).await;
}

#[tokio::test]
async fn pauses_at_random_moments_heal() {
    const SEED: u64 = 31_415_926;
    let mut rng = Rng::new(SEED);
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut load = Load::start(&cluster, WRITERS);
    for round in 0..6 {
        load.progress(1 + rng.below(60)).await;
        // Mostly the leader: that a follower pauses is hardly noticed.
        let leader = cluster.wait_for_leader().await;
        let id = if rng.below(3) == 0 { 1 + leader % 3 } else { leader };
        println!("seed {SEED}, round {round}: node {id} is paused, {leader} leads");
        cluster.pause(id);
        load.progress(1 + rng.below(200)).await;
        cluster.resume(id);
    }
    cluster.wait_until_ready().await;
    load.progress(100).await;
    let written = load.stop().await;
    written.check(&cluster.client()).await;
    same_state(&cluster).await;
}

/// Waits until all nodes have applied the same, and compares what they made of it. Returns the
/// index.
pub(crate) async fn same_state(cluster: &Cluster) -> u64 {
    let hashes = eventually("all nodes to have applied the same", async || {
        let mut hashes = Vec::new();
        for id in cluster.ids() {
            let client = cluster.client_at(id).with_timeout(LIMIT);
            let hash = client.cluster().state_hash(StateHashRequest::default()).await.ok()?;
            assert_eq!(hash.node_id, id, "the node itself answered");
            hashes.push(hash);
        }
        hashes.iter().all(|hash| hash.applied_index == hashes[0].applied_index).then_some(hashes)
    })
    .await;
    for hash in &hashes[1..] {
        let (one, other) = (&hashes[0], hash);
        assert_eq!(one.revision, other.revision);
        assert_eq!(one.hash, other.hash, "{one:?} {other:?}");
        assert_eq!(one.full_hash, other.full_hash, "{one:?} {other:?}");
    }
    hashes[0].applied_index
}
