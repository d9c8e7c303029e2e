//! The gate that every call of a client passes: it knows what kind of call it is, refuses what is
//! too much (see `overload.rs`) or comes while the node drains, and sees to the deadline.
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
use tonic::{Code, Status};

use crate::{
    layers::{code_in, concurrency_limit::Place},
    machine::{COMMAND_BYTES_MAX as REQUEST_BYTES_MAX, refusal},
    observe::Metrics,
    pb::command::v1::Reason,
    resilience::concurrency_limit::Ended,
    services::{
        deadline::{self, Deadline},
        leader::LeaderHint,
        overload::{Class, Overload, OverloadControl},
    },
    types::Duration,
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
    /// Whether less than that is taken where it is already too much.
    pub overload_control: OverloadControl,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            calls_max: 4_096,
            waits_max: 16_384,
            streams_max: 16_384,
            message_bytes_max: 8 << 20,
            overload_control: OverloadControl::default(),
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
        let Some((service, method)) = parts(path) else { return Self::Foreign };
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

/// Service and method of the product's own call at a path, as `kv.v1.KvService` and `Put`.
fn parts(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix("/quorate.")?.split_once('/')
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
    /// Whom a handler asks that finds the call to be a list, where somebody judges that.
    pub(crate) overload: Option<Overload>,
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

    /// For a call that turns out to read much at once: shed like other lists, or let go on.
    pub(crate) fn admit_list(&self) -> Result<(), Status> {
        self.overload.as_ref().map_or(Ok(()), Overload::admit_list)
    }
}

/// What a call that was let in holds.
#[derive(Debug, Default)]
struct Admitted {
    /// A place of the fixed limits.
    permit: Option<Arc<OwnedSemaphorePermit>>,
    /// A place of the limit that follows the latency.
    place: Option<Place>,
}

/// The gate's state.
#[derive(Debug)]
pub(crate) struct Gate {
    drain: CancellationToken,
    calls: Arc<Semaphore>,
    waits: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    overload: Option<Overload>,
    message_bytes_max: usize,
    leader: LeaderHint,
    metrics: Metrics,
}

impl Gate {
    pub(crate) fn new(
        limits: Limits,
        drain: CancellationToken,
        leader: LeaderHint,
        metrics: Metrics,
    ) -> Self {
        let places = |max: usize| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Self {
            drain,
            calls: places(limits.calls_max),
            waits: places(limits.waits_max),
            streams: places(limits.streams_max),
            overload: match limits.overload_control {
                OverloadControl::Adaptive => Some(Overload::new(limits.calls_max, metrics.clone())),
                OverloadControl::Fixed => None,
            },
            message_bytes_max: limits.message_bytes_max,
            leader,
            metrics,
        }
    }

    /// Lets a call in. What another node passed on was let in there, and what does not end by itself
    /// counts only against the fixed limits.
    async fn admit(
        &self,
        kind: Kind,
        passed_on: bool,
        (class, arrival, due): (Class, Instant, Option<Instant>),
    ) -> Result<Admitted, Status> {
        if kind == Kind::Foreign {
            return Ok(Admitted::default());
        }
        if self.drain.is_cancelled() {
            let sentence = "this node is stopping and takes no more calls: ask another one";
            return Err(from_refusal(refusal(Reason::Draining, sentence)));
        }
        let overload = self.overload.as_ref().filter(|_| !passed_on);
        let Some(overload) = overload else {
            return Ok(Admitted { permit: Some(self.place(kind, class)?), place: None });
        };
        overload.admit(class, arrival).await?;
        if !matches!(kind, Kind::Read | Kind::Change) {
            return Ok(Admitted { permit: Some(self.place(kind, class)?), place: None });
        }
        let enter = overload.enter(class);
        let place = match due {
            // It was certainly not begun, which the answer to a deadline could not say.
            Some(due) => {
                timeout_at(due, enter).await.unwrap_or_else(|_| Err(deadline::passed()))?
            }
            None => enter.await?,
        };
        Ok(Admitted { permit: None, place: Some(place) })
    }

    fn place(&self, kind: Kind, class: Class) -> Result<Arc<OwnedSemaphorePermit>, Status> {
        let (places, what) = match kind {
            Kind::Read | Kind::Change | Kind::Foreign => (&self.calls, "calls"),
            Kind::Wait => (&self.waits, "calls that wait for a lock"),
            Kind::Stream => (&self.streams, "streams"),
        };
        let place = Arc::clone(places).try_acquire_owned().map_err(|_| {
            self.metrics.record_overload_refused(class.name(), "limit");
            let sentence =
                format!("too many {what} are open at this node: try again, or elsewhere");
            from_refusal(refusal(Reason::Overloaded, sentence))
        })?;
        Ok(Arc::new(place))
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
    let arrival = deadline::arrival(&request);
    let deadline = Deadline::of(request.headers(), kind, arrival);
    if deadline.is_some_and(|deadline| deadline.has_passed()) {
        return answer(deadline::passed());
    }
    let class =
        parts(request.uri().path()).map_or(Class::Keys, |(of, method)| Class::of(of, method));
    let handler = deadline.map(|deadline| deadline.handler);
    let passed_on = request.extensions().get::<PassedOn>().is_some();
    let Admitted { permit, place } =
        match gate.admit(kind, passed_on, (class, arrival, handler)).await {
            Ok(admitted) => admitted,
            Err(status) => return answer(status),
        };
    let overload = gate.overload.clone().filter(|_| !passed_on);
    let call = Call { deadline: handler, permit: permit.clone(), passed_on, overload };
    request.extensions_mut().insert(call);
    let run = next.run(request);
    let response = match deadline {
        Some(deadline) => timeout_at(deadline.gate, run)
            .await
            .unwrap_or_else(|_| answer(deadline::exceeded(kind))),
        None => run.await,
    };
    drop(permit);
    if let Some(place) = place {
        let ended = ended(&response, place.age());
        place.end(ended);
    }
    if is_too_large_to_decode(&response) {
        answer(too_large(gate.message_bytes_max))
    } else {
        response
    }
}

/// What the end of a call tells the limit: how long it took, unless it was refused.
fn ended(response: &Response, took: Duration) -> Ended {
    match code_in(response.headers()) {
        Some(Code::Unavailable | Code::ResourceExhausted) => Ended::Ignored,
        _ => Ended::Answered(took),
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
