//! Leadership transfer: to a member that someone names, or away from a leader that should not lead
//! (thesis §3.10).
//!
//! Proposals are refused meanwhile, so the target can catch up; it is told to campaign when it has.
//! Whoever asked learns one outcome, also when this member no longer leads when it comes.

use std::cmp::Reverse;

use crate::{
    raft::{
        Message, Raft, ReadOutcome, Ready, Ticket, TimeoutNow, TransferOutcome,
        role::{Leading, Role},
    },
    types::{Instant, NodeId},
};

#[derive(Debug)]
pub(crate) struct Transfer {
    /// Who is to lead.
    pub(crate) target: NodeId,
    /// Who waits.
    pub(crate) tickets: Vec<Ticket>,
    /// When it is given up.
    pub(crate) until: Instant,
    /// Whether this member then steps down all the same.
    pub(crate) step_down: bool,
    /// Whether the target was told.
    pub(crate) told: bool,
}

/// A transfer whose leader no longer leads: the outcome is not known yet.
#[derive(Debug)]
pub(crate) struct Handover {
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) until: Instant,
}

impl Raft {
    pub(crate) fn on_transfer(
        &mut self,
        ticket: Ticket,
        target: Option<NodeId>,
        ready: &mut Ready,
    ) {
        if !self.is_leader() {
            let outcome = TransferOutcome::NotLeader { leader: self.leader() };
            ready.transfers.push((ticket, outcome));
            return;
        }
        let me = self.config.id;
        if target == Some(me) {
            ready.transfers.push((ticket, TransferOutcome::Done { leader: me }));
            return;
        }
        let target = target.or_else(|| self.best_target(false));
        let Some(target) = target.filter(|&target| self.membership.is_voter(target)) else {
            ready.transfers.push((ticket, TransferOutcome::NotAVoter));
            return;
        };
        self.begin_transfer(target, Some(ticket), false, ready);
    }

    /// Hands over because this member should not lead: to whoever is furthest, or else it just
    /// steps down (rules 5 and 21).
    pub(crate) fn hand_over(&mut self, ready: &mut Ready) {
        match self.best_target(true) {
            Some(target) => self.begin_transfer(target, None, true, ready),
            None => self.become_follower(self.hard.term, None, ready),
        }
    }

    fn begin_transfer(
        &mut self,
        target: NodeId,
        ticket: Option<Ticket>,
        step_down: bool,
        ready: &mut Ready,
    ) {
        let until = self.now.after(self.config.election_timeout_max);
        let Role::Leader(leading) = &mut self.role else { return };
        let fresh = Transfer { target, tickets: Vec::new(), until, step_down, told: false };
        // A transfer to another target gives up the one before.
        let same = leading.transfer.as_ref().is_some_and(|before| before.target == target);
        if !same && let Some(before) = leading.transfer.take() {
            let step_down = step_down || before.step_down;
            leading.transfer = Some(Transfer { step_down, ..fresh });
            let timed_out = before.tickets.into_iter().map(|t| (t, TransferOutcome::TimedOut));
            ready.transfers.extend(timed_out);
        } else if !same {
            leading.transfer = Some(fresh);
        }
        if let Some(transfer) = &mut leading.transfer {
            transfer.tickets.extend(ticket);
            transfer.step_down |= step_down;
        }
        self.press_transfer(ready);
    }

    /// Tells the target to campaign, once it has everything.
    pub(crate) fn press_transfer(&mut self, ready: &mut Ready) {
        let last = self.log.last_index();
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(transfer) = leading.transfer.as_mut().filter(|transfer| !transfer.told) else {
            return;
        };
        let progress = leading.progress.get(&transfer.target);
        if progress.is_some_and(|progress| progress.matched == last) {
            transfer.told = true;
            let timeout = TimeoutNow { term: self.hard.term };
            ready.messages.push((transfer.target, Message::TimeoutNow(timeout)));
        }
    }

    /// The word may have been lost: say it again.
    pub(crate) const fn repeat_timeout_now(&mut self) {
        if let Role::Leader(leading) = &mut self.role
            && let Some(transfer) = &mut leading.transfer
        {
            transfer.told = false;
        }
    }

    /// Gives up after an election timeout.
    pub(crate) fn expire_transfer(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(transfer) = leading.transfer.take_if(|transfer| self.now >= transfer.until) else {
            return;
        };
        if transfer.step_down {
            leading.transfer = Some(transfer);
            self.become_follower(self.hard.term, None, ready);
        } else {
            let tickets = transfer.tickets.into_iter();
            ready.transfers.extend(tickets.map(|t| (t, TransferOutcome::TimedOut)));
        }
    }

    /// Gives up a transfer whose target may no longer lead (rule 9).
    pub(crate) fn abort_transfer_to_non_voter(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &mut self.role else { return };
        let membership = &self.membership;
        let demoted = |transfer: &mut Transfer| !membership.is_voter(transfer.target);
        if let Some(transfer) = leading.transfer.take_if(demoted) {
            let tickets = transfer.tickets.into_iter();
            ready.transfers.extend(tickets.map(|t| (t, TransferOutcome::NotAVoter)));
        }
    }

    /// What a leader that no longer leads still owes.
    pub(crate) fn abdicate(&mut self, leading: Leading, leader: Option<NodeId>, ready: &mut Ready) {
        let outcome = ReadOutcome::NotLeader { leader };
        ready.reads.extend(leading.reads.into_tickets().map(|t| (t, outcome.clone())));
        let tickets = leading.transfer.map(|transfer| transfer.tickets).unwrap_or_default();
        if !tickets.is_empty() {
            let until = self.now.after(self.config.election_timeout_max);
            self.handover = Some(Handover { tickets, until });
        }
    }

    /// Somebody leads: whoever asked for a transfer learns it.
    pub(crate) fn settle_handover(&mut self, leader: NodeId, ready: &mut Ready) {
        let Some(handover) = self.handover.take() else { return };
        let me = self.config.id;
        let outcome =
            if leader == me { TransferOutcome::TimedOut } else { TransferOutcome::Done { leader } };
        ready.transfers.extend(handover.tickets.into_iter().map(|t| (t, outcome.clone())));
    }

    /// Nobody leads in time: whoever asked learns that this member does not.
    pub(crate) fn expire_handover(&mut self, ready: &mut Ready) {
        let leader = self.leader();
        if let Some(handover) = self.handover.take_if(|handover| self.now >= handover.until) {
            let outcome = TransferOutcome::NotLeader { leader };
            ready.transfers.extend(handover.tickets.into_iter().map(|t| (t, outcome.clone())));
        }
    }

    /// The voter that has most of the log; among equals the one with the smallest id.
    fn best_target(&self, recent_only: bool) -> Option<NodeId> {
        let Role::Leader(leading) = &self.role else { return None };
        let voters = leading.progress.iter().filter(|(id, progress)| {
            let recent = progress.heard && self.is_recent(progress.contact);
            self.membership.is_voter(**id) && (recent || !recent_only)
        });
        voters
            .max_by_key(|(id, progress)| (progress.matched, progress.contact, Reverse(**id)))
            .map(|(&id, _)| id)
    }
}
