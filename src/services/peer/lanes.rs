//! The client side of a peer's long-lived streams: one task a lane, each with a connection of its
//! own, which connects, carries what is queued, delivers what comes back and starts over.
//!
//! The control lane introduces this node first and reports the connection to the node, as made and
//! as broken. A killed process closes its connections, so a break is seen within milliseconds.

use std::{future::Future, sync::Arc};

use tokio::{
    select,
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};
use tracing::{debug, info, warn};

use crate::{
    net::Fault,
    pb::raft::v1::{
        AppendEntriesRequest, AppendEntriesResponse, ForwardRequest, HandshakeRequest, Identity,
        raft_service_client::RaftServiceClient,
    },
    raft::Message,
    types::{Duration, GroupId, NodeId, Rng},
    wire::raft as wire,
};

use super::{
    batch::Batches,
    channel::{Backoff, client, connect},
    faults::{Kind, Line, Way},
    inbox::Inbox,
    link::{APPENDS_MAX, FORWARDS_MAX, HEARTBEATS_MAX, Link},
    transport::Shared,
};

/// How long a peer may take to answer a handshake or to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that stood this long was a good one: the next attempt comes soon.
const STEADY: Duration = Duration::from_secs(1);

/// The metadata in which a node with a lab names itself when it opens a stream.
pub(super) const NODE_METADATA: &str = "quorate-node";

/// What a lane says of itself that the lab cut.
const CUT: &str = "the lab cut the link";

/// A kind of traffic with a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Handshake, votes, heartbeats.
    Control,
    /// Entries.
    Append,
    /// What is passed on to the leader.
    Forward,
}

/// One lane to one peer.
pub(super) struct LaneTask {
    shared: Arc<Shared>,
    inbox: Arc<dyn Inbox>,
    link: Arc<Link>,
    lane: Lane,
}

impl LaneTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: Arc<dyn Inbox>,
        link: Arc<Link>,
        lane: Lane,
    ) -> Self {
        Self { shared, inbox, link, lane }
    }

    /// Keeps the lane up until the transport stops.
    pub(super) async fn run(self, rng: Rng) {
        let mut backoff = Backoff::new(rng);
        loop {
            let (mut up, began) = (false, Instant::now());
            let ended = select! {
                () = self.shared.stop.cancelled() => None,
                () = self.shared.cut(self.link.peer, Way::To) => Some(Err(CUT.to_owned())),
                ended = self.attempt(&mut up) => Some(ended),
            };
            self.close(up);
            let Some(ended) = ended else { return };
            self.log(up, ended.err().as_deref().unwrap_or("the peer closed the stream"));
            if up && began.elapsed() >= STEADY {
                backoff.reset();
            }
            select! {
                () = self.shared.stop.cancelled() => return,
                _ = timeout(backoff.pause(), self.link.nudge.notified()) => {}
            }
        }
    }

    /// Connects and carries until something breaks; sets `up` once the lane stands.
    async fn attempt(&self, up: &mut bool) -> Result<(), String> {
        let address = match self.shared.directory.peers().get(&self.link.peer) {
            Some(peer) if !peer.peer_address.is_empty() => peer.peer_address.clone(),
            _ => return Err("its address is not known".to_owned()),
        };
        let channel = connect(&address, self.shared.options.tls.as_ref()).await?;
        match self.lane {
            Lane::Control => self.control(channel, up).await,
            Lane::Append => self.append(channel, up).await,
            Lane::Forward => self.forward(channel, up).await,
        }
    }

    async fn control(&self, channel: Channel, up: &mut bool) -> Result<(), String> {
        let mut client = client(channel.clone());
        self.handshake(&mut client).await?;
        let (sender, queue) = mpsc::channel(HEARTBEATS_MAX);
        self.link.heartbeats.open(sender);
        let answers = opened(client.append_entries(self.named(queue))).await?;
        self.link.set_control(Some(channel));
        *up = true;
        info!(node = %self.shared.directory.node_id, peer = %self.link.peer, "peer connected");
        self.inbox.connected(self.link.peer);
        self.deliver(answers).await
    }

    async fn append(&self, channel: Channel, up: &mut bool) -> Result<(), String> {
        // The queue opens first: what is sent while the stream opens is not lost.
        let (sender, queue) = mpsc::channel(APPENDS_MAX);
        self.link.appends.open(sender);
        let answers = opened(client(channel).append_entries(self.named(queue))).await?;
        *up = true;
        self.deliver(answers).await
    }

    async fn forward(&self, channel: Channel, up: &mut bool) -> Result<(), String> {
        let identity = Some(self.shared.directory.identity(self.link.peer));
        let introduction = ForwardRequest { identity, ..Default::default() };
        let (sender, queue) = mpsc::channel(FORWARDS_MAX);
        let requests = tokio_stream::once(introduction).chain(Batches::new(queue));
        let mut answers = opened(client(channel).forward(requests)).await?;
        // The queue opens last: what is refused here was certainly not sent.
        self.link.forwards.open(sender);
        *up = true;
        while let Some(answer) = answers.message().await.map_err(|status| text(&status))? {
            match &self.shared.options.lab {
                None => self.inbox.answered(self.link.peer, answer),
                Some(lab) => lab.answered(&self.inbox, self.link.peer, answer),
            }
        }
        Ok(())
    }

    /// Introduces this node and checks who answers.
    async fn handshake(&self, client: &mut RaftServiceClient<Channel>) -> Result<(), String> {
        let (directory, peer) = (&self.shared.directory, self.link.peer);
        let request = HandshakeRequest {
            identity: Some(directory.identity(peer)),
            client_address: directory.client_address.clone(),
            peer_address: directory.peer_address.clone(),
        };
        if !self.shared.hold(Line::to(peer, Kind::Control)).await {
            return Err("the lab lost the handshake".to_owned());
        }
        let answer = match timeout(OPEN_TIMEOUT, client.handshake(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => {
                if status.code() == Code::FailedPrecondition {
                    self.shared.identity_refused(peer, &status);
                }
                return Err(text(&status));
            }
            Err(_) => return Err("it does not answer the handshake".to_owned()),
        };
        if let Err(reason) = self.shared.expect(peer, answer.identity.as_ref()) {
            if self.shared.is_news(peer.value(), &reason) {
                warn!(node = %directory.node_id, %peer, reason, "peer has another identity");
            }
            return Err(reason);
        }
        self.shared.identity_accepted(peer);
        learn_client_address(&self.shared, peer, &answer.client_address);
        Ok(())
    }

    /// The request that opens a stream of appends. The lab of the other side has to know at once
    /// whose it is: a stream may be silent for long.
    fn named(
        &self,
        queue: mpsc::Receiver<(GroupId, Message)>,
    ) -> Request<impl Stream<Item = AppendEntriesRequest> + use<>> {
        let mut request = Request::new(self.requests(queue));
        if self.shared.options.lab.is_some() {
            let me = self.shared.directory.node_id.value().into();
            request.metadata_mut().insert(NODE_METADATA, me);
        }
        request
    }

    /// A queue as the stream of requests; the first carries the whole identity.
    fn requests(
        &self,
        queue: mpsc::Receiver<(GroupId, Message)>,
    ) -> impl Stream<Item = AppendEntriesRequest> + use<> {
        let (directory, peer) = (Arc::clone(&self.shared.directory), self.link.peer);
        let me = directory.node_id;
        let mut introduced = false;
        ReceiverStream::new(queue).filter_map(move |(group, message)| {
            let identity = if introduced { numbers(me, peer) } else { directory.identity(peer) };
            introduced = true;
            match &message {
                Message::Heartbeat(heartbeat) => {
                    Some(wire::heartbeat_to_pb(identity, group, me, heartbeat))
                }
                Message::AppendRequest(append) => {
                    Some(wire::append_request_to_pb(identity, group, me, append))
                }
                _ => None,
            }
        })
    }

    /// Delivers answers until the stream ends.
    async fn deliver(&self, mut answers: Streaming<AppendEntriesResponse>) -> Result<(), String> {
        let peer = self.link.peer;
        let mut introduced = false;
        while let Some(answer) = answers.message().await.map_err(|status| text(&status))? {
            if !answer.reason.is_empty() {
                return Err(format!("it refuses this node's messages: {}", answer.reason));
            }
            if !introduced {
                self.shared.expect(peer, answer.identity.as_ref())?;
                introduced = true;
            }
            let (group, message) = wire::append_response_from_pb(&answer)?;
            self.shared.deliver(&self.inbox, peer, group, message);
        }
        Ok(())
    }

    /// Takes the lane away, and tells the node what it must know of it.
    fn close(&self, was_up: bool) {
        match self.lane {
            Lane::Control => {
                self.link.heartbeats.close();
                self.link.set_control(None);
                if was_up {
                    self.inbox.disconnected(self.link.peer);
                }
            }
            Lane::Append => self.link.appends.close(),
            Lane::Forward => {
                self.link.forwards.close();
                if was_up {
                    self.inbox.forward_broken(self.link.peer);
                }
            }
        }
    }

    fn log(&self, was_up: bool, reason: &str) {
        let (node, peer, lane) = (self.shared.directory.node_id, self.link.peer, self.lane);
        if was_up && lane == Lane::Control {
            info!(%node, %peer, reason, "peer disconnected");
        } else {
            debug!(%node, %peer, ?lane, reason, "lane is down");
        }
    }
}

/// The identity of a message in a stream that began with a whole one.
pub(super) fn numbers(from: NodeId, to: NodeId) -> Identity {
    Identity { from_node: from.value(), to_node: to.value(), ..Default::default() }
}

/// Records where clients reach a member whose identity was checked.
pub(super) fn learn_client_address(shared: &Shared, peer: NodeId, address: &str) {
    let known = shared.directory.peers();
    let changed = known.get(&peer).is_none_or(|known| known.client_address != address);
    if changed && !address.is_empty() {
        shared.directory.learn(peer, |known| address.clone_into(&mut known.client_address));
    }
}

/// A status as a sentence.
pub(super) fn text(status: &Status) -> String {
    match Fault::behind(status) {
        Some(fault) => fault.told().to_owned(),
        None => format!("{:?}: {}", status.code(), status.message()),
    }
}

async fn opened<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, String> {
    match timeout(OPEN_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(text(&status)),
        Err(_) => Err("it does not open the stream in time".to_owned()),
    }
}
