//! Handles that keep themselves: locks, sessions and registrations of the client library, while
//! nodes die and others take away what they hold.

use std::time::Duration;

use quorate::{
    client::{Client, LockGuard, Loss, Standing},
    pb::{
        discovery::v1::{DeregisterRequest, Instance, InstanceState, ResolveRequest},
        kv::v1::PutRequest,
        lock::v1::{AcquireRequest, DescribeRequest, Lock, ReleaseRequest},
        session::v1::CloseSessionRequest,
    },
    testing::Cluster,
};
use tokio::time::timeout;

use crate::{LIMIT, PROGRAM, eventually, proto};

/// How long a lock outlives its holder.
const TTL: Duration = Duration::from_secs(2);

/// A TTL that no test lives to see: what goes meanwhile went for another reason.
const LONG_TTL: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_guard_keeps_its_lock_when_the_leader_is_killed() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let client = cluster.client();
    let guard = client.locks().lock("lock").ttl(TTL).await.expect("it is free");
    let leader = cluster.wait_for_leader().await;
    cluster.kill(leader).await;
    assert_ne!(cluster.wait_for_leader().await, leader);
    // Another lock, which nobody renews, tells when a TTL has passed.
    let other =
        AcquireRequest { name: "other".into(), ttl: Some(proto(TTL)), ..Default::default() };
    client.locks().acquire(other.clone()).await.expect("it is free");
    client.locks().acquire(other).await.expect("it runs out");
    assert!(guard.is_held(), "{guard:?}");
    guarded_write(&client, &guard).await.expect("the lock is held");
    let released = guard.release().await.expect("it is held");
    assert!(released > 0);
    assert!(describe(&client).await.holder.is_none());
}

#[tokio::test]
async fn handles_outlive_a_node_that_stands_still() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let leader = cluster.wait_for_leader().await;
    let frozen = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    // The node that is asked first takes calls and answers none.
    let others = cluster.ids().into_iter().filter(|id| *id != frozen);
    let endpoints = std::iter::once(frozen).chain(others).map(|id| cluster.endpoint(id));
    let client = Client::builder().endpoints(endpoints).build().expect("well formed");
    let guard = client.locks().lock("lock").ttl(2 * TTL).await.expect("it is free");
    let session = client.sessions().start().ttl(2 * TTL).await.expect("open");
    cluster.pause(frozen);
    let until = guard.valid_until().max(session.valid_until());
    let renewed = async || {
        let (lock, session) = (guard.valid_until(), session.valid_until());
        (lock > until + TTL && session > until + TTL).then_some(())
    };
    eventually("renewals by other nodes", renewed).await;
    assert!(guard.is_held() && session.is_alive());
    cluster.resume(frozen);
    guard.release().await.expect("it is held");
}

#[tokio::test]
async fn a_lock_is_lost_when_its_session_is_closed_by_somebody_else() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let guard = client.locks().lock("lock").ttl(TTL).await.expect("it is free");
    let session_id = guard.session_id();
    assert_ne!(session_id, 0);
    let close = CloseSessionRequest { session_id, ..Default::default() };
    client.sessions().close(close).await.expect("it is there");
    let loss = timeout(LIMIT, guard.lost()).await.expect("the next renewal is refused");
    assert!(matches!(loss, Loss::Refused(_)), "{loss}");
    assert!(!guard.is_held());
    let refused = guarded_write(&client, &guard).await.expect_err("it is not held");
    assert_eq!(refused.reason(), "WRONG_FENCING_TOKEN");
    guard.release().await.expect_err("it is not held");
}

#[tokio::test]
async fn a_dropped_guard_lets_the_next_in_line_in_at_once() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    let guard = client.locks().lock("lock").ttl(LONG_TTL).await.expect("it is free");
    let token = guard.fencing_token();
    let none = client.locks().lock("lock").try_acquire().await.expect("an answer");
    assert!(none.is_none());
    let next = tokio::spawn({
        let client = client.clone();
        async move { client.locks().lock("lock").ttl(LONG_TTL).await }
    });
    eventually("a waiter", async || (describe(&client).await.waiter_count == 1).then_some(()))
        .await;
    drop(guard);
    let next = timeout(LIMIT, next).await.expect("long before the TTL").expect("no panic");
    let next = next.expect("its turn");
    assert!(next.fencing_token() > token);
    assert!(next.is_held(), "{next:?}");
}

#[tokio::test]
async fn work_ends_when_somebody_else_releases_its_lock() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let guard = client.locks().lock("lock").ttl(TTL).await.expect("it is free");
    assert_eq!(guard.while_held(async { 7 }).await.expect("it is held"), 7);
    let release = ReleaseRequest {
        name: "lock".into(),
        fencing_token: guard.fencing_token(),
        ..Default::default()
    };
    client.locks().release(release).await.expect("behind its back");
    let work = guard.while_held(std::future::pending::<()>());
    let loss = timeout(LIMIT, work).await.expect("it is stopped").expect_err("it has no end");
    assert!(matches!(loss, Loss::Refused(_)), "{loss}");
}

#[tokio::test]
async fn a_grant_that_came_after_a_long_wait_is_claimed_once_it_is_renewed() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    // Nobody renews it: the next in line waits for longer than its own TTL.
    let first =
        AcquireRequest { name: "lock".into(), ttl: Some(proto(2 * TTL)), ..Default::default() };
    client.locks().acquire(first).await.expect("it is free");
    let guard = client.locks().lock("lock").ttl(TTL).await.expect("the first one's time is up");
    assert!(guard.is_held(), "{guard:?}");
    guarded_write(&client, &guard).await.expect("the lock is held");
}

async fn guarded_write(client: &Client, guard: &LockGuard) -> Result<(), quorate::client::Error> {
    let put = PutRequest {
        key: "guarded".into(),
        value: guard.fencing_token().to_string().into(),
        require_lock: Some(guard.proof()),
        ..Default::default()
    };
    client.kv().put(put).await.map(drop)
}

async fn describe(client: &Client) -> Lock {
    let request = DescribeRequest { name: "lock".into(), ..Default::default() };
    client.locks().describe(request).await.expect("read").lock.expect("a lock is told of")
}

#[tokio::test]
async fn what_is_bound_to_a_guarded_session_goes_with_its_guard() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    let session = client.sessions().start().ttl(LONG_TTL).owner("a test").await.expect("open");
    let lock = client.locks().lock("lock").session(session.id()).await.expect("it is free");
    let bound = PutRequest { key: "bound".into(), session_id: session.id(), ..Default::default() };
    client.kv().put(bound).await.expect("the session is there");
    assert!(session.is_alive() && lock.is_held(), "{session:?} {lock:?}");
    assert_eq!(lock.session_id(), session.id());
    drop(session);
    eventually("the key to go", async || {
        client.kv().get("bound").await.expect("read").is_none().then_some(())
    })
    .await;
    assert!(describe(&client).await.holder.is_none());
}

#[tokio::test]
async fn a_session_lives_on_while_it_is_kept_and_is_lost_when_somebody_closes_it() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let client = cluster.client();
    let session = client.sessions().start().ttl(TTL).await.expect("open");
    let leader = cluster.wait_for_leader().await;
    cluster.kill(leader).await;
    let until = session.valid_until();
    // Two confirmed renewals after what was known: each moves the moment on.
    eventually("renewals", async || (session.valid_until() > until + TTL / 2).then_some(())).await;
    assert!(session.is_alive());
    let close = CloseSessionRequest { session_id: session.id(), ..Default::default() };
    client.sessions().close(close).await.expect("it is there");
    let loss = timeout(LIMIT, session.lost()).await.expect("the next renewal is refused");
    assert!(matches!(loss, Loss::Refused(_)), "{loss}");
    assert!(!session.is_alive());
    assert_eq!(session.close().await.expect_err("gone").code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn an_instance_comes_back_when_somebody_deregisters_it_and_goes_with_its_handle() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    let discovery = client.discovery();
    let mut registration = discovery
        .announce("web", "127.0.0.1:9000")
        .instance_id("web-1")
        .ttl(TTL)
        .zone("here")
        .weight(3)
        .metadata("version", "7")
        .await
        .expect("registered");
    assert!(registration.is_confirmed(), "{registration:?}");
    let before = instances(&client).await;
    assert_eq!((before[0].zone.as_str(), before[0].weight), ("here", 3));
    registration.drain().await.expect("it is there");

    let gone = DeregisterRequest {
        service: "web".into(),
        instance_id: "web-1".into(),
        ..Default::default()
    };
    discovery.deregister(gone).await.expect("behind its back");
    let standing = timeout(LIMIT, registration.changed()).await.expect("it comes back");
    assert!(matches!(standing, Standing::Registered { again: 1 }), "{standing:?}");
    let after = instances(&client).await;
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].metadata, before[0].metadata);
    assert_eq!(after[0].state(), InstanceState::Draining, "what was said of it still holds");
    registration.resume().await.expect("it is there");
    assert_eq!(instances(&client).await[0].state(), InstanceState::Serving);

    drop(registration);
    eventually("the instance to go", async || instances(&client).await.is_empty().then_some(()))
        .await;
    let registration = discovery.announce("web", "127.0.0.1:9000").await.expect("registered");
    assert!(!registration.instance_id().is_empty());
    registration.deregister().await.expect("it is there");
    assert!(instances(&client).await.is_empty());
}

#[tokio::test]
async fn an_instance_stays_registered_when_nodes_die_and_ends_with_its_session() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let client = cluster.client();
    let session = client.sessions().start().ttl(TTL).await.expect("open");
    let registration = client
        .discovery()
        .announce("web", "127.0.0.1:9000")
        .session(session.id())
        .await
        .expect("registered");
    let own = client.discovery().announce("own", "127.0.0.1:9000").ttl(TTL).await.expect("too");
    let leader = cluster.wait_for_leader().await;
    cluster.kill(leader).await;
    let until = session.valid_until();
    eventually("a TTL to pass", async || (session.valid_until() > until + TTL).then_some(())).await;
    assert_eq!(instances(&client).await.len(), 1);
    assert!(matches!(own.standing(), Standing::Registered { again: 0 }), "{own:?}");
    session.close().await.expect("it is there");
    let loss = timeout(LIMIT, registration.lost()).await.expect("its session is gone");
    assert!(matches!(loss, Loss::Refused(_)), "{loss}");
    assert!(instances(&client).await.is_empty());
}

async fn instances(client: &Client) -> Vec<Instance> {
    let request = ResolveRequest { service: "web".into(), ..Default::default() };
    client.discovery().resolve(request).await.expect("read").instances
}
