//! `quorate.cluster.v1.ClusterService`: the cluster as an operator sees it.

use std::sync::Arc;

use tokio::{task::JoinSet, time::Instant};
use tonic::{Request, Response, Status};

use crate::{
    machine::refusal,
    node::Peer,
    pb::{
        cluster::v1::{
            NodeStatus, SaveSnapshotRequest, SaveSnapshotResponse, StateHashRequest,
            StateHashResponse, StatusRequest, StatusResponse, TransferLeadershipRequest,
            TransferLeadershipResponse, cluster_service_server::ClusterService,
        },
        command::v1::{Reason, Refusal},
    },
    services::{
        backup::Saves,
        call::{Context, read},
        gate::Call,
        peer::PeerTransport,
    },
    streaming::Updates,
    types::{Duration, NodeId, Revision},
    wire::status::{from_refusal, from_store_error},
};

/// How long a status waits for a node that does not answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks other nodes how they stand.
pub trait Peers: Send + Sync + 'static {
    /// How a node stands, in its own words.
    ///
    /// # Errors
    /// A sentence that says why it did not answer before the deadline.
    fn node_status(
        &self,
        node: NodeId,
        deadline: Instant,
    ) -> impl Future<Output = Result<NodeStatus, String>> + Send;
}

impl Peers for PeerTransport {
    async fn node_status(&self, node: NodeId, deadline: Instant) -> Result<NodeStatus, String> {
        Self::node_status(self, node, deadline).await
    }
}

/// The service on one node.
#[derive(Debug)]
pub(crate) struct Cluster<P> {
    context: Context,
    peers: Arc<P>,
    saves: Saves,
}

impl<P> Cluster<P> {
    pub(crate) fn new(context: Context, peers: Arc<P>) -> Self {
        Self { context, peers, saves: Saves::default() }
    }
}

#[tonic::async_trait]
impl<P: Peers> ClusterService for Cluster<P> {
    async fn status(
        &self,
        mut request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let call = Call::of(&mut request);
        let local = self.context.node.status();
        let (node_id, leader_id, term) = (local.node_id, local.leader_id, local.term);
        let mut nodes = vec![local];
        if !request.into_inner().local {
            let known = self.context.node.directory().peers();
            let others = known
                .iter()
                .filter(|(id, _)| id.value() != node_id)
                .map(|(id, peer)| (*id, peer.clone()));
            nodes.extend(ask(&self.peers, others, call.deadline).await);
        }
        nodes.sort_by_key(|node| node.node_id);
        let cluster_id = self.context.node.directory().cluster_id();
        let cluster_id = cluster_id.map(|id| id.to_string()).unwrap_or_default();
        Ok(Response::new(StatusResponse { cluster_id, node_id, leader_id, term, nodes }))
    }

    async fn state_hash(
        &self,
        request: Request<StateHashRequest>,
    ) -> Result<Response<StateHashResponse>, Status> {
        let revision = Revision::new(request.into_inner().revision);
        let hash = read(self.context.node.view(), move |view| {
            view.state_hash(revision)
                .map_err(|error| from_store_error(&error))?
                .map_err(from_refusal)
        });
        let node_id = self.context.node.directory().node_id.value();
        Ok(Response::new(StateHashResponse { node_id, ..hash.await? }))
    }

    type SaveSnapshotStream = Updates<SaveSnapshotResponse>;

    async fn save_snapshot(
        &self,
        mut request: Request<SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, Status> {
        let call = Call::of(&mut request);
        self.saves.save(&self.context, request.get_ref(), call).await.map(Response::new)
    }

    async fn transfer_leadership(
        &self,
        mut request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipResponse>, Status> {
        let call = Call::of(&mut request);
        let target = NodeId::new(request.into_inner().target_id);
        let target = (!target.is_zero()).then_some(target);
        let transferred = self.context.node.transfer(target, call.deadline).await;
        let (leader, term) = transferred.map_err(|refusal| match target {
            Some(target) if refusal.reason() == Reason::NotAVoter => {
                from_refusal(not_a_voter(target))
            }
            _ => self.context.refused(refusal),
        })?;
        let (leader_id, term) = (leader.value(), term.value());
        Ok(Response::new(TransferLeadershipResponse { leader_id, term }))
    }
}

fn not_a_voter(target: NodeId) -> Refusal {
    let sentence =
        format!("node {target} is not a voter of this cluster: see `quorate status` for those");
    refusal(Reason::NotAVoter, sentence)
}

/// Asks nodes all at once; who does not answer is listed with the reason.
async fn ask<P: Peers>(
    peers: &Arc<P>,
    nodes: impl Iterator<Item = (NodeId, Peer)>,
    deadline: Option<Instant>,
) -> Vec<NodeStatus> {
    let patience = Instant::now() + PATIENCE;
    let deadline = deadline.map_or(patience, |deadline| deadline.min(patience));
    let mut asked = JoinSet::new();
    for (id, peer) in nodes {
        let peers = Arc::clone(peers);
        asked.spawn(async move {
            let answer = tokio::time::timeout_at(deadline, peers.node_status(id, deadline));
            match answer.await {
                Ok(Ok(status)) => NodeStatus { reachable: true, ..status },
                Ok(Err(error)) => silent(id, peer, error),
                Err(_) => silent(id, peer, "it did not answer in time".to_owned()),
            }
        });
    }
    asked.join_all().await
}

fn silent(id: NodeId, peer: Peer, error: String) -> NodeStatus {
    NodeStatus {
        node_id: id.value(),
        client_address: peer.client_address,
        peer_address: peer.peer_address,
        error,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Node 2 answers, node 3 says no, node 4 hangs.
    struct Three;

    impl Peers for Three {
        async fn node_status(&self, node: NodeId, _: Instant) -> Result<NodeStatus, String> {
            match node.value() {
                2 => Ok(NodeStatus { node_id: 2, term: 7, ..Default::default() }),
                3 => Err("connection refused".to_owned()),
                _ => core::future::pending().await,
            }
        }
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_is_listed_with_the_reason() {
        let nodes = [2, 3, 4].map(|id| {
            let peer = Peer { peer_address: format!("h{id}:1"), ..Default::default() };
            (NodeId::new(id), peer)
        });
        let deadline = Some(Instant::now() + Duration::from_millis(50));
        let mut answers = ask(&Arc::new(Three), nodes.into_iter(), deadline).await;
        answers.sort_by_key(|node| node.node_id);
        assert!(answers[0].reachable && answers[0].term == 7 && answers[0].error.is_empty());
        assert!(!answers[1].reachable && answers[1].error == "connection refused");
        assert_eq!(answers[1].peer_address, "h3:1");
        assert!(!answers[2].reachable && answers[2].error.contains("in time"));
    }
}
