//! Why a call failed: the status of the answer, or what stands for one where none came.
//!
//! The gRPC code is always there. `reason` and `metadata` come from the answer's `ErrorInfo`;
//! their values are listed in `docs/errors.md`. Whether a change may have happened all the same is
//! asked with [`Error::outcome_unknown`].

use std::{collections::BTreeMap, error::Error as _};

use tonic::{Code, ConnectError, Status, TimeoutExpired};
use tonic_types::StatusExt as _;

use crate::{client::balance::NotSent, net::Fault, types::Duration};

/// A call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: Code,
    message: String,
    reason: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
    standing: Standing,
    tls_fault: Option<Fault>,
}

/// What is known of the request behind an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// A node refused it: certainly not done.
    Refused,
    /// It never left, or no node took it: certainly not done.
    NotProposed,
    /// It may or may not be done.
    Unknown,
}

impl Error {
    /// The gRPC code.
    #[must_use]
    pub const fn code(&self) -> Code {
        self.code
    }

    /// What was wrong, in a sentence.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The reason for programs, such as `LOCK_HELD`; empty where the answer gave none.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// A fact that came with the reason, such as `leader_address`.
    #[must_use]
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Whether the request may have taken effect all the same.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        self.standing == Standing::Unknown
    }

    /// What kept the connection from being made by TLS, or by plaintext where TLS is demanded. The
    /// request was certainly not done.
    #[must_use]
    pub const fn tls_fault(&self) -> Option<Fault> {
        self.tls_fault
    }

    /// Whether the same request may be sent again at once, given that repeating is harmless.
    pub(crate) fn is_passing(&self) -> bool {
        match self.standing {
            Standing::NotProposed => true,
            Standing::Unknown => self.code != Code::DeadlineExceeded,
            Standing::Refused => false,
        }
    }

    /// How long the answer asks to wait before the next attempt.
    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// A malformed request, found before it was sent.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message.into(), Standing::Refused)
    }

    /// Nobody said where the endpoints are.
    pub(crate) fn unresolved(message: String) -> Self {
        Self::new(Code::Unavailable, message, Standing::NotProposed)
    }

    /// A stream that ended without a status.
    pub(crate) fn broken(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message.into(), Standing::Unknown)
    }

    /// The time ran out. `writes` tells whether the request would have changed anything.
    pub(crate) fn deadline(within: Duration, writes: bool, last: Option<&Self>) -> Self {
        let unknown = if writes { ", so the outcome is unknown" } else { "" };
        let why = last.map(|last| format!(" (last failure: {last})")).unwrap_or_default();
        let mut error = Self::new(
            Code::DeadlineExceeded,
            format!("no answer within {within:?}{unknown}{why}"),
            if writes { Standing::Unknown } else { Standing::Refused },
        );
        "DEADLINE_EXCEEDED".clone_into(&mut error.reason);
        error
    }

    /// The same error, of a request that may have been carried out by an earlier attempt and cannot
    /// be repeated.
    pub(crate) fn into_unknown(mut self) -> Self {
        self.code = Code::Unknown;
        self.message = format!("the outcome is unknown: {}", self.message);
        "OUTCOME_UNKNOWN".clone_into(&mut self.reason);
        self.standing = Standing::Unknown;
        self
    }

    /// The same error, told as one of all `addresses` where no node could be reached.
    pub(crate) fn of_all(mut self, addresses: &[String]) -> Self {
        if self.tls_fault.is_some() {
            self.message = format!("no connection to {}: {}", addresses.join(", "), self.message);
        } else if self.code == Code::Unavailable && self.reason.is_empty() {
            self.message = format!("no node answers at {}: {}", addresses.join(", "), self.message);
        }
        self
    }

    fn new(code: Code, message: String, standing: Standing) -> Self {
        Self {
            code,
            message,
            reason: String::new(),
            metadata: BTreeMap::new(),
            retry_after: None,
            standing,
            tls_fault: None,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let reason = info.as_ref().map(|info| info.reason.trim_start_matches("REASON_").to_owned());
        let tls_fault = status.source().and_then(Fault::behind);
        let standing = match tls_fault {
            // The connection carries no request before both sides accepted each other.
            Some(_) => Standing::NotProposed,
            None => standing(&status, reason.as_deref()),
        };
        let never_sent = caused_by::<NotSent>(&status);
        let told = status.message().split_once('\n').map_or(status.message(), |(first, _)| first);
        let message = match causes(&status) {
            _ if tls_fault.is_some() => tls_told(&status, tls_fault),
            // Of several nodes; what the last one said is enough.
            Some(causes) if never_sent => causes,
            Some(causes) if !told.is_empty() => format!("{told}: {causes}"),
            Some(causes) => causes,
            None if told.is_empty() => status.code().description().to_lowercase(),
            None => told.to_owned(),
        };
        Self {
            code: code(&status),
            message,
            reason: reason.unwrap_or_default(),
            metadata: info.map(|info| info.metadata.into_iter().collect()).unwrap_or_default(),
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
            standing,
            tls_fault,
        }
    }
}

/// What went wrong with TLS; where this side found it, in its own words.
fn tls_told(status: &Status, fault: Option<Fault>) -> String {
    let told = fault.map(Fault::told).unwrap_or_default();
    match causes(status) {
        Some(causes) if causes.starts_with(told) => causes,
        _ => told.to_owned(),
    }
}

/// A connection that breaks is UNAVAILABLE to the caller, whatever tonic makes of it.
fn code(status: &Status) -> Code {
    if caused_by::<TimeoutExpired>(status) {
        return Code::DeadlineExceeded;
    }
    if status.source().is_some() && status.code() != Code::ResourceExhausted {
        return Code::Unavailable;
    }
    status.code()
}

/// A status with a source was made on this side of the wire: the connection failed.
fn standing(status: &Status, reason: Option<&str>) -> Standing {
    if status.source().is_some() {
        let never_left = caused_by::<ConnectError>(status) || caused_by::<NotSent>(status);
        return if never_left { Standing::NotProposed } else { Standing::Unknown };
    }
    match (status.code(), reason) {
        (Code::Unavailable, Some(_)) => Standing::NotProposed,
        (Code::Unavailable | Code::DeadlineExceeded, _) => Standing::Unknown,
        (Code::Unknown, Some("OUTCOME_UNKNOWN")) => Standing::Unknown,
        _ => Standing::Refused,
    }
}

fn caused_by<E: std::error::Error + 'static>(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The last cause of a failed connection: what the system said.
fn causes(status: &Status) -> Option<String> {
    let mut cause = status.source()?;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let text = cause.to_string();
    (text != status.message()).then_some(text)
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn with_reason(code: Code, reason: &str) -> Error {
        let facts = [("leader_address".to_owned(), "127.0.0.1:7402".to_owned())];
        let details = ErrorDetails::with_error_info(reason, "quorate", facts);
        Status::with_error_details(code, "a sentence", details).into()
    }

    #[test]
    fn unavailable_with_a_reason_is_certainly_not_proposed() {
        let error = with_reason(Code::Unavailable, "NOT_LEADER");
        assert!(error.is_passing() && !error.outcome_unknown());
        assert_eq!((error.reason(), error.message()), ("NOT_LEADER", "a sentence"));
        assert_eq!(error.fact("leader_address"), Some("127.0.0.1:7402"));
    }

    #[test]
    fn unavailable_without_a_reason_is_not_ours_and_promises_nothing() {
        let error = Error::from(Status::unavailable("some proxy"));
        assert!(error.is_passing() && error.outcome_unknown());
    }

    #[test]
    fn a_lost_proposal_is_unknown_and_a_refusal_is_final() {
        let lost = with_reason(Code::Unknown, "OUTCOME_UNKNOWN");
        assert!(lost.is_passing() && lost.outcome_unknown());
        let refused = with_reason(Code::FailedPrecondition, "LOCK_HELD");
        assert!(!refused.is_passing() && !refused.outcome_unknown());
        let bug = Error::from(Status::unknown("no reason"));
        assert!(!bug.is_passing());
    }

    #[test]
    fn an_expired_deadline_is_unknown_for_changes_only_and_never_sent_again() {
        let change = Error::deadline(Duration::from_secs(5), true, None);
        assert!(change.outcome_unknown() && !change.is_passing());
        assert!(change.message().contains("the outcome is unknown"), "{change}");
        let read = Error::deadline(Duration::from_secs(5), false, None);
        assert!(!read.outcome_unknown() && !read.is_passing());
        assert!(!with_reason(Code::DeadlineExceeded, "DEADLINE_EXCEEDED").is_passing());
    }
}
