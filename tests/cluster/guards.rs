//! Handles that keep themselves: locks, sessions and registrations of the client library, while
//! nodes die and others take away what they hold.

use std::time::Duration;

use quorate::{
    client::{Client, LockGuard, Loss},
    pb::{
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
