//! Handles that keep themselves, against a node that refuses, or says nothing at all.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status, transport::Server};

use super::{LIMIT, client, free_port};
use crate::{
    client::{LockGuard, Loss},
    pb::lock::v1::{
        AcquireRequest, AcquireResponse, DescribeRequest, DescribeResponse, ListRequest,
        ListResponse, ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse, WatchRequest,
        WatchResponse,
        lock_service_server::{LockService, LockServiceServer},
    },
    types::Duration,
};

/// A TTL that no test lives to see.
const LONG_TTL: Duration = Duration::from_secs(600);

/// The least that a node takes.
const SHORT_TTL: Duration = Duration::from_secs(1);

/// How a node treats renewals and releases.
const ANSWERS: u8 = 0;
const REFUSES: u8 = 1;
const IS_SILENT: u8 = 2;

/// A node with one lock, which is free for whoever asks.
#[derive(Clone, Debug)]
struct Node {
    address: SocketAddr,
    mood: Arc<AtomicU8>,
    /// What it says of a grant's TTL, beside what it takes.
    ttl: Duration,
    calls: mpsc::UnboundedSender<&'static str>,
}

impl Node {
    async fn start(ttl: Duration) -> (Self, mpsc::UnboundedReceiver<&'static str>) {
        let listener = free_port().await;
        let (calls, called) = mpsc::unbounded_channel();
        let address = listener.local_addr().expect("it is bound");
        let node = Self { address, mood: Arc::default(), ttl, calls };
        let server = Server::builder().add_service(LockServiceServer::new(node.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (node, called)
    }

    async fn lock(&self) -> LockGuard {
        let client = client(&[self.address.to_string()], LIMIT);
        client.locks().lock("lock").await.expect("it is free")
    }

    fn turns(&self, mood: u8) {
        self.mood.store(mood, Ordering::SeqCst);
    }

    async fn answer<T>(&self, call: &'static str, answer: T) -> Result<Response<T>, Status> {
        let _ = self.calls.send(call);
        match self.mood.load(Ordering::SeqCst) {
            ANSWERS => Ok(Response::new(answer)),
            REFUSES => Err(Status::failed_precondition("it is not held")),
            _ => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl LockService for Node {
    async fn acquire(
        &self,
        request: Request<AcquireRequest>,
    ) -> Result<Response<AcquireResponse>, Status> {
        let AcquireRequest { name, session_id, .. } = request.into_inner();
        let ttl = self.ttl.try_into().ok();
        let answer = AcquireResponse { name, fencing_token: 7, ttl, session_id, revision: 7 };
        Ok(Response::new(answer))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let RenewRequest { name, fencing_token } = request.into_inner();
        let ttl = self.ttl.try_into().ok();
        self.answer("renew", RenewResponse { name, fencing_token, ttl }).await
    }

    async fn release(
        &self,
        _: Request<ReleaseRequest>,
    ) -> Result<Response<ReleaseResponse>, Status> {
        self.answer("release", ReleaseResponse { revision: 8 }).await
    }

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }
}

async fn call(calls: &mut mpsc::UnboundedReceiver<&'static str>) -> &'static str {
    timeout(LIMIT, calls.recv()).await.expect("a call comes").expect("the node runs")
}

#[tokio::test]
async fn a_lock_is_lost_at_once_when_a_renewal_is_refused() {
    let (node, mut calls) = Node::start(SHORT_TTL).await;
    let guard = node.lock().await;
    assert!(guard.is_held(), "{guard:?}");
    assert_eq!(call(&mut calls).await, "renew");
    // The node says so of a claim that has most of its time before it.
    node.turns(REFUSES);
    let loss = timeout(LIMIT, guard.lost()).await.expect("the next renewal is refused");
    assert!(matches!(&loss, Loss::Refused(error) if error.message() == "it is not held"), "{loss}");
    assert!(!guard.is_held() && guard.valid_until() <= Instant::now());
    drop(guard);
    while let Ok(called) = calls.try_recv() {
        assert_eq!(called, "renew", "what is gone is not released");
    }
}

#[tokio::test]
async fn a_lock_is_lost_at_its_time_when_no_renewal_is_answered() {
    let (node, mut calls) = Node::start(SHORT_TTL).await;
    let guard = node.lock().await;
    assert_eq!(call(&mut calls).await, "renew");
    node.turns(IS_SILENT);
    // The renewal that was answered last moves the moment on, and none thereafter.
    assert_eq!(call(&mut calls).await, "renew");
    let valid_until = guard.valid_until();
    let loss = timeout(LIMIT, guard.lost()).await.expect("its time is up");
    assert!(matches!(loss, Loss::Lapsed { .. }), "{loss}");
    assert!(Instant::now() >= valid_until, "not before its time");
    assert!(!guard.is_held());
    sleep_until(valid_until + SHORT_TTL).await;
    node.turns(ANSWERS);
    assert!(!guard.is_held(), "what was lost stays lost");
    // It may be held as the cluster sees it, and is released for those in line.
    guard.release().await.expect("the node answers again");
}

#[tokio::test]
async fn a_guard_claims_nothing_at_its_time_though_nobody_looked_before() {
    let (node, _calls) = Node::start(SHORT_TTL).await;
    node.turns(IS_SILENT);
    let guard = node.lock().await;
    let valid_until = guard.valid_until();
    sleep_until(valid_until).await;
    assert!(!guard.is_held());
}

#[tokio::test]
async fn a_drop_does_not_wait_for_the_release() {
    let (node, mut calls) = Node::start(LONG_TTL).await;
    let (guard, second) = (node.lock().await, node.lock().await);
    let lost = guard.lost();
    node.turns(IS_SILENT);
    drop(guard);
    assert!(matches!(lost.await, Loss::Released), "at once");
    assert_eq!(call(&mut calls).await, "release");
    // One that nobody waits for holds up nobody; who waits is told when the client's time is up.
    let waited = timeout(Duration::from_millis(50), second.release()).await;
    assert!(waited.is_err());
    assert_eq!(call(&mut calls).await, "release");
}

#[test]
fn a_release_that_reaches_no_node_hangs_neither_a_drop_nor_the_end_of_the_runtime() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let guard = runtime.block_on(async {
        let (node, _calls) = Node::start(LONG_TTL).await;
        node.turns(IS_SILENT);
        node.lock().await
    });
    let (gone, was_gone) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // From outside of the runtime, whose tasks the node and the guard's renewals are.
        drop(guard);
        drop(runtime);
        gone.send(())
    });
    was_gone.recv_timeout(LIMIT).expect("nothing hangs");
}

#[tokio::test]
async fn a_lock_under_a_session_is_claimed_once_a_renewal_says_how_long_it_holds() {
    let (node, mut calls) = Node::start(LONG_TTL).await;
    let locks = client(&[node.address.to_string()], LIMIT).locks();
    let guard = locks.lock("lock").session(5).await.expect("it is free");
    assert_eq!(call(&mut calls).await, "renew");
    assert!(guard.is_held());
    drop(guard);
    assert_eq!(call(&mut calls).await, "release");

    node.turns(REFUSES);
    let refused = locks.lock("lock").session(5).await.expect_err("the session is gone");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}
