//! Linearizable reads, whichever node is asked.

use quorate::{
    client::Client,
    pb::kv::v1::{RangeRequest, RangeResponse},
    testing::Cluster,
};

use crate::{PROGRAM, eventually};

#[tokio::test]
async fn every_node_gives_the_same_linearizable_answer() {
    let cluster = Cluster::processes(PROGRAM, 3).await;
    let client = cluster.client();
    for number in 0..20 {
        client.kv().set(format!("key-{number:02}"), format!("{number}")).await.expect("written");
    }
    // Nodes that start register themselves, which takes revisions: they must agree in the end.
    eventually("three answers at one revision", async || {
        let mut answers = Vec::new();
        for id in cluster.ids() {
            answers.push(read_all(&cluster.client_at(id)).await);
        }
        let [one, other, third] = &answers[..] else { panic!("three nodes") };
        assert_eq!(one.kvs.len(), 20);
        assert_eq!((&one.kvs, one.count), (&other.kvs, other.count));
        assert_eq!((&one.kvs, one.count), (&third.kvs, third.count));
        (one.revision == other.revision && one.revision == third.revision).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_was_written_at_one_node_is_read_at_every_other() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let clients: Vec<_> = cluster.ids().into_iter().map(|id| cluster.client_at(id)).collect();
    let round_trips = async |from: u64| {
        for number in from..from + 60 {
            let (write, read) = (number % 3, (number / 3) % 3);
            let value = number.to_string();
            let (write, read) = (&clients[write as usize], &clients[read as usize]);
            let revision = write.kv().set("key", value.clone()).await.expect("written");
            let found = read.kv().get("key").await.expect("read").expect("it is there");
            assert_eq!((found.value, found.mod_revision), (value.into(), revision));
        }
    };
    round_trips(0).await;
    let leader = cluster.wait_for_leader().await;
    cluster.kill(leader).await;
    cluster.wait_for_leader().await;
    cluster.restart(leader).await;
    cluster.wait_until_ready().await;
    round_trips(60).await;
}

async fn read_all(client: &Client) -> RangeResponse {
    let request =
        RangeRequest { key: "key-".into(), range_end: "key.".into(), ..Default::default() };
    client.kv().range(request).await.expect("read")
}
