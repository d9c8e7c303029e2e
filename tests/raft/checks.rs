//! What holds across members after every step (Raft figure 3), and what every request is owed.

use std::collections::BTreeMap;

use quorate::{
    raft::{
        Entry, Payload, ProposeOutcome, ReadOutcome, Ready, RoleKind, Ticket, TransferOutcome,
        quorum::{self, VoteResult},
    },
    types::{LogIndex, NodeId, Term},
};

use crate::{disk::Disk, network::Node};

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    leaders: BTreeMap<Term, NodeId>,
    committed: BTreeMap<LogIndex, (Term, Payload)>,
    /// Requests that have no outcome yet: who took them, and the commit index known anywhere when
    /// they came.
    open: BTreeMap<Ticket, (NodeId, LogIndex)>,
    /// Whether a test put words into a member's mouth.
    pub(crate) forged: bool,
}

impl Checks {
    /// A member takes a request.
    pub(crate) fn asked(&mut self, ticket: Ticket, node: NodeId) {
        let committed = self.committed.keys().next_back().copied().unwrap_or_default();
        self.open.insert(ticket, (node, committed));
    }

    /// A member is gone, and with it the requests that it took.
    pub(crate) fn crashed(&mut self, node: NodeId) {
        self.open.retain(|_, (taker, _)| *taker != node);
    }

    /// Requests that have no outcome yet.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// One outcome for each request; a read's index covers what was committed when it came.
    pub(crate) fn answered(&mut self, node: NodeId, ready: &Ready) {
        let proposals = ready.proposals.iter().map(|(ticket, _): &(_, ProposeOutcome)| ticket);
        let transfers = ready.transfers.iter().map(|(ticket, _): &(_, TransferOutcome)| ticket);
        for ticket in proposals.chain(transfers) {
            let taker = self.open.remove(ticket).map(|(taker, _)| taker);
            assert_eq!(taker, Some(node), "{ticket:?} has one outcome");
        }
        for (ticket, outcome) in &ready.reads {
            let (taker, committed) = self.open.remove(ticket).expect("one outcome for each read");
            assert_eq!(taker, node);
            if let ReadOutcome::Ready { index } = outcome {
                assert!(*index >= committed, "{ticket:?} is stale: {index:?} < {committed:?}");
            }
        }
    }

    /// Election safety, leader completeness, and that what is committed is durable on a quorum and
    /// never changes.
    pub(crate) fn stepped(&mut self, id: NodeId, nodes: &BTreeMap<NodeId, Node>) {
        if self.forged {
            return;
        }
        let raft = &nodes[&id].raft;
        let status = raft.status();
        for entry in raft.entries().filter(|entry| entry.index <= status.commit) {
            let value = (entry.term, entry.payload.clone());
            let known = self.committed.entry(entry.index).or_insert_with(|| {
                let has = |id| Some(has_durable(&nodes.get(&id)?.disk, entry));
                let result = quorum::vote_result(&status.membership, has);
                assert_eq!(result, VoteResult::Won, "{:?} is not on a quorum's disks", entry.index);
                value.clone()
            });
            assert_eq!(*known, value, "{:?} was committed otherwise", entry.index);
        }
        if status.role == RoleKind::Leader {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(leader, id, "two leaders in {:?}", status.term);
            for (&index, &(term, _)) in self.committed.range(status.first..) {
                let missing = term < status.term && raft.term_at(index) != Some(term);
                assert!(!missing, "{id:?} leads {:?} without {index:?}", status.term);
            }
        }
    }
}

fn has_durable(disk: &Disk, entry: &Entry) -> bool {
    let here = |e: &Entry| (e.index, e.term) == (entry.index, entry.term);
    disk.start.index >= entry.index || disk.entries.iter().any(here)
}

/// Log matching between every two members: costs more, for the end of a run.
pub(crate) fn check_log_matching(nodes: &BTreeMap<NodeId, Node>) {
    for (a, one) in nodes {
        for (b, other) in nodes.range(a.next()..) {
            let mut agree = false;
            let mut entries: Vec<&Entry> = one.raft.entries().collect();
            entries.reverse();
            for entry in entries {
                let term = other.raft.term_at(entry.index);
                let same = term == Some(entry.term);
                let cut = term.is_none();
                assert!(same || !agree || cut, "{a:?} and {b:?} part below {:?}", entry.index);
                agree |= same;
            }
        }
    }
}
