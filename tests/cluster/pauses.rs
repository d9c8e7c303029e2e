//! A leader that was stopped where it stood and wakes in another's term: it serves nothing stale
//! and prolongs nothing.

use std::time::Duration;

use quorate::{
    client::Client,
    pb::{
        kv::v1::{PutRequest, RangeRequest, RangeResponse, kv_service_client::KvServiceClient},
        lock::v1::{AcquireRequest, RenewRequest, lock_service_client::LockServiceClient},
        session::v1::{
            KeepAliveRequest, KeepAliveResponse, OpenSessionRequest,
            session_service_client::SessionServiceClient,
        },
    },
    testing::Cluster,
};
use tokio::{
    task::JoinSet,
    time::{interval, timeout},
};
use tonic::{Code, Status, transport::Channel};

use crate::{LIMIT, PROGRAM, eventually, proto};

/// The shortest life that a session may have.
const TTL: Duration = Duration::from_secs(1);

/// How often a leader is heard of, by default: what takes longer was not sent on at once.
const HEARTBEAT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_leader_that_wakes_serves_no_stale_read() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let old = cluster.wait_for_leader().await;
    let there = connect(&cluster, old).await;
    let client = cluster.client();
    client.kv().set("key", "before").await.expect("written");
    assert_eq!(value(&range(&there).await.expect("it leads")), "before");

    cluster.pause(old);
    let new = cluster.wait_for_leader().await;
    assert_ne!(new, old);
    cluster.client_at(new).kv().set("key", "after").await.expect("written");

    // These begin after the write has ended, and lie before the sleeping node when it wakes.
    let mut parked = JoinSet::new();
    for _ in 0..16 {
        let there = there.clone();
        parked.spawn(async move { range(&there).await });
    }
    let early = timeout(HEARTBEAT, parked.join_next()).await;
    assert!(early.is_err(), "the node does not sleep: {early:?}");
    cluster.resume(old);
    let mut answered = 0;
    while let Some(answer) = timeout(LIMIT, parked.join_next()).await.expect("they end") {
        if let Ok(answer) = answer.expect("no panic") {
            assert_eq!(value(&answer), "after", "a stale read was served");
            answered += 1;
        }
    }
    for _ in 0..100 {
        if let Ok(answer) = range(&there).await {
            assert_eq!(value(&answer), "after", "a stale read was served");
            answered += 1;
        }
    }
    assert!(answered > 0, "nothing was answered, so nothing was shown");
}

#[tokio::test]
async fn a_leader_that_wakes_prolongs_no_session() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let old = cluster.wait_for_leader().await;
    let there = connect(&cluster, old).await;
    let client = cluster.client();
    let session = open_session(&client).await;
    let bound = PutRequest { key: "bound".into(), session_id: session, ..Default::default() };
    client.kv().put(bound).await.expect("the session lives");
    let acquire =
        AcquireRequest { name: "lock".into(), ttl: Some(proto(TTL)), ..Default::default() };
    let grant = client.locks().acquire(acquire).await.expect("it is free");
    let renewal = RenewRequest { name: "lock".into(), fencing_token: grant.fencing_token };
    assert_eq!(renew(&there, session).await.expect("it leads").session_id, session);

    cluster.pause(old);
    let parked = {
        let there = there.clone();
        tokio::spawn(async move { renew(&there, session).await })
    };
    let parked_lock = {
        let (mut locks, renewal) = (LockServiceClient::new(there.clone()), renewal.clone());
        tokio::spawn(async move { locks.renew(renewal).await })
    };
    let new = cluster.wait_for_leader().await;
    assert_ne!(new, old);
    let elsewhere = cluster.client_at(new);
    eventually("the session to run out", async || {
        elsewhere.kv().get("bound").await.expect("read").is_none().then_some(())
    })
    .await;
    let again = AcquireRequest { name: "lock".into(), ..Default::default() };
    let next = elsewhere.locks().acquire(again).await.expect("the grant has run out as well");
    assert!(next.fencing_token > grant.fencing_token);

    cluster.resume(old);
    let renewed = timeout(LIMIT, parked).await.expect("it ends").expect("no panic");
    assert!(renewed.is_err(), "a dead session was renewed: {renewed:?}");
    let renewed = timeout(LIMIT, parked_lock).await.expect("it ends").expect("no panic");
    assert!(renewed.is_err(), "a lost lock was renewed: {renewed:?}");
    let refused = eventually("the node to know that the session is gone", async || {
        let refused = renew(&there, session).await.expect_err("a dead session was renewed");
        (refused.code() == Code::NotFound).then_some(refused)
    })
    .await;
    assert!(refused.message().contains(&session.to_string()), "{refused:?}");
    let refused = LockServiceClient::new(there).renew(renewal).await.expect_err("it is another's");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

/// The other side of it: who renews in time, with whoever leads, keeps the session.
#[tokio::test]
async fn a_session_that_is_kept_alive_outlives_its_leader() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let old = cluster.wait_for_leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != old).expect("three nodes");
    let client = cluster.client_at(follower);
    let session = open_session(&client).await;
    let bound = PutRequest { key: "bound".into(), session_id: session, ..Default::default() };
    client.kv().put(bound).await.expect("the session lives");
    let keeper = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut ticks = interval(TTL / 4);
            loop {
                ticks.tick().await;
                client.sessions().keep_alive(session).await.expect("it lives");
            }
        })
    };
    cluster.pause(old);
    assert_ne!(cluster.wait_for_leader().await, old);
    let other = open_session(&client).await;
    let probe = PutRequest { key: "probe".into(), session_id: other, ..Default::default() };
    client.kv().put(probe).await.expect("the session lives");
    eventually("a session that nobody renews to run out", async || {
        client.kv().get("probe").await.expect("read").is_none().then_some(())
    })
    .await;
    assert!(client.kv().get("bound").await.expect("read").is_some(), "a live session was ended");
    assert!(!keeper.is_finished(), "a renewal was refused");
    keeper.abort();
}

/// A leader that hears of nobody, before it knows that it is alone and after.
#[tokio::test]
async fn without_a_majority_nothing_is_confirmed() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let leader = cluster.wait_for_leader().await;
    let there = connect(&cluster, leader).await;
    let client = cluster.client_at(leader);
    let session = open_session(&client).await;
    client.kv().set("key", "before").await.expect("written");

    let followers: Vec<_> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &followers {
        cluster.pause(*id);
    }
    let hurried = client.with_timeout(TTL).kv();
    let (write, read, renewal) = tokio::join!(
        hurried.set("key", "after"),
        timeout(TTL, range(&there)),
        timeout(TTL, renew(&there, session)),
    );
    let write = write.expect_err("a write was acknowledged by one of three");
    assert!(!matches!(read, Ok(Ok(_))), "a read was confirmed by one of three");
    assert!(!matches!(renewal, Ok(Ok(_))), "a renewal was confirmed by one of three");
    let read = timeout(LIMIT, range(&there)).await.expect("it is refused");
    assert_eq!(read.expect_err("nobody leads").code(), Code::Unavailable);

    for id in followers {
        cluster.resume(id);
    }
    cluster.wait_until_ready().await;
    let found = client.kv().get("key").await.expect("read").expect("it is there").value;
    let possible: &[&str] =
        if write.outcome_unknown() { &["before", "after"] } else { &["before"] };
    assert!(possible.iter().any(|value| found == value.as_bytes()), "{found:?} after {write:?}");
}

async fn open_session(client: &Client) -> u64 {
    let request = OpenSessionRequest { ttl: Some(proto(TTL)), ..Default::default() };
    client.sessions().open(request).await.expect("a leader is there").session_id
}

/// A connection to one node that never leaves it.
async fn connect(cluster: &Cluster, id: u64) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", cluster.endpoint(id)));
    endpoint.expect("an address").connect().await.expect("it listens")
}

async fn range(there: &Channel) -> Result<RangeResponse, Status> {
    let request = RangeRequest { key: "key".into(), ..Default::default() };
    Ok(KvServiceClient::new(there.clone()).range(request).await?.into_inner())
}

fn value(answer: &RangeResponse) -> String {
    let found = answer.kvs.first().expect("the key is there");
    String::from_utf8_lossy(&found.value).into_owned()
}

async fn renew(there: &Channel, session_id: u64) -> Result<KeepAliveResponse, Status> {
    let requests = tokio_stream::once(KeepAliveRequest { session_id });
    let mut client = SessionServiceClient::new(there.clone());
    let answer = client.keep_alive(requests).await?.into_inner().message().await?;
    answer.ok_or_else(|| Status::unavailable("the stream ended"))
}
