//! Transports over real TCP, each on a runtime of its own that can be dropped like a killed
//! process, with a recorder in the node's place.

mod faults;
mod simulated;
mod snapshots;

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    time::{Instant, interval, timeout},
};
use tonic::{Code, transport::server::TcpIncoming};
use uuid::Uuid;

use super::{
    Inbox, LinkLab, PeerOptions, PeerTransport,
    channel::{client, connect, server_builder},
};
use crate::{
    node::{Directory, Peer, SnapshotOffer, Transport as _},
    observe::Metrics,
    pb::{
        cluster::v1::NodeStatus,
        raft::v1::{
            AppendEntriesRequest, ForwardRequest, ForwardResponse, HandshakeRequest, Identity,
            RequestVoteRequest,
            forward_request::{Propose, ReadIndex},
            forward_response::{Answer, answer},
        },
    },
    raft::{
        AppendRequest, AppendResponse, AppendResult, Heartbeat, HeartbeatResponse, Message,
        TimeoutNow, VoteRequest, VoteResponse,
    },
    types::{ClusterId, Duration, GroupId, Incarnation, LogIndex, NodeId, Term},
};

const DEADLINE: Duration = Duration::from_secs(20);
const SYSTEM: GroupId = GroupId::SYSTEM;
const ONE: NodeId = NodeId::new(1);
const TWO: NodeId = NodeId::new(2);
const TERM: Term = Term::new(7);
/// The index of a snapshot at which installing panics.
const UNINSTALLABLE: LogIndex = LogIndex::new(66);

#[derive(Debug)]
enum Event {
    Message(NodeId, Message),
    Connected(NodeId),
    Disconnected(NodeId),
    SnapshotSent(Option<LogIndex>),
    Forwarded(NodeId, ForwardRequest),
    Answered(ForwardResponse),
    ForwardBroken(NodeId),
}

/// Takes the node's place and writes down what arrives.
#[derive(Debug)]
struct Recorder {
    events: mpsc::UnboundedSender<Event>,
    snapshots: Mutex<Vec<(SnapshotOffer, Vec<u8>)>>,
}

impl Recorder {
    fn note(&self, event: Event) {
        // A test that ended no longer listens.
        let _ = self.events.send(event);
    }
}

#[tonic::async_trait]
impl Inbox for Recorder {
    fn deliver(&self, from: NodeId, group: GroupId, message: Message) {
        assert_eq!(group, SYSTEM);
        self.note(Event::Message(from, message));
    }
    fn connected(&self, peer: NodeId) {
        self.note(Event::Connected(peer));
    }
    fn disconnected(&self, peer: NodeId) {
        self.note(Event::Disconnected(peer));
    }
    fn snapshot_sent(&self, _: NodeId, installed: Option<LogIndex>) {
        self.note(Event::SnapshotSent(installed));
    }
    async fn snapshot_received(&self, offer: SnapshotOffer) -> Result<(), String> {
        if offer.index.is_zero() {
            return Err("there is no room".to_owned());
        }
        assert!(offer.index != UNINSTALLABLE, "as a defect in installing would end");
        let content = fs::read(&offer.file).map_err(|error| error.to_string())?;
        self.snapshots.lock().unwrap().push((offer, content));
        Ok(())
    }
    fn forwarded(&self, from: NodeId, request: ForwardRequest) {
        self.note(Event::Forwarded(from, request));
    }
    fn answered(&self, _: NodeId, response: ForwardResponse) {
        self.note(Event::Answered(response));
    }
    fn forward_broken(&self, leader: NodeId) {
        self.note(Event::ForwardBroken(leader));
    }
    fn status(&self) -> NodeStatus {
        NodeStatus { node_id: 99, term: TERM.value(), ..Default::default() }
    }
}

/// A node that can be killed.
struct Node {
    id: NodeId,
    address: SocketAddr,
    runtime: Option<Runtime>,
    transport: Arc<PeerTransport>,
    recorder: Arc<Recorder>,
    events: mpsc::UnboundedReceiver<Event>,
    incoming_dir: TempDir,
}

impl Node {
    fn start(directory: Directory, listener: TcpListener) -> Self {
        Self::start_with(directory, listener, 0, None)
    }

    fn start_with(
        directory: Directory,
        listener: TcpListener,
        snapshot_rate: u64,
        lab: Option<Arc<LinkLab>>,
    ) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let recorder = Arc::new(Recorder { events: sender, snapshots: Mutex::default() });
        let incoming_dir = TempDir::new().unwrap();
        let metrics = Metrics::new();
        let dir = incoming_dir.path().to_owned();
        let options = PeerOptions { incoming_dir: dir, snapshot_rate, metrics, tls: None, lab };
        let (id, address) = (directory.node_id, listener.local_addr().unwrap());
        let transport = PeerTransport::new(Arc::new(directory), options);

        let entered = runtime.enter();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let server = server_builder().add_service(transport.service());
        runtime.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        transport.start_into(Arc::clone(&recorder) as Arc<dyn Inbox>);
        drop(entered);
        Self { id, address, runtime: Some(runtime), transport, recorder, events, incoming_dir }
    }

    /// Ends everything at once; the kernel closes the connections, as for a killed process.
    fn kill(&mut self) {
        self.runtime.take().expect("is killed once").shutdown_background();
    }

    /// Waits for an event that `pick` takes; others are passed over.
    async fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self.events.recv().await.expect("the recorder lives");
                if let Some(picked) = pick(event) {
                    return picked;
                }
            }
        };
        timeout(DEADLINE, search).await.unwrap_or_else(|_| panic!("no {what} arrived"))
    }

    async fn connected(&mut self, peer: NodeId) {
        self.wait("connection", |event| {
            matches!(event, Event::Connected(id) if id == peer).then_some(())
        })
        .await;
    }

    async fn disconnected(&mut self, peer: NodeId) {
        let is_it = |event| matches!(event, Event::Disconnected(id) if id == peer).then_some(());
        self.wait("disconnection", is_it).await;
    }

    async fn message(&mut self) -> (NodeId, Message) {
        self.wait("message", |event| match event {
            Event::Message(from, message) => Some((from, message)),
            _ => None,
        })
        .await
    }

    /// Sends appends until one arrives: the lane stands.
    async fn append_lane_stands(&self, peer: &mut Self) {
        until("append lane", || self.transport_lane_takes(peer.id)).await;
        let marker = append(0);
        let (_, arrived) = peer.message().await;
        assert_eq!(arrived, marker);
    }

    fn transport_lane_takes(&self, peer: NodeId) -> bool {
        let link = self.transport.shared.link(peer).unwrap();
        link.appends.offer((SYSTEM, append(0)))
    }

    fn nothing_arrived(&mut self) -> bool {
        std::iter::from_fn(|| self.events.try_recv().ok()).all(|event| {
            matches!(event, Event::Connected(_) | Event::Disconnected(_) | Event::ForwardBroken(_))
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let poll = async {
        let mut ticks = interval(Duration::from_millis(2));
        while !holds() {
            ticks.tick().await;
        }
    };
    timeout(DEADLINE, poll).await.unwrap_or_else(|_| panic!("no {what} in time"));
}

fn cluster_id(number: u128) -> ClusterId {
    ClusterId::new(Uuid::from_u128(number))
}

fn disk(number: u128) -> Incarnation {
    Incarnation::new(Uuid::from_u128(number))
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// What `id` knows; the disk of node `n` is `n`, as long as nobody wiped it.
fn directory(id: NodeId, cluster: u128, addresses: &[SocketAddr]) -> Directory {
    let peers: BTreeMap<NodeId, Peer> = (1_u64..)
        .zip(addresses)
        .map(|(number, address)| {
            let peer_address = address.to_string();
            let incarnation = Some(disk(number.into()));
            let peer = Peer { peer_address, incarnation, ..Default::default() };
            (NodeId::new(number), peer)
        })
        .collect();
    let own = addresses[usize::try_from(id.value()).unwrap() - 1].to_string();
    let client = format!("client-of-{id}:1");
    Directory::new(id, disk(id.value().into()), client, own, Some(cluster_id(cluster)), peers)
}

async fn pair() -> (Node, Node) {
    pair_with(|| None).await
}

async fn pair_with(lab: impl Fn() -> Option<Arc<LinkLab>>) -> (Node, Node) {
    let (first, second) = (listener(), listener());
    let addresses = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let mut one = Node::start_with(directory(ONE, 1, &addresses), first, 0, lab());
    let mut two = Node::start_with(directory(TWO, 1, &addresses), second, 0, lab());
    one.connected(TWO).await;
    two.connected(ONE).await;
    (one, two)
}

fn identity_of_two() -> Identity {
    Identity {
        cluster_id: cluster_id(1).to_string(),
        from_node: 2,
        to_node: 1,
        incarnation: disk(2).to_string(),
        ..Identity::default()
    }
}

fn append(round: u64) -> Message {
    Message::AppendRequest(AppendRequest {
        term: TERM,
        prev_index: LogIndex::ZERO,
        prev_term: Term::ZERO,
        entries: Vec::new(),
        commit: LogIndex::ZERO,
        round,
    })
}

#[tokio::test]
async fn each_lane_keeps_its_order_and_answers_come_back() {
    let (mut one, mut two) = pair().await;
    one.append_lane_stands(&mut two).await;
    for round in 1..=200 {
        one.transport.send(TWO, SYSTEM, append(round));
    }
    for round in 1..=200 {
        assert_eq!(two.message().await, (ONE, append(round)));
    }
    let beat = Message::Heartbeat(Heartbeat { term: TERM, commit: LogIndex::new(3), round: 1 });
    one.transport.send(TWO, SYSTEM, beat.clone());
    assert_eq!(two.message().await, (ONE, beat));

    let result = AppendResult::Matched { match_index: LogIndex::new(4) };
    let matched = Message::AppendResponse(AppendResponse { term: TERM, round: 200, result });
    let alive = Message::HeartbeatResponse(HeartbeatResponse { term: TERM, round: 1 });
    for answer in [matched, alive] {
        two.transport.send(ONE, SYSTEM, answer.clone());
        assert_eq!(one.message().await, (TWO, answer));
    }
}

#[tokio::test]
async fn a_killed_peer_is_reported_at_once_and_found_again() {
    let (mut one, mut two) = pair().await;
    let killed = Instant::now();
    two.kill();
    one.disconnected(TWO).await;
    let noticed = killed.elapsed();
    println!("noticed after {noticed:?}");
    assert!(noticed < Duration::from_secs(1), "noticed only after {noticed:?}");

    let addresses = [one.address, two.address];
    let mut again = None;
    until("free port", || {
        again = TcpListener::bind(two.address).ok();
        again.is_some()
    })
    .await;
    let mut two = Node::start(directory(TWO, 1, &addresses), again.unwrap());
    two.connected(ONE).await;
    one.connected(TWO).await;
}

#[tokio::test]
async fn a_vote_is_answered_when_the_voter_answers() {
    let (mut one, mut two) = pair().await;
    let request = VoteRequest {
        term: TERM,
        last_index: LogIndex::new(9),
        last_term: Term::new(6),
        pre_vote: true,
        leader_lost: true,
        transfer: false,
        call: 41,
    };
    one.transport.send(TWO, SYSTEM, Message::VoteRequest(request.clone()));
    let (from, arrived) = two.message().await;
    let Message::VoteRequest(arrived) = arrived else { panic!("{arrived:?}") };
    assert_eq!((from, VoteRequest { call: 41, ..arrived.clone() }), (ONE, request));

    let vote =
        VoteResponse { term: TERM, granted: true, pre_vote: true, reason: "", call: arrived.call };
    two.transport.send(ONE, SYSTEM, Message::VoteResponse(vote.clone()));
    let answer = Message::VoteResponse(VoteResponse { call: 41, ..vote });
    assert_eq!(one.message().await, (TWO, answer));

    one.transport.send(TWO, SYSTEM, Message::TimeoutNow(TimeoutNow { term: TERM }));
    assert_eq!(two.message().await, (ONE, Message::TimeoutNow(TimeoutNow { term: TERM })));
}

#[tokio::test]
async fn a_vote_that_is_not_decided_in_time_is_no_refusal() {
    let (one, _two) = pair().await;
    let mut client = client(connect(&one.address.to_string(), None).await.unwrap());
    let request = RequestVoteRequest {
        identity: Some(identity_of_two()),
        group_id: 1,
        term: 9,
        candidate_id: 2,
        ..Default::default()
    };
    let status = client.request_vote(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(one.transport.shared.votes.waiting.lock().unwrap().is_empty(), "nobody is parked");
}

#[tokio::test]
async fn a_stranger_is_answered_truthfully_and_changes_nothing() {
    let (mut one, _two) = pair().await;
    let mut client = client(connect(&one.address.to_string(), None).await.unwrap());
    let foreign = Identity { cluster_id: cluster_id(2).to_string(), ..identity_of_two() };
    let wiped = Identity { incarnation: disk(22).to_string(), ..identity_of_two() };
    let unknown = Identity { from_node: 9, ..identity_of_two() };
    for identity in [None, Some(foreign), Some(wiped), Some(unknown)] {
        let candidate_id = identity.as_ref().map_or(0, |identity| identity.from_node);
        let vote = RequestVoteRequest {
            identity: identity.clone(),
            group_id: 1,
            term: 900,
            candidate_id,
            ..Default::default()
        };
        let answer = client.request_vote(vote).await.unwrap().into_inner();
        assert!(!answer.vote_granted && !answer.reason.is_empty(), "{answer:?}");
        assert_eq!(answer.term, TERM.value());

        let append = AppendEntriesRequest {
            identity,
            group_id: 1,
            term: 900,
            leader_id: candidate_id,
            ..Default::default()
        };
        let stream = tokio_stream::iter([append]);
        let mut answers = client.append_entries(stream).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().expect("one answer");
        assert!(!answer.success && !answer.reason.is_empty(), "{answer:?}");
        assert_eq!(answer.term, TERM.value());
        assert_eq!(answers.message().await.unwrap(), None);
    }
    assert!(one.nothing_arrived());
}

#[tokio::test]
async fn a_stream_speaks_for_one_node_only() {
    let (mut one, _two) = pair().await;
    let mut client = client(connect(&one.address.to_string(), None).await.unwrap());
    let request = |from| AppendEntriesRequest {
        identity: Some(Identity { from_node: from, ..identity_of_two() }),
        group_id: 1,
        leader_id: from,
        heartbeat: true,
        ..Default::default()
    };
    let stream = tokio_stream::iter([request(2), request(3), request(2)]);
    let mut answers = client.append_entries(stream).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().expect("one answer");
    assert!(answer.reason.contains("from another node"), "{answer:?}");
    assert_eq!(answers.message().await.unwrap(), None);
    assert!(matches!(one.message().await, (TWO, Message::Heartbeat(_))));
    assert!(one.nothing_arrived());
}

#[tokio::test]
async fn a_node_whose_disk_was_wiped_hears_of_it() {
    let (first, second) = (listener(), listener());
    let addresses = [first.local_addr().unwrap(), second.local_addr().unwrap()];
    let known = directory(TWO, 1, &addresses);
    let (client, peers) = (known.client_address.clone(), known.peers());
    let own = known.peer_address.clone();
    let wiped = Directory::new(TWO, disk(22), client, own, None, BTreeMap::clone(&peers));
    let _one = Node::start(directory(ONE, 1, &addresses), first);
    let two = Node::start(wiped, second);
    let words = timeout(DEADLINE, two.transport.refused()).await.expect("a refusal");
    assert!(words.starts_with("node 1 refuses this node: node 2 is registered"), "{words}");
}

#[tokio::test]
async fn one_stray_node_does_not_stop_a_healthy_one() {
    let (first, second, third) = (listener(), listener(), listener());
    let addresses = [&first, &second, &third].map(|listener| listener.local_addr().unwrap());
    let one = Node::start(directory(ONE, 1, &addresses), first);
    let _stray = Node::start(directory(TWO, 2, &addresses), second);
    let shared = &one.transport.shared;
    until("refusal", || !shared.refusals.lock().unwrap().is_empty()).await;
    assert_eq!(*shared.refused.borrow(), None);

    let _stray = Node::start(directory(NodeId::new(3), 2, &addresses), third);
    let words = timeout(DEADLINE, one.transport.refused()).await.expect("a majority refuses");
    assert!(words.contains("belongs to cluster"), "{words}");
}

#[tokio::test]
async fn a_handshake_that_went_astray_blames_nobody() {
    let (one, _two) = pair().await;
    let mut client = client(connect(&one.address.to_string(), None).await.unwrap());
    let identity = Some(Identity { to_node: 3, ..identity_of_two() });
    let request = HandshakeRequest { identity, ..Default::default() };
    assert_eq!(client.handshake(request).await.unwrap_err().code(), Code::NotFound);
    let request = HandshakeRequest { identity: Some(identity_of_two()), ..Default::default() };
    let answer = client.handshake(request).await.unwrap().into_inner();
    assert_eq!(answer.client_address, "client-of-1:1");
}

#[tokio::test]
async fn what_is_forwarded_arrives_once_and_is_answered() {
    let (mut one, mut two) = pair().await;
    let propose = |sequence| ForwardRequest {
        proposals: vec![Propose { sequence, command: "c".into(), expected_term: 7 }],
        reads: vec![ReadIndex { sequence: sequence + 1_000 }],
        ..Default::default()
    };
    let mut sent = 0;
    until("forward lane", || one.transport.forward(TWO, propose(0))).await;
    while sent < 100 && one.transport.forward(TWO, propose(sent + 1)) {
        sent += 1;
    }
    let (mut proposals, mut reads) = (Vec::new(), Vec::new());
    while reads.len() < 101 {
        let request = two
            .wait("forward", |event| match event {
                Event::Forwarded(ONE, request) => Some(request),
                _ => None,
            })
            .await;
        proposals.extend(request.proposals.iter().map(|propose| propose.sequence));
        reads.extend(request.reads.iter().map(|read| read.sequence - 1_000));
    }
    assert_eq!(proposals, (0..=100).collect::<Vec<_>>());
    assert_eq!(reads, proposals);

    let result = Some(answer::Result::ReadIndex(5));
    let answers = vec![Answer { sequence: 3, result, expected_term: 1 }];
    two.transport.answer(ONE, ForwardResponse { answers: answers.clone() });
    let is_answer = |event| match event {
        Event::Answered(response) => Some(response.answers),
        _ => None,
    };
    assert_eq!(one.wait("answer", is_answer).await, answers);

    two.kill();
    one.wait("break", |event| matches!(event, Event::ForwardBroken(TWO)).then_some(())).await;
    assert!(!one.transport.forward(TWO, propose(1)), "certainly not sent");
}

#[tokio::test]
async fn a_peer_tells_how_it_stands_until_it_is_gone() {
    let (mut one, mut two) = pair().await;
    let status = one.transport.node_status(TWO, Instant::now() + DEADLINE).await.unwrap();
    assert_eq!((status.node_id, status.term), (99, TERM.value()));
    two.kill();
    one.disconnected(TWO).await;
    let error = one.transport.node_status(TWO, Instant::now() + DEADLINE).await.unwrap_err();
    assert_eq!(error, "no connection to node 2");
}

#[tokio::test]
async fn a_shutdown_ends_the_streams_of_both_sides() {
    let (one, mut two) = pair().await;
    timeout(DEADLINE, one.transport.shutdown()).await.expect("tasks end");
    two.disconnected(ONE).await;
    one.transport.send(TWO, SYSTEM, append(1));
    assert!(!one.transport.forward(TWO, ForwardRequest::default()));
}
