//! Memberships take effect when they are applied (Raft §6; the design's choice of apply time).
//!
//! This file proposes one thing only: the end of a joint membership that a predecessor left open.

use crate::{
    raft::{Membership, Payload, Raft, Ready, progress::Progress, role::Role},
    types::LogIndex,
};

impl Raft {
    /// The state machine came as far as `applied`: the last membership after `before` is in force.
    pub(crate) fn apply_memberships(&mut self, before: LogIndex, ready: &mut Ready) {
        let last = self.log.memberships(before, self.applied).last();
        let entry = last.and_then(|index| self.log.get(index));
        if let Some(Payload::Membership(membership)) = entry.map(|entry| entry.payload.clone()) {
            self.membership = membership;
            ready.role_changed = true;
            self.follow_membership(ready);
        }
        self.finish_joint();
    }

    /// A leader begins to serve those who joined and forgets those who left; it goes itself where
    /// it no longer votes (rule 5).
    fn follow_membership(&mut self, ready: &mut Ready) {
        let me = self.config.id;
        let next = self.log.last_index().next();
        let Role::Leader(leading) = &mut self.role else { return };
        leading.progress.retain(|&id, _| self.membership.contains(id));
        for member in self.membership.members().into_iter().filter(|&member| member != me) {
            leading.progress.entry(member).or_insert_with(|| Progress::new(next, self.now));
        }
        self.abort_transfer_to_non_voter(ready);
        if !self.membership.is_voter(me) {
            self.hand_over(ready);
        }
        // A smaller quorum may have reached more.
        self.advance_commit(ready);
        self.confirm_rounds(ready);
    }

    /// Any leader ends a joint membership, whoever began it (rule 5), once an entry of its own term
    /// is committed (rule 1) and no other change is on its way.
    fn finish_joint(&mut self) {
        let last = self.log.last_index();
        let pending = self.log.memberships(self.applied, last).next().is_some();
        let Role::Leader(leading) = &self.role else { return };
        let free = leading.transfer.is_none() && self.leader_ready();
        if free && self.membership.is_joint() && !pending {
            let voters = self.membership.voters.clone();
            let learners = self.membership.learners.clone();
            let left = Membership { voters, learners, ..Membership::default() };
            self.append_own([(Payload::Membership(left), self.log.last_time())]);
        }
    }
}
