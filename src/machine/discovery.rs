//! Stub: the typed helper's.

use crate::{
    machine::{
        outcome::{Decision, invalid},
        tx::Tx,
    },
    pb::discovery::v1::{DeregisterRequest, DeregisterResponse, RegisterRequest, RegisterResponse},
};

pub(crate) fn register(_tx: &mut Tx<'_>, _request: &RegisterRequest) -> Decision<RegisterResponse> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn deregister(
    _tx: &mut Tx<'_>,
    _request: &DeregisterRequest,
) -> Decision<DeregisterResponse> {
    Ok(Err(invalid("not yet")))
}
