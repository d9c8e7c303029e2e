//! Elections: pre-vote, vote, and who is refused (Raft §5.2, §5.4.1; thesis §9.6, §6.2).
//!
//! A vote leaves only behind its durable mark, and a request for one too: a candidate that crashed
//! and lost its term would otherwise collect answers to a campaign that it does not remember.

use crate::{
    raft::{
        Held, LogMark, Membership, Message, Raft, Ready, TimeoutNow, VoteRequest, VoteResponse,
        quorum::{self, VoteResult},
        role::{Campaign, Role},
    },
    types::{Duration, NodeId, Planted, Term, planted},
};

/// How often a pre-vote after a broken connection is tried again at the pace of heartbeats: the
/// others may notice the break a little later.
const EARLY_ATTEMPTS_MAX: u32 = 4;

impl Raft {
    pub(crate) fn on_election_timeout(&mut self, ready: &mut Ready) {
        let (lost, attempts) = match &self.role {
            Role::Follower(following) => (self.lost_leader(following.leader), 0),
            Role::PreCandidate(campaign) => (campaign.leader_lost, campaign.attempts + 1),
            Role::Candidate(_) | Role::Leader(_) => (false, 0),
        };
        if !self.may_campaign() {
            // It learns of the silence all the same.
            self.become_follower(self.hard.term, None, ready);
            return;
        }
        let leader_lost = lost && attempts < EARLY_ATTEMPTS_MAX;
        self.deadline = if leader_lost {
            let pace = self.config.heartbeat_interval;
            self.now.after(pace + self.rng.between(Duration::ZERO, pace))
        } else {
            self.now.after(self.draw_election_timeout())
        };
        let campaign = Campaign { leader_lost, attempts, ..Campaign::default() };
        self.become_pre_candidate(campaign, ready);
        let request = self.vote_request(self.hard.term.next(), true, leader_lost, false);
        for voter in self.other_voters() {
            ready.messages.push((voter, Message::VoteRequest(request.clone())));
        }
        self.tally(ready);
    }

    pub(crate) fn on_timeout_now(&mut self, from: NodeId, timeout: &TimeoutNow, ready: &mut Ready) {
        if timeout.term > self.hard.term {
            self.become_follower(timeout.term, Some(from), ready);
        }
        let meant = timeout.term == self.hard.term && self.leader() == Some(from);
        if meant && !self.is_leader() && self.may_campaign() {
            self.campaign(Campaign { transfer: true, ..Campaign::default() }, ready);
        }
    }

    pub(crate) fn on_vote_request(
        &mut self,
        from: NodeId,
        request: &VoteRequest,
        ready: &mut Ready,
    ) {
        if let Err(reason) = self.judge_before_term(from, request) {
            self.answer_vote(from, request, Err(reason), ready);
            return;
        }
        if request.pre_vote {
            let verdict = self.judge_log(request);
            self.answer_vote(from, request, verdict, ready);
            return;
        }
        if request.term > self.hard.term {
            self.become_follower(request.term, None, ready);
        }
        let verdict = match self.hard.vote {
            Some(vote) if vote != from => Err("already voted"),
            None if self.leader().is_some() => Err("a leader is elected"),
            _ => self.judge_log(request),
        };
        if verdict.is_ok() {
            self.hard.vote = Some(from);
            self.deadline = self.now.after(self.draw_election_timeout());
        }
        self.answer_vote(from, request, verdict, ready);
    }

    pub(crate) fn on_vote_response(
        &mut self,
        from: NodeId,
        response: &VoteResponse,
        ready: &mut Ready,
    ) {
        if !self.membership.is_voter(from) {
            return;
        }
        let echo = response.pre_vote && response.granted;
        if response.term > self.hard.term && !echo {
            // A rejection carries the voter's term, also that of a pre-vote (rule 7).
            self.become_follower(response.term, None, ready);
            return;
        }
        let (campaign, asked) = match &mut self.role {
            Role::PreCandidate(campaign) if response.pre_vote => (campaign, self.hard.term.next()),
            Role::Candidate(campaign) if !response.pre_vote => (campaign, self.hard.term),
            _ => return,
        };
        // A grant is for the term that it names and for no other.
        if !response.granted || response.term == asked {
            campaign.votes.entry(from).or_insert(response.granted);
            self.tally(ready);
        }
    }

    /// Counts the votes of the campaign under way, if there is one.
    pub(crate) fn tally(&mut self, ready: &mut Ready) {
        let me = self.config.id;
        let durable = self.durable_hard >= self.hard_mark();
        let campaign = match &mut self.role {
            Role::PreCandidate(campaign) => campaign,
            Role::Candidate(campaign) if durable => campaign,
            _ => return,
        };
        campaign.votes.insert(me, true);
        let result = quorum::vote_result(&self.membership, |id| campaign.votes.get(&id).copied());
        let campaign = campaign.clone();
        match (result, &self.role) {
            (VoteResult::Pending, _) => {}
            (VoteResult::Lost, _) => self.become_follower(self.hard.term, None, ready),
            (VoteResult::Won, Role::Candidate(_)) => self.become_leader(ready),
            (VoteResult::Won, _) => {
                let leader_lost = campaign.leader_lost;
                self.campaign(Campaign { leader_lost, ..Campaign::default() }, ready);
            }
        }
    }

    /// The connection to a member broke. If that was the leader, do not wait out the silence.
    pub(crate) fn on_disconnected(&mut self, peer: NodeId) {
        self.lost.insert(peer);
        match &mut self.role {
            Role::Leader(leading) => {
                if let Some(progress) = leading.progress.get_mut(&peer) {
                    progress.on_connection();
                }
            }
            Role::Follower(following) => {
                if self.config.early_vote && following.leader == Some(peer) {
                    let pace = self.config.heartbeat_interval;
                    let early = self.now.after(self.rng.between(Duration::ZERO, pace));
                    self.deadline = self.deadline.min(early);
                }
            }
            Role::PreCandidate(_) | Role::Candidate(_) => {}
        }
    }

    /// The connection to a member stands.
    pub(crate) fn on_connected(&mut self, peer: NodeId) {
        let back = self.lost.remove(&peer);
        match &mut self.role {
            Role::Leader(leading) => {
                if let Some(progress) = leading.progress.get_mut(&peer) {
                    progress.on_connection();
                }
            }
            Role::Follower(following) if back && following.leader == Some(peer) => {
                let contact = following.contact;
                let timeout = self.draw_election_timeout();
                self.deadline = contact.after(timeout).max(self.deadline);
            }
            _ => {}
        }
    }

    /// The local disk makes no durable progress, or does again (rule 21).
    pub(crate) fn on_disk_stalled(&mut self, stalled: bool, ready: &mut Ready) {
        self.stalled = stalled;
        match (&mut self.role, stalled) {
            (Role::Leader(_), true) => self.hand_over(ready),
            (Role::Leader(leading), false) => {
                if let Some(transfer) = &mut leading.transfer {
                    transfer.step_down = false;
                }
            }
            (Role::PreCandidate(_) | Role::Candidate(_), true) => {
                self.become_follower(self.hard.term, None, ready);
            }
            _ => {}
        }
    }

    /// Asks for votes in the next term, once one's own vote is durable.
    fn campaign(&mut self, campaign: Campaign, ready: &mut Ready) {
        let (leader_lost, transfer) = (campaign.leader_lost, campaign.transfer);
        self.become_candidate(campaign, ready);
        let request = self.vote_request(self.hard.term, false, leader_lost, transfer);
        for voter in self.other_voters() {
            let message = Message::VoteRequest(request.clone());
            self.send_when_durable(voter, LogMark::default(), message, ready);
        }
    }

    /// What stands against a request before its term counts: then it changes nothing.
    fn judge_before_term(&self, from: NodeId, request: &VoteRequest) -> Result<(), &'static str> {
        // Who knows no membership yet is asked because it belongs to one (rule 4).
        let joined = self.membership != Membership::default();
        let stranger = joined && !self.membership.contains(from);
        let refused = [
            (stranger, "not a member"),
            (request.term < self.hard.term, "the term is old"),
            (request.pre_vote && request.term <= self.hard.term, "the term is old"),
            (self.now < self.vote_from && !request.transfer, "just restarted"),
            (!request.transfer && self.has_leader(request.leader_lost), "a leader is alive"),
        ];
        refused.iter().find(|(refused, _)| *refused).map_or(Ok(()), |&(_, reason)| Err(reason))
    }

    /// Raft §5.4.1: the candidate's log is at least as up to date.
    fn judge_log(&self, request: &VoteRequest) -> Result<(), &'static str> {
        let theirs = (request.last_term, request.last_index);
        let ours = (self.log.last_term(), self.log.last_index());
        if theirs >= ours { Ok(()) } else { Err("the log is behind") }
    }

    /// Whether a leader is alive, so that others are refused; one that lost it, as this member
    /// did, may ask early.
    fn has_leader(&self, leader_lost: bool) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower(following) => {
                let silence = self.now.since(following.contact);
                let early = leader_lost && self.lost_leader(following.leader);
                following.leader.is_some() && silence < self.config.election_timeout_min && !early
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    /// Whether the connection to the leader broke, in a group where that may shorten an election.
    pub(crate) fn lost_leader(&self, leader: Option<NodeId>) -> bool {
        self.config.early_vote && leader.is_some_and(|leader| self.lost.contains(&leader))
    }

    /// Rule 2: not with a committed membership that is not applied, and not before everything is
    /// applied that was committed before a restart.
    fn may_campaign(&self) -> bool {
        let unapplied = self.log.memberships(self.applied, self.hard.commit).next().is_some();
        // A peer may have named the last term there is: no vote would be left in it.
        let term_left = self.hard.term < self.hard.term.next();
        self.membership.is_voter(self.config.id)
            && term_left
            && !self.stalled
            && self.applied >= self.campaign_floor
            && !unapplied
    }

    fn answer_vote(
        &self,
        to: NodeId,
        request: &VoteRequest,
        verdict: Result<(), &'static str>,
        ready: &mut Ready,
    ) {
        let granted = verdict.is_ok();
        let echo = granted && request.pre_vote;
        let message = Message::VoteResponse(VoteResponse {
            term: if echo { request.term } else { self.hard.term },
            granted,
            pre_vote: request.pre_vote,
            reason: verdict.err().unwrap_or_default(),
            call: request.call,
        });
        let early = planted(Planted::VoteSentBeforeDurable);
        if granted && !request.pre_vote && !early {
            self.send_when_durable(to, LogMark::default(), message, ready);
        } else {
            ready.messages.push((to, message));
        }
    }

    /// Sends once term and vote are durable, and the log up to the mark (rule 13).
    pub(crate) fn send_when_durable(
        &self,
        to: NodeId,
        log: LogMark,
        message: Message,
        ready: &mut Ready,
    ) {
        let hard = self.hard_mark();
        if self.durable_hard >= hard && self.durable >= log.index {
            ready.messages.push((to, message));
        } else {
            ready.held.push(Held { hard, log, to, message });
        }
    }

    fn vote_request(
        &self,
        term: Term,
        pre_vote: bool,
        leader_lost: bool,
        transfer: bool,
    ) -> VoteRequest {
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        VoteRequest { term, last_index, last_term, pre_vote, leader_lost, transfer, call: 0 }
    }

    fn other_voters(&self) -> Vec<NodeId> {
        let voters = self.membership.voters.union(&self.membership.outgoing).copied();
        voters.filter(|&voter| voter != self.config.id).collect()
    }
}
