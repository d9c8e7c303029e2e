//! Unary calls to a peer, on its control connection: votes, the order to campaign, status.

use std::sync::Arc;

use prost::Message as _;
use tokio::time::{Instant as Deadline, timeout, timeout_at};
use tonic::transport::Channel;
use tracing::debug;

use crate::{
    node::Directory,
    pb::{cluster::v1::NodeStatus, raft::v1::NodeStatusRequest},
    raft::{Message, VoteRequest},
    types::{Duration, GroupId, NodeId},
    wire::raft as wire,
};

use super::{channel::client, inbox::Inbox, lanes::text, link::Link, transport::Shared};

/// How long an answer is waited for. Longer than a voter may take, see
/// [`super::service::VOTE_WAIT`].
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// Starts a call for a vote request or an order to campaign. `false` where it cannot be sent.
pub(super) fn send(shared: &Arc<Shared>, to: NodeId, group: GroupId, message: Message) -> bool {
    let started = shared.started.load();
    let (Some(started), Some(link)) = (started.as_ref(), shared.link(to)) else { return false };
    let Some(channel) = link.control() else { return false };
    let Ok(permit) = Arc::clone(&link.calls).try_acquire_owned() else { return false };

    let (shared, inbox) = (Arc::clone(shared), Arc::clone(&started.inbox));
    let (tasks, stop) = (shared.tasks.clone(), shared.stop.clone());
    let call = async move {
        let outcome = timeout(CALL_TIMEOUT, call(&shared, &inbox, to, group, message, channel));
        let outcome = outcome.await.unwrap_or_else(|_| Err("it does not answer".to_owned()));
        if let Err(reason) = outcome {
            debug!(peer = %to, reason, "call failed");
        }
        drop(permit);
    };
    tasks.spawn_on(async move { stop.run_until_cancelled(call).await }, &started.runtime);
    true
}

async fn call(
    shared: &Shared,
    inbox: &Arc<dyn Inbox>,
    to: NodeId,
    group: GroupId,
    message: Message,
    channel: Channel,
) -> Result<(), String> {
    match message {
        Message::VoteRequest(request) => {
            let vote = vote(shared, to, group, &request, channel).await?;
            shared.deliver(inbox, to, group, vote);
        }
        Message::TimeoutNow(order) => {
            let directory = &shared.directory;
            let (identity, me) = (directory.identity(to), directory.node_id);
            let order = wire::timeout_now_to_pb(identity, group, me, &order);
            let answer = client(channel).timeout_now(order).await.map_err(|error| text(&error))?;
            if !answer.into_inner().accepted {
                return Err("it does not campaign".to_owned());
            }
        }
        _ => debug_assert!(false, "only votes and orders to campaign are calls"),
    }
    Ok(())
}

async fn vote(
    shared: &Shared,
    to: NodeId,
    group: GroupId,
    request: &VoteRequest,
    channel: Channel,
) -> Result<Message, String> {
    let (identity, me) = (shared.directory.identity(to), shared.directory.node_id);
    let call = wire::vote_request_to_pb(identity, group, me, request);
    let answer = client(channel).request_vote(call).await.map_err(|error| text(&error))?;
    let answer = answer.into_inner();
    // A stray node's term means nothing here.
    shared.expect(to, answer.identity.as_ref())?;
    if !answer.vote_granted {
        debug!(node = %me, peer = %to, reason = answer.reason, "vote refused");
    }
    Ok(Message::VoteResponse(wire::vote_response_from_pb(&answer, request.call)))
}

/// Asks a peer how it stands.
pub(super) async fn node_status(
    directory: &Directory,
    link: &Link,
    deadline: Deadline,
) -> Result<NodeStatus, String> {
    let peer = link.peer;
    let channel = link.control().ok_or_else(|| format!("no connection to node {peer}"))?;
    let request = NodeStatusRequest { identity: Some(directory.identity(peer)) };
    let mut client = client(channel);
    let Ok(answer) = timeout_at(deadline, client.node_status(request)).await else {
        return Err(format!("node {peer} does not answer in time"));
    };
    let answer = answer.map_err(|status| text(&status))?.into_inner();
    NodeStatus::decode(answer.status)
        .map_err(|error| format!("node {peer} sends a malformed status: {error}"))
}
