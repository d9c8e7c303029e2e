//! `raft.v1.RaftService`: the node's way in. It checks who speaks, and hands on what members say.
//!
//! A stranger gets a truthful answer and changes nothing. Requests are never judged here: what a
//! member's message means is the core's to say.

use std::sync::Arc;

use prost::Message as _;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use crate::{
    pb::raft::v1::{
        AppendEntriesRequest, AppendEntriesResponse, ForwardRequest, ForwardResponse,
        HandshakeRequest, HandshakeResponse, Identity, InstallSnapshotRequest,
        InstallSnapshotResponse, NodeStatusRequest, NodeStatusResponse, RequestVoteRequest,
        RequestVoteResponse, ServeReadRequest, ServeReadResponse, TimeoutNowRequest,
        TimeoutNowResponse, raft_service_server::RaftService,
    },
    raft::Message,
    types::{Duration, NodeId},
    wire::raft as wire,
};

use super::{
    batch::Batches,
    faults::{Kind, Line, Way},
    inbound::{self, ANSWERS_MAX},
    inbox::Inbox,
    lanes::{NODE_METADATA, learn_client_address},
    pass_in, snapshot_in,
    transport::{CLUSTER_ID_METADATA, Shared},
};

/// How long a voter may take to get its vote onto the disk.
pub(super) const VOTE_WAIT: Duration = Duration::from_secs(2);

/// The server side of [`super::PeerTransport`].
#[derive(Clone, Debug)]
pub struct PeerService {
    shared: Arc<Shared>,
}

impl PeerService {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The node, while it runs.
    fn inbox(&self) -> Result<Arc<dyn Inbox>, Status> {
        match self.shared.started.load().as_ref() {
            Some(started) => Ok(Arc::clone(&started.inbox)),
            None => Err(Status::unavailable("the node is not running")),
        }
    }

    /// This node's identity for whoever sent `identity`.
    fn identity(&self, to: Option<&Identity>) -> Identity {
        self.shared.directory.identity(NodeId::new(to.map_or(0, |to| to.from_node)))
    }

    async fn vote(
        &self,
        inbox: &Arc<dyn Inbox>,
        request: &RequestVoteRequest,
    ) -> Result<RequestVoteResponse, Status> {
        let identity = self.identity(request.identity.as_ref());
        let parked = self.shared.votes.park();
        let checked = self.shared.directory.check(request.identity.as_ref());
        let parsed = checked.and_then(|from| {
            wire::vote_request_from_pb(request, parked.call)
                .map(|(group, vote)| (from, group, vote))
        });
        let (from, group, vote) = match parsed {
            Ok(parsed) => parsed,
            Err(reason) => {
                debug!(node = %self.shared.directory.node_id, reason, "vote request refused");
                let term = inbox.status().term;
                let pre_vote = request.pre_vote;
                let identity = Some(identity);
                return Ok(RequestVoteResponse {
                    identity,
                    term,
                    vote_granted: false,
                    pre_vote,
                    reason,
                });
            }
        };
        if self.shared.turns_away(from, Way::From) {
            return Err(cut());
        }
        self.shared.deliver(inbox, from, group, Message::VoteRequest(vote));
        let mut parked = parked;
        let answer = timeout(VOTE_WAIT, &mut parked.answer);
        match self.shared.stop.run_until_cancelled(answer).await {
            Some(Ok(Ok(vote))) => Ok(wire::vote_response_to_pb(identity, &vote)),
            None => Err(Status::unavailable("the node is stopping")),
            // Not "no": the vote may be on its way to the disk.
            _ => Err(Status::deadline_exceeded("the vote was not decided in time")),
        }
    }
}

/// What a peer is told that the lab turns away.
fn cut() -> Status {
    Status::unavailable("the lab cut the link")
}

#[tonic::async_trait]
impl RaftService for PeerService {
    type AppendEntriesStream = ReceiverStream<Result<AppendEntriesResponse, Status>>;
    type InstallSnapshotStream = ReceiverStream<Result<InstallSnapshotResponse, Status>>;
    type ForwardStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<ForwardResponse, Status>> + Send>>;

    async fn request_vote(
        &self,
        request: Request<RequestVoteRequest>,
    ) -> Result<Response<RequestVoteResponse>, Status> {
        let inbox = self.inbox()?;
        self.vote(&inbox, request.get_ref()).await.map(Response::new)
    }

    async fn append_entries(
        &self,
        request: Request<Streaming<AppendEntriesRequest>>,
    ) -> Result<Response<Self::AppendEntriesStream>, Status> {
        let inbox = self.inbox()?;
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        let shared = Arc::clone(&self.shared);
        let named = request.metadata().get(NODE_METADATA);
        let named = named.and_then(|id| id.to_str().ok()?.parse().ok()).map(NodeId::new);
        let requests = request.into_inner();
        self.shared.tasks.spawn(inbound::appends(shared, inbox, named, requests, sender));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<InstallSnapshotRequest>>,
    ) -> Result<Response<Self::InstallSnapshotStream>, Status> {
        let inbox = self.inbox()?;
        let (sender, answers) = mpsc::channel(snapshot_in::ANSWERS_MAX);
        let shared = Arc::clone(&self.shared);
        let chunks = request.into_inner();
        self.shared.tasks.spawn(snapshot_in::receive(shared, inbox, chunks, sender));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn timeout_now(
        &self,
        request: Request<TimeoutNowRequest>,
    ) -> Result<Response<TimeoutNowResponse>, Status> {
        let inbox = self.inbox()?;
        let request = request.get_ref();
        let checked = self.shared.directory.check(request.identity.as_ref());
        let parsed = checked.and_then(|from| {
            wire::timeout_now_from_pb(request).map(|(group, order)| (from, group, order))
        });
        let accepted = match parsed {
            Ok((from, group, order)) => {
                if self.shared.turns_away(from, Way::From) {
                    return Err(cut());
                }
                self.shared.deliver(&inbox, from, group, Message::TimeoutNow(order));
                true
            }
            Err(reason) => {
                warn!(node = %self.shared.directory.node_id, reason, "order to campaign refused");
                false
            }
        };
        Ok(Response::new(TimeoutNowResponse { term: inbox.status().term, accepted }))
    }

    async fn handshake(
        &self,
        request: Request<HandshakeRequest>,
    ) -> Result<Response<HandshakeResponse>, Status> {
        let directory = &self.shared.directory;
        let request = request.into_inner();
        let (me, identity) = (directory.node_id, request.identity.unwrap_or_default());
        if identity.to_node != me.value() {
            // The caller has a wrong address; that says nothing about the caller's disk.
            let message = format!("this is node {me}, not node {}", identity.to_node);
            return Err(Status::not_found(message));
        }
        let checked = match directory.check(Some(&identity)) {
            Ok(from) if from == me => Err(format!("node {me} is here: no other may have its id")),
            checked => checked,
        };
        let from = checked.map_err(|reason| {
            if self.shared.is_news(identity.from_node, &reason) {
                warn!(node = %me, peer = identity.from_node, reason, "handshake refused");
            }
            let mut refusal = Status::failed_precondition(reason);
            if let Some(cluster) = directory.cluster_id() {
                let value = cluster.to_string().parse().expect("a UUID is plain ASCII");
                refusal.metadata_mut().insert(CLUSTER_ID_METADATA, value);
            }
            refusal
        })?;
        let kept = self.shared.hold(Line::from(from, Kind::Control)).await;
        if !kept || self.shared.turns_away(from, Way::From) {
            return Err(cut());
        }
        learn_client_address(&self.shared, from, &request.client_address);
        if let Some(link) = self.shared.link(from) {
            link.nudge.notify_waiters();
        }
        let client_address = directory.client_address.clone();
        let identity = Some(directory.identity(from));
        Ok(Response::new(HandshakeResponse { identity, client_address }))
    }

    async fn forward(
        &self,
        request: Request<Streaming<ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let inbox = self.inbox()?;
        let mut requests = request.into_inner();
        let first = inbound::next(&self.shared, None, &mut requests).await.unwrap_or_default();
        let from = self
            .shared
            .directory
            .check(first.identity.as_ref())
            .map_err(Status::failed_precondition)?;
        if self.shared.turns_away(from, Way::From) {
            return Err(cut());
        }
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        let shared = Arc::clone(&self.shared);
        let reader = inbound::forwards(shared, inbox, from, first, requests, sender);
        self.shared.tasks.spawn(reader);
        Ok(Response::new(Box::pin(Batches::new(answers).map(Ok))))
    }

    async fn node_status(
        &self,
        request: Request<NodeStatusRequest>,
    ) -> Result<Response<NodeStatusResponse>, Status> {
        let from = request.get_ref().identity.as_ref().map_or(0, |identity| identity.from_node);
        if !self.shared.hold(Line::from(NodeId::new(from), Kind::Control)).await {
            return Err(cut());
        }
        let status = self.inbox()?.status().encode_to_vec().into();
        Ok(Response::new(NodeStatusResponse { status }))
    }

    async fn serve_read(
        &self,
        request: Request<ServeReadRequest>,
    ) -> Result<Response<ServeReadResponse>, Status> {
        let (shared, request) = (&self.shared, request.into_inner());
        let checked = shared.directory.check(request.identity.as_ref());
        let from = checked.map_err(Status::failed_precondition)?;
        let kept = shared.hold(Line::from(from, Kind::Forward)).await;
        if !kept || shared.turns_away(from, Way::From) {
            return Err(cut());
        }
        let answer = shared.stop.run_until_cancelled(pass_in::answer(shared, request)).await;
        let answer = answer.ok_or_else(|| Status::unavailable("the node is stopping"))??;
        if !shared.hold(Line::to(from, Kind::ForwardAnswer)).await {
            return Err(cut());
        }
        let identity = Some(shared.directory.identity(from));
        Ok(Response::new(ServeReadResponse { identity, answer: Some(answer) }))
    }
}
