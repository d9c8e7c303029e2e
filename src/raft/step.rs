//! A group's member: what it holds, the one way in, and what every step ends with.
//!
//! A step takes one input, then whatever has come due, then hands over one write, one piece to
//! apply, and messages. The leaves are in the files of verbs beside this one.

use std::collections::{BTreeSet, VecDeque};

use crate::{
    raft::{
        Append, Apply, Config, Entry, HardMark, HardState, Input, LogMark, LogStart, Membership,
        Message, Ready, Restored, Status,
        log::Log,
        progress::ProgressState,
        role::{Following, Role},
        transfer::Handover,
    },
    types::{Duration, Instant, LogIndex, NodeId, Rng, Term},
};

/// How many pieces of committed entries may be handed out and not yet reported as applied.
const APPLY_PIECES_MAX: usize = 4;

/// One member of a group.
#[derive(Debug)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    /// The time of the step under way.
    pub(crate) now: Instant,
    /// Term and vote; the commit index in it is the current one.
    pub(crate) hard: HardState,
    pub(crate) log: Log,
    pub(crate) applied: LogIndex,
    pub(crate) membership: Membership,
    pub(crate) role: Role,
    /// How far this log is known to be the log of the latest leader that it accepted.
    pub(crate) accepted: LogMark,
    /// The entries through here, as the log holds them, are durable.
    pub(crate) durable: LogIndex,
    /// The durable term and vote.
    pub(crate) durable_hard: HardMark,
    /// When a member that does not lead campaigns.
    pub(crate) deadline: Instant,
    /// Members to which the connection broke.
    pub(crate) lost: BTreeSet<NodeId>,
    /// Whether the local disk makes no progress.
    pub(crate) stalled: bool,
    /// No campaign before this is applied (rule 2).
    pub(crate) campaign_floor: LogIndex,
    /// No vote before this, where lease reads are allowed (rule 28).
    pub(crate) vote_from: Instant,
    /// The last round begun; never used twice while this member lives.
    pub(crate) round: u64,
    /// Who waits for the outcome of a transfer that began while this member led.
    pub(crate) handover: Option<Handover>,
    pub(crate) applying: Applying,
    pub(crate) write: Write,
}

/// What was handed out to be applied.
#[derive(Debug, Default)]
pub(crate) struct Applying {
    /// The last index handed out.
    pub(crate) through: LogIndex,
    /// Where each piece ends that is not reported yet.
    pub(crate) pieces: VecDeque<LogIndex>,
    /// The snapshot that is being installed.
    pub(crate) installing: Option<LogIndex>,
}

/// What this step wants written.
#[derive(Debug, Default)]
pub(crate) struct Write {
    pub(crate) reset_to: Option<LogStart>,
    pub(crate) truncate_from: Option<LogIndex>,
    pub(crate) entries: Vec<Entry>,
    /// Whether a log mark must pass through the disk's queue although nothing is appended.
    pub(crate) mark: bool,
    /// The last term and vote that were handed over.
    pub(crate) hard: HardMark,
}

/// How a leader sees another member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The member.
    pub id: NodeId,
    /// The highest index known to match and to be durable there.
    pub matched: LogIndex,
    /// The next index to send.
    pub next: LogIndex,
    /// `probe`, `replicate` or `snapshot`.
    pub state: &'static str,
    /// Whether it answered within the longest election timeout.
    pub recent: bool,
}

impl Raft {
    /// Takes up a group where the disk left it, as a follower.
    ///
    /// # Panics
    /// Where `restored` contradicts itself: a hole in the log, or a state that is applied beyond
    /// it or cut off from it. The driver has checked the disk before.
    #[must_use]
    pub fn new(config: Config, mut restored: Restored, now: Instant) -> Self {
        let log = Log::restore(&mut restored);
        let last = log.last_index();
        assert!(restored.applied <= last, "the state is not ahead of the log");
        assert!(restored.applied >= log.start().index, "the log reaches back to the state");
        let commit = restored.hard.commit.min(last).max(restored.applied);
        let hard = HardState { commit, ..restored.hard };
        let durable_hard = HardMark { term: hard.term, vote: hard.vote };
        let mut rng = Rng::new(config.seed).stream("raft");
        let timeout = rng.between(config.election_timeout_min, config.election_timeout_max);
        let fresh = hard.term.is_zero();
        let wait =
            if config.early_vote || fresh { Duration::ZERO } else { config.election_timeout_max };
        Self {
            rng,
            now,
            hard,
            applied: restored.applied,
            membership: restored.membership,
            role: Role::Follower(Following { leader: None, contact: now }),
            // Its last entry came from the leader of that term, and with it all before.
            accepted: LogMark { leader_term: log.last_term(), index: last },
            durable: last,
            durable_hard,
            deadline: now.after(timeout),
            lost: BTreeSet::new(),
            stalled: false,
            campaign_floor: commit,
            vote_from: now.after(wait),
            round: 0,
            handover: None,
            applying: Applying { through: restored.applied, ..Applying::default() },
            write: Write { hard: durable_hard, ..Write::default() },
            log,
            config,
        }
    }

    /// Takes one input at a time that never goes back, and adds to `ready` what is to be done.
    pub fn step(&mut self, now: Instant, input: Input, ready: &mut Ready) {
        self.now = self.now.max(now);
        match input {
            Input::Message { from, message } => self.on_message(from, message, ready),
            Input::Propose { time, expected_term, commands } => {
                self.on_propose(time, expected_term, commands, ready);
            }
            Input::Read { ticket } => self.on_read(ticket, ready),
            Input::Transfer { ticket, target } => self.on_transfer(ticket, target, ready),
            Input::Persisted { hard, log } => self.on_persisted(hard, log, ready),
            Input::Applied { index } => self.on_applied(index, ready),
            Input::Purge { through } => self.on_purge(through, ready),
            Input::Disconnected { peer } => self.on_disconnected(peer),
            Input::Connected { peer } => self.on_connected(peer),
            Input::SnapshotSent { peer, installed } => self.on_snapshot_sent(peer, installed),
            Input::SnapshotReceived { from, term, index, last_term, time, membership } => {
                let start = LogStart { index, term: last_term, time };
                self.on_snapshot_received(from, term, start, membership, ready);
            }
            Input::DiskStalled(stalled) => self.on_disk_stalled(stalled, ready),
            Input::Tick => {}
        }
        // After the input: a member that slept finds what arrived meanwhile before it judges the
        // silence.
        self.on_time(ready);
        self.replicate(ready);
        self.hand_over_write(ready);
        self.hand_out_committed(ready);
    }

    /// When to call [`Raft::step`] at the latest, with [`Input::Tick`] if there is nothing else.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        let own = match &self.role {
            Role::Leader(leading) => {
                let transfer = leading.transfer.as_ref().map(|transfer| transfer.until);
                transfer.unwrap_or(Instant::FAR).min(leading.heartbeat_due)
            }
            _ => self.deadline,
        };
        own.min(self.handover.as_ref().map_or(Instant::FAR, |handover| handover.until))
    }

    /// How the group stands.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            role: self.role_kind(),
            term: self.hard.term,
            leader: self.leader(),
            leader_ready: self.leader_ready(),
            first: self.log.first_index(),
            last: self.log.last_index(),
            commit: self.hard.commit,
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    /// How a leader sees the others; empty for any other role.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let Role::Leader(leading) = &self.role else { return Vec::new() };
        let peers = leading.progress.iter().map(|(&id, progress)| Peer {
            id,
            matched: progress.matched,
            next: progress.next,
            state: match progress.state {
                ProgressState::Probe { .. } => "probe",
                ProgressState::Replicate(_) => "replicate",
                ProgressState::Snapshot { .. } => "snapshot",
            },
            recent: progress.heard && self.is_recent(progress.contact),
        });
        peers.collect()
    }

    /// Term, vote and commit index as they stand now, durable or not.
    #[must_use]
    pub const fn hard_state(&self) -> HardState {
        self.hard
    }

    /// The entries that the log keeps, in order.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.log.iter()
    }

    /// The term at an index; `None` where the log was cut or has not come to it.
    #[must_use]
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.log.term(index)
    }

    fn on_message(&mut self, from: NodeId, message: Message, ready: &mut Ready) {
        match message {
            Message::VoteRequest(request) => self.on_vote_request(from, &request, ready),
            Message::VoteResponse(response) => self.on_vote_response(from, &response, ready),
            Message::AppendRequest(request) => self.on_append_request(from, request, ready),
            Message::AppendResponse(response) => self.on_append_response(from, &response, ready),
            Message::Heartbeat(heartbeat) => self.on_heartbeat(from, &heartbeat, ready),
            Message::HeartbeatResponse(response) => {
                self.on_heartbeat_response(from, &response, ready);
            }
            Message::TimeoutNow(timeout) => self.on_timeout_now(from, &timeout, ready),
        }
    }

    /// Whatever has come due.
    fn on_time(&mut self, ready: &mut Ready) {
        if self.is_leader() {
            self.on_leader_time(ready);
        } else if self.now >= self.deadline {
            self.on_election_timeout(ready);
        }
        self.expire_handover(ready);
    }

    fn on_persisted(&mut self, hard: HardMark, log: LogMark, ready: &mut Ready) {
        self.durable_hard = self.durable_hard.max(hard);
        // A late completion of an earlier leader's entries counts for nothing (rule 15): they may
        // be gone, and where they are not, this leader's mark covers them.
        if log.leader_term == self.accepted.leader_term {
            self.durable = self.durable.max(log.index.min(self.accepted.index));
        }
        self.tally(ready);
        self.advance_commit(ready);
    }

    fn on_applied(&mut self, index: LogIndex, ready: &mut Ready) {
        let before = self.applied;
        self.applied = before.max(index.min(self.applying.through));
        let Applying { pieces, installing, .. } = &mut self.applying;
        while pieces.front().is_some_and(|&end| end <= index) {
            pieces.pop_front();
        }
        if installing.is_some_and(|snapshot| snapshot <= index) {
            *installing = None;
        }
        self.apply_memberships(before, ready);
    }

    fn on_purge(&mut self, through: LogIndex, ready: &mut Ready) {
        let through = through.min(self.applied);
        if through >= self.log.first_index() {
            self.log.purge(through);
            if let Role::Leader(leading) = &mut self.role {
                leading.progress.values_mut().for_each(|progress| progress.on_purged(&self.log));
            }
            ready.purged = Some(self.log.start());
        }
    }

    /// Hands over at most one write a step: the term and vote, if they changed, travel with the
    /// entries, so that all pass through one queue (rule 16).
    fn hand_over_write(&mut self, ready: &mut Ready) {
        let hard_mark = self.hard_mark();
        let write = &mut self.write;
        let log_changed =
            write.reset_to.is_some() || write.truncate_from.is_some() || !write.entries.is_empty();
        if !log_changed && !write.mark && hard_mark == write.hard {
            return;
        }
        let entries = std::mem::take(&mut write.entries);
        let write = std::mem::replace(write, Write { hard: hard_mark, ..Write::default() });
        ready.appends.push(Append {
            hard: self.hard,
            reset_to: write.reset_to,
            truncate_from: write.truncate_from,
            entries,
            hard_mark,
            log_mark: self.accepted,
        });
    }

    /// Hands out what is committed and durable here, a piece a step: a state that ran ahead of
    /// its own log could not be restarted.
    fn hand_out_committed(&mut self, ready: &mut Ready) {
        let Applying { through, pieces, installing } = &mut self.applying;
        let end = self.hard.commit.min(self.durable);
        let blocked = installing.is_some() || pieces.len() >= APPLY_PIECES_MAX;
        if blocked || ready.apply.is_some() || *through >= end {
            return;
        }
        let entries = self.log.slice(through.next(), end, self.config.apply_bytes_max, usize::MAX);
        *through = entries.last().expect("there is at least one").index;
        pieces.push_back(*through);
        ready.apply = Some(Apply { entries });
    }

    /// The mark of the term and vote as they stand.
    pub(crate) const fn hard_mark(&self) -> HardMark {
        HardMark { term: self.hard.term, vote: self.hard.vote }
    }

    pub(crate) fn is_recent(&self, contact: Instant) -> bool {
        self.now.since(contact) < self.config.election_timeout_max
    }

    pub(crate) fn draw_election_timeout(&mut self) -> Duration {
        let Config { election_timeout_min, election_timeout_max, .. } = self.config;
        self.rng.between(election_timeout_min, election_timeout_max)
    }
}
