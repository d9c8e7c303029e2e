//! The server side of a peer's streams: what arrives goes to the node, and the node's answers go
//! back down the newest stream of the peer that asked. Also the votes that callers wait for.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    select,
    sync::{mpsc, oneshot},
};
use tonic::{Status, Streaming};
use tracing::{debug, warn};

use crate::{
    node::Directory,
    pb::raft::v1::{
        AppendEntriesRequest, AppendEntriesResponse, ForwardRequest, ForwardResponse, Identity,
    },
    raft::{AppendResponse, HeartbeatResponse, VoteResponse},
    types::{GroupId, NodeId},
    wire::raft as wire,
};

use super::{faults::Way, inbox::Inbox, lanes::numbers, link::lock, transport::Shared};

/// Answers that may wait for one stream. Those to appends are cumulative, so one lost is made up
/// for by the next.
pub(super) const ANSWERS_MAX: usize = 4096;

type AppendAnswer = Result<AppendEntriesResponse, Status>;

/// Where answers go: the newest stream of each peer and kind.
#[derive(Debug, Default)]
pub(super) struct Answers {
    streams: AtomicU64,
    appends: Mutex<BTreeMap<(NodeId, Kind), AppendStream>>,
    forwards: Mutex<BTreeMap<NodeId, (u64, mpsc::Sender<ForwardResponse>)>>,
}

/// What a stream of appends carries, as its first message shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Heartbeats,
    Entries,
}

#[derive(Debug)]
struct AppendStream {
    number: u64,
    introduced: bool,
    sender: mpsc::Sender<AppendAnswer>,
}

impl Answers {
    /// Answers an append. `false` where the answer is lost.
    pub(super) fn append(
        &self,
        directory: &Directory,
        to: NodeId,
        group: GroupId,
        answer: &AppendResponse,
    ) -> bool {
        self.respond(directory, to, Kind::Entries, |identity| {
            wire::append_response_to_pb(identity, group, answer)
        })
    }

    /// Answers a heartbeat. `false` where the answer is lost.
    pub(super) fn heartbeat(
        &self,
        directory: &Directory,
        to: NodeId,
        group: GroupId,
        answer: &HeartbeatResponse,
    ) -> bool {
        self.respond(directory, to, Kind::Heartbeats, |identity| {
            wire::heartbeat_response_to_pb(identity, group, answer)
        })
    }

    /// Answers what a peer passed on. `false` where the answer is lost.
    pub(super) fn forward(&self, to: NodeId, answer: ForwardResponse) -> bool {
        lock(&self.forwards).get(&to).is_some_and(|(_, sender)| sender.try_send(answer).is_ok())
    }

    fn respond(
        &self,
        directory: &Directory,
        to: NodeId,
        kind: Kind,
        answer: impl FnOnce(Identity) -> AppendEntriesResponse,
    ) -> bool {
        let mut streams = lock(&self.appends);
        let Some(stream) = streams.get_mut(&(to, kind)) else { return false };
        let identity =
            if stream.introduced { numbers(directory.node_id, to) } else { directory.identity(to) };
        let sent = stream.sender.try_send(Ok(answer(identity))).is_ok();
        stream.introduced |= sent;
        sent
    }

    fn open_append(&self, from: NodeId, kind: Kind, sender: mpsc::Sender<AppendAnswer>) -> u64 {
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let stream = AppendStream { number, introduced: false, sender };
        lock(&self.appends).insert((from, kind), stream);
        number
    }

    fn close_append(&self, from: NodeId, kind: Kind, number: u64) {
        let mut streams = lock(&self.appends);
        if streams.get(&(from, kind)).is_some_and(|stream| stream.number == number) {
            streams.remove(&(from, kind));
        }
    }

    fn open_forward(&self, from: NodeId, sender: mpsc::Sender<ForwardResponse>) -> u64 {
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        lock(&self.forwards).insert(from, (number, sender));
        number
    }

    fn close_forward(&self, from: NodeId, number: u64) {
        let mut streams = lock(&self.forwards);
        if streams.get(&from).is_some_and(|(newest, _)| *newest == number) {
            streams.remove(&from);
        }
    }
}

/// Reads one stream of appends or heartbeats until it ends. `named` is who says that it opened it;
/// only the lab asks.
pub(super) async fn appends(
    shared: Arc<Shared>,
    inbox: Arc<dyn Inbox>,
    named: Option<NodeId>,
    mut requests: Streaming<AppendEntriesRequest>,
    answers: mpsc::Sender<AppendAnswer>,
) {
    let Some(first) = next(&shared, named, &mut requests).await else { return };
    let from = match shared.directory.check(first.identity.as_ref()) {
        Ok(from) => from,
        Err(reason) => {
            refuse(&shared, &*inbox, first.identity.as_ref(), reason, &answers).await;
            return;
        }
    };
    if shared.turns_away(from, Way::From) {
        return;
    }
    let kind = if first.heartbeat { Kind::Heartbeats } else { Kind::Entries };
    let number = shared.answers.open_append(from, kind, answers.clone());
    let mut request = first;
    loop {
        let sender = request.identity.as_ref().map(|identity| identity.from_node);
        let parsed = if sender == Some(from.value()) {
            wire::append_request_from_pb(&request)
        } else {
            Err(format!("a message on the stream of node {from} comes from another node"))
        };
        match parsed {
            Ok((group, message)) => shared.deliver(&inbox, from, group, message),
            Err(reason) => {
                refuse(&shared, &*inbox, request.identity.as_ref(), reason, &answers).await;
                break;
            }
        }
        match next(&shared, Some(from), &mut requests).await {
            Some(next) => request = next,
            None => break,
        }
    }
    shared.answers.close_append(from, kind, number);
}

/// Says why nothing more is read from this stream; the stream ends after it.
async fn refuse(
    shared: &Shared,
    inbox: &dyn Inbox,
    identity: Option<&Identity>,
    reason: String,
    answers: &mpsc::Sender<AppendAnswer>,
) {
    let from = NodeId::new(identity.map_or(0, |identity| identity.from_node));
    if shared.is_news(from.value(), &reason) {
        warn!(node = %shared.directory.node_id, peer = %from, reason, "append refused");
    }
    let mut answer = wire::append_refusal_to_pb(shared.directory.identity(from), reason);
    answer.term = inbox.status().term;
    // Where the peer is gone already there is nobody to tell.
    let _ = answers.send(Ok(answer)).await;
}

/// Reads what a peer passes on until the stream ends. Its first message was read and checked.
pub(super) async fn forwards(
    shared: Arc<Shared>,
    inbox: Arc<dyn Inbox>,
    from: NodeId,
    first: ForwardRequest,
    mut requests: Streaming<ForwardRequest>,
    answers: mpsc::Sender<ForwardResponse>,
) {
    let number = shared.answers.open_forward(from, answers);
    let mut request = first;
    loop {
        request.identity = None;
        if request != ForwardRequest::default() {
            match &shared.options.lab {
                None => inbox.forwarded(from, request),
                Some(lab) => lab.forwarded(&inbox, from, request),
            }
        }
        match next(&shared, Some(from), &mut requests).await {
            Some(next) => request = next,
            None => break,
        }
    }
    shared.answers.close_forward(from, number);
}

/// The next message, unless the stream ends, breaks or the transport stops, or the lab cuts the link
/// to the peer that sends it.
pub(super) async fn next<T>(
    shared: &Shared,
    from: Option<NodeId>,
    requests: &mut Streaming<T>,
) -> Option<T> {
    let message = async {
        let Some(from) = from.filter(|_| shared.options.lab.is_some()) else {
            return Some(requests.message().await);
        };
        select! {
            () = shared.cut(from, Way::From) => None,
            message = requests.message() => Some(message),
        }
    };
    match shared.stop.run_until_cancelled(message).await?? {
        Ok(message) => message,
        Err(status) => {
            debug!(node = %shared.directory.node_id, %status, "stream broke");
            None
        }
    }
}

/// The votes that callers wait for.
#[derive(Debug, Default)]
pub(super) struct Votes {
    calls: AtomicU64,
    pub(super) waiting: Mutex<BTreeMap<u64, oneshot::Sender<VoteResponse>>>,
}

impl Votes {
    /// Parks a call. Dropping it takes it out again.
    pub(super) fn park(&self) -> ParkedVote<'_> {
        let (sender, answer) = oneshot::channel();
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        lock(&self.waiting).insert(call, sender);
        ParkedVote { votes: self, call, answer }
    }

    /// Answers the call that the vote names. `false` where nobody waits any more.
    pub(super) fn answer(&self, vote: VoteResponse) -> bool {
        lock(&self.waiting).remove(&vote.call).is_some_and(|sender| sender.send(vote).is_ok())
    }
}

/// A caller that waits for a vote.
#[derive(Debug)]
pub(super) struct ParkedVote<'a> {
    votes: &'a Votes,
    /// The number of the call.
    pub(super) call: u64,
    /// The vote, when it is on disk.
    pub(super) answer: oneshot::Receiver<VoteResponse>,
}

impl Drop for ParkedVote<'_> {
    fn drop(&mut self) {
        lock(&self.votes.waiting).remove(&self.call);
    }
}
