//! ReadIndex: linearizable reads without writing to the log (thesis §6.4).
//!
//! Reads gather while a round is under way and join the next one, so a read is confirmed only by a
//! round that was sent after it arrived. Rounds have numbers of their own that are never used
//! again, and answers count only in the term that they name (rule 12).

use std::collections::VecDeque;

use crate::{
    raft::{Raft, ReadOutcome, Ready, Ticket, quorum, role::Role},
    types::{LogIndex, NodeId, Planted, planted},
};

#[derive(Debug)]
pub(crate) struct Reads {
    /// Those that no round covers yet.
    waiting: Vec<Ticket>,
    /// Those that a round covers, by round.
    joined: VecDeque<Joined>,
    /// The last round that a quorum confirmed.
    confirmed: u64,
}

#[derive(Debug)]
struct Joined {
    round: u64,
    index: LogIndex,
    tickets: Vec<Ticket>,
}

impl Reads {
    /// Nothing waits, and no round is under way.
    pub(crate) const fn new(round: u64) -> Self {
        Self { waiting: Vec::new(), joined: VecDeque::new(), confirmed: round }
    }

    /// Everyone who waits.
    pub(crate) fn into_tickets(self) -> impl Iterator<Item = Ticket> {
        self.joined.into_iter().flat_map(|joined| joined.tickets).chain(self.waiting)
    }
}

impl Raft {
    pub(crate) fn on_read(&mut self, ticket: Ticket, ready: &mut Ready) {
        let leader = self.leader();
        let Role::Leader(leading) = &mut self.role else {
            ready.reads.push((ticket, ReadOutcome::NotLeader { leader }));
            return;
        };
        if planted(Planted::ReadJoinsEarlierRound)
            && let Some(joined) = leading.reads.joined.back_mut()
        {
            return joined.tickets.push(ticket);
        }
        leading.reads.waiting.push(ticket);
        let idle = leading.reads.confirmed == self.round;
        // Before its first commit a leader does not know what is committed (rule 11).
        let known = self.leader_ready() || planted(Planted::ReadBeforeFirstCommit);
        if idle && known && !self.stalled {
            self.begin_round(ready);
        }
    }

    /// Begins a round: all that wait join it, if this leader knows the commit index.
    pub(crate) fn begin_round(&mut self, ready: &mut Ready) {
        self.round += 1;
        let known = self.leader_ready() || planted(Planted::ReadBeforeFirstCommit);
        let Role::Leader(leading) = &mut self.role else { return };
        if known && !leading.reads.waiting.is_empty() {
            let tickets = std::mem::take(&mut leading.reads.waiting);
            let joined = Joined { round: self.round, index: self.hard.commit, tickets };
            leading.reads.joined.push_back(joined);
        }
        self.send_heartbeats(ready);
        self.confirm_rounds(ready);
    }

    /// Answers the reads of all rounds that a quorum has confirmed.
    pub(crate) fn confirm_rounds(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &mut self.role else { return };
        let (me, round) = (self.config.id, self.round);
        let progress = &leading.progress;
        let answered = |id: NodeId| {
            let other = || progress.get(&id).map_or(0, |progress| progress.round);
            if id == me || planted(Planted::ReadWithoutQuorum) { round } else { other() }
        };
        let Some(confirmed) = quorum::reached(&self.membership, answered) else { return };
        let reads = &mut leading.reads;
        reads.confirmed = reads.confirmed.max(confirmed);
        let answered = reads.joined.partition_point(|joined| joined.round <= confirmed);
        for joined in reads.joined.drain(..answered) {
            let outcome = ReadOutcome::Ready { index: joined.index };
            ready.reads.extend(joined.tickets.into_iter().map(|t| (t, outcome.clone())));
        }
        let idle = reads.confirmed == self.round;
        if idle && !reads.waiting.is_empty() {
            self.begin_queued_reads(ready);
        }
    }

    /// Begins a round for those that wait, if it can serve them.
    pub(crate) fn begin_queued_reads(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &self.role else { return };
        if !leading.reads.waiting.is_empty() && self.leader_ready() && !self.stalled {
            self.begin_round(ready);
        }
    }
}
