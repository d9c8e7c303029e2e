//! Floor 1: the consensus core, sans-io.
//!
//! One way in, [`Raft::step`]; one way out, [`Ready`], whose fields stand in the order in which the
//! driver carries them out. No I/O, clock or randomness inside: time and a seed are arguments.

mod commit;
mod config;
mod election;
mod entry;
mod invariants;
mod log;
mod membership;
mod message;
mod progress;
pub mod quorum;
mod read_index;
mod ready;
mod replication;
mod role;
mod snapshot;
mod step;
mod transfer;

pub use config::{Config, ConfigError, Restored};
pub use entry::{Entry, HardMark, HardState, LogMark, LogStart, Membership, Payload};
pub use message::{
    AppendRequest, AppendResponse, AppendResult, Heartbeat, HeartbeatResponse, Message, TimeoutNow,
    VoteRequest, VoteResponse,
};
pub use ready::{
    Append, Apply, CampaignReason, Campaigned, Held, Input, ProposeOutcome, ReadOutcome, Ready,
    RoleKind, SendSnapshot, Status, Ticket, TransferOutcome,
};
pub use step::{Peer, Raft};
