//! Stub.

use crate::{
    machine::{
        outcome::{Decision, invalid},
        tx::Tx,
    },
    pb::kv::v1::{CompactRequest, CompactResponse},
};

pub(crate) fn compact(_tx: &mut Tx<'_>, _request: &CompactRequest) -> Decision<CompactResponse> {
    Ok(Err(invalid("not yet")))
}

/// Takes the next step of automatic compaction and of the sweep.
pub(crate) fn step(_tx: &mut Tx<'_>) -> Result<(), crate::machine::store::StoreError> {
    Ok(())
}
