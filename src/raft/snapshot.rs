//! Snapshots: one that was sent has ended, one that a leader offers is here (Raft §7).
//!
//! The core decides whether a snapshot replaces the log; its bytes are the driver's.

use crate::{
    raft::{LogMark, LogStart, Membership, Raft, Ready, progress::ProgressState, role::Role},
    types::{LogIndex, NodeId, Term},
};

impl Raft {
    /// What every member that answers has, or will have with the snapshot that is on its way to it:
    /// the log after it is still asked for. `None` where nobody asks, or this node does not lead.
    #[must_use]
    pub fn wanted_after(&self) -> Option<LogIndex> {
        let Role::Leader(leading) = &self.role else { return None };
        leading.progress.values().filter_map(|member| member.has(self.now, &self.config)).min()
    }

    /// Probes behind the snapshot, or waits an election timeout before the next one.
    pub(crate) fn on_snapshot_sent(&mut self, peer: NodeId, installed: Option<LogIndex>) {
        let retry = self.now.after(self.config.election_timeout_max);
        let last = self.log.last_index();
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(progress) = leading.progress.get_mut(&peer) else { return };
        if !matches!(progress.state, ProgressState::Snapshot { .. }) {
            return;
        }
        match installed {
            // The probe's answer, not this report, says how far the member matches.
            Some(index) => progress.become_probe(index.min(last).next()),
            None => progress.fail_snapshot(retry),
        }
    }

    /// Takes the snapshot over, unless it holds nothing that is not committed here already. What
    /// it holds is committed, so it does not matter whether its sender still leads; a leader's own
    /// log has it all.
    pub(crate) fn on_snapshot_received(
        &mut self,
        from: NodeId,
        term: Term,
        start: LogStart,
        membership: Membership,
        ready: &mut Ready,
    ) {
        self.hear_leader(from, term, ready);
        if self.is_leader() || start.index <= self.hard.commit {
            return;
        }
        let committed = self.hard.commit;
        let kept = self.log.reset(start);
        if !kept {
            self.durable = self.durable.min(committed);
        }
        self.write.reset_to = Some(start);
        // What is committed is in the log of this term's leader, whoever that is.
        let leader_term = self.hard.term;
        let more = kept && self.accepted.leader_term == leader_term;
        let accepted = if more { self.accepted.index } else { LogIndex::ZERO };
        self.accepted = LogMark { leader_term, index: accepted.max(start.index) };
        self.write.mark = true;
        self.hard.commit = start.index;
        // It replaces the membership in force, and with the log all that were pending (rule 3). One
        // without a membership is of a group whose founding one was never changed.
        if !membership.voters.is_empty() {
            self.membership = membership;
        }
        // What was handed out before lies inside it, and so does a piece that was not taken yet.
        self.applying.through = start.index;
        self.applying.pieces.clear();
        self.applying.installing = Some(start.index);
        ready.apply = None;
        ready.install = Some(start.index);
    }
}
