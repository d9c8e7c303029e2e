//! The commit index: when a leader may advance it, and how a follower learns of it (Raft §5.3,
//! §5.4.2).

use crate::{
    raft::{Raft, Ready, log::cost_bytes, quorum, role::Role},
    types::{LogIndex, Planted, planted},
};

impl Raft {
    /// Commits what a quorum has made durable. Only an entry of the leader's own term is committed
    /// by counting; those before it are committed with it (Raft §5.4.2). Its own disk counts like
    /// any other (rule 14).
    pub(crate) fn advance_commit(&mut self, ready: &mut Ready) {
        let Role::Leader(leading) = &self.role else { return };
        let early = planted(Planted::OwnAppendCountedEarly);
        let durable = if early { self.log.last_index() } else { self.durable };
        let me = self.config.id;
        let matched = |id| {
            let other = || leading.progress.get(&id).map_or(LogIndex::ZERO, |p| p.matched);
            if id == me { durable } else { other() }
        };
        let Some(reached) = quorum::reached(&self.membership, matched) else { return };
        let own_term = self.log.term(reached) == Some(self.hard.term)
            || planted(Planted::OldTermCommittedByCount);
        if reached > self.hard.commit && own_term {
            self.commit_through(reached, ready);
        }
    }

    /// Moves the commit index forward; it never goes back.
    pub(crate) fn commit_through(&mut self, index: LogIndex, ready: &mut Ready) {
        let before = self.hard.commit;
        if index <= before {
            return;
        }
        assert!(index <= self.log.last_index(), "only what is in the log is committed");
        self.hard.commit = index;
        let Role::Leader(leading) = &mut self.role else { return };
        let mut next = before.next();
        while next <= index {
            let bytes = self.log.get(next).map_or(0, cost_bytes);
            leading.uncommitted_bytes = leading.uncommitted_bytes.saturating_sub(bytes);
            next = next.next();
        }
        if before < leading.term_start && index >= leading.term_start {
            ready.role_changed = true;
            self.begin_queued_reads(ready);
        }
    }

    /// Whether this leader has committed an entry of its own term.
    pub(crate) fn leader_ready(&self) -> bool {
        match &self.role {
            Role::Leader(leading) => self.hard.commit >= leading.term_start,
            _ => false,
        }
    }

    /// What a new leader finds in its log beyond the commit index.
    pub(crate) fn recount_uncommitted(&mut self) {
        let commit = self.hard.commit;
        let Role::Leader(leading) = &mut self.role else { return };
        let mut next = commit.next();
        while let Some(entry) = self.log.get(next) {
            leading.uncommitted_bytes += cost_bytes(entry);
            next = next.next();
        }
    }
}
