//! Refusals as gRPC statuses: the one place where a [`Reason`] gets its code.
//!
//! Every status of ours carries an `ErrorInfo` of domain `quorate` whose reason is the enum's name
//! without its prefix, and a `RetryInfo` where trying again soon makes sense (AIP-193). UNAVAILABLE
//! means "certainly not proposed", so that any client may retry it blindly; what was lost after the
//! proposal is never UNAVAILABLE. `docs/errors.md` is this table for people.

use core::time::Duration;
use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    machine::store::StoreError,
    pb::command::v1::{Reason, Refusal},
};

/// The `ErrorInfo` domain of all statuses of ours.
pub const ERROR_DOMAIN: &str = "quorate";

/// The prefix that the enum's names have and the wire's have not.
const REASON_PREFIX: &str = "REASON_";

/// The longest message of a status, in bytes; statuses travel in HTTP/2 headers.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The longest metadata value of a status, in bytes.
const METADATA_BYTES_MAX: usize = 1024;

/// The code that a reason is answered with.
#[must_use]
pub const fn code(reason: Reason) -> Code {
    match reason {
        Reason::InvalidArgument | Reason::RequestIdReused | Reason::TooLarge => {
            Code::InvalidArgument
        }
        Reason::Compacted | Reason::FutureRevision | Reason::Trimmed => Code::OutOfRange,
        Reason::SessionNotFound | Reason::InstanceNotFound | Reason::StreamNotFound => {
            Code::NotFound
        }
        Reason::LockHeld
        | Reason::WrongFencingToken
        | Reason::NotAVoter
        | Reason::SessionExpired
        | Reason::WrongIdentity
        | Reason::SequenceForgotten
        | Reason::PutStreamGap => Code::FailedPrecondition,
        Reason::WaitCancelled => Code::Cancelled,
        Reason::WrongExpectedVersion | Reason::TransferAborted => Code::Aborted,
        Reason::EventIdExists => Code::AlreadyExists,
        Reason::NotLeader | Reason::NoQuorum | Reason::Draining => Code::Unavailable,
        Reason::Overloaded | Reason::NoSpace => Code::ResourceExhausted,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::OutcomeUnknown | Reason::Unspecified => Code::Unknown,
    }
}

/// How long to wait before trying again; `None` where trying again the same way makes no sense or
/// is not safe without a request id.
#[must_use]
pub const fn retry_delay(reason: Reason) -> Option<Duration> {
    match reason {
        // Another node answers at once; an election takes less than a second.
        Reason::Draining => Some(Duration::from_millis(50)),
        Reason::NotLeader => Some(Duration::from_millis(100)),
        Reason::Overloaded => Some(Duration::from_millis(200)),
        Reason::NoQuorum => Some(Duration::from_millis(500)),
        // Somebody has to make room first.
        Reason::NoSpace => Some(Duration::from_secs(5)),
        _ => None,
    }
}

/// Whether a refusal with this reason leaves open what became of the request. All others are
/// definite: what they refuse is never applied later.
#[must_use]
pub const fn is_outcome_unknown(reason: Reason) -> bool {
    matches!(reason, Reason::OutcomeUnknown | Reason::DeadlineExceeded | Reason::Unspecified)
}

/// A reason's name on the wire: `NOT_LEADER`.
#[must_use]
pub fn reason_name(reason: Reason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix(REASON_PREFIX).unwrap_or(name)
}

/// The status that a refusal is answered with.
#[must_use]
pub fn from_refusal(refusal: Refusal) -> Status {
    let reason = refusal.reason();
    let metadata: HashMap<String, String> = refusal
        .metadata
        .into_iter()
        .map(|(key, value)| (key, shortened(value, METADATA_BYTES_MAX)))
        .collect();
    let mut details = ErrorDetails::with_error_info(reason_name(reason), ERROR_DOMAIN, metadata);
    if let Some(delay) = retry_delay(reason) {
        details.set_retry_info(Some(delay));
    }
    let message = shortened(refusal.message, MESSAGE_BYTES_MAX);
    Status::with_error_details(code(reason), message, details)
}

/// The refusal that a status of ours was made of; `None` where somebody else made it, as a proxy or
/// the local transport. A reason that this build does not know is unspecified.
#[must_use]
pub fn to_refusal(status: &Status) -> Option<Refusal> {
    let info = status.get_details_error_info()?;
    if info.domain != ERROR_DOMAIN {
        return None;
    }
    let reason = Reason::from_str_name(&format!("{REASON_PREFIX}{}", info.reason));
    Some(Refusal {
        reason: reason.unwrap_or_default().into(),
        message: status.message().to_owned(),
        metadata: info.metadata.into_iter().collect(),
    })
}

/// The reason of a status of ours; as [`to_refusal`].
#[must_use]
pub fn reason(status: &Status) -> Option<Reason> {
    to_refusal(status).map(|refusal| refusal.reason())
}

/// The status for a state that cannot be read. The node stops on its own account.
#[must_use]
pub fn from_store_error(error: &StoreError) -> Status {
    tracing::error!(%error, "a read of the state failed");
    Status::internal(shortened(error.to_string(), MESSAGE_BYTES_MAX))
}

fn shortened(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::refusal;

    const PAGE: &str = include_str!("../../docs/errors.md");

    fn reasons() -> impl Iterator<Item = Reason> {
        (1..).map_while(|number| Reason::try_from(number).ok())
    }

    #[test]
    fn every_reason_goes_to_its_code_and_comes_back() {
        assert_eq!(reasons().count(), 27, "a new reason needs its place in the table and the page");
        for reason in reasons() {
            let sent = refusal(reason, "no").with("leader_id", 3);
            let status = from_refusal(sent.clone());
            assert_eq!(status.code(), code(reason), "{reason:?}");
            assert_eq!(status.message(), "no");
            assert_eq!(to_refusal(&status), Some(sent), "{reason:?}");
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason_name(reason), "quorate")
            );
            assert_eq!(
                status.get_details_retry_info().and_then(|info| info.retry_delay),
                retry_delay(reason),
                "{reason:?}"
            );
        }
    }

    #[test]
    fn unavailable_is_always_safe_to_retry_and_unknown_never_says_so() {
        for reason in reasons() {
            let unavailable = code(reason) == Code::Unavailable;
            if unavailable {
                assert!(!is_outcome_unknown(reason), "{reason:?}");
                assert!(retry_delay(reason).is_some(), "{reason:?}");
            }
            if is_outcome_unknown(reason) {
                assert!(matches!(code(reason), Code::Unknown | Code::DeadlineExceeded));
                assert_eq!(retry_delay(reason), None, "{reason:?}");
            }
        }
    }

    #[test]
    fn the_codes_are_those_of_the_proto() {
        let proto = include_str!("../../proto/quorate/command/v1/command.proto");
        let mut comment = "";
        let mut seen = 0;
        for line in proto.lines().map(str::trim) {
            if line.starts_with("//") {
                comment = line;
            } else if let Some((name, _)) = line.split_once(" = ")
                && let Some(reason) = Reason::from_str_name(name)
                && reason != Reason::Unspecified
            {
                let written = comment.rsplit([' ', ':']).next().unwrap().trim_end_matches('.');
                assert_eq!(written, code_name(code(reason)), "{reason:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, reasons().count());
    }

    #[test]
    fn the_page_lists_every_reason_with_its_code() {
        for reason in reasons() {
            let start = format!("| `{}` |", reason_name(reason));
            let row = PAGE.lines().find(|line| line.starts_with(&start));
            let row = row.unwrap_or_else(|| panic!("docs/errors.md has no row for {reason:?}"));
            let columns: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(columns.len(), 6, "{row}");
            assert_eq!(columns[1], format!("`{}`", code_name(code(reason))), "{row}");
            match retry_delay(reason) {
                Some(delay) => assert_eq!(columns[5], format!("{} ms", delay.as_millis()), "{row}"),
                None => assert!(!columns[5].ends_with("ms"), "{row}"),
            }
        }
        let rows = PAGE.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, reasons().count(), "the page lists a reason that does not exist");
    }

    #[test]
    fn others_statuses_are_not_taken_for_ours() {
        assert_eq!(to_refusal(&Status::unavailable("a proxy")), None);
        let details = ErrorDetails::with_error_info("NOT_LEADER", "elsewhere", HashMap::new());
        let foreign = Status::with_error_details(Code::Unavailable, "x", details);
        assert_eq!(reason(&foreign), None);
        let details =
            ErrorDetails::with_error_info("FROM_THE_FUTURE", ERROR_DOMAIN, HashMap::new());
        let newer = Status::with_error_details(Code::Unavailable, "x", details);
        assert_eq!(reason(&newer), Some(Reason::Unspecified));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let status = from_refusal(refusal(Reason::LockHeld, "ä".repeat(2_000)));
        assert_eq!(status.message().len(), MESSAGE_BYTES_MAX);
        let status = from_refusal(refusal(Reason::LockHeld, "x").with("owner", "ä".repeat(2_000)));
        assert_eq!(to_refusal(&status).unwrap().metadata["owner"].len(), METADATA_BYTES_MAX);
    }

    fn code_name(code: Code) -> String {
        let mut name = String::new();
        for letter in format!("{code:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(letter.to_ascii_uppercase());
        }
        name
    }
}
