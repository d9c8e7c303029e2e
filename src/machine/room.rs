//! Which commands make the state larger: those are refused while a disk is short of room.
//!
//! What lets go, ends or renews is none of them, though each takes a little of the log: the log is
//! cut behind the state, and the guard of the disk leaves room for that.

use crate::pb::{
    command::v1::command::Op,
    kv::v1::{RequestOp, request_op::Request},
};

/// Whether a command may make the state larger.
#[must_use]
pub fn grows(op: &Op) -> bool {
    match op {
        Op::Put(_)
        | Op::PutBatch(_)
        | Op::OpenSession(_)
        | Op::Acquire(_)
        | Op::Register(_)
        | Op::Append(_) => true,
        Op::Txn(txn) => txn.success.iter().chain(&txn.failure).any(puts),
        Op::DeleteRange(_)
        | Op::Compact(_)
        | Op::CloseSession(_)
        | Op::Release(_)
        | Op::CancelAcquire(_)
        | Op::Deregister(_)
        | Op::SetInstanceState(_)
        | Op::SetStreamLimits(_)
        | Op::TrimStream(_)
        | Op::DeleteStream(_)
        | Op::ExpireSessions(_)
        | Op::CheckpointSessions(_)
        | Op::AdvanceTime(_)
        | Op::FoundCluster(_)
        | Op::RegisterMember(_) => false,
    }
}

const fn puts(op: &RequestOp) -> bool {
    matches!(op.request, Some(Request::Put(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::kv::v1::{DeleteRangeRequest, PutRequest, TxnRequest};

    #[test]
    fn a_transaction_grows_where_either_list_puts() {
        let put = RequestOp { request: Some(Request::Put(PutRequest::default())) };
        let delete =
            RequestOp { request: Some(Request::DeleteRange(DeleteRangeRequest::default())) };
        let txn = |success: &[&RequestOp], failure: &[&RequestOp]| {
            let list = |ops: &[&RequestOp]| ops.iter().map(|&op| op.clone()).collect();
            grows(&Op::Txn(TxnRequest {
                success: list(success),
                failure: list(failure),
                ..TxnRequest::default()
            }))
        };
        assert!(!txn(&[&delete], &[&delete]));
        assert!(txn(&[&put], &[]) && txn(&[&delete], &[&put]));
    }
}
