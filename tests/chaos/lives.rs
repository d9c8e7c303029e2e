//! What a node asked before it was killed is answered after it came back. It must not take the answer
//! for one to what it asks now: the read index of an earlier life knows nothing of later writes.

use std::time::Duration;

use quorate::{
    client::Client,
    pb::lab::v1::{Direction, LinkFault, MessageKind},
    testing::Cluster,
};
use tokio::task::JoinSet;

use crate::{LIMIT, PROGRAM, eventually};

/// How late the answers come: a node is back by then, and has asked again.
const LATE: Duration = Duration::from_secs(5);

/// How long the node's questions and its log are held up.
const LEASE: Duration = Duration::from_secs(12);

fn fault(peer_id: u64, direction: Direction, kind: MessageKind) -> LinkFault {
    let (direction, kinds) = (direction.into(), vec![kind.into()]);
    LinkFault { peer_id, direction, kinds, ..Default::default() }
}

fn reads(client: &Client, count: usize) -> JoinSet<Option<Vec<u8>>> {
    let mut reads = JoinSet::new();
    for _ in 0..count {
        let kv = client.kv();
        reads.spawn(async move {
            let found = kv.get("key").await.ok()?;
            Some(found.expect("it was written").value.to_vec())
        });
    }
    reads
}

/// How many answers the leader holds back.
async fn held(cluster: &Cluster, leader: u64) -> u64 {
    let faults = cluster.link_faults(leader).await.expect("it has a lab");
    faults.counts.iter().map(|count| count.delayed).sum()
}

#[tokio::test]
async fn an_answer_to_an_earlier_life_is_not_taken() {
    let mut cluster = Cluster::builder(3).program(PROGRAM).lab().start().await;
    let leader = cluster.wait_for_leader().await;
    let lagging = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let there = cluster.client_at(leader).kv();
    there.set("key", "before").await.expect("a majority is there");
    let here = cluster.client_at(lagging).with_timeout(LIMIT);
    assert!(here.kv().get("key").await.expect("it is well").is_some());

    // The third node would answer the reads that wait here.
    let third =
        cluster.ids().into_iter().find(|id| ![leader, lagging].contains(id)).expect("three");
    let lost = fault(lagging, Direction::FromPeer, MessageKind::Forward);
    let lost = LinkFault { drop: 1.0, ..lost };
    cluster.break_link(third, lost, LEASE * 2).await.expect("it has a lab");
    let late = fault(lagging, Direction::ToPeer, MessageKind::ForwardAnswer);
    let late = LinkFault { delay: LATE.try_into().ok(), ..late };
    cluster.break_link(leader, late, LEASE).await.expect("it has a lab");
    let mut earlier = Vec::new();
    for _ in 0..20 {
        let before = held(&cluster, leader).await;
        earlier.push(reads(&here, 4));
        eventually("the answers to be held", async || {
            (held(&cluster, leader).await > before).then_some(())
        })
        .await;
    }
    for (direction, kind) in
        [(Direction::ToPeer, MessageKind::Append), (Direction::FromPeer, MessageKind::Forward)]
    {
        let lost = LinkFault { drop: 1.0, ..fault(lagging, direction, kind) };
        cluster.break_link(leader, lost, LEASE).await.expect("it has a lab");
    }
    there.set("key", "after").await.expect("the third node is there");
    drop(earlier);
    cluster.kill(lagging).await;
    cluster.restart(lagging).await;

    // What is lost on a connection that stands is asked again by nobody: these end with their time.
    let again = cluster.client_at(lagging).with_timeout(LATE * 2);
    let mut later = reads(&again, 80);
    while let Some(read) = later.join_next().await {
        if let Some(value) = read.expect("no panic") {
            assert_eq!(String::from_utf8_lossy(&value), "after", "a stale read was served");
        }
    }
    cluster.heal_links().await;
    let read = eventually("the node to serve reads", async || again.kv().get("key").await.ok()?);
    assert_eq!(read.await.value, "after");
}
