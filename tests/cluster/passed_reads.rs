//! A node that has no way to the leader still answers its clients' reads: through another node.

use std::time::Duration;

use quorate::{
    pb::{
        discovery::v1::{
            ListServicesRequest, ResolveRequest, discovery_service_client::DiscoveryServiceClient,
        },
        event::v1::{
            AppendRequest, DescribeStreamRequest, Event, ListStreamsRequest,
            event_service_client::EventServiceClient,
        },
        kv::v1::{PutRequest, RangeRequest, kv_service_client::KvServiceClient},
        lab::v1::{Direction, LinkFault},
        lock::v1::{DescribeRequest, ListRequest, lock_service_client::LockServiceClient},
    },
    testing::Cluster,
};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{LIMIT, eventually, leader_hint::hint, page};

/// How long links stay broken, if nobody heals them.
const LEASE: Duration = Duration::from_secs(120);

/// How long a read may take: ten times what the slowest here needs.
const READ_LIMIT: Duration = Duration::from_secs(20);

/// Cuts all connections between two nodes, at both ends.
async fn cut(cluster: &Cluster, one: u64, other: u64) {
    for (id, peer_id) in [(one, other), (other, one)] {
        for direction in [Direction::ToPeer, Direction::FromPeer] {
            let direction = direction.into();
            let cut = LinkFault { peer_id, direction, cut: true, ..LinkFault::default() };
            cluster.break_link(id, cut, LEASE).await.expect("it has a lab");
        }
    }
}

/// A counter of a node.
fn count(cluster: &Cluster, id: u64, name: &str) -> u64 {
    let (_, text) = page(cluster.admin_address(id), "/metrics").expect("its pages are served");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.expect("it is counted").parse().expect("a number")
}

fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

async fn connected(cluster: &Cluster, id: u64) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", cluster.endpoint(id)));
    endpoint.expect("an address").connect().await.expect("it listens")
}

async fn put(channel: &Channel, value: &str) -> Result<(), Status> {
    let value = value.to_owned().into();
    let request = PutRequest { key: "key".into(), value, ..PutRequest::default() };
    KvServiceClient::new(channel.clone()).put(within(LIMIT, request)).await.map(drop)
}

async fn read(channel: &Channel, stale: bool) -> Result<String, Status> {
    let request = RangeRequest { key: "key".into(), stale, ..RangeRequest::default() };
    let mut client = KvServiceClient::new(channel.clone());
    let answer = client.range(within(READ_LIMIT, request)).await?.into_inner();
    let found = answer.kvs.first().map(|found| String::from_utf8_lossy(&found.value).into_owned());
    Ok(found.unwrap_or_default())
}

/// The leader, and the two others.
async fn leader_and_others(cluster: &mut Cluster) -> (u64, u64, u64) {
    let leader = cluster.wait_for_leader().await;
    let mut others = cluster.ids().into_iter().filter(|id| *id != leader);
    let (follower, third) = (others.next().expect("three nodes"), others.next().expect("three"));
    (leader, follower, third)
}

#[tokio::test]
async fn a_follower_that_is_cut_off_from_the_leader_reads_through_the_third_node() {
    let mut cluster = Cluster::builder(3).lab().start().await;
    let (leader, follower, third) = leader_and_others(&mut cluster).await;
    let (there, here) = (connected(&cluster, leader).await, connected(&cluster, follower).await);
    put(&there, "before").await.expect("it is taken");
    assert_eq!(read(&here, false).await.expect("it is well"), "before");
    // On a machine that is slow enough some go elsewhere before anything is wrong.
    let passed_on = count(&cluster, follower, "quorate_reads_passed_on_total");
    let by_the_leader = count(&cluster, leader, "quorate_reads_for_others_total");
    let by_the_third = count(&cluster, third, "quorate_reads_for_others_total");

    cut(&cluster, leader, follower).await;
    put(&there, "after").await.expect("a majority is there");
    assert_eq!(read(&here, false).await.expect("through the third node"), "after");
    assert!(count(&cluster, follower, "quorate_reads_passed_on_total") > passed_on);
    assert!(count(&cluster, third, "quorate_reads_for_others_total") > by_the_third);
    assert_eq!(count(&cluster, leader, "quorate_reads_for_others_total"), by_the_leader);

    let nobody = async || hint(&cluster, follower).await.is_none().then_some(());
    eventually("the follower to know no leader", nobody).await;
    assert_ne!(read(&here, true).await.expect("a stale read is served"), "after");
    assert_eq!(read(&here, false).await.expect("again"), "after");
    let refused = put(&here, "lost").await.expect_err("writes are not passed on");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    cut(&cluster, third, follower).await;
    let refused = read(&here, false).await.expect_err("nobody is reached");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    cluster.heal_links().await;
    let back = async || (hint(&cluster, follower).await.is_some()).then_some(());
    eventually("the follower to be back", back).await;
    assert_eq!(read(&here, false).await.expect("it is well again"), "after");
}

#[tokio::test]
async fn every_unary_read_finds_its_way_around_a_broken_link() {
    let mut cluster = Cluster::builder(3).lab().start().await;
    let (leader, follower, third) = leader_and_others(&mut cluster).await;
    let (there, here) = (connected(&cluster, leader).await, connected(&cluster, follower).await);
    let before = count(&cluster, third, "quorate_reads_for_others_total");
    cut(&cluster, leader, follower).await;
    let events = vec![Event { r#type: "made".to_owned(), ..Event::default() }];
    let stream = "orders".to_owned();
    let append = AppendRequest { stream: stream.clone(), events, ..AppendRequest::default() };
    let mut events = EventServiceClient::new(there.clone());
    events.append(within(LIMIT, append)).await.expect("a majority is there");
    put(&there, "value").await.expect("a majority is there");

    assert_eq!(read(&here, false).await.expect("a range"), "value");
    let mut events = EventServiceClient::new(here.clone());
    let request = DescribeStreamRequest { stream, ..DescribeStreamRequest::default() };
    let answer = events.describe_stream(within(READ_LIMIT, request)).await.expect("a stream");
    assert!(answer.into_inner().stream.is_some());
    let answer = events.list_streams(within(READ_LIMIT, ListStreamsRequest::default())).await;
    assert_eq!(answer.expect("the streams").into_inner().streams.len(), 1);

    let mut locks = LockServiceClient::new(here.clone());
    let request = DescribeRequest { name: "jobs".to_owned(), ..DescribeRequest::default() };
    locks.describe(within(READ_LIMIT, request)).await.expect("a lock");
    locks.list(within(READ_LIMIT, ListRequest::default())).await.expect("the locks");
    let refused = locks.describe(within(READ_LIMIT, DescribeRequest::default())).await;
    assert_eq!(refused.expect_err("no name").code(), Code::InvalidArgument);

    let mut discovery = DiscoveryServiceClient::new(here);
    let request = ResolveRequest { service: "quorate".to_owned(), ..ResolveRequest::default() };
    let answer = discovery.resolve(within(READ_LIMIT, request)).await.expect("the nodes");
    assert!(answer.into_inner().instances.len() >= 2, "the cut-off one may have expired");
    let answer = discovery.list_services(within(READ_LIMIT, ListServicesRequest::default())).await;
    assert_eq!(answer.expect("the services").into_inner().services.len(), 1);
    assert!(count(&cluster, third, "quorate_reads_for_others_total") >= before + 7);
}

#[tokio::test]
async fn reads_are_passed_on_by_the_certificates_for_peers() {
    let mut cluster = Cluster::builder(3).tls().lab().start().await;
    let (leader, follower, third) = leader_and_others(&mut cluster).await;
    let before = count(&cluster, third, "quorate_reads_for_others_total");
    cut(&cluster, leader, follower).await;
    cluster.client_at(leader).kv().set("key", "after").await.expect("a majority is there");
    let here = cluster.client_at(follower).with_timeout(READ_LIMIT);
    let found = here.kv().get("key").await.expect("through the third node");
    assert_eq!(found.expect("it was written").value, "after");
    assert!(count(&cluster, third, "quorate_reads_for_others_total") > before);
}
