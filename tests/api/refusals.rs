//! Refusals that the state decides: each has its documented status, and changes nothing.
//!
//! Everything is asked of the leader and of a follower: the answer must not depend on it.

use std::{error::Error as _, time::Duration};

use quorate::pb::{
    cluster::v1::{StateHashRequest, TransferLeadershipRequest},
    discovery::v1::{
        DeregisterRequest, InstanceState, RegisterRequest, RenewRequest as RenewInstanceRequest,
        SetInstanceStateRequest,
    },
    event::v1::{AppendRequest, ExpectedState, ReadRequest, append_request::Expected},
    kv::v1::{
        CompactRequest, HeldLock, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchRequest,
        request_op,
    },
    lock::v1::{AcquireRequest, DescribeRequest, ReleaseRequest, RenewRequest},
    session::v1::{CloseSessionRequest, KeepAliveRequest, OpenSessionRequest},
};
use tonic::{Code, Request};
use uuid::Uuid;

use crate::{
    eventually, settled,
    speech::{Node, drained, event, first, put, refused, span},
};

/// A session, instance or node that does not exist.
const NOBODY: u64 = 9_999_999;

/// The leader, then a follower.
async fn both(cluster: &mut quorate::testing::Cluster) -> [Node; 2] {
    let leader = cluster.wait_for_leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    [Node::of(cluster, leader).await, Node::of(cluster, follower).await]
}

fn acquire(name: &str) -> AcquireRequest {
    AcquireRequest { name: name.to_owned(), wait: span(0, 0), ..Default::default() }
}

fn append(stream: &str, ids: &[&str]) -> AppendRequest {
    let events = ids.iter().map(|id| event(id, "T")).collect();
    AppendRequest { stream: stream.to_owned(), events, ..Default::default() }
}

#[tokio::test]
async fn a_lock_answers_only_to_its_token() {
    let mut cluster = settled().await;
    for (number, mut node) in both(&mut cluster).await.into_iter().enumerate() {
        let name = format!("lock-{number}");
        let grant = node.lock.acquire(acquire(&name)).await.expect("granted").into_inner();
        let before = node.footprint().await;
        let wrong = Code::FailedPrecondition;
        for token in [grant.fencing_token - 1, grant.fencing_token + 1, NOBODY] {
            let release =
                ReleaseRequest { name: name.clone(), fencing_token: token, ..Default::default() };
            let answer = node.lock.release(release).await;
            let info = refused("release", answer, wrong, "WRONG_FENCING_TOKEN");
            assert_eq!(info.metadata["lock"], name);
            let renew = RenewRequest { name: name.clone(), fencing_token: token };
            refused("renew", node.lock.renew(renew).await, wrong, "WRONG_FENCING_TOKEN");
            let held = HeldLock { name: name.clone(), fencing_token: token };
            let guarded = PutRequest { require_lock: Some(held), ..put("guarded", "x") };
            refused("put", node.kv.put(guarded).await, wrong, "WRONG_FENCING_TOKEN");
        }
        let info = refused("acquire", node.lock.acquire(acquire(&name)).await, wrong, "LOCK_HELD");
        assert_eq!(info.metadata["fencing_token"], grant.fencing_token.to_string());
        assert_eq!(node.footprint().await, before, "refusals changed something");

        let describe = DescribeRequest { name: name.clone(), stale: false };
        let lock = node.lock.describe(describe).await.expect("described").into_inner().lock;
        let holder = lock.and_then(|lock| lock.holder).expect("it is held");
        assert_eq!(holder.fencing_token, grant.fencing_token);
        assert_eq!(node.get("guarded", false).await.expect("read"), None);
        let held = HeldLock { name, fencing_token: grant.fencing_token };
        let guarded = PutRequest { require_lock: Some(held), ..put("unguarded", "x") };
        node.kv.put(guarded).await.expect("the right token opens");
    }
}

#[tokio::test]
async fn history_that_is_gone_or_to_come_is_out_of_range() {
    let mut cluster = settled().await;
    let [mut leader, follower] = both(&mut cluster).await;
    let old = leader.put("a", "1").await;
    for value in ["2", "3"] {
        leader.put("a", value).await;
    }
    let new = leader.put("a", "4").await;
    let compact = |revision| CompactRequest { revision, ..Default::default() };
    leader.kv.compact(compact(new - 1)).await.expect("compacted");

    for mut node in [leader, follower] {
        // A follower's own state is up to date after a linearizable read.
        assert_eq!(node.get("a", false).await.expect("read").as_deref(), Some("4"));
        let before = node.footprint().await;
        let gone = |what: &str, info: tonic_types::ErrorInfo| {
            assert_eq!(info.metadata["compact_revision"], (new - 1).to_string(), "{what}");
        };
        let range = |revision| RangeRequest { key: "a".into(), revision, ..Default::default() };
        let answer = node.kv.range(range(old)).await;
        gone("range", refused("range", answer, Code::OutOfRange, "COMPACTED"));
        let answer = node.kv.compact(compact(old)).await;
        gone("compact", refused("compact", answer, Code::OutOfRange, "COMPACTED"));
        let watch = WatchRequest { key: "a".into(), start_revision: old, ..Default::default() };
        let answer = first(node.kv.watch(watch).await).await;
        gone("watch", refused("watch", answer, Code::OutOfRange, "COMPACTED"));
        let answer = node.cluster.state_hash(StateHashRequest { revision: old }).await;
        gone("hash", refused("hash", answer, Code::OutOfRange, "COMPACTED"));
        let read = RequestOp { request: Some(request_op::Request::Range(range(old))) };
        let txn = TxnRequest { success: vec![read], ..Default::default() };
        gone("txn", refused("txn", node.kv.txn(txn).await, Code::OutOfRange, "COMPACTED"));

        let future = "FUTURE_REVISION";
        refused("range", node.kv.range(range(new + 1)).await, Code::OutOfRange, future);
        refused("compact", node.kv.compact(compact(new + 1)).await, Code::OutOfRange, future);
        let answer = node.cluster.state_hash(StateHashRequest { revision: new + 1 }).await;
        refused("hash", answer, Code::OutOfRange, future);
        assert_eq!(node.footprint().await, before, "refusals changed something");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let mut cluster = settled().await;
    for mut node in both(&mut cluster).await {
        node.put("known", "1").await;
        let before = node.footprint().await;
        let missing = Code::NotFound;
        let read = ReadRequest { stream: "none".to_owned(), ..Default::default() };
        let answer = drained(node.event.read(read).await).await;
        let info = refused("read", answer, missing, "STREAM_NOT_FOUND");
        assert_eq!(info.metadata["stream"], "none");

        let session = "SESSION_NOT_FOUND";
        let bound = PutRequest { session_id: NOBODY, ..put("bound", "1") };
        refused("put", node.kv.put(bound).await, missing, session);
        let close = CloseSessionRequest { session_id: NOBODY, ..Default::default() };
        refused("close", node.session.close_session(close).await, missing, session);
        let renewals = tokio_stream::once(KeepAliveRequest { session_id: NOBODY });
        let answer = drained(node.session.keep_alive(renewals).await).await;
        refused("keep alive", answer, missing, session);
        let under = AcquireRequest { session_id: NOBODY, ..acquire("under") };
        refused("acquire", node.lock.acquire(under).await, missing, session);
        let (service, address) = ("web".to_owned(), "127.0.0.1:1".to_owned());
        let register = RegisterRequest {
            service: service.clone(),
            address,
            session_id: NOBODY,
            ..Default::default()
        };
        refused("register", node.discovery.register(register).await, missing, session);

        let instance_id = "none".to_owned();
        let renew =
            RenewInstanceRequest { service: service.clone(), instance_id: instance_id.clone() };
        let answer = node.discovery.renew(renew).await;
        let info = refused("renew", answer, missing, "INSTANCE_NOT_FOUND");
        assert_eq!((info.metadata["service"].as_str(), info.metadata.len()), ("web", 2));
        let drain = SetInstanceStateRequest {
            service: service.clone(),
            instance_id: instance_id.clone(),
            state: InstanceState::Draining.into(),
            ..Default::default()
        };
        let answer = node.discovery.set_instance_state(drain).await;
        refused("set state", answer, missing, "INSTANCE_NOT_FOUND");
        let deregister = DeregisterRequest { service, instance_id, ..Default::default() };
        let answer = node.discovery.deregister(deregister).await;
        refused("deregister", answer, missing, "INSTANCE_NOT_FOUND");

        let transfer = TransferLeadershipRequest { target_id: NOBODY };
        let answer = node.cluster.transfer_leadership(transfer).await;
        refused("transfer", answer, Code::FailedPrecondition, "NOT_A_VOTER");
        assert_eq!(node.footprint().await, before, "refusals changed something");
    }
}

#[tokio::test]
async fn an_append_that_does_not_fit_is_refused_whole() {
    let mut cluster = settled().await;
    let ids: Vec<String> = (0..4).map(|_| Uuid::new_v4().to_string()).collect();
    let [a, b, c, d] = [0, 1, 2, 3].map(|at: usize| ids[at].as_str());
    for (number, mut node) in both(&mut cluster).await.into_iter().enumerate() {
        let stream = format!("orders-{number}");
        node.event.append(append(&stream, &[a, b])).await.expect("appended");
        let before = node.footprint().await;
        let expecting = |expected| AppendRequest {
            expected: Some(expected),
            ..append(&stream, &[Uuid::new_v4().to_string().as_str()])
        };
        let no_stream = Expected::ExpectedState(ExpectedState::NoStream.into());
        let wrong = [1, 3, 0].map(Expected::ExpectedVersion).into_iter().chain([no_stream]);
        for expected in wrong {
            let answer = node.event.append(expecting(expected)).await;
            let info = refused("append", answer, Code::Aborted, "WRONG_EXPECTED_VERSION");
            assert_eq!(info.metadata["actual_version"], "2", "{expected:?}");
        }
        let exists = Expected::ExpectedState(ExpectedState::Exists.into());
        let missing = AppendRequest { expected: Some(exists), ..append("none", &[c]) };
        let answer = node.event.append(missing).await;
        refused("append", answer, Code::Aborted, "WRONG_EXPECTED_VERSION");

        for partial in [[b, c], [c, a]] {
            let answer = node.event.append(append(&stream, &partial)).await;
            let info = refused("append", answer, Code::AlreadyExists, "EVENT_ID_EXISTS");
            assert_eq!(info.metadata["stream"], stream);
        }
        assert_eq!(node.footprint().await, before, "refusals changed something");

        let again = node.event.append(append(&stream, &[a, b])).await.expect("the same events");
        assert!(again.into_inner().duplicate, "a retry answers as the first time");
        assert_eq!(node.footprint().await, before, "a retry appended again");
        let next = AppendRequest {
            expected: Some(Expected::ExpectedVersion(2)),
            ..append(&stream, &[c, d])
        };
        let next = node.event.append(next).await.expect("it fits").into_inner();
        assert_eq!((next.first_version, next.last_version), (3, 4));
    }
}

#[tokio::test]
async fn a_request_id_belongs_to_one_request() {
    let mut cluster = settled().await;
    for mut node in both(&mut cluster).await {
        let request_id = Uuid::new_v4().to_string();
        let identified = |value| PutRequest { request_id: request_id.clone(), ..put("k", value) };
        let done = node.kv.put(identified("1")).await.expect("written").into_inner();
        let before = node.footprint().await;
        let again = node.kv.put(identified("1")).await.expect("answered again").into_inner();
        assert_eq!(again, done, "a retry gets the first attempt's answer");
        let answer = node.kv.put(identified("2")).await;
        let info = refused("put", answer, Code::InvalidArgument, "REQUEST_ID_REUSED");
        assert_eq!(info.metadata["request_id"], request_id);
        let other = ReleaseRequest {
            name: "x".to_owned(),
            fencing_token: 1,
            request_id: request_id.clone(),
        };
        let answer = node.lock.release(other).await;
        refused("release", answer, Code::InvalidArgument, "REQUEST_ID_REUSED");

        let sequence = |id: String| PutRequest { request_id: id, ..put("k", "3") };
        let answer = node.kv.put(sequence(format!("{NOBODY}:1:1"))).await;
        refused("put", answer, Code::FailedPrecondition, "SESSION_EXPIRED");
        assert_eq!(node.footprint().await, before, "refusals changed something");

        let session =
            node.session.open_session(OpenSessionRequest::default()).await.expect("opened");
        let session = session.into_inner().session_id;
        node.kv.put(sequence(format!("{session}:5:5"))).await.expect("written");
        let before = node.footprint().await;
        let answer = node.kv.put(sequence(format!("{session}:4:4"))).await;
        refused("put", answer, Code::FailedPrecondition, "SEQUENCE_FORGOTTEN");
        assert_eq!(node.footprint().await, before, "refusals changed something");
    }
}

#[tokio::test]
async fn a_deadline_that_ran_out_says_so() {
    let mut cluster = settled().await;
    for (number, mut node) in both(&mut cluster).await.into_iter().enumerate() {
        let name = format!("lock-{number}");
        node.lock.acquire(acquire(&name)).await.expect("granted");
        let before = node.footprint().await;
        let answer = eventually("the node's own answer", async || {
            let mut wait =
                Request::new(AcquireRequest { name: name.clone(), ..Default::default() });
            wait.set_timeout(Duration::from_millis(300));
            let answer = node.lock.clone().acquire(wait).await;
            // tonic's own client gives up a few milliseconds later and may be the first to wake.
            let by_client = answer.as_ref().is_err_and(|status| status.source().is_some());
            (!by_client).then_some(answer)
        });
        let answer = answer.await;
        refused("acquire", answer, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        let line = eventually("the waiter to be gone", async || {
            let describe = DescribeRequest { name: name.clone(), stale: false };
            let lock = node.lock.clone().describe(describe).await.ok()?.into_inner().lock?;
            (lock.waiter_count == 0).then_some(lock)
        });
        assert!(line.await.holder.is_some(), "the holder keeps it");
        assert_eq!(node.footprint().await, before, "waiting changed something");

        let mut watch = Request::new(WatchRequest { key: "a".into(), ..Default::default() });
        watch.set_timeout(Duration::from_millis(300));
        let ended = drained(node.kv.watch(watch).await).await;
        refused("watch", ended, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
}
