//! What holds in one member after every step. The simulator checks what holds across members.

use crate::raft::{Raft, log::cost_bytes, progress::ProgressState, role::Role};

impl Raft {
    /// Checks what holds after every step. It walks the whole log: for tests and the simulator.
    ///
    /// # Panics
    /// Where something does not hold.
    pub fn check_invariants(&self) {
        self.check_log();
        self.check_marks();
        self.check_role();
    }

    fn check_log(&self) {
        let start = self.log.start();
        let (commit, last) = (self.hard.commit, self.log.last_index());
        assert!(start.index <= commit, "only what is committed is cut: {self:?}");
        assert!(self.applied <= self.applying.through, "applied was handed out: {self:?}");
        assert!(self.applying.through <= commit, "only what is committed is applied: {self:?}");
        assert!(commit <= last, "only what is in the log is committed: {self:?}");
        let installed = self.applying.installing.is_none();
        assert!(!installed || start.index <= self.applied, "only what is applied is cut: {self:?}");
        let mut before = (start.index, start.term, start.time);
        for entry in self.log.iter() {
            assert_eq!(entry.index, before.0.next(), "indexes are consecutive");
            assert!(entry.term >= before.1, "terms never go back along the log: {self:?}");
            assert!(entry.time >= before.2, "time never goes back along the log: {self:?}");
            before = (entry.index, entry.term, entry.time);
        }
        assert!(before.1 <= self.hard.term, "no entry is of a later term: {self:?}");
    }

    fn check_marks(&self) {
        let last = self.log.last_index();
        assert!(self.durable <= last, "what is durable is in the log: {self:?}");
        assert!(self.durable_hard <= self.hard_mark(), "what is durable was written: {self:?}");
        assert!(self.accepted.index <= last, "what is accepted is in the log: {self:?}");
        assert!(self.accepted.leader_term <= self.hard.term, "accepted from the future: {self:?}");
        assert_eq!(self.write.hard, self.hard_mark(), "every change was handed over: {self:?}");
        assert!(self.write.entries.is_empty(), "every entry was handed over: {self:?}");
    }

    fn check_role(&self) {
        let Role::Leader(leading) = &self.role else { return };
        let last = self.log.last_index();
        assert_eq!(self.hard.vote, Some(self.config.id), "a leader voted for itself: {self:?}");
        assert!(self.durable_hard >= self.hard_mark(), "and its vote is durable: {self:?}");
        assert!(!leading.progress.contains_key(&self.config.id), "none of itself: {self:?}");
        for (peer, progress) in &leading.progress {
            assert!(progress.matched < progress.next, "matched < next, of {peer}: {self:?}");
            assert!(progress.next <= last.next(), "next is within reach, of {peer}: {self:?}");
            if matches!(progress.state, ProgressState::Replicate(_)) {
                let previous = progress.next.previous();
                assert!(self.log.term(previous).is_some(), "next is kept, of {peer}: {self:?}");
            }
        }
        let beyond = self.log.iter().filter(|entry| entry.index > self.hard.commit);
        let bytes: usize = beyond.map(cost_bytes).sum();
        assert_eq!(bytes, leading.uncommitted_bytes, "uncommitted bytes add up: {self:?}");
        assert!(self.next_deadline() > self.now, "a deadline lies ahead: {self:?}");
    }
}
