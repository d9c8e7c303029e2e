//! Raft figure 3, and durability: leaders, logs, commits and disks across nodes.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::{
    raft::{
        Entry, HardState, Payload, Raft, Restored, RoleKind, Status,
        quorum::{self, VoteResult},
    },
    sim::invariants::{Broken, Checks, DurableLog},
    types::{LogIndex, NodeId, Term},
};

/// What only grows in a process, as it last stood.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Grown {
    hard: HardState,
    applied: LogIndex,
    checked: LogIndex,
    /// The term that it leads in, if it does.
    leads: Option<Term>,
}

impl Grown {
    pub(crate) const fn at(restored: &Restored) -> Self {
        let applied = restored.applied;
        Self { hard: restored.hard, applied, checked: LogIndex::ZERO, leads: None }
    }
}

impl Checks {
    /// A node's core took a step. Gives where it stands now.
    pub(crate) fn stepped(
        &mut self,
        node: usize,
        raft: &Raft,
        status: &Status,
        grown: &Grown,
        durable: &[&DurableLog],
    ) -> Result<Grown, Broken> {
        let id = NodeId::new(node as u64 + 1);
        let hard = raft.hard_state();
        let before = grown.hard;
        let forgets = hard.term == before.term && before.vote.is_some() && hard.vote != before.vote;
        if hard.term < before.term || hard.commit < before.commit || forgets {
            let words = format!("n{id} went from {before:?} to {hard:?}");
            return Err(Broken::new("hard-state-grows", words));
        }
        if status.applied < grown.applied {
            let words = format!("n{id} went from {:?} to {:?}", grown.applied, status.applied);
            return Err(Broken::new("applied-grows", words));
        }
        if status.commit > grown.checked {
            self.committed_by(id, raft, status, grown.checked, durable)?;
        }
        let leads = (status.role == RoleKind::Leader).then_some(status.term);
        if leads.is_some() {
            self.leads(id, raft, status, durable)?;
        }
        // Raft 5.4.2: whoever led before this step and leads on commits by counting alone.
        let counted = leads.is_some() && leads == grown.leads && status.commit > grown.checked;
        if counted && raft.term_at(status.commit) != leads {
            let words = format!(
                "n{id} leads {:?} and commits {:?} of {:?} by counting",
                status.term,
                status.commit,
                raft.term_at(status.commit)
            );
            return Err(Broken::new("commit-own-term", words));
        }
        Ok(Grown { hard, applied: status.applied, checked: status.commit, leads })
    }

    /// The last entry that is known to be committed, and its term.
    pub(crate) fn last_committed(&self) -> (LogIndex, Term) {
        let last = self.committed.last_key_value();
        last.map_or((LogIndex::ZERO, Term::ZERO), |(&index, &(term, _))| (index, term))
    }

    /// What is committed never changes, and is durable on a quorum when it is first known to be
    /// committed, crashed disks counted.
    fn committed_by(
        &mut self,
        id: NodeId,
        raft: &Raft,
        status: &Status,
        checked: LogIndex,
        durable: &[&DurableLog],
    ) -> Result<(), Broken> {
        let new = |entry: &&Entry| entry.index > checked && entry.index <= status.commit;
        for entry in raft.entries().filter(new) {
            let value = (entry.term, content(entry));
            let Some(known) = self.committed.get(&entry.index) else {
                let has = |node: NodeId| {
                    let place = usize::try_from(node.value()).ok()?.checked_sub(1)?;
                    Some(durable.get(place)?.has(entry.index, entry.term))
                };
                if quorum::vote_result(&status.membership, has) != VoteResult::Won {
                    let words = format!(
                        "n{id} takes {:?} of {:?} for committed, and it is not on a quorum's disks",
                        entry.index, entry.term
                    );
                    return Err(Broken::new("committed-is-durable", words));
                }
                self.committed.insert(entry.index, value);
                continue;
            };
            if *known != value {
                let words = format!(
                    "{:?} was committed with {:?}, and n{id} has it with {:?}",
                    entry.index, known.0, entry.term
                );
                return Err(Broken::new("committed-never-changes", words));
            }
        }
        Ok(())
    }

    /// One leader a term, elected by votes on disks, and it has everything that was committed
    /// before.
    fn leads(
        &mut self,
        id: NodeId,
        raft: &Raft,
        status: &Status,
        durable: &[&DurableLog],
    ) -> Result<(), Broken> {
        let first = !self.leaders.contains_key(&status.term);
        let leader = *self.leaders.entry(status.term).or_insert(id);
        if leader != id {
            let words = format!("n{leader} and n{id} both lead {:?}", status.term);
            return Err(Broken::new("election-safety", words));
        }
        if !first {
            return Ok(());
        }
        let voted = |node: NodeId| {
            let hard = durable.get(usize::try_from(node.value()).ok()?.checked_sub(1)?)?.hard;
            Some(hard.term > status.term || (hard.term, hard.vote) == (status.term, Some(id)))
        };
        if quorum::vote_result(&status.membership, voted) != VoteResult::Won {
            let words =
                format!("n{id} leads {:?} by votes that no quorum's disks know of", status.term);
            return Err(Broken::new("votes-are-durable", words));
        }
        for (&index, &(term, _)) in self.committed.range(status.first..) {
            if term < status.term && raft.term_at(index) != Some(term) {
                let words = format!("n{id} leads {:?} without {index:?}", status.term);
                return Err(Broken::new("leader-completeness", words));
            }
        }
        Ok(())
    }

    /// What a process finds on its disk is no less than what was known to be durable.
    pub(crate) fn restarted(
        &self,
        node: usize,
        raft: &Raft,
        promised: &DurableLog,
    ) -> Result<(), Broken> {
        if promised.is_lost() {
            return Ok(());
        }
        let (hard, was) = (raft.hard_state(), promised.hard);
        let forgets = hard.term == was.term && was.vote.is_some() && hard.vote != was.vote;
        if hard.term < was.term || forgets {
            let words = format!("n{} had {was:?} durable and starts with {hard:?}", node + 1);
            return Err(Broken::new("durable-is-kept", words));
        }
        let first = raft.status().first;
        let start = LogIndex::new(first.value() - 1);
        let had = promised.entries.get(&start);
        if had.is_some_and(|&had| raft.term_at(start) != Some(had)) {
            // It starts behind a snapshot that what it had does not connect to.
            return Ok(());
        }
        for (&index, &term) in promised.entries.range(first..) {
            let kept = raft.term_at(index);
            // A log that was begun anew, or replaced, in a write that nobody was told of is later.
            let later = kept.is_some_and(|kept| kept > term);
            if kept != Some(term) && !later && hard.term == was.term {
                let words = format!(
                    "n{} had {index:?} of {term:?} durable and starts with {kept:?} there",
                    node + 1
                );
                return Err(Broken::new("durable-is-kept", words));
            }
        }
        Ok(())
    }

    /// Logs that agree on an entry agree below it.
    pub(crate) fn ended(&self, rafts: &[&Raft]) -> Result<(), Broken> {
        for (at, one) in rafts.iter().enumerate() {
            for other in &rafts[at + 1..] {
                log_matching(one, other)?;
            }
        }
        let missing = (1..).zip(self.committed.keys()).find(|(at, index)| *at != index.value());
        match missing {
            Some((at, _)) => {
                let words = format!("entry {at} was never seen committed, a later one was");
                Err(Broken::new("committed-without-gap", words))
            }
            None => Ok(()),
        }
    }
}

fn log_matching(one: &Raft, other: &Raft) -> Result<(), Broken> {
    let mut agree = false;
    let mut entries: Vec<&Entry> = one.entries().collect();
    entries.reverse();
    for entry in entries {
        let Some(term) = other.term_at(entry.index) else { continue };
        if agree && term != entry.term {
            let words = format!("two logs part at {:?} and agree above it", entry.index);
            return Err(Broken::new("log-matching", words));
        }
        agree |= term == entry.term;
    }
    Ok(())
}

/// A hash of what an entry holds.
pub(super) fn content(entry: &Entry) -> u64 {
    match &entry.payload {
        Payload::Command(bytes) => xxhash_rust::xxh3::xxh3_64(bytes),
        other => {
            let words = format!("{other:?}");
            BuildHasherDefault::<DefaultHasher>::new().hash_one(words)
        }
    }
}
