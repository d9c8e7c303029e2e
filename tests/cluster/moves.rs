//! Nodes that drain, and nodes that come back at another address: found as they are, at once, and
//! without anybody's call being lost.

use std::time::Duration;

use quorate::{
    client::Client,
    pb::{
        cluster::v1::TransferLeadershipRequest,
        discovery::v1::{
            Instance, InstanceState, ResolveRequest, WatchRequest, instance_event::Kind,
        },
        kv::v1::RangeRequest,
    },
    testing::Cluster,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{LIMIT, PROGRAM, eventually, leader_hint::hint, load::Load};

/// How often a reader reads.
const READ_INTERVAL: Duration = Duration::from_millis(5);

/// What a watch of the service `quorate` told of one node, in order: its address, and whether it
/// was draining; nothing where it was gone.
type Told = Option<(String, InstanceState)>;

/// Notes what is told of a node. It has seen the node when this returns.
async fn watch_node(client: Client, id: u64) -> (watch::Receiver<Vec<Told>>, JoinHandle<()>) {
    let (sender, mut told) = watch::channel(Vec::new());
    let task = tokio::spawn(async move {
        let request = WatchRequest { service: "quorate".to_owned() };
        let mut changes = client.discovery().watch(request);
        loop {
            let batch = changes.next().await.expect("it resumes").expect("it has no end");
            for event in batch.events {
                let instance = event.instance.clone().expect("always there");
                if instance.instance_id == format!("node-{id}") {
                    let gone = event.kind() == Kind::Removed;
                    let state = instance.state();
                    sender.send_modify(|told| {
                        told.push((!gone).then_some((instance.address, state)));
                    });
                }
            }
        }
    });
    let first = told.wait_for(|told| !told.is_empty());
    timeout(LIMIT, first).await.expect("in time").expect("the watch goes on");
    (told, task)
}

async fn registered(client: &Client, id: u64) -> Option<Instance> {
    let request = ResolveRequest { service: "quorate".to_owned(), ..Default::default() };
    let found = client.discovery().resolve(request).await.ok()?.instances;
    let mut of_node = found.into_iter().filter(|i| i.instance_id == format!("node-{id}"));
    let one = of_node.next();
    assert_eq!(of_node.next(), None, "node {id} is registered twice");
    one
}

/// A node other than the leader.
async fn follower(cluster: &mut Cluster) -> u64 {
    let leader = cluster.wait_for_leader().await;
    cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes")
}

async fn all_registered(cluster: &Cluster) {
    let client = cluster.client();
    for id in cluster.ids() {
        let there = async || registered(&client, id).await.map(drop);
        eventually("the nodes to be registered", there).await;
    }
}

#[tokio::test]
async fn a_node_says_that_it_drains_before_it_goes_and_deregisters_last() {
    for of_leader in [false, true] {
        let mut cluster = Cluster::processes(PROGRAM, 3).await;
        all_registered(&cluster).await;
        let leader = cluster.wait_for_leader().await;
        let id = if of_leader { leader } else { follower(&mut cluster).await };
        let other = cluster.ids().into_iter().find(|other| *other != id).expect("three nodes");
        let (mut told, watching) = watch_node(cluster.client_at(other), id).await;
        let at = cluster.endpoint(id);
        cluster.stop(id).await;
        let gone = told.wait_for(|told| told.last() == Some(&None));
        let gone = timeout(LIMIT, gone).await.expect("in time").expect("the watch goes on").clone();
        let expected =
            [Some((at.clone(), InstanceState::Serving)), Some((at, InstanceState::Draining)), None];
        assert_eq!(gone, expected, "of the leader: {of_leader}");
        watching.abort();

        cluster.restart(id).await;
        let client = cluster.client();
        let back = async || registered(&client, id).await;
        let back = eventually("it to be registered again", back).await;
        assert_eq!(back.state(), InstanceState::Serving);
    }
}

#[tokio::test]
async fn a_node_registers_with_its_zone_and_weight() {
    let cluster = Cluster::builder(1).settings("zone = \"eu-1\"\nweight = 7\n").start().await;
    let client = cluster.client();
    let there = async || registered(&client, 1).await;
    let node = eventually("the node to be registered", there).await;
    assert_eq!((node.zone.as_str(), node.weight), ("eu-1", 7));
}

#[tokio::test]
async fn a_node_that_moves_replaces_its_registration_while_the_old_one_still_lives() {
    let mut cluster = Cluster::start(3).await;
    all_registered(&cluster).await;
    let id = follower(&mut cluster).await;
    let other = cluster.ids().into_iter().find(|other| *other != id).expect("three nodes");
    let client = cluster.client_at(other);
    let (mut told, watching) = watch_node(client.clone(), id).await;
    let old = cluster.endpoint(id);
    cluster.kill(id).await;
    let before = registered(&client, id).await.expect("its session has not run out yet");
    assert_eq!(before.address, old);
    let new = cluster.restart_elsewhere(id).await;
    assert_ne!(new, old);
    assert_eq!(cluster.endpoint(id), new);
    let moved = told.wait_for(|told| told.len() > 1);
    let moved = timeout(LIMIT, moved).await.expect("in time").expect("the watch goes on").clone();
    let serving = |at: &str| Some((at.to_owned(), InstanceState::Serving));
    assert_eq!(moved, [serving(&old), serving(&new)], "replaced, never gone");
    let after = registered(&client, id).await.expect("just told");
    assert_ne!(after.session_id, before.session_id, "it lives with a session of its own");
    watching.abort();
    cluster.wait_until_ready().await;
    cluster.client_at(id).kv().set("a", "1").await.expect("it serves there");
}

#[tokio::test]
async fn the_hint_names_the_new_address_of_a_leader_that_moved() {
    let mut cluster = Cluster::start(3).await;
    let target_id = follower(&mut cluster).await;
    let new = cluster.restart_elsewhere(target_id).await;
    cluster.wait_until_ready().await;
    let transfer = TransferLeadershipRequest { target_id };
    cluster.client().cluster().transfer_leadership(transfer).await.expect("it is handed over");
    for id in cluster.ids() {
        let told = async || (hint(&cluster, id).await.as_ref() == Some(&new)).then_some(());
        eventually(&format!("node {id} to name {new}"), told).await;
    }
}

/// Reads until it is told to stop; no read may fail or go back in time.
async fn read(client: Client, stop: CancellationToken) -> usize {
    let (mut reads, mut revision) = (0, 0);
    let mut ticks = tokio::time::interval(READ_INTERVAL);
    while !stop.is_cancelled() {
        ticks.tick().await;
        let request = RangeRequest { key: "load/".into(), ..Default::default() };
        let answer = client.kv().range(request).await.expect("reads go on");
        assert!(answer.revision >= revision, "{} after {revision}", answer.revision);
        revision = answer.revision;
        reads += 1;
    }
    reads
}

#[tokio::test]
async fn under_load_nodes_drain_and_come_back_elsewhere_and_nothing_is_lost() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut load = Load::start(&cluster, 4);
    let stop = CancellationToken::new();
    let readers: Vec<_> = cluster
        .ids()
        .into_iter()
        .map(|id| {
            let mut endpoints = cluster.endpoints();
            let first = endpoints.iter().position(|at| *at == cluster.endpoint(id));
            endpoints.rotate_left(first.expect("it is one of them"));
            let client = Client::builder().endpoints(endpoints).timeout(LIMIT).build();
            tokio::spawn(read(client.expect("well formed"), stop.clone()))
        })
        .collect();
    for id in cluster.ids() {
        load.progress(60).await;
        cluster.stop(id).await;
        load.progress(60).await;
        cluster.restart_elsewhere(id).await;
        cluster.wait_until_ready().await;
    }
    load.progress(60).await;
    stop.cancel();
    for reader in readers {
        assert!(reader.await.expect("no read fails") > 0);
    }
    load.stop().await.check(&cluster.client()).await;
    let client = cluster.client();
    for id in cluster.ids() {
        let at = cluster.endpoint(id);
        let there = async || (registered(&client, id).await?.address == at).then_some(());
        eventually("the nodes to be found where they are", there).await;
    }
}
