//! The client against a server that misbehaves on purpose: what is sent again, where, and how.

mod guards;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    client::{Client, Error},
    pb::kv::v1::{
        CompactRequest, CompactResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
        PutResponse, PutStreamRequest, PutStreamResponse, RangeRequest, RangeResponse, TxnRequest,
        TxnResponse, WatchRequest, WatchResponse,
        kv_service_server::{KvService, KvServiceServer},
    },
    resilience::retry_budget::{Config, Share},
    types::Duration,
};

/// Ten times what any wait of these tests should need.
const LIMIT: Duration = Duration::from_secs(20);

/// How the server treats the next call.
#[derive(Clone, Debug)]
enum Turn {
    Answer,
    Refuse(Status),
    /// Breaks all connections after it has read the request.
    Break,
    /// Never answers.
    Hang,
    /// Answers a watch with these revisions and stays silent then.
    Revisions(Vec<u64>),
}

#[derive(Debug, Default)]
struct Script {
    turns: VecDeque<Turn>,
    request_ids: Vec<String>,
    deadlines: Vec<bool>,
    starts: Vec<u64>,
}

/// A node that plays its script, and answers once it is through.
#[derive(Clone, Debug)]
struct Node {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    broken: Arc<Mutex<CancellationToken>>,
}

impl Node {
    async fn start(turns: impl IntoIterator<Item = Turn>) -> Self {
        let (server, front) = (free_port().await, free_port().await);
        let node = Self {
            address: front.local_addr().expect("it is bound"),
            script: Arc::new(Mutex::new(Script {
                turns: turns.into_iter().collect(),
                ..Default::default()
            })),
            broken: Arc::default(),
        };
        let behind = server.local_addr().expect("it is bound");
        let service = KvServiceServer::new(node.clone());
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(server));
        tokio::spawn(server);
        tokio::spawn(node.clone().forward(front, behind));
        node
    }

    /// Forwards connections to the server behind until they are broken.
    async fn forward(self, front: TcpListener, behind: SocketAddr) {
        while let Ok((mut outer, _)) = front.accept().await {
            let broken = self.broken.lock().expect("no test panics with it").clone();
            tokio::spawn(async move {
                let mut inner = TcpStream::connect(behind).await.expect("the server is there");
                tokio::select! {
                    _ = copy_bidirectional(&mut outer, &mut inner) => {}
                    () = broken.cancelled() => {}
                }
            });
        }
    }

    fn endpoint(&self) -> String {
        self.address.to_string()
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().expect("no test panics with it")
    }

    fn break_connections(&self) {
        std::mem::take(&mut *self.broken.lock().expect("no test panics with it")).cancel();
    }

    async fn turn(&self) -> Result<(), Status> {
        let turn = self.script().turns.pop_front().unwrap_or(Turn::Answer);
        match turn {
            Turn::Answer | Turn::Revisions(_) => Ok(()),
            Turn::Refuse(status) => Err(status),
            Turn::Break => {
                self.break_connections();
                std::future::pending().await
            }
            Turn::Hang => std::future::pending().await,
        }
    }
}

#[tonic::async_trait]
impl KvService for Node {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        {
            let mut script = self.script();
            script.deadlines.push(request.metadata().contains_key("grpc-timeout"));
            script.request_ids.push(request.into_inner().request_id);
        }
        self.turn().await?;
        Ok(Response::new(PutResponse { revision: 7, ..Default::default() }))
    }

    async fn range(&self, _: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        self.turn().await?;
        Ok(Response::new(RangeResponse::default()))
    }

    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let turn = {
            let mut script = self.script();
            script.starts.push(request.into_inner().start_revision);
            script.turns.pop_front()
        };
        let revisions = match turn {
            Some(Turn::Revisions(revisions)) => revisions,
            Some(Turn::Refuse(status)) => return Err(status),
            _ => Vec::new(),
        };
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            for revision in revisions {
                let response = WatchResponse { revision, ..Default::default() };
                let _ = sender.send(Ok(response)).await;
            }
            // The stream stays open until the client or the connection ends it.
            sender.closed().await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    type PutStreamStream = ReceiverStream<Result<PutStreamResponse, Status>>;

    async fn put_stream(
        &self,
        _: Request<Streaming<PutStreamRequest>>,
    ) -> Result<Response<Self::PutStreamStream>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn compact(
        &self,
        _: Request<CompactRequest>,
    ) -> Result<Response<CompactResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }
}

async fn free_port() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port")
}

fn unavailable(reason: &str, leader: Option<&Node>) -> Status {
    let facts = leader.map(|leader| ("leader_address".to_owned(), leader.endpoint()));
    let facts: HashMap<_, _> = facts.into_iter().collect();
    let details = ErrorDetails::with_error_info(reason, "quorate", facts);
    Status::with_error_details(Code::Unavailable, "not here", details)
}

fn client(endpoints: &[String], limit: Duration) -> Client {
    Client::builder()
        .endpoints(endpoints)
        .timeout(limit)
        .discover(false)
        .build()
        .expect("well formed")
}

async fn put(client: &Client) -> Result<u64, Error> {
    timeout(LIMIT, client.kv().set("k", "v")).await.expect("the client's own limit is shorter")
}

#[tokio::test]
async fn a_refused_proposal_is_sent_to_the_leader_that_the_answer_names() {
    let leader = Node::start([]).await;
    let follower = Node::start([Turn::Refuse(unavailable("NOT_LEADER", Some(&leader)))]).await;
    let client = client(&[follower.endpoint()], LIMIT);
    assert_eq!(put(&client).await.expect("the leader takes it"), 7);
    assert_eq!(leader.script().request_ids, follower.script().request_ids);
    put(&client).await.expect("the leader takes it");
    assert_eq!(leader.script().request_ids.len(), 2, "the client stays with the leader");
    assert_eq!(client.endpoints(), [follower.endpoint(), leader.endpoint()]);
}

#[tokio::test]
async fn what_no_node_takes_is_refused_for_certain() {
    let refusals = || std::iter::repeat_n(Turn::Refuse(unavailable("NO_QUORUM", None)), 1_000);
    let (one, other) = (Node::start(refusals()).await, Node::start(refusals()).await);
    let client = client(&[one.endpoint(), other.endpoint()], Duration::from_secs(2));
    let error = put(&client).await.expect_err("nobody takes it");
    assert_eq!((error.code(), error.reason()), (Code::Unavailable, "NO_QUORUM"));
    assert!(!error.outcome_unknown());
    assert!(other.script().request_ids.len() > 1, "the other endpoint was asked, and again");
}

#[tokio::test]
async fn the_word_of_a_node_that_answers_outlives_those_that_do_not() {
    let refusals = std::iter::repeat_n(Turn::Refuse(unavailable("NO_QUORUM", None)), 1_000);
    let node = Node::start(refusals).await;
    let client = client(&[node.endpoint(), "127.0.0.1:1".to_owned()], Duration::from_secs(2));
    for _ in 0..4 {
        let error = put(&client).await.expect_err("nobody takes it");
        assert_eq!((error.reason(), error.outcome_unknown()), ("NO_QUORUM", false), "{error}");
    }
}

#[tokio::test]
async fn a_change_is_sent_again_with_its_id_when_the_connection_breaks() {
    let node = Node::start([Turn::Break, Turn::Answer]).await;
    let client = client(&[node.endpoint()], LIMIT);
    assert_eq!(put(&client).await.expect("the second attempt is answered"), 7);
    let ids = node.script().request_ids.clone();
    assert_eq!(ids.len(), 2);
    assert!(!ids[0].is_empty());
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn a_lost_proposal_is_sent_again_with_its_id() {
    let details = ErrorDetails::with_error_info("OUTCOME_UNKNOWN", "quorate", []);
    let lost = Status::with_error_details(Code::Unknown, "the leader is gone", details);
    let node = Node::start([Turn::Refuse(lost)]).await;
    put(&client(&[node.endpoint()], LIMIT)).await.expect("the second attempt is answered");
    let ids = node.script().request_ids.clone();
    assert_eq!(ids, [ids[0].clone(), ids[0].clone()]);
}

#[tokio::test]
async fn a_refusal_is_not_sent_again() {
    let node = Node::start([Turn::Refuse(Status::failed_precondition("no"))]).await;
    let error = put(&client(&[node.endpoint()], LIMIT)).await.expect_err("it is refused");
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(node.script().request_ids.len(), 1);
}

#[tokio::test]
async fn a_node_that_is_full_says_nothing_of_an_attempt_before() {
    let full = || {
        let details = ErrorDetails::with_error_info("OVERLOADED", "quorate", []);
        Turn::Refuse(Status::with_error_details(Code::ResourceExhausted, "full", details))
    };
    let node = Node::start([Turn::Break, full()]).await;
    let error = put(&client(&[node.endpoint()], LIMIT)).await.expect_err("it is not taken");
    assert!(error.outcome_unknown(), "the first attempt may have been carried out: {error}");
    assert_eq!(error.reason(), "OUTCOME_UNKNOWN");

    let node = Node::start([full()]).await;
    let error = put(&client(&[node.endpoint()], LIMIT)).await.expect_err("it is not taken");
    assert_eq!((error.reason(), error.outcome_unknown()), ("OVERLOADED", false));
}

/// A client with a budget of its own: for a share of the calls, and a least number a second.
fn with_budget(node: &Node, limit: Duration, ratio: f64, per_second_min: u32) -> Client {
    let share = Share { ratio, per_second_min, window: Duration::from_secs(1) };
    let budget = Config::Share(share).validate().expect("its figures are in range");
    Client::builder()
        .endpoints([node.endpoint()])
        .timeout(limit)
        .discover(false)
        .retry_budget(Some(budget))
        .build()
        .expect("well formed")
}

#[tokio::test]
async fn all_calls_together_are_sent_again_within_the_budget() {
    let refusals = std::iter::repeat_n(Turn::Refuse(unavailable("NO_QUORUM", None)), 1_000);
    let node = Node::start(refusals).await;
    let client = with_budget(&node, Duration::from_secs(1), 0.0, 0);
    for calls in 1..=3 {
        let error = put(&client).await.expect_err("nobody takes it");
        assert_eq!((error.reason(), error.outcome_unknown()), ("NO_QUORUM", false), "{error}");
        assert_eq!(node.script().request_ids.len(), calls, "each is sent once");
    }
    assert_eq!(client.retry_stats().sent, 0);
    assert!(client.retry_stats().held_back >= 3);
}

#[tokio::test]
async fn while_the_budget_is_empty_a_call_waits() {
    let refusal = || Turn::Refuse(unavailable("NO_QUORUM", None));
    let turns = [refusal(), Turn::Answer, refusal(), Turn::Answer];
    let node = Node::start(turns).await;
    let client = with_budget(&node, LIMIT, 0.0, 1);
    put(&client).await.expect("the budget pays for the second attempt");
    put(&client).await.expect("after a second it does again");
    let stats = client.retry_stats();
    assert_eq!((node.script().request_ids.len(), stats.sent), (4, 2));
}

#[tokio::test]
async fn a_dead_endpoint_costs_little() {
    let dead = free_port().await;
    let address = dead.local_addr().expect("it is bound").to_string();
    drop(dead);
    let node = Node::start([]).await;
    let client = client(&[address, node.endpoint()], LIMIT);
    let started = tokio::time::Instant::now();
    put(&client).await.expect("the other endpoint answers");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_deadline_leaves_a_change_unknown_and_travels_with_the_request() {
    let node = Node::start([Turn::Hang, Turn::Hang]).await;
    let client = client(&[node.endpoint()], Duration::from_millis(200));
    let error = put(&client).await.expect_err("it hangs");
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.outcome_unknown(), "{error}");
    assert_eq!(node.script().deadlines, [true]);

    let read = timeout(LIMIT, client.kv().get("k")).await.expect("the client's limit is shorter");
    let error = read.expect_err("it hangs");
    assert_eq!((error.code(), error.outcome_unknown()), (Code::DeadlineExceeded, false));
}

#[tokio::test]
async fn while_a_node_is_silent_another_is_asked_as_well() {
    let hangs = || std::iter::repeat_n(Turn::Hang, 1_000);
    let (silent, node) = (Node::start(hangs()).await, Node::start([]).await);
    let client = client(&[silent.endpoint(), node.endpoint()], Duration::from_secs(2));
    let asked = || silent.script().request_ids.len();
    while asked() == 0 {
        assert_eq!(put(&client).await.expect("the other answers"), 7);
    }
    let id = silent.script().request_ids[0].clone();
    assert!(node.script().request_ids.contains(&id), "with the same id");
}

#[tokio::test]
async fn where_no_node_answers_the_error_names_them() {
    let client = client(&["127.0.0.1:1".to_owned()], Duration::from_millis(100));
    let error = put(&client).await.expect_err("nobody is there");
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().starts_with("no node answers at 127.0.0.1:1"), "{error}");
    assert!(!error.outcome_unknown());
}

#[tokio::test]
async fn a_watch_goes_on_behind_its_last_revision() {
    let node = Node::start([
        Turn::Revisions(vec![3, 4]),
        Turn::Refuse(unavailable("DRAINING", None)),
        Turn::Revisions(vec![9]),
    ])
    .await;
    let client = client(&[node.endpoint()], LIMIT);
    let mut watch = client.kv().watch(WatchRequest { start_revision: 3, ..Default::default() });
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let next = timeout(LIMIT, watch.next()).await.expect("it resumes");
        seen.push(next.expect("it resumes").expect("a watch does not end").revision);
        if seen == [3, 4] {
            node.break_connections();
        }
    }
    assert_eq!(seen, [3, 4, 9]);
    assert_eq!(node.script().starts, [3, 5, 5]);
    assert_eq!(watch.breaks(), 1);
}

#[tokio::test]
async fn a_watch_ends_where_history_is_gone() {
    let node = Node::start([Turn::Refuse(Status::out_of_range("compacted"))]).await;
    let client = client(&[node.endpoint()], LIMIT);
    let mut watch = client.kv().watch(WatchRequest::default());
    let next = timeout(LIMIT, watch.next()).await.expect("it is refused at once");
    assert_eq!(next.expect_err("it is refused").code(), Code::OutOfRange);
}
