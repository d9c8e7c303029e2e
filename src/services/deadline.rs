//! Deadlines: read from `grpc-timeout`, carried to the handler as a point in time, and answered
//! with DEADLINE_EXCEEDED.
//!
//! tonic 0.14 keeps a timeout of its own (`GrpcTimeout`) for the same header and answers CANCELLED.
//! It stands outside of every layer that a user can add, so the header cannot be hidden from it; but
//! it polls what is inside first, and it starts its timer after it has called what is inside. So
//! ours, counted from [`arrive`] within that call, run a little earlier and win: first the handler's,
//! which knows what became of the request, then the gate's. A server must therefore not set tonic's
//! `Server::timeout`.

use http::HeaderMap;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    layers::timeout_in, machine::refusal, pb::command::v1::Reason, services::gate::Kind,
    types::Duration, wire::status::from_refusal,
};

/// What a unary call gets that sets no deadline of its own.
pub(crate) const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);

/// How much earlier than the client's each of our two deadlines runs out, at most.
const HEAD_START_MAX: Duration = Duration::from_millis(4);

/// When a request arrived.
#[derive(Clone, Copy, Debug)]
struct Arrival(Instant);

/// Notes when a request arrived. To be called where tonic calls a service, not where its future is
/// polled: a busy server may do that later than our head start.
pub(crate) fn arrive<B>(request: &mut http::Request<B>) {
    request.extensions_mut().insert(Arrival(Instant::now()));
}

/// When a request arrived; now where nobody noted it.
pub(crate) fn arrival<B>(request: &http::Request<B>) -> Instant {
    request.extensions().get::<Arrival>().map_or_else(Instant::now, |arrival| arrival.0)
}

/// A call's deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// The handler's: it answers by then.
    pub(crate) handler: Instant,
    /// The gate's, a little later: it answers for a handler that did not.
    pub(crate) gate: Instant,
}

impl Deadline {
    /// The deadline of a call that arrived `now`; `None` is unlimited. A malformed header counts as
    /// none, as with tonic.
    pub(crate) fn of(headers: &HeaderMap, kind: Kind, now: Instant) -> Option<Self> {
        let span = match timeout_in(headers) {
            Some(span) => span,
            None if kind.waits_for_ever() => return None,
            None => DEADLINE_DEFAULT,
        };
        // A point in time that cannot be told is as good as none.
        let end = now.checked_add(span)?;
        let head_start = (span / 4).min(HEAD_START_MAX);
        Some(Self { handler: end - 2 * head_start, gate: end - head_start })
    }

    /// Whether it is too late to begin.
    pub(crate) fn has_passed(&self) -> bool {
        self.gate <= Instant::now()
    }
}

/// What a call is answered with whose deadline had passed before anything was done for it.
pub(crate) fn passed() -> Status {
    let sentence = "the deadline had passed before the work began: nothing was done";
    from_refusal(refusal(Reason::DeadlineExceeded, sentence))
}

/// What a call is answered with whose deadline ran out.
pub(crate) fn exceeded(kind: Kind) -> Status {
    let sentence = match kind {
        Kind::Change => {
            "the deadline ran out; whether the change takes effect is unknown: retry with the same \
             request_id, or read the state"
        }
        Kind::Wait => "the deadline ran out while waiting; the place in line is given up",
        Kind::Read | Kind::Stream | Kind::Foreign => "the deadline ran out before the answer",
    };
    from_refusal(refusal(Reason::DeadlineExceeded, sentence))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handler_answers_first_then_the_gate_then_tonic() {
        let now = Instant::now();
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", "100m".parse().unwrap());
        let deadline = Deadline::of(&headers, Kind::Read, now).unwrap();
        assert!(deadline.handler < deadline.gate);
        assert!(deadline.gate < now + Duration::from_millis(100));
        assert!(deadline.handler > now + Duration::from_millis(90));
        headers.insert("grpc-timeout", "0m".parse().unwrap());
        assert_eq!(Deadline::of(&headers, Kind::Read, now).unwrap().gate, now);
    }

    #[test]
    fn only_what_waits_may_wait_for_ever() {
        let of = |kind| Deadline::of(&HeaderMap::new(), kind, Instant::now());
        assert!(of(Kind::Read).is_some() && of(Kind::Change).is_some());
        assert!(of(Kind::Wait).is_none() && of(Kind::Stream).is_none());
    }
}
