//! Reads that this node cannot serve: it knows no leader or has no way to it, or is far behind.
//!
//! Such a read is waited for here and asked of another node at the same time; whichever answers
//! first answers the client. Only unary linearizable reads go elsewhere, and each over one hop: what
//! another node passed on is refused at once where this one could only wait too.

use std::{fmt, future::Future, pin::Pin};

use bytes::Bytes;
use prost::Message;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::{
    machine::{View, refusal},
    pb::{
        command::v1::Reason,
        discovery::v1::{
            ListServicesRequest, ListServicesResponse, ResolveRequest, ResolveResponse,
        },
        event::v1::{
            DescribeStreamRequest, DescribeStreamResponse, ListStreamsRequest, ListStreamsResponse,
        },
        kv::v1::{RangeRequest, RangeResponse},
        lock::v1::{DescribeRequest, DescribeResponse, ListRequest, ListResponse},
    },
    services::gate::Call,
    types::Duration,
    wire::status::from_refusal,
};

/// How long a read waits here before another node is asked although nothing is known to be wrong;
/// half of the time that the read has, where that is less.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long to wait before others are asked again when none of them could say: twice as long each
/// time.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// Another node's answer: its encoded response or its refusal. `None` where no other node could say
/// anything.
pub type Asking<'a> = Pin<Box<dyn Future<Output = Option<Result<Bytes, Status>>> + Send + 'a>>;

/// The way to other nodes for the reads that this one cannot serve.
pub trait Elsewhere: fmt::Debug + Send + Sync + 'static {
    /// Whether a read that begins here now could only wait. Cheap: it asks nobody.
    fn is_needed(&self) -> bool;

    /// Asks other nodes, one after another, until one gives an answer to the client. Dropping it
    /// takes the question back.
    fn ask(&self, method: &'static str, message: Bytes, deadline: Option<Instant>) -> Asking<'_>;
}

/// A unary read that may go elsewhere.
pub(crate) trait Read: Message {
    /// What it is answered with.
    type Answer: Message + Default;

    /// The path of its call.
    const METHOD: &'static str;

    /// Whether the caller takes what this node has, whatever that is.
    fn stale(&self) -> bool;
}

macro_rules! reads {
    ($($request:ty => $answer:ty, $method:literal;)*) => {
        $(
            impl Read for $request {
                type Answer = $answer;

                const METHOD: &'static str = $method;

                fn stale(&self) -> bool {
                    self.stale
                }
            }
        )*

        /// The path of each call that may go elsewhere.
        const METHODS: &[&str] = &[$($method),*];
    };
}

reads! {
    RangeRequest => RangeResponse, "/quorate.kv.v1.KvService/Range";
    ResolveRequest => ResolveResponse, "/quorate.discovery.v1.DiscoveryService/Resolve";
    ListServicesRequest => ListServicesResponse,
        "/quorate.discovery.v1.DiscoveryService/ListServices";
    DescribeRequest => DescribeResponse, "/quorate.lock.v1.LockService/Describe";
    ListRequest => ListResponse, "/quorate.lock.v1.LockService/List";
    DescribeStreamRequest => DescribeStreamResponse,
        "/quorate.event.v1.EventService/DescribeStream";
    ListStreamsRequest => ListStreamsResponse, "/quorate.event.v1.EventService/ListStreams";
}

/// The path of a call that may go elsewhere; `None` where it may not.
pub(crate) fn method(path: &str) -> Option<&'static str> {
    METHODS.iter().copied().find(|method| *method == path)
}

/// What a read is answered from.
#[derive(Debug)]
pub(crate) enum Found<A> {
    /// This node's state.
    Here(View),
    /// Another node's answer.
    Elsewhere(A),
}

/// Waits for this node's state, and asks elsewhere where it is long in coming.
pub(crate) async fn find<Q: Read>(
    elsewhere: &dyn Elsewhere,
    request: &Q,
    call: &Call,
    here: impl Future<Output = Result<View, Status>>,
) -> Result<Found<Q::Answer>, Status> {
    if call.passed_on {
        if elsewhere.is_needed() {
            let sentence = "the node that was asked instead has no way to the leader either";
            return Err(from_refusal(refusal(Reason::NotLeader, sentence)));
        }
        return here.await.map(Found::Here);
    }
    tokio::select! {
        biased;
        view = here => view.map(Found::Here),
        answer = there(elsewhere, request, call.deadline) => answer.map(Found::Elsewhere),
    }
}

/// Another node's answer. Goes on asking until somebody has one.
async fn there<Q: Read>(
    elsewhere: &dyn Elsewhere,
    request: &Q,
    deadline: Option<Instant>,
) -> Result<Q::Answer, Status> {
    if !elsewhere.is_needed() {
        let now = Instant::now();
        let half = deadline.map(|deadline| deadline.saturating_duration_since(now) / 2);
        sleep_until(now + half.map_or(PATIENCE, |half| half.min(PATIENCE))).await;
    }
    let (message, mut pause) = (Bytes::from(request.encode_to_vec()), PAUSE_MIN);
    loop {
        match elsewhere.ask(Q::METHOD, message.clone(), deadline).await {
            Some(Ok(answer)) => match Q::Answer::decode(answer) {
                Ok(answer) => return Ok(answer),
                Err(error) => tracing::warn!(%error, "another node's answer cannot be read"),
            },
            Some(Err(refused)) => return Err(refused),
            None => {}
        }
        sleep_until(Instant::now() + pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests;
