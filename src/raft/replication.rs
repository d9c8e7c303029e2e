//! Replication: proposals, appends both ways, heartbeats and their answers (Raft §5.3).
//!
//! The leader sends ahead of answers and of its own disk. A follower truncates only at a conflict,
//! never below its commit index, and answers only behind the durable marks (rules 13 and 17).

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::{
    raft::{
        AppendRequest, AppendResponse, AppendResult, Config, Entry, Heartbeat, HeartbeatResponse,
        LogMark, Message, Payload, ProposeOutcome, Raft, Ready, SendSnapshot, Ticket,
        log::{Log, cost_bytes},
        progress::{Progress, ProgressState, SNAPSHOT_TIMEOUT},
        quorum::{self, VoteResult},
        role::Role,
    },
    types::{Instant, LogIndex, LogTime, NodeId, Planted, Term, planted},
};

/// How many bytes of entries a probe carries: enough for a term's first entry to travel with it,
/// little to lose while the point of agreement is not known.
const PROBE_BYTES_MAX: usize = 64 << 10;

/// What a leader needs for sending to any member.
struct Sender<'a> {
    config: &'a Config,
    log: &'a Log,
    lost: &'a BTreeSet<NodeId>,
    now: Instant,
    term: Term,
    commit: LogIndex,
    applied: LogIndex,
    round: u64,
}

impl Raft {
    pub(crate) fn on_propose(
        &mut self,
        time: LogTime,
        expected_term: Option<Term>,
        commands: Vec<(Ticket, Bytes)>,
        ready: &mut Ready,
    ) {
        let leader = self.leader();
        let refusal = match &self.role {
            Role::Leader(_) if expected_term.is_some_and(|term| term != self.hard.term) => {
                Some(ProposeOutcome::NotLeader { leader })
            }
            Role::Leader(leading) => match &leading.transfer {
                Some(transfer) => Some(ProposeOutcome::Transferring { target: transfer.target }),
                None => {
                    let bytes: usize = commands.iter().map(|(_, data)| data.len()).sum();
                    let full = leading.uncommitted_bytes.saturating_add(bytes)
                        > self.config.uncommitted_bytes_max;
                    // A batch that alone is too large still gets through, alone.
                    let refused = full && leading.uncommitted_bytes > 0;
                    refused.then_some(ProposeOutcome::Overloaded)
                }
            },
            _ => Some(ProposeOutcome::NotLeader { leader }),
        };
        if let Some(refusal) = refusal {
            if planted(Planted::ProposalDroppedInTransfer) && self.is_leader() {
                return;
            }
            ready.proposals.extend(commands.into_iter().map(|(t, _)| (t, refusal.clone())));
            return;
        }
        let term = self.hard.term;
        let first = self.log.last_index().next();
        let accepted = commands.iter().enumerate().map(|(place, &(ticket, _))| {
            (ticket, ProposeOutcome::Accepted { index: first.forward(place as u64), term })
        });
        ready.proposals.extend(accepted);
        self.append_own(commands.into_iter().map(|(_, data)| (Payload::Command(data), time)));
    }

    /// Appends entries of this leader's term; their time never goes back along the log (rule 30).
    pub(crate) fn append_own(&mut self, payloads: impl IntoIterator<Item = (Payload, LogTime)>) {
        let Role::Leader(leading) = &mut self.role else { return };
        for (payload, time) in payloads {
            let entry = Entry {
                index: self.log.last_index().next(),
                term: self.hard.term,
                time: time.max(self.log.last_time()),
                payload,
            };
            leading.uncommitted_bytes += cost_bytes(&entry);
            self.write.entries.push(entry.clone());
            self.log.append(entry);
        }
        self.accepted.index = self.log.last_index();
    }

    /// Sends every member what its window allows.
    pub(crate) fn replicate(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &mut self.role else { return };
        let sender = Sender {
            config: &self.config,
            log: &self.log,
            lost: &self.lost,
            now: self.now,
            term: self.hard.term,
            commit: self.hard.commit,
            applied: self.applied,
            round: self.round,
        };
        for (&to, progress) in &mut leading.progress {
            sender.send(to, progress, ready);
        }
    }

    pub(crate) fn on_append_response(
        &mut self,
        from: NodeId,
        response: &AppendResponse,
        ready: &mut Ready,
    ) {
        if !self.hear_member(from, response.term, response.round, ready) {
            return;
        }
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(progress) = leading.progress.get_mut(&from) else { return };
        match response.result {
            AppendResult::Matched { match_index } if match_index <= self.log.last_index() => {
                progress.on_matched(match_index, &self.log, self.now);
            }
            AppendResult::Conflict { rejected, index, term } => {
                progress.on_conflict(rejected, index, term, &self.log);
            }
            AppendResult::Matched { .. } | AppendResult::Stale => {}
        }
        self.advance_commit(ready);
        self.confirm_rounds(ready);
        self.press_transfer(ready);
    }

    pub(crate) fn on_heartbeat_response(
        &mut self,
        from: NodeId,
        response: &HeartbeatResponse,
        ready: &mut Ready,
    ) {
        if self.hear_member(from, response.term, response.round, ready) {
            self.confirm_rounds(ready);
        }
    }

    /// What is due for a leader: heartbeats, its own quorum check, and another try where an answer
    /// stayed out.
    pub(crate) fn on_leader_time(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &mut self.role else { return };
        if self.now >= leading.heartbeat_due {
            leading.heartbeat_due = self.now.after(self.config.heartbeat_interval);
            if !self.hears_quorum() {
                self.become_follower(self.hard.term, None, ready);
                return;
            }
            self.ask_again(ready);
            self.repeat_timeout_now();
            self.press_transfer(ready);
            // A leader whose disk stands still falls silent, so that the others replace it
            // (rule 21).
            if !self.stalled {
                self.begin_round(ready);
            }
        }
        self.expire_transfer(ready);
    }

    /// Tells every member that this leader is there, under the round that was just begun.
    pub(crate) fn send_heartbeats(&self, ready: &mut Ready) {
        let Role::Leader(leading) = &self.role else { return };
        for (&to, progress) in &leading.progress {
            let blind = planted(Planted::HeartbeatCommitsBlindly);
            let matched = if blind { self.hard.commit } else { progress.matched };
            let heartbeat = Heartbeat {
                term: self.hard.term,
                commit: self.hard.commit.min(matched),
                round: self.round,
            };
            ready.messages.push((to, Message::Heartbeat(heartbeat)));
        }
    }

    pub(crate) fn on_heartbeat(&mut self, from: NodeId, heartbeat: &Heartbeat, ready: &mut Ready) {
        if self.hear_leader(from, heartbeat.term, ready) {
            // It was capped at what this member acknowledged to this leader.
            let blind = planted(Planted::HeartbeatCommitsBlindly);
            let known = if blind {
                self.log.last_index()
            } else if self.accepted.leader_term == heartbeat.term {
                self.accepted.index
            } else {
                LogIndex::ZERO
            };
            self.commit_through(heartbeat.commit.min(known), ready);
        } else if heartbeat.term == self.hard.term {
            return;
        }
        let response = HeartbeatResponse { term: self.hard.term, round: heartbeat.round };
        ready.messages.push((from, Message::HeartbeatResponse(response)));
    }

    pub(crate) fn on_append_request(
        &mut self,
        from: NodeId,
        request: AppendRequest,
        ready: &mut Ready,
    ) {
        let AppendRequest { term, prev_index, prev_term, entries, commit, round } = request;
        let answer = |term, result| Message::AppendResponse(AppendResponse { term, round, result });
        if !self.hear_leader(from, term, ready) {
            if term < self.hard.term {
                ready.messages.push((from, answer(self.hard.term, AppendResult::Stale)));
            }
            return;
        }
        if !is_well_formed(term, prev_index, prev_term, &entries) {
            tracing::warn!(node = %self.config.id, peer = %from, "malformed append dropped");
            return;
        }
        let Some(last) = self.accept(prev_index, prev_term, entries) else {
            let result = self.conflict_at(prev_index);
            ready.messages.push((from, answer(term, result)));
            return;
        };
        // What is committed agrees with every later leader (Raft §5.4), so this may answer more
        // than it was asked.
        let match_index = last.max(self.hard.commit);
        self.accept_mark(LogMark { leader_term: term, index: match_index });
        self.commit_through(commit.min(last), ready);
        let message = answer(term, AppendResult::Matched { match_index });
        if planted(Planted::AppendAcknowledgedEarly) {
            return ready.messages.push((from, message));
        }
        let mark = LogMark { leader_term: term, index: match_index };
        self.send_when_durable(from, mark, message, ready);
    }

    /// Takes over what is new; returns the last index that is known to match, or `None` on a
    /// conflict at `prev_index` (Raft §5.3).
    fn accept(
        &mut self,
        prev_index: LogIndex,
        prev_term: Term,
        entries: Vec<Entry>,
    ) -> Option<LogIndex> {
        let last = prev_index.forward(entries.len() as u64);
        let always = planted(Planted::AppendTruncatesAlways);
        let committed = if always { self.log.start().index } else { self.hard.commit };
        if prev_index > committed && self.log.term(prev_index) != Some(prev_term) {
            return None;
        }
        let mut news = entries.into_iter().filter(|entry| entry.index > committed).peekable();
        let known = |entry: &Entry| !always && self.log.term(entry.index) == Some(entry.term);
        while news.next_if(known).is_some() {}
        if let Some(first) = news.peek()
            && first.index <= self.log.last_index()
        {
            self.log.truncate_from(first.index);
            self.write.truncate_from = Some(first.index);
            self.durable = self.durable.min(first.index.previous());
        }
        for entry in news {
            self.write.entries.push(entry.clone());
            self.log.append(entry);
        }
        Some(last)
    }

    /// This log is the leader's up to the mark. Where that is news about entries that are not
    /// durable yet, the mark must pass through the disk's queue behind them (rule 15).
    pub(crate) fn accept_mark(&mut self, mark: LogMark) {
        if mark > self.accepted {
            self.accepted = mark;
            self.write.mark |= mark.index > self.durable;
        }
    }

    /// Where the refused entry's term begins in this log, or that the log is too short.
    fn conflict_at(&self, rejected: LogIndex) -> AppendResult {
        match self.log.term(rejected) {
            Some(term) => {
                let index = self.log.first_of_term(rejected);
                AppendResult::Conflict { rejected, index, term }
            }
            None => {
                let index = self.log.last_index().next();
                AppendResult::Conflict { rejected, index, term: Term::ZERO }
            }
        }
    }

    /// A leader's message arrived. Follows it, unless its term is old or another leads in it.
    pub(crate) fn hear_leader(&mut self, from: NodeId, term: Term, ready: &mut Ready) -> bool {
        if term < self.hard.term {
            return false;
        }
        let known = term == self.hard.term && self.leader().is_some();
        if known && self.leader() != Some(from) {
            tracing::warn!(node = %self.config.id, peer = %from, %term, "a second leader speaks");
            return false;
        }
        if !known {
            self.become_follower(term, Some(from), ready);
            return true;
        }
        // What was on its way when the connection broke proves nothing.
        if !self.lost_leader(Some(from)) {
            self.deadline = self.now.after(self.draw_election_timeout());
        }
        if let Role::Follower(following) = &mut self.role {
            following.contact = self.now;
        }
        true
    }

    /// A member answered the leader. Steps down before a later term; an answer to an earlier term
    /// says nothing.
    fn hear_member(&mut self, from: NodeId, term: Term, round: u64, ready: &mut Ready) -> bool {
        if term > self.hard.term && self.membership.contains(from) {
            self.become_follower(term, None, ready);
        }
        let Role::Leader(leading) = &mut self.role else { return false };
        let Some(progress) = leading.progress.get_mut(&from) else { return false };
        if term != self.hard.term {
            return false;
        }
        progress.contact = self.now;
        progress.heard = true;
        progress.round = progress.round.max(round.min(self.round));
        true
    }

    /// Check-quorum: whether a quorum answered within an election timeout (thesis §6.2).
    fn hears_quorum(&self) -> bool {
        let Role::Leader(leading) = &self.role else { return false };
        let me = self.config.id;
        let recent = |id| {
            let progress = leading.progress.get(&id);
            id == me || progress.is_some_and(|progress| self.is_recent(progress.contact))
        };
        quorum::vote_result(&self.membership, |id| Some(recent(id))) == VoteResult::Won
    }

    fn ask_again(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &mut self.role else { return };
        let sender = Sender {
            config: &self.config,
            log: &self.log,
            lost: &self.lost,
            now: self.now,
            term: self.hard.term,
            commit: self.hard.commit,
            applied: self.applied,
            round: self.round,
        };
        for (&to, progress) in &mut leading.progress {
            if progress.on_timer(self.now, &self.config) {
                sender.push(to, progress, Vec::new(), ready);
            }
        }
    }
}

impl Sender<'_> {
    fn send(&self, to: NodeId, progress: &mut Progress, ready: &mut Ready) {
        loop {
            if matches!(progress.state, ProgressState::Snapshot { .. }) {
                return;
            }
            if self.log.term(progress.next.previous()).is_none() {
                self.send_snapshot(to, progress, ready);
                return;
            }
            let more = progress.next <= self.log.last_index();
            let limit = match &progress.state {
                ProgressState::Probe { sent: None } => PROBE_BYTES_MAX,
                ProgressState::Replicate(inflight) if more && !inflight.is_full(self.config) => {
                    self.config.append_bytes_max
                }
                ProgressState::Replicate(_) if progress.commit_sent < self.commit => {
                    self.send_commit(to, progress, ready);
                    return;
                }
                _ => return,
            };
            let entries =
                if more && limit > 0 { self.entries(progress.next, limit) } else { vec![] };
            let done = entries.is_empty();
            self.push(to, progress, entries, ready);
            if done {
                return;
            }
        }
    }

    /// Nothing is left to carry a new commit index, so it travels with an append that has not left
    /// yet, or alone.
    fn send_commit(&self, to: NodeId, progress: &mut Progress, ready: &mut Ready) {
        let unsent = ready.messages.iter_mut().rev().find_map(|(peer, message)| match message {
            Message::AppendRequest(request) if *peer == to => Some(request),
            _ => None,
        });
        match unsent.filter(|request| request.term == self.term) {
            Some(request) => {
                request.commit = self.commit;
                progress.commit_sent = self.commit;
            }
            None => self.push(to, progress, Vec::new(), ready),
        }
    }

    fn entries(&self, from: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let limit = bytes_max.min(self.config.append_bytes_max);
        self.log.slice(from, self.log.last_index(), limit, self.config.append_entries_max)
    }

    fn push(&self, to: NodeId, progress: &mut Progress, entries: Vec<Entry>, ready: &mut Ready) {
        let prev_index = progress.next.previous();
        let Some(prev_term) = self.log.term(prev_index) else { return };
        let last = entries.last().map(|entry| entry.index);
        match &mut progress.state {
            ProgressState::Probe { sent } => *sent = Some(self.now),
            ProgressState::Replicate(inflight) => {
                if let Some(last) = last {
                    inflight.push(last, entries.iter().map(cost_bytes).sum(), self.now);
                    progress.next = last.next();
                }
            }
            ProgressState::Snapshot { .. } => return,
        }
        progress.commit_sent = progress.commit_sent.max(self.commit);
        let (term, commit, round) = (self.term, self.commit, self.round);
        let request = AppendRequest { term, prev_index, prev_term, entries, commit, round };
        ready.messages.push((to, Message::AppendRequest(request)));
    }

    /// The log no longer reaches back to where the member stands (Raft §7). A member that does not
    /// answer gets none.
    fn send_snapshot(&self, to: NodeId, progress: &mut Progress, ready: &mut Ready) {
        let silence = self.now.since(progress.contact);
        let reachable = progress.heard && !self.lost.contains(&to);
        if reachable && silence < self.config.election_timeout_max {
            progress.become_snapshot(self.now.after(SNAPSHOT_TIMEOUT), self.applied);
            ready.snapshots.push(SendSnapshot { to, term: self.term });
        }
    }
}

/// Whether entries are consecutive, and their terms ordered and not beyond the leader's.
fn is_well_formed(term: Term, prev_index: LogIndex, prev_term: Term, entries: &[Entry]) -> bool {
    let mut before = (prev_index, prev_term);
    entries.iter().all(|entry| {
        let follows = entry.index == before.0.next() && entry.term >= before.1;
        before = (entry.index, entry.term);
        follows && entry.term <= term
    })
}
