//! A balancer over a service's instances in the registry: it follows them as they come, drain and
//! go, and keeps what it was told last while the registry is away.

use std::{collections::BTreeSet, time::Duration};

use quorate::{
    client::balance::{Balance, Registry, RoundRobin, ServedBy, Weighted},
    testing::Cluster,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, transport::Server};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{LIMIT, eventually};

const SERVICE: &str = "echo";

/// Longer than any of these tests.
const TTL: Duration = Duration::from_secs(600);

/// How many calls in a row show who is called.
const CALLS: usize = 12;

/// A server that answers health checks until this is dropped. Returns its address.
async fn serve() -> (String, DropGuard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has ports");
    let address = listener.local_addr().expect("it is bound").to_string();
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    let (_, health) = tonic_health::server::health_reporter();
    tokio::spawn(
        Server::builder()
            .add_service(health)
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped),
    );
    (address, stop.drop_guard())
}

/// Who answered some calls in a row, or why one of them failed.
async fn served(balance: &Balance) -> Result<BTreeSet<String>, tonic::Status> {
    let mut client = HealthClient::new(balance.clone());
    let mut by = BTreeSet::new();
    for _ in 0..CALLS {
        let mut request = Request::new(HealthCheckRequest::default());
        request.set_timeout(LIMIT);
        let answer = client.check(request).await?;
        let served = answer.extensions().get::<ServedBy>().expect("a balancer says so");
        by.insert(served.id.to_string());
    }
    Ok(by)
}

async fn until_served_by(balance: &Balance, ids: &[&str]) {
    let expected: BTreeSet<String> = ids.iter().map(|id| (*id).to_owned()).collect();
    let what = format!("calls to be answered by {ids:?}");
    eventually(&what, async || served(balance).await.is_ok_and(|by| by == expected).then_some(()))
        .await;
}

#[tokio::test]
async fn a_balancer_follows_the_registry_and_keeps_what_it_told_last() {
    let mut cluster = Cluster::start(1).await;
    let discovery = cluster.client().discovery();
    let registry = Registry::new(cluster.client(), SERVICE);
    let balance = Balance::builder().policy(RoundRobin::new()).resolve(registry);
    let mut instances = Vec::new();
    for id in ["a", "b"] {
        let (address, guard) = serve().await;
        let instance = discovery.announce(SERVICE, address).instance_id(id).ttl(TTL);
        instances.push((instance.await.expect("it is registered"), guard));
    }
    until_served_by(&balance, &["a", "b"]).await;

    instances[0].0.drain().await.expect("it is registered");
    until_served_by(&balance, &["b"]).await;
    instances[0].0.resume().await.expect("it is registered");
    until_served_by(&balance, &["a", "b"]).await;

    cluster.kill(1).await;
    let by = served(&balance).await.expect("the instances are still there");
    assert_eq!(by.len(), 2, "what it told last stays in force");

    cluster.restart(1).await;
    cluster.wait_until_ready().await;
    let (address, _guard) = serve().await;
    let third = discovery.announce(SERVICE, address).instance_id("c").ttl(TTL);
    let _third = third.await.expect("it is registered");
    until_served_by(&balance, &["a", "b", "c"]).await;
    let (second, _guard) = instances.pop().expect("there are two");
    second.deregister().await.expect("it is registered");
    until_served_by(&balance, &["a", "c"]).await;
}

#[tokio::test]
async fn zones_and_weights_come_from_the_registry() {
    let cluster = Cluster::start(1).await;
    let discovery = cluster.client().discovery();
    let (address, _guard) = serve().await;
    let heavy = discovery.announce(SERVICE, &address).zone("west").weight(7).ttl(TTL);
    let _heavy = heavy.await.expect("it is registered");
    let registry = Registry::new(cluster.client(), SERVICE);
    let balance = Balance::builder().policy(Weighted::new()).resolve(registry);
    let view = eventually("the instance to be known", async || {
        balance.view().endpoints.into_iter().find(|endpoint| endpoint.address == address)
    });
    let view = view.await;
    assert_eq!((view.zone.as_str(), view.weight), ("west", 7));
}
