//! Stub: the typed helper's.

use crate::{
    machine::{
        outcome::{Decision, invalid},
        store::StoreError,
        tx::Tx,
    },
    pb::{
        command::v1::{CancelAcquire, Done, Origin},
        lock::v1::{AcquireRequest, AcquireResponse, ReleaseRequest, ReleaseResponse},
    },
};

/// Whether a lock is held with this token.
pub(crate) fn is_held(_tx: &Tx<'_>, _name: &str, _fencing_token: u64) -> Result<bool, StoreError> {
    Ok(false)
}

/// `None` is parked: the outcome comes later, by `Tx::complete`.
pub(crate) fn acquire(
    _tx: &mut Tx<'_>,
    _origin: &Origin,
    _request: &AcquireRequest,
) -> Decision<Option<AcquireResponse>> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn release(_tx: &mut Tx<'_>, _request: &ReleaseRequest) -> Decision<ReleaseResponse> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn cancel(_tx: &mut Tx<'_>, _request: &CancelAcquire) -> Decision<Done> {
    Ok(Err(invalid("not yet")))
}
