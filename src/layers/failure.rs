//! What an attempt that failed tells those who might send it again.
//!
//! Read from the headers of an answer without a body, and from errors; an answer whose body has begun
//! is committed, as in gRPC's proposal A6. UNAVAILABLE and RESOURCE_EXHAUSTED mean certainly not done
//! where a layer of this process gave them. Details that came over the wire may be those of somebody
//! further on, so they count only where the caller trusts the other side not to pass such on; and an
//! invitation to come back tells when, not that nothing was done. Nothing here decides.

use std::{error::Error, fmt};

use http::{HeaderMap, Response};
use tonic::{Code, ConnectError, Status, TimeoutExpired, body::Body};
use tonic_types::StatusExt as _;

use super::{BoxError, NotSent, REFUSAL_DOMAIN, code_in, refusal::RefusedHere};
use crate::{
    pb::command::v1::Reason,
    resilience::retry::Asked,
    types::Duration,
    wire::status::{is_outcome_unknown, reason},
};

/// The header in which a server asks for a pause before the next attempt, or for none at all.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// A failed attempt that might be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: Code,
    /// Whether it was certainly not carried out.
    pub(super) not_done: bool,
    pub(super) asked: Asked,
}

impl Failure {
    /// What an attempt came to; `None` where that is settled: it succeeded, its answer has begun, or
    /// it failed in a way that another attempt would not mend.
    pub(super) fn of(
        answered: &Result<Response<Body>, BoxError>,
        trusts_details: bool,
    ) -> Option<Self> {
        match answered {
            Ok(response) => Self::in_answer(response, trusts_details),
            Err(error) => Self::in_error(&**error),
        }
    }

    fn in_answer(response: &Response<Body>, trusts_details: bool) -> Option<Self> {
        let headers = response.headers();
        let code = code_in(headers)?;
        if !matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::Unknown) {
            return None;
        }
        let status = Status::from_header_map(headers)?;
        let (asked, reason) = (asked(headers, &status), reason(&status));
        let here = response.extensions().get::<RefusedHere>().is_some();
        let says_so = || match reason {
            Some(reason) => !is_outcome_unknown(reason) || reason == Reason::Unspecified,
            None => {
                let info = status.get_details_error_info();
                info.is_some_and(|info| info.domain == REFUSAL_DOMAIN)
            }
        };
        let failure = Self { code, not_done: here || (trusts_details && says_so()), asked };
        let may_pass = match code {
            Code::Unavailable => true,
            // Without a word on it, such as for a message that is too large, it stays so.
            Code::ResourceExhausted => failure.not_done || asked != Asked::Nothing,
            _ => reason == Some(Reason::OutcomeUnknown),
        };
        may_pass.then_some(failure)
    }

    fn in_error(error: &(dyn Error + 'static)) -> Option<Self> {
        let failure =
            |not_done| Some(Self { code: Code::Unavailable, not_done, asked: Asked::Nothing });
        if NotSent::is_in(error) || causes(error).any(is_refused) {
            return failure(true);
        }
        let is_final = causes(error).any(|cause| {
            let status = cause.downcast_ref::<Status>();
            cause.is::<TimeoutExpired>()
                || status.is_some_and(|status| {
                    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
                        || (status.source().is_none() && status.code() != Code::Unavailable)
                })
        });
        if is_final { None } else { failure(false) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.not_done { "certainly not done" } else { "perhaps done" };
        write!(f, "{:?}, {done}", self.code)
    }
}

/// The connection was never made, or the other side refused the stream unread.
fn is_refused(cause: &(dyn Error + 'static)) -> bool {
    let refused = |error: &h2::Error| error.reason() == Some(h2::Reason::REFUSED_STREAM);
    cause.is::<ConnectError>() || cause.downcast_ref().is_some_and(refused)
}

/// An error and what caused it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// What a status says about another attempt: by push-back, else by `RetryInfo`. A push-back that is
/// negative or malformed asks for none.
fn asked(headers: &HeaderMap, status: &Status) -> Asked {
    if let Some(value) = headers.get(PUSHBACK) {
        let millis = value.to_str().ok().and_then(|text| text.parse().ok());
        return millis.map_or(Asked::Never, |millis| Asked::After(Duration::from_millis(millis)));
    }
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    delay.map_or(Asked::Nothing, Asked::After)
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::{layers::refusal::Refusal, machine::refusal, wire::status::from_refusal};

    fn of(status: Status) -> Option<Failure> {
        Failure::of(&Ok(status.into_http()), true)
    }

    fn of_error(error: impl Into<BoxError>) -> Option<Failure> {
        Failure::of(&Err(error.into()), false)
    }

    fn pushed_back(code: Code, text: &'static str) -> Option<Failure> {
        let mut status = Status::new(code, "busy");
        status.metadata_mut().insert(PUSHBACK, text.parse().expect("ASCII"));
        of(status)
    }

    #[test]
    fn our_own_refusals_say_that_nothing_was_done() {
        for reason in [Reason::NotLeader, Reason::Draining, Reason::Overloaded] {
            let failure = of(from_refusal(refusal(reason, "no"))).expect("it passes");
            assert!(failure.not_done && matches!(failure.asked, Asked::After(_)), "{reason:?}");
        }
        let lost = of(from_refusal(refusal(Reason::OutcomeUnknown, "lost"))).expect("it passes");
        assert!(!lost.not_done);
        for reason in [Reason::LockHeld, Reason::DeadlineExceeded, Reason::InvalidArgument] {
            assert_eq!(of(from_refusal(refusal(reason, "no"))), None, "{reason:?}");
        }
    }

    #[test]
    fn what_came_over_the_wire_is_believed_only_where_the_caller_says_so() {
        let told = from_refusal(refusal(Reason::NotLeader, "of a service further on"));
        let doubted = Failure::of(&Ok(told.into_http()), false).expect("it passes");
        assert!(!doubted.not_done && matches!(doubted.asked, Asked::After(_)), "{doubted:?}");
        let here = Refusal {
            code: Code::Unavailable,
            reason: "FULL",
            message: "no place is free".to_owned(),
            retry_after: None,
            facts: Default::default(),
        };
        let refused = Failure::of(&Ok(here.into_response()), false).expect("it passes");
        assert!(refused.not_done, "nothing left this process");
    }

    #[test]
    fn what_a_layer_refused_was_not_done() {
        for code in [Code::Unavailable, Code::ResourceExhausted] {
            let details = ErrorDetails::with_error_info("FULL", REFUSAL_DOMAIN, []);
            let status = Status::with_error_details(code, "no place is free", details);
            let expected = Failure { code, not_done: true, asked: Asked::Nothing };
            assert_eq!(of(status), Some(expected));
        }
    }

    #[test]
    fn what_others_answer_is_doubtful_also_where_it_invites_back() {
        let plain = of(Status::unavailable("a proxy")).expect("it passes");
        assert!(!plain.not_done && plain.asked == Asked::Nothing);
        assert_eq!(of(Status::resource_exhausted("too large")), None);
        assert_eq!(of(Status::unknown("a bug")), None);
        assert_eq!(of(Status::ok("")), None);
        let delay = Duration::from_millis(70);
        let details = ErrorDetails::with_retry_info(Some(delay));
        let status = Status::with_error_details(Code::ResourceExhausted, "busy", details);
        let expected =
            Failure { code: Code::ResourceExhausted, not_done: false, asked: Asked::After(delay) };
        assert_eq!(of(status), Some(expected));
    }

    #[test]
    fn a_push_back_is_obeyed_and_a_negative_one_says_never() {
        let after = Asked::After(Duration::from_millis(250));
        let failure = pushed_back(Code::Unavailable, "250").expect("it passes");
        assert_eq!((failure.asked, failure.not_done), (after, false));
        for never in ["-1", "soon", "", "99999999999999999999999"] {
            let failure = pushed_back(Code::Unavailable, never).expect("it is told");
            assert_eq!((failure.asked, failure.not_done), (Asked::Never, false), "{never:?}");
        }
        assert_eq!(pushed_back(Code::NotFound, "250"), None, "final is final");
    }

    #[test]
    fn an_answer_that_has_begun_is_committed() {
        assert_eq!(Failure::of(&Ok(Response::new(Body::empty())), true), None);
    }

    #[test]
    fn errors_tell_whether_the_request_left() {
        let not_done = |failure: Option<Failure>| failure.expect("it passes").not_done;
        assert!(not_done(of_error(NotSent::status("nowhere".into(), None))));
        let refused = h2::Error::from(h2::Reason::REFUSED_STREAM);
        assert!(not_done(of_error(Status::from_error(refused.into()))));
        let reset = h2::Error::from(h2::Reason::INTERNAL_ERROR);
        assert!(!not_done(of_error(reset)));
        assert!(!not_done(of_error(std::io::Error::from(std::io::ErrorKind::ConnectionReset))));
        assert_eq!(of_error(Status::deadline_exceeded("late")), None);
        assert_eq!(of_error(Status::invalid_argument("refused on this side")), None);
    }
}
