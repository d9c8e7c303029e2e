//! Stub.

use crate::{
    machine::{
        outcome::{Decision, invalid},
        tx::Tx,
    },
    pb::kv::v1::{TxnRequest, TxnResponse},
};

pub(crate) fn txn(_tx: &mut Tx<'_>, _request: &TxnRequest) -> Decision<TxnResponse> {
    Ok(Err(invalid("not yet")))
}
