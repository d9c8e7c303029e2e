//! A node that missed more than the log keeps is brought up by a snapshot, over links that lose and
//! delay its chunks and are cut meanwhile.

use std::time::Duration;

use quorate::{
    pb::{
        cluster::v1::StatusRequest,
        lab::v1::{Direction, LinkFault, MessageKind},
    },
    testing::Cluster,
    types::Rng,
};
use tokio::time::{Instant, sleep_until};

use crate::{LIMIT, eventually, scenario};

/// What is written while the node is down, beside the workload and outside of what it reads: far
/// more than the log that is kept for those that lag, which is 4 MiB at most here.
const FILLERS: usize = 160;
const FILLER_BYTES: usize = 64 << 10;

/// The links are bad for this long at most, and for `BAD` once a chunk is on its way: how long a
/// node takes to start is not known.
const LEASE: Duration = Duration::from_secs(120);
const BAD: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_node_that_missed_much() {
    scenario::run("snapshots", async |cluster, record, rng| {
        let leader = cluster.wait_for_leader().await;
        let lagging = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
        record.note(Some(lagging), "killed for long");
        record.life_changes(lagging);
        cluster.kill(lagging).await;
        record.life_changes(lagging);
        fill(cluster, leader).await;
        let others: Vec<_> = cluster.ids().into_iter().filter(|id| *id != lagging).collect();
        spoil(cluster, &others, lagging, rng).await;
        record.note(Some(lagging), "started again");
        cluster.restart(lagging).await;
        eventually("chunks on their way", async || {
            (delayed_chunks(cluster, &others).await > 0).then_some(())
        })
        .await;
        let cut = LinkFault {
            peer_id: leader,
            direction: Direction::FromPeer.into(),
            cut: true,
            ..Default::default()
        };
        // It may be starting still; then it is not cut off this time.
        let _ = cluster.break_link(lagging, cut, Duration::from_millis(400)).await;
        sleep_until(Instant::now() + BAD).await;
        cluster.heal_links().await;
        let far = applied(cluster, leader).await.expect("it serves");
        eventually("the node to be as far as the others were", async || {
            applied(cluster, lagging).await.filter(|applied| *applied >= far)
        })
        .await;
        let sent = others.iter().any(|id| cluster.log(*id).contains("snapshot installed at peer"));
        assert!(sent, "it came without a snapshot");
    })
    .await;
}

/// Writes much that nobody reads.
async fn fill(cluster: &Cluster, leader: u64) {
    let kv = cluster.client_at(leader).with_timeout(LIMIT).kv();
    for number in 0..FILLERS {
        let key = format!("zz{}", number % 4);
        // A leader that hands over meanwhile names the next one.
        kv.set(key, vec![b'x'; FILLER_BYTES]).await.expect("two of three are there");
    }
}

/// Snapshots to the node lose some chunks, and all are late; so are the answers. None of these is
/// lost: where the first one is, both sides wait for 30 seconds before they begin anew.
async fn spoil(cluster: &Cluster, others: &[u64], lagging: u64, mut rng: Rng) {
    for id in others {
        for (direction, kind, drop) in [
            (Direction::ToPeer, MessageKind::Snapshot, 0.1),
            (Direction::FromPeer, MessageKind::SnapshotAnswer, 0.0),
        ] {
            let fault = LinkFault {
                peer_id: lagging,
                direction: direction.into(),
                kinds: vec![kind.into()],
                drop,
                delay: Duration::from_millis(5).try_into().ok(),
                jitter: Duration::from_millis(30).try_into().ok(),
                seed: rng.next_u64(),
                ..Default::default()
            };
            cluster.break_link(*id, fault, LEASE).await.expect("it runs");
        }
    }
}

async fn delayed_chunks(cluster: &Cluster, nodes: &[u64]) -> u64 {
    let mut chunks = 0;
    for id in nodes {
        let faults = cluster.link_faults(*id).await.expect("it runs");
        let of_chunks = faults.counts.iter().filter(|c| c.kind() == MessageKind::Snapshot);
        chunks += of_chunks.map(|count| count.delayed).sum::<u64>();
    }
    chunks
}

/// How far a node has applied the log.
async fn applied(cluster: &Cluster, id: u64) -> Option<u64> {
    let status = cluster.client_at(id).cluster().status(StatusRequest { local: true }).await;
    Some(status.ok()?.nodes.first()?.applied_index)
}
