//! The node's way out: [`PeerTransport`] sorts what the node sends onto lanes, and holds what the
//! lanes, the calls and the server side share. It never blocks its caller and retries nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, Weak},
};

use arc_swap::ArcSwapOption;
use tokio::{
    runtime,
    sync::watch,
    time::{Instant as Deadline, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, service::Routes};
use tracing::{debug, error, warn};

use crate::{
    host,
    net::Tls,
    node::{Directory, Handle, SnapshotSource, Transport},
    observe::Metrics,
    pb::{
        cluster::v1::NodeStatus,
        raft::v1::{
            ForwardRequest, ForwardResponse, Identity, raft_service_server::RaftServiceServer,
        },
    },
    raft::Message,
    services::Elsewhere,
    types::{ClusterId, Duration, GroupId, Instant, NodeId, Rng},
};

use super::{
    calls,
    channel::MESSAGE_BYTES_MAX,
    faults::{Kind, Line, Way},
    inbound::{Answers, Votes},
    inbox::{Inbox, NodeInbox},
    lab::{LinkLab, kind_of},
    lanes::{Lane, LaneTask},
    link::{Link, lock},
    pass_out,
    rate::Bucket,
    service::PeerService,
    snapshot_in, snapshot_out,
};

/// The metadata of a refusal in which a node names its own cluster.
pub(super) const CLUSTER_ID_METADATA: &str = "quorate-cluster-id";

/// How long a shutdown waits for tasks, such as that of a snapshot which is being installed.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);

/// Refusals that are remembered so that each is logged once.
const REMEMBERED_MAX: usize = 64;

/// What a transport needs to know.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// Where snapshots are kept while they arrive; made when it is not there. Leftovers of an
    /// earlier process are removed.
    pub incoming_dir: PathBuf,
    /// How many bytes a second this node sends in snapshots, to all peers together; 0 is without a
    /// limit.
    pub snapshot_rate: u64,
    /// The node's metrics.
    pub metrics: Metrics,
    /// The certificates for peers; without them peers are dialled in plaintext.
    pub tls: Option<Arc<Tls>>,
    /// Faults on purpose; only where the node was started with `--lab`.
    pub lab: Option<Arc<LinkLab>>,
}

/// The connections between this node and its peers.
#[derive(Debug)]
pub struct PeerTransport {
    pub(super) shared: Arc<Shared>,
}

impl PeerTransport {
    /// A transport that does nothing yet: what is sent before [`PeerTransport::start`] is dropped.
    #[must_use]
    pub fn new(directory: Arc<Directory>, options: PeerOptions) -> Arc<Self> {
        let shared = Shared {
            directory,
            epoch: Deadline::now(),
            snapshot_pace: Mutex::new(Bucket::new(options.snapshot_rate)),
            arrivals: snapshot_in::Arrivals::default(),
            options,
            started: ArcSwapOption::empty(),
            answers: Answers::default(),
            votes: Votes::default(),
            refusals: Mutex::default(),
            logged: Mutex::default(),
            refused: watch::Sender::new(None),
            reads: OnceLock::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Arc::new(Self { shared: Arc::new(shared) })
    }

    /// Connects to the peers that the directory names, and delivers into the node from now on.
    /// Must be called within a tokio runtime, on which all tasks of this transport will run.
    pub fn start(&self, handle: &Handle) {
        self.start_into(Arc::new(NodeInbox::new(handle)));
    }

    pub(super) fn start_into(&self, inbox: Arc<dyn Inbox>) {
        let shared = &self.shared;
        snapshot_in::remove_leftovers(&shared.options.incoming_dir);
        let me = shared.directory.node_id;
        let peers = shared.directory.peers();
        let links: BTreeMap<NodeId, Arc<Link>> = peers
            .keys()
            .filter(|peer| **peer != me)
            .map(|peer| (*peer, Arc::new(Link::new(*peer))))
            .collect();

        // Connections have no fate to replay, so their jitter may come from the system.
        let rng = Rng::new(host::seed());
        for link in links.values() {
            for lane in [Lane::Control, Lane::Append, Lane::Forward] {
                let task =
                    LaneTask::new(Arc::clone(shared), Arc::clone(&inbox), Arc::clone(link), lane);
                let rng = rng.stream(&format!("{lane:?} {}", link.peer));
                shared.tasks.spawn(task.run(rng));
            }
        }
        if let Some(lab) = &shared.options.lab {
            shared.tasks.spawn(Arc::clone(lab).run(shared.stop.clone()));
        }
        let started = Started { links, inbox, runtime: runtime::Handle::current() };
        shared.started.store(Some(Arc::new(started)));
    }

    /// The `raft.v1.RaftService` of this node, for the peer listener; serve it with
    /// [`super::server_builder`].
    #[must_use]
    pub fn service(&self) -> RaftServiceServer<PeerService> {
        RaftServiceServer::new(PeerService::new(Arc::clone(&self.shared)))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Answers the reads that other nodes pass on, through what clients of this node reach, for as
    /// long as the caller keeps that. Called once; until then they are refused.
    pub fn serve_reads(&self, routes: &Arc<Routes>) {
        // A second call would be a second set of routes to the same node.
        let _ = self.shared.reads.set(Arc::downgrade(routes));
    }

    /// The way to other nodes for the reads that this one cannot serve.
    #[must_use]
    pub fn elsewhere(&self, handle: &Handle) -> Arc<dyn Elsewhere> {
        Arc::new(pass_out::Reads::new(Arc::clone(&self.shared), handle.clone()))
    }

    /// Ends all connections and streams, in and out, and waits until their tasks have ended, but
    /// for no more than two seconds. What is sent afterwards is dropped.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.started.store(None);
        self.shared.tasks.close();
        if timeout(SHUTDOWN_WAIT, self.shared.tasks.wait()).await.is_err() {
            warn!(node = %self.shared.directory.node_id, "peer tasks still run at the end");
        }
    }

    /// Waits until the cluster refuses this node's identity, and returns the peer's words. Then
    /// the process should end with them: the data directory was wiped or belongs elsewhere. A peer
    /// of this node's own cluster is believed alone, others only when they are a majority.
    pub async fn refused(&self) -> String {
        let mut refused = self.shared.refused.subscribe();
        let reason = refused.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.expect("the sender lives as long as the transport, and the value was waited for")
    }

    /// Asks a peer how it stands.
    ///
    /// # Errors
    /// A sentence that says why there is no answer: no connection, or not before the deadline.
    pub async fn node_status(
        &self,
        node: NodeId,
        deadline: Deadline,
    ) -> Result<NodeStatus, String> {
        let link = self.shared.link(node).ok_or_else(|| format!("node {node} is not a peer"))?;
        if !self.shared.hold(Line::to(node, Kind::Control)).await {
            return Err("the lab lost the question".to_owned());
        }
        calls::node_status(&self.shared.directory, &link, deadline).await
    }
}

impl Transport for PeerTransport {
    fn send(&self, to: NodeId, group: GroupId, message: Message) {
        let kept = match &self.shared.options.lab {
            None => self.shared.send(to, group, message),
            Some(lab) => {
                let (line, shared) = (Line::to(to, kind_of(&message)), Arc::clone(&self.shared));
                lab.carry(line, move || shared.send(to, group, message.clone()))
            }
        };
        if !kept {
            debug!(peer = %to, "message dropped");
        }
    }

    fn send_snapshot(&self, to: NodeId, group: GroupId, snapshot: SnapshotSource) {
        snapshot_out::start(&self.shared, to, group, snapshot);
    }

    fn forward(&self, to: NodeId, request: ForwardRequest) -> bool {
        let offer = move |shared: &Shared, request| {
            shared.link(to).is_some_and(|link| link.forwards.offer(request))
        };
        match &self.shared.options.lab {
            None => offer(&self.shared, request),
            Some(lab) => {
                let shared = Arc::clone(&self.shared);
                lab.carry(Line::to(to, Kind::Forward), move || offer(&shared, request.clone()))
            }
        }
    }

    fn answer(&self, to: NodeId, response: ForwardResponse) {
        let kept = match &self.shared.options.lab {
            None => self.shared.answers.forward(to, response),
            Some(lab) => {
                let (line, shared) = (Line::to(to, Kind::ForwardAnswer), Arc::clone(&self.shared));
                lab.carry(line, move || shared.answers.forward(to, response.clone()))
            }
        };
        if !kept {
            debug!(peer = %to, "answer dropped");
        }
    }
}

/// What lanes, calls and the server side share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) directory: Arc<Directory>,
    pub(super) options: PeerOptions,
    epoch: Deadline,
    /// How fast snapshots go out.
    snapshot_pace: Mutex<Bucket>,
    /// The snapshot that is on its way here.
    pub(super) arrivals: snapshot_in::Arrivals,
    pub(super) started: ArcSwapOption<Started>,
    pub(super) answers: Answers,
    pub(super) votes: Votes,
    /// The peers that refuse this node's identity.
    pub(super) refusals: Mutex<BTreeSet<NodeId>>,
    logged: Mutex<BTreeSet<(u64, String)>>,
    pub(super) refused: watch::Sender<Option<String>>,
    /// What clients of this node reach, for the reads that others pass on. It holds the node, which
    /// holds this.
    pub(super) reads: OnceLock<Weak<Routes>>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// What exists from start to shutdown.
pub(super) struct Started {
    links: BTreeMap<NodeId, Arc<Link>>,
    pub(super) inbox: Arc<dyn Inbox>,
    /// The node sends from threads of its own.
    pub(super) runtime: runtime::Handle,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("links", &self.links).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn link(&self, peer: NodeId) -> Option<Arc<Link>> {
        self.started.load().as_ref()?.links.get(&peer).cloned()
    }

    /// Sends a message on the lane of its kind. `false` where it is lost.
    fn send(self: &Arc<Self>, to: NodeId, group: GroupId, message: Message) -> bool {
        match message {
            Message::VoteResponse(vote) => self.votes.answer(vote),
            Message::AppendResponse(answer) => {
                self.answers.append(&self.directory, to, group, &answer)
            }
            Message::HeartbeatResponse(answer) => {
                self.answers.heartbeat(&self.directory, to, group, &answer)
            }
            Message::Heartbeat(_) => {
                self.link(to).is_some_and(|link| link.heartbeats.offer((group, message)))
            }
            Message::AppendRequest(_) => {
                self.link(to).is_some_and(|link| link.appends.offer((group, message)))
            }
            Message::VoteRequest(_) | Message::TimeoutNow(_) => {
                calls::send(self, to, group, message)
            }
        }
    }

    /// Hands a message that has arrived to the node.
    pub(super) fn deliver(
        &self,
        inbox: &Arc<dyn Inbox>,
        from: NodeId,
        group: GroupId,
        message: Message,
    ) {
        match &self.options.lab {
            None => inbox.deliver(from, group, message),
            Some(lab) => lab.deliver(inbox, from, group, message),
        }
    }

    /// Waits for as long as the lab delays a message. `false` where the lab loses it.
    pub(super) async fn hold(&self, line: Line) -> bool {
        match &self.options.lab {
            None => true,
            Some(lab) => lab.hold(line).await,
        }
    }

    /// Whether the lab lets no connection through.
    pub(super) fn turns_away(&self, peer: NodeId, way: Way) -> bool {
        self.options.lab.as_ref().is_some_and(|lab| lab.turns_away(peer, way))
    }

    /// Waits until the lab cuts the connections of this way; for ever without one.
    pub(super) async fn cut(&self, peer: NodeId, way: Way) {
        match &self.options.lab {
            None => std::future::pending().await,
            Some(lab) => lab.cut(peer, way).await,
        }
    }

    /// Pays for a chunk of a snapshot; says how long it must wait before it goes.
    pub(super) fn pace_snapshot(&self, bytes: usize) -> Duration {
        let now = Instant::ZERO.after(self.epoch.elapsed());
        lock(&self.snapshot_pace).take(now, bytes)
    }

    /// Checks that a message which should come from `peer` does.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub(super) fn expect(&self, peer: NodeId, identity: Option<&Identity>) -> Result<(), String> {
        let from = self.directory.check(identity)?;
        if from == peer {
            Ok(())
        } else {
            Err(format!("node {from} answers where node {peer} should"))
        }
    }

    /// Whether this refusal is worth a line in the log: peers try again every second.
    pub(super) fn is_news(&self, peer: u64, reason: &str) -> bool {
        let mut logged = lock(&self.logged);
        if logged.len() >= REMEMBERED_MAX {
            logged.clear();
        }
        logged.insert((peer, reason.to_owned()))
    }

    /// A peer accepts this node's identity.
    pub(super) fn identity_accepted(&self, peer: NodeId) {
        lock(&self.refusals).remove(&peer);
        lock(&self.logged).retain(|(refused, _)| *refused != peer.value());
    }

    /// A peer refuses this node's identity with FAILED_PRECONDITION.
    pub(super) fn identity_refused(&self, peer: NodeId, refusal: &Status) {
        let reason = refusal.message();
        let refusing = {
            let mut refusals = lock(&self.refusals);
            refusals.insert(peer);
            refusals.len()
        };
        let ours = self.directory.cluster_id();
        let theirs = refusal
            .metadata()
            .get(CLUSTER_ID_METADATA)
            .and_then(|value| value.to_str().ok())
            .and_then(ClusterId::parse);
        // A stray node at a peer's address must not be able to stop a healthy one.
        let same_cluster = theirs.is_some() && (ours.is_none() || theirs == ours);
        let majority = refusing > self.directory.peers().len() / 2;
        let node = self.directory.node_id;
        if self.is_news(peer.value(), reason) {
            error!(%node, %peer, reason, "peer refuses this node's identity");
        }
        if same_cluster || majority {
            self.refused.send_replace(Some(format!("node {peer} refuses this node: {reason}")));
        }
    }
}
