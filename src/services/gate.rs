//! The gate that every call of a client passes: it knows what kind of call it is, refuses what is
//! too much or comes while the node drains, and sees to the deadline.
//!
//! What it refuses was certainly not proposed. With every answer it tells where the leader is.

use core::fmt::Debug;
use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    machine::{COMMAND_BYTES_MAX as REQUEST_BYTES_MAX, refusal},
    pb::command::v1::Reason,
    services::{
        deadline::{self, Deadline},
        leader::LeaderHint,
    },
    wire::status::from_refusal,
};

/// OUT_OF_RANGE as it stands in the headers.
const OUT_OF_RANGE: &str = "11";

/// Where a status has its details.
const STATUS_DETAILS: &str = "grpc-status-details-bin";

/// How many calls a node serves at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Reads and changes.
    pub calls_max: usize,
    /// Calls that wait for a lock.
    pub waits_max: usize,
    /// Open streams.
    pub streams_max: usize,
    /// How many bytes of a message are decoded at most; above it the call is refused unread.
    pub message_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_max: 4_096,
            waits_max: 16_384,
            streams_max: 16_384,
            message_bytes_max: 8 << 20,
        }
    }
}

/// What kind of call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads and ends.
    Read,
    /// Changes something and ends.
    Change,
    /// Waits for its turn as long as the caller does.
    Wait,
    /// Streams as long as the caller listens.
    Stream,
    /// None of the product's: health, reflection and the lab, which must answer when all else is
    /// refused.
    Foreign,
}

impl Kind {
    /// The kind of the call at a path, as `/quorate.kv.v1.KvService/Put`.
    pub(crate) fn of(path: &str) -> Self {
        let Some((service, method)) =
            path.strip_prefix("/quorate.").and_then(|path| path.split_once('/'))
        else {
            return Self::Foreign;
        };
        match (service, method) {
            ("lab.v1.LabService", _) => Self::Foreign,
            ("lock.v1.LockService", "Acquire") => Self::Wait,
            (_, "Watch" | "Subscribe" | "KeepAlive" | "PutStream") => Self::Stream,
            ("event.v1.EventService", "Read") | ("cluster.v1.ClusterService", "SaveSnapshot") => {
                Self::Stream
            }
            (
                _,
                "Range" | "Describe" | "List" | "Resolve" | "ListServices" | "ListStreams"
                | "DescribeStream" | "Status" | "StateHash",
            ) => Self::Read,
            _ => Self::Change,
        }
    }

    /// Whether a call of this kind that sets no deadline has none.
    pub(crate) const fn waits_for_ever(self) -> bool {
        matches!(self, Self::Wait | Self::Stream | Self::Foreign)
    }
}

/// What the gate gives a handler along with the request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// When the answer is due.
    pub(crate) deadline: Option<Instant>,
    /// The place among the calls of its kind; a stream holds it until it ends.
    pub(crate) permit: Option<Arc<OwnedSemaphorePermit>>,
    /// Whether another node passed it on to this one.
    pub(crate) passed_on: bool,
}

/// In the extensions of a request that another node passed on to this one; nothing that comes by
/// the client listener has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassedOn;

impl Call {
    /// What the gate put into a request.
    pub(crate) fn of<T>(request: &mut tonic::Request<T>) -> Self {
        request.extensions_mut().remove().unwrap_or_default()
    }
}

/// The gate's state.
#[derive(Debug)]
pub(crate) struct Gate {
    drain: CancellationToken,
    calls: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    message_bytes_max: usize,
    leader: LeaderHint,
}

impl Gate {
    pub(crate) fn new(limits: Limits, drain: CancellationToken, leader: LeaderHint) -> Self {
        let places = |max: usize| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Self {
            drain,
            calls: places(limits.calls_max),
            waits: places(limits.waits_max),
            streams: places(limits.streams_max),
            message_bytes_max: limits.message_bytes_max,
            leader,
        }
    }

    fn admit(&self, kind: Kind) -> Result<Option<Arc<OwnedSemaphorePermit>>, Status> {
        let (places, what) = match kind {
            Kind::Foreign => return Ok(None),
            Kind::Read | Kind::Change => (&self.calls, "calls"),
            Kind::Wait => (&self.waits, "calls that wait for a lock"),
            Kind::Stream => (&self.streams, "streams"),
        };
        if self.drain.is_cancelled() {
            let sentence = "this node is stopping and takes no more calls: ask another one";
            return Err(from_refusal(refusal(Reason::Draining, sentence)));
        }
        let place = Arc::clone(places).try_acquire_owned().map_err(|_| {
            let sentence =
                format!("too many {what} are open at this node: try again, or elsewhere");
            from_refusal(refusal(Reason::Overloaded, sentence))
        })?;
        Ok(Some(Arc::new(place)))
    }
}

/// Lets a call through or refuses it, and answers for it when its deadline runs out.
pub(crate) async fn pass(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let kind = Kind::of(request.uri().path());
    let mut response = answered(&gate, kind, request, next).await;
    if kind != Kind::Foreign {
        gate.leader.tell(response.headers_mut());
    }
    response
}

async fn answered(gate: &Gate, kind: Kind, mut request: Request, next: Next) -> Response {
    let deadline = Deadline::of(request.headers(), kind, deadline::arrival(&request));
    if deadline.is_some_and(|deadline| deadline.has_passed()) {
        return answer(deadline::passed());
    }
    let permit = match gate.admit(kind) {
        Ok(permit) => permit,
        Err(status) => return answer(status),
    };
    let handler = deadline.map(|deadline| deadline.handler);
    let passed_on = request.extensions().get::<PassedOn>().is_some();
    let call = Call { deadline: handler, permit: permit.clone(), passed_on };
    request.extensions_mut().insert(call);
    let run = next.run(request);
    let response = match deadline {
        Some(deadline) => timeout_at(deadline.gate, run)
            .await
            .unwrap_or_else(|_| answer(deadline::exceeded(kind))),
        None => run.await,
    };
    drop(permit);
    if is_too_large_to_decode(&response) {
        answer(too_large(gate.message_bytes_max))
    } else {
        response
    }
}

/// Whether tonic refused to decode the request. It answers OUT_OF_RANGE then, without details; every
/// OUT_OF_RANGE of ours has some.
fn is_too_large_to_decode(response: &Response) -> bool {
    let headers = response.headers();
    let code = headers.get(Status::GRPC_STATUS);
    code.is_some_and(|code| code == OUT_OF_RANGE) && !headers.contains_key(STATUS_DETAILS)
}

fn too_large(message_bytes_max: usize) -> Status {
    let limit = REQUEST_BYTES_MAX.min(message_bytes_max);
    let sentence = format!("the request is larger than {limit} bytes");
    from_refusal(refusal(Reason::TooLarge, sentence).with("limit", limit))
}

fn answer(status: Status) -> Response {
    status.into_http::<Body>()
}

#[cfg(test)]
mod tests;
