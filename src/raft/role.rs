//! The roles and the only functions that assign them.
//!
//! ```text
//! Follower     -> PreCandidate   silence, or the connection to the leader broke
//! Follower     -> Candidate      the leader said TimeoutNow
//! PreCandidate -> Candidate      a quorum would vote for it
//! Candidate    -> PreCandidate   no majority within an election timeout
//! Candidate    -> Leader         a quorum voted, its own durable vote included
//! any          -> Follower       a leader or a later term appeared, or the quorum was lost
//! ```

use std::collections::BTreeMap;

use crate::{
    raft::{
        CampaignReason, Campaigned, LogMark, Payload, Raft, Ready, RoleKind, progress::Progress,
        read_index::Reads, transfer::Transfer,
    },
    types::{Instant, LogIndex, NodeId, Planted, Term, planted},
};

#[derive(Debug)]
pub(crate) enum Role {
    Follower(Following),
    PreCandidate(Campaign),
    Candidate(Campaign),
    Leader(Box<Leading>),
}

#[derive(Debug)]
pub(crate) struct Following {
    /// Who leads, where known.
    pub(crate) leader: Option<NodeId>,
    /// When it was last heard of.
    pub(crate) contact: Instant,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Campaign {
    /// What was answered; one's own vote stands here once it is durable.
    pub(crate) votes: BTreeMap<NodeId, bool>,
    /// Whether it began because the connection to the leader broke.
    pub(crate) leader_lost: bool,
    /// Whether the leader asked for it.
    pub(crate) transfer: bool,
    /// How many pre-votes went before.
    pub(crate) attempts: u32,
}

impl Campaign {
    const fn reason(&self) -> CampaignReason {
        match (self.transfer, self.leader_lost) {
            (true, _) => CampaignReason::Transfer,
            (false, true) => CampaignReason::ConnectionLost,
            (false, false) => CampaignReason::Timeout,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Leading {
    /// What is known of every other member.
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    /// The index of this term's first entry.
    pub(crate) term_start: LogIndex,
    /// When to speak up next.
    pub(crate) heartbeat_due: Instant,
    /// The reads, and the rounds that they wait for.
    pub(crate) reads: Reads,
    /// The handover under way.
    pub(crate) transfer: Option<Transfer>,
    /// The cost of the entries after the commit index.
    pub(crate) uncommitted_bytes: usize,
}

impl Raft {
    /// Whether this member leads.
    pub(crate) const fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    pub(crate) const fn role_kind(&self) -> RoleKind {
        match self.role {
            Role::Follower(_) => RoleKind::Follower,
            Role::PreCandidate(_) => RoleKind::PreCandidate,
            Role::Candidate(_) => RoleKind::Candidate,
            Role::Leader(_) => RoleKind::Leader,
        }
    }

    /// Who leads, as far as this member knows.
    pub(crate) const fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(following) => following.leader,
            Role::PreCandidate(_) | Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.config.id),
        }
    }

    /// Follows, in this term or a later one. What a leader still owes is answered.
    pub(crate) fn become_follower(
        &mut self,
        term: Term,
        leader: Option<NodeId>,
        ready: &mut Ready,
    ) {
        assert!(term >= self.hard.term, "terms never go back");
        if term > self.hard.term || planted(Planted::VoteForgottenInTerm) {
            // The vote resets only with the term (rule 17).
            self.hard.term = term;
            self.hard.vote = None;
        }
        let following = Following { leader, contact: self.now };
        let before = std::mem::replace(&mut self.role, Role::Follower(following));
        ready.role_changed = true;
        self.deadline = self.now.after(self.draw_election_timeout());
        if let Role::Leader(leading) = before {
            self.abdicate(*leading, leader, ready);
        }
        if let Some(leader) = leader {
            self.settle_handover(leader, ready);
        }
    }

    /// Asks whether an election could be won; changes neither term nor vote (thesis §9.6).
    pub(crate) fn become_pre_candidate(&mut self, campaign: Campaign, ready: &mut Ready) {
        assert!(!self.is_leader(), "a leader does not campaign");
        ready.campaigns.push(Campaigned { pre_vote: true, reason: campaign.reason() });
        self.role = Role::PreCandidate(campaign);
        ready.role_changed = true;
    }

    /// Stands for election in the next term (Raft §5.2).
    pub(crate) fn become_candidate(&mut self, campaign: Campaign, ready: &mut Ready) {
        assert!(!self.is_leader(), "a leader does not campaign");
        self.hard.term = self.hard.term.next();
        self.hard.vote = Some(self.config.id);
        ready.campaigns.push(Campaigned { pre_vote: false, reason: campaign.reason() });
        self.role = Role::Candidate(campaign);
        self.deadline = self.now.after(self.draw_election_timeout());
        ready.role_changed = true;
    }

    /// Leads, and appends the term's first entry (Raft §8).
    pub(crate) fn become_leader(&mut self, ready: &mut Ready) {
        assert!(matches!(self.role, Role::Candidate(_)), "only a candidate is elected");
        let last = self.log.last_index();
        let me = self.config.id;
        let others = self.membership.members().into_iter().filter(|&member| member != me);
        let progress = others.map(|member| (member, Progress::new(last.next(), self.now)));
        self.role = Role::Leader(Box::new(Leading {
            progress: progress.collect(),
            term_start: last.next(),
            heartbeat_due: self.now,
            reads: Reads::new(self.round),
            transfer: None,
            uncommitted_bytes: 0,
        }));
        // Its whole log is the log of its term.
        self.accepted = LogMark { leader_term: self.hard.term, index: last };
        self.recount_uncommitted();
        self.append_own([(Payload::Noop, self.log.last_time())]);
        ready.role_changed = true;
        self.settle_handover(me, ready);
    }
}
