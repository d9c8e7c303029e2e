//! Every answer says where the leader is, before anybody had to be refused to learn it.

use quorate::{
    pb::{
        cluster::v1::TransferLeadershipRequest,
        discovery::v1::{RegisterRequest, discovery_service_client::DiscoveryServiceClient},
        kv::v1::{PutRequest, RangeRequest, WatchRequest, kv_service_client::KvServiceClient},
    },
    testing::Cluster,
    wire::LEADER_KEY,
};
use tonic::{Code, metadata::MetadataMap, transport::Channel};

use crate::eventually;

async fn kv(cluster: &Cluster, id: u64) -> KvServiceClient<Channel> {
    let connected = KvServiceClient::connect(format!("http://{}", cluster.endpoint(id))).await;
    connected.expect("it listens")
}

/// The address that an answer names.
fn named(metadata: &MetadataMap) -> Option<String> {
    metadata.get(LEADER_KEY).map(|leader| leader.to_str().expect("an address is text").to_owned())
}

/// The address that a node names with a read of its own state.
pub(crate) async fn hint(cluster: &Cluster, id: u64) -> Option<String> {
    let request = RangeRequest { key: "a".into(), stale: true, ..Default::default() };
    let answer = kv(cluster, id).await.range(request).await.expect("a stale read is served");
    named(answer.metadata())
}

#[tokio::test]
async fn every_node_names_the_leader_with_every_kind_of_answer() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.wait_for_leader().await;
    let expected = Some(cluster.endpoint(leader));
    for id in cluster.ids() {
        eventually("the hint", async || (hint(&cluster, id).await == expected).then_some(())).await;
        let mut kv = kv(&cluster, id).await;
        let put = PutRequest { key: "a".into(), ..Default::default() };
        let put = kv.put(put).await.expect("it is taken");
        assert_eq!(named(put.metadata()), expected, "a write at node {id}");
        let watch = WatchRequest { key: "a".into(), ..Default::default() };
        let watch = kv.watch(watch).await.expect("it opens");
        assert_eq!(named(watch.metadata()), expected, "a stream at node {id}");
        let refused = kv.put(PutRequest::default()).await.expect_err("no key");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert_eq!(named(refused.metadata()), expected, "a refusal by node {id}");
        let endpoint = format!("http://{}", cluster.endpoint(id));
        let discovery = DiscoveryServiceClient::connect(endpoint).await;
        let refused = discovery.expect("it listens").register(RegisterRequest::default()).await;
        let refused = refused.expect_err("no service").metadata().clone();
        assert_eq!(named(&refused), expected, "another service at node {id}");
    }
}

#[tokio::test]
async fn the_hint_goes_over_to_the_next_leader() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.wait_for_leader().await;
    let target_id = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let transfer = TransferLeadershipRequest { target_id };
    cluster.client().cluster().transfer_leadership(transfer).await.expect("it is handed over");
    for id in cluster.ids() {
        let next = Some(cluster.endpoint(target_id));
        let what = format!("node {id} to name node {target_id}");
        eventually(&what, async || (hint(&cluster, id).await == next).then_some(())).await;
    }
    cluster.kill(target_id).await;
    let next = cluster.wait_for_leader().await;
    for id in cluster.ids().into_iter().filter(|id| *id != target_id) {
        let next = Some(cluster.endpoint(next));
        eventually("the next leader", async || (hint(&cluster, id).await == next).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn without_a_leader_nothing_is_named() {
    let mut cluster = Cluster::start(3).await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    let nobody = async || hint(&cluster, 3).await.is_none().then_some(());
    eventually("node 3 to know no leader", nobody).await;
}
