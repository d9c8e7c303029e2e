//! Stub: the typed helper's.

use crate::{
    machine::{
        outcome::{Decision, invalid},
        tx::Tx,
    },
    pb::command::v1::{Done, FoundCluster, RegisterMember},
};

pub(crate) fn found(_tx: &mut Tx<'_>, _request: &FoundCluster) -> Decision<Done> {
    Ok(Err(invalid("not yet")))
}

pub(crate) fn register_member(_tx: &mut Tx<'_>, _request: &RegisterMember) -> Decision<Done> {
    Ok(Err(invalid("not yet")))
}
