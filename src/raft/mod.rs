//! Floor 1: the consensus core, sans-io.
//!
//! One way in, [`Raft::step`]; one way out, [`Ready`], whose fields stand in the order in which the
//! driver carries them out. No I/O, clock or randomness inside: time and a seed are arguments.

mod entry;
mod message;
mod ready;

pub use entry::{Entry, HardMark, HardState, LogMark, Membership, Payload};
pub use message::{
    AppendRequest, AppendResponse, AppendResult, Heartbeat, HeartbeatResponse, Message, TimeoutNow,
    VoteRequest, VoteResponse,
};
pub use ready::{
    Append, Apply, Held, Input, ProposeOutcome, ReadOutcome, Ready, RoleKind, SendSnapshot, Status,
    Ticket, TransferOutcome,
};
