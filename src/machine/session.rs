//! Stub: the typed helper's.

use crate::{
    machine::{
        outcome::{Decision, invalid},
        store::StoreError,
        tx::Tx,
    },
    pb::{
        command::v1::{CheckpointSessions, Done, ExpireSessions},
        session::v1::{
            CloseSessionRequest, CloseSessionResponse, OpenSessionRequest, OpenSessionResponse,
        },
    },
    types::SessionId,
};

/// Whether a session lives.
pub(crate) fn exists(_tx: &Tx<'_>, _session: SessionId) -> Result<bool, StoreError> {
    Ok(false)
}

pub(crate) fn open(
    _tx: &mut Tx<'_>,
    _request: &OpenSessionRequest,
) -> Decision<OpenSessionResponse> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn close(
    _tx: &mut Tx<'_>,
    _request: &CloseSessionRequest,
) -> Decision<CloseSessionResponse> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn expire(_tx: &mut Tx<'_>, _request: &ExpireSessions) -> Decision<Done> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn checkpoint(_tx: &mut Tx<'_>, _request: &CheckpointSessions) -> Decision<Done> {
    Ok(Err(invalid("not yet")))
}
