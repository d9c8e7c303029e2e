//! Request ids: what was done once is answered, not done again.

use crate::{
    machine::{store::StoreError, tx::Tx},
    pb::command::v1::{Outcome, Refusal, command},
    types::SessionId,
};

/// A hash of a command without its origin and request id.
pub(crate) type Fingerprint = u64;

/// The fingerprint of a command; a retry's is the same.
pub(crate) fn fingerprint(_op: &command::Op) -> Fingerprint {
    0
}

/// What is known of a request: the outcome to repeat, or `None` to carry it out.
pub(crate) fn recall(
    _tx: &Tx<'_>,
    _request_id: &str,
    _fingerprint: Fingerprint,
) -> Result<Result<Option<Outcome>, Refusal>, StoreError> {
    Ok(Ok(None))
}

/// Remembers what came of a request. Refusals are not remembered: they changed nothing. Whoever
/// grants a parked acquire calls this with its request id.
pub(crate) fn remember(
    _tx: &mut Tx<'_>,
    _request_id: &str,
    _fingerprint: Fingerprint,
    _outcome: &Outcome,
) -> Result<(), StoreError> {
    Ok(())
}

/// Forgets a request: what it did was taken back (a grant that nobody received).
pub(crate) fn forget(_tx: &mut Tx<'_>, _request_id: &str) -> Result<(), StoreError> {
    Ok(())
}

/// Forgets what a session's sequences came to; called when it ends.
pub(crate) fn forget_session(_tx: &mut Tx<'_>, _session: SessionId) -> Result<(), StoreError> {
    Ok(())
}
