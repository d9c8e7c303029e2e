//! The boundary of the core: what goes in and what comes out.

use bytes::Bytes;

use crate::{
    raft::{Entry, HardMark, HardState, LogMark, LogStart, Membership, Message},
    types::{LogIndex, LogTime, NodeId, Term},
};

/// The driver's number for a request of its own; each gets exactly one outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Everything that can happen to a group.
#[derive(Clone, Debug)]
pub enum Input {
    /// A member's message arrived.
    Message {
        /// Who sent it.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// Commands are to be appended, in this order. All or none: one outcome for the batch's
    /// tickets each.
    Propose {
        /// The wall clock now; the core clamps it so that it never goes back along the log.
        time: LogTime,
        /// Refuse unless this node leads in this term.
        expected_term: Option<Term>,
        /// The commands and who waits for them.
        commands: Vec<(Ticket, Bytes)>,
    },
    /// A linearizable read wants an index to wait for (thesis §6.4).
    Read {
        /// Who waits.
        ticket: Ticket,
    },
    /// Leadership is to be handed over.
    Transfer {
        /// Who waits.
        ticket: Ticket,
        /// To whom; `None` leaves the choice to the leader.
        target: Option<NodeId>,
    },
    /// The disk has everything up to these marks.
    Persisted {
        /// Of terms and votes.
        hard: HardMark,
        /// Of the log.
        log: LogMark,
    },
    /// The state machine has applied up to here.
    Applied {
        /// The last applied index.
        index: LogIndex,
    },
    /// The log up to here may be forgotten: the state is durable beyond it.
    Purge {
        /// The last index to forget.
        through: LogIndex,
    },
    /// The connection to a member broke.
    Disconnected {
        /// The member.
        peer: NodeId,
    },
    /// The connection to a member stands.
    Connected {
        /// The member.
        peer: NodeId,
    },
    /// A snapshot that was being sent has ended.
    SnapshotSent {
        /// To whom.
        peer: NodeId,
        /// The index that it covered, where the member installed it or did not need it.
        installed: Option<LogIndex>,
    },
    /// A leader offers a snapshot whose bytes are received and verified. The core answers with
    /// [`Ready::install`], or ignores it where it holds nothing that is not committed here. A
    /// driver may install it first; then it skips entries that the snapshot covers, should they
    /// still be handed out.
    SnapshotReceived {
        /// The leader.
        from: NodeId,
        /// Its term.
        term: Term,
        /// The last index that the snapshot covers.
        index: LogIndex,
        /// That entry's term.
        last_term: Term,
        /// The log time of that entry.
        time: LogTime,
        /// The membership in it.
        membership: Membership,
    },
    /// The local disk makes no durable progress, or does again.
    DiskStalled(bool),
    /// Nothing but time went by.
    Tick,
}

/// What the driver is to do, in this order. Whatever is listed is listed once.
#[derive(Debug, Default)]
pub struct Ready {
    /// First: hand these to the disk, in this order. They are visible to the core already; report
    /// them with [`Input::Persisted`].
    pub appends: Vec<Append>,
    /// May be sent at once, before any of the above is durable.
    pub messages: Vec<(NodeId, Message)>,
    /// May be sent only once the disk has reached both marks. Each of them is reached by an
    /// append listed above or handed out earlier.
    pub held: Vec<Held>,
    /// Snapshots to send from the durable state.
    pub snapshots: Vec<SendSnapshot>,
    /// The received snapshot that is to replace the state, and overtakes all that was handed out
    /// to be applied before; then report [`Input::Applied`]. Nothing more is handed out until then.
    pub install: Option<LogIndex>,
    /// Committed entries to apply, in order; then report [`Input::Applied`]. The next piece may
    /// come before that report.
    pub apply: Option<Apply>,
    /// The log was cut behind the applied state and starts after this entry; after the appends
    /// above, the disk may forget what lies before.
    pub purged: Option<LogStart>,
    /// What became of proposals.
    pub proposals: Vec<(Ticket, ProposeOutcome)>,
    /// What became of reads.
    pub reads: Vec<(Ticket, ReadOutcome)>,
    /// What became of transfers.
    pub transfers: Vec<(Ticket, TransferOutcome)>,
    /// Whether role, term or leader changed: look at [`Status`].
    pub role_changed: bool,
    /// The campaigns that were begun, for whoever counts them.
    pub campaigns: Vec<Campaigned>,
}

/// A campaign that this member began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Campaigned {
    /// Whether it only asks if an election could be won; then the term stays (thesis §9.6).
    pub pre_vote: bool,
    /// Why.
    pub reason: CampaignReason,
}

/// Why a member stands for election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CampaignReason {
    /// It heard no leader for an election timeout.
    Timeout,
    /// Its connection to the leader broke.
    ConnectionLost,
    /// The leader told it to (thesis §3.10).
    Transfer,
}

/// A write for the disk's one FIFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The hard state as of this write, commit index included.
    pub hard: HardState,
    /// Carried out first: a snapshot replaced the log up to this entry. What lies behind it is
    /// void, and so is what follows unless it connects; then `truncate_from` is `None`. The
    /// snapshot's bytes must be durable before this is, so that a restart can finish installing.
    pub reset_to: Option<LogStart>,
    /// Entries from here on are void; `None` where the new ones simply follow.
    pub truncate_from: Option<LogIndex>,
    /// The entries to append.
    pub entries: Vec<Entry>,
    /// What to report of terms and votes once this is durable.
    pub hard_mark: HardMark,
    /// What to report of the log once this is durable.
    pub log_mark: LogMark,
}

/// A message that waits for the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Terms and votes must be durable up to here.
    pub hard: HardMark,
    /// The log must be durable up to here.
    pub log: LogMark,
    /// The receiver.
    pub to: NodeId,
    /// The message.
    pub message: Message,
}

/// A snapshot that a member needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendSnapshot {
    /// The member.
    pub to: NodeId,
    /// The sender's term.
    pub term: Term,
}

/// Committed entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apply {
    /// The entries, consecutive.
    pub entries: Vec<Entry>,
}

/// What became of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposeOutcome {
    /// It stands in the log here. If an entry of another term is applied at this index, it is
    /// certainly lost.
    Accepted {
        /// Its place.
        index: LogIndex,
        /// Its term.
        term: Term,
    },
    /// This node does not lead, or not in the expected term: certainly not proposed.
    NotLeader {
        /// Who does, where known.
        leader: Option<NodeId>,
    },
    /// Leadership is being handed over: certainly not proposed.
    Transferring {
        /// To whom.
        target: NodeId,
    },
    /// Too much is waiting to be replicated: certainly not proposed.
    Overloaded,
}

/// What became of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// The read is linearizable once the state is applied up to here.
    Ready {
        /// The index to wait for.
        index: LogIndex,
    },
    /// This node does not lead.
    NotLeader {
        /// Who does, where known.
        leader: Option<NodeId>,
    },
}

/// What became of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferOutcome {
    /// Another node leads now.
    Done {
        /// The new leader.
        leader: NodeId,
    },
    /// This node does not lead.
    NotLeader {
        /// Who does, where known.
        leader: Option<NodeId>,
    },
    /// The target is no voter, or no other voter is there.
    NotAVoter,
    /// The target did not take over within an election timeout; this node leads on.
    TimedOut,
}

/// What a member does, without what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// Follows.
    Follower,
    /// Asks whether an election could be won.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// How a group stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The role.
    pub role: RoleKind,
    /// The term.
    pub term: Term,
    /// The leader, where known.
    pub leader: Option<NodeId>,
    /// Whether a leader's first entry of its term is committed.
    pub leader_ready: bool,
    /// The first index that the log still keeps.
    pub first: LogIndex,
    /// The last index.
    pub last: LogIndex,
    /// The commit index.
    pub commit: LogIndex,
    /// The applied index.
    pub applied: LogIndex,
    /// The membership in force.
    pub membership: Membership,
}
