//! What a layer answers instead of the service behind it: a status with details, as AIP-193 has it,
//! so that layers further out and callers anywhere read it like any other answer.

use std::{collections::HashMap, time::Duration};

use http::Response;
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `ErrorInfo` domain of what layers refuse. Not that of the server's refusals: whoever reads
/// those knows all of their reasons.
pub const REFUSAL_DOMAIN: &str = "quorate.layers";

/// In the extensions of an answer: a layer of this process gave it before anything was sent. Details
/// that came over the wire may be those of somebody further on, passed on by the other side.
#[derive(Clone, Copy, Debug)]
pub(super) struct RefusedHere;

/// A refusal in the making.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: Code,
    /// The `ErrorInfo` reason.
    pub(super) reason: &'static str,
    /// Who refused, why, and what to do next.
    pub(super) message: String,
    /// When to try again; `None` where that makes no sense.
    pub(super) retry_after: Option<Duration>,
    /// The `ErrorInfo` metadata.
    pub(super) facts: HashMap<String, String>,
}

impl Refusal {
    /// The answer.
    pub(super) fn into_response(self) -> Response<Body> {
        let mut details = ErrorDetails::with_error_info(self.reason, REFUSAL_DOMAIN, self.facts);
        if let Some(delay) = self.retry_after {
            details.set_retry_info(Some(delay));
        }
        let status = Status::with_error_details(self.code, self.message, details);
        let mut response = status.into_http();
        response.extensions_mut().insert(RefusedHere);
        response
    }
}
