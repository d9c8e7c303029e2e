//! Stub: the typed helper's.

use crate::{
    machine::{
        outcome::{Decision, invalid},
        tx::Tx,
    },
    pb::event::v1::{AppendRequest, AppendResponse},
};

pub(crate) fn append(_tx: &mut Tx<'_>, _request: &AppendRequest) -> Decision<AppendResponse> {
    Ok(Err(invalid("not yet")))
}
