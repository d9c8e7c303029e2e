//! A follower that is further behind than the log reaches gets a snapshot, while others write.

use quorate::{
    client::Client,
    pb::{
        cluster::v1::TransferLeadershipRequest,
        lock::v1::{AcquireRequest, DescribeRequest, ReleaseRequest},
    },
    testing::Cluster,
};
use tokio::time::timeout;

use crate::{
    LIMIT, PROGRAM,
    events::Subscriber,
    eventually,
    failover::same_state,
    load::{Load, events, range},
    page,
    watches::Watcher,
};

/// The least log that a node may be told to keep.
const SETTINGS: &str = "retained_log_bytes = 1048576\n";

/// What is written while the follower is away: several times what the log keeps.
const VALUES: usize = 24;

/// What is written after each time that the follower is killed: more than the log keeps.
const VALUES_AGAIN: usize = 8;

/// What is written while the follower is paused, with its connections intact: beside what the log
/// keeps also more than the 8 MiB that a leader sends ahead.
const VALUES_PAUSED: usize = 64;

/// The size of one value, in bytes.
const VALUE_BYTES: usize = 256 << 10;

#[tokio::test]
async fn a_follower_behind_the_log_installs_a_snapshot_while_writes_go_on() {
    let mut cluster = Cluster::builder(3).program(PROGRAM).settings(SETTINGS).start().await;
    let away = a_follower(&mut cluster).await;
    cluster.kill(away).await;
    write_bulk(&cluster.client(), VALUES).await;

    let mut load = Load::start(&cluster, 4);
    load.progress(20).await;
    cluster.restart(away).await;
    load.progress(20).await;
    cluster.wait_until_ready().await;
    snapshot_installed(&cluster, away).await;
    load.progress(20).await;
    let written = load.stop().await;
    written.check(&cluster.client_at(away)).await;
    assert_eq!(range(&cluster.client_at(away), b"bulk/").await.len(), VALUES);
    same_state(&cluster).await;

    // What it installed outlives a crash, and it goes on from there.
    cluster.kill(away).await;
    cluster.client().kv().set("after", "1").await.expect("written");
    cluster.restart(away).await;
    cluster.wait_until_ready().await;
    assert!(cluster.client_at(away).kv().get("after").await.expect("read").is_some());
    same_state(&cluster).await;
}

#[tokio::test]
async fn a_follower_killed_again_and_again_while_it_catches_up_gets_there() {
    let mut cluster = Cluster::builder(3).program(PROGRAM).settings(SETTINGS).start().await;
    let away = a_follower(&mut cluster).await;
    cluster.kill(away).await;
    write_bulk(&cluster.client(), VALUES).await;
    let leader = cluster.wait_for_leader().await;
    let streams = |log: &str| log.matches("a snapshot's stream begins").count();
    for round in 1..=3 {
        let before = streams(&cluster.log(leader));
        cluster.restart(away).await;
        // It dies at once when the snapshot is on its way, at whatever point it has reached.
        eventually("a snapshot's stream", async || {
            (streams(&cluster.log(leader)) > before).then_some(())
        })
        .await;
        cluster.kill(away).await;
        // More than the log keeps: even if it got all of this snapshot, it needs another one.
        for number in 0..VALUES_AGAIN {
            let key = format!("bulk/again-{round}-{number}");
            cluster.client().kv().set(key, vec![7; VALUE_BYTES]).await.expect("written");
        }
    }
    cluster.restart(away).await;
    cluster.wait_until_ready().await;
    snapshot_installed(&cluster, away).await;
    assert_eq!(range(&cluster.client_at(away), b"bulk/").await.len(), VALUES + 3 * VALUES_AGAIN);
    same_state(&cluster).await;
}

/// A follower that lives, with readers and waiters of its own, while the state is replaced under
/// them: they lose nothing by it.
#[tokio::test]
async fn a_paused_follower_that_installs_a_snapshot_keeps_its_readers_and_waiters() {
    let mut cluster = Cluster::builder(3).program(PROGRAM).settings(SETTINGS).start().await;
    let away = a_follower(&mut cluster).await;
    let elsewhere: Vec<_> = cluster.ids().into_iter().filter(|id| *id != away).collect();
    let there = vec![cluster.endpoint(away)];
    let subscribers =
        [Subscriber::raw_at(there.clone(), "load-0"), Subscriber::raw_at(there.clone(), "")];
    let watcher = Watcher::start(cluster.client_at(away), b"load/");
    let client = cluster.client_at(elsewhere[0]);
    let hold = AcquireRequest { name: "lock".into(), ..Default::default() };
    let grant = client.locks().acquire(hold.clone()).await.expect("it is free");
    let waiter = {
        let client = cluster.client_at(away);
        tokio::spawn(async move { client.locks().acquire(hold).await })
    };
    let describe = DescribeRequest { name: "lock".into(), ..Default::default() };
    eventually("the waiter to be in line", async || {
        let lock = client.locks().describe(describe.clone()).await.expect("read").lock?;
        (lock.waiter_count == 1).then_some(())
    })
    .await;

    let mut load = Load::start(&cluster, 4);
    load.progress(50).await;
    cluster.pause(away);
    write_bulk(&client, VALUES_PAUSED).await;
    load.progress(50).await;
    cluster.resume(away);
    snapshot_installed(&cluster, away).await;
    cluster.wait_until_ready().await;
    load.progress(50).await;
    let written = load.stop().await;
    written.check(&cluster.client_at(away)).await;
    for subscriber in subscribers {
        let expected = events(&client, subscriber.stream()).await;
        assert_eq!(subscriber.first(expected.len()).await, expected);
    }
    let expected = range(&client, b"load/").await;
    watcher.check(expected.into_values().collect()).await;

    let release = ReleaseRequest {
        name: "lock".into(),
        fencing_token: grant.fencing_token,
        ..Default::default()
    };
    client.locks().release(release).await.expect("it is held");
    let next = timeout(LIMIT, waiter).await.expect("it is granted").expect("no panic");
    assert!(next.expect("granted").fencing_token > grant.fencing_token);
    same_state(&cluster).await;
}

/// The stream of a slow snapshot breaks while its receiver stands still, and goes on where it was.
#[tokio::test]
async fn a_snapshot_goes_on_after_its_receiver_stood_still() {
    let settings = format!("{SETTINGS}snapshot_rate = 1048576\n");
    let mut cluster = Cluster::builder(3).program(PROGRAM).settings(settings).start().await;
    let away = a_follower(&mut cluster).await;
    let leader = cluster.wait_for_leader().await;
    cluster.kill(away).await;
    write_bulk(&cluster.client(), VALUES).await;
    let mut load = Load::start(&cluster, 2);
    cluster.restart(away).await;
    eventually("some chunks to be kept", async || {
        (count(&cluster, away, "snapshot_received_chunks") >= Some(4)).then_some(())
    })
    .await;
    cluster.pause(away);
    eventually("the stream to break", async || {
        cluster.log(leader).contains("a snapshot's stream broke").then_some(())
    })
    .await;
    cluster.resume(away);
    cluster.wait_until_ready().await;
    snapshot_installed(&cluster, away).await;
    assert!(count(&cluster, leader, "snapshot_resumed") >= Some(1), "it did not start anew");
    // Who was caught up can lead, too, without a restart.
    let request = TransferLeadershipRequest { target_id: away };
    let moved = cluster.client().cluster().transfer_leadership(request).await;
    assert_eq!(moved.expect("it takes over").leader_id, away);
    load.progress(20).await;
    let written = load.stop().await;
    written.check(&cluster.client_at(away)).await;
    assert_eq!(range(&cluster.client_at(away), b"bulk/").await.len(), VALUES);
    same_state(&cluster).await;
}

/// A counter of a node.
fn count(cluster: &Cluster, id: u64, name: &str) -> Option<u64> {
    let (_, text) = page(cluster.admin_address(id), "/metrics")?;
    let start = format!("quorate_{name}_total ");
    text.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

async fn a_follower(cluster: &mut Cluster) -> u64 {
    let leader = cluster.wait_for_leader().await;
    cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes")
}

async fn write_bulk(client: &Client, values: usize) {
    for number in 0..values {
        let value = vec![u8::try_from(number).expect("few"); VALUE_BYTES];
        client.kv().set(format!("bulk/{number:03}"), value).await.expect("written");
    }
}

async fn snapshot_installed(cluster: &Cluster, id: u64) {
    eventually("the snapshot to be installed", async || {
        cluster.log(id).contains("installed a snapshot").then_some(())
    })
    .await;
}
