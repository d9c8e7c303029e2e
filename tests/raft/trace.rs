//! What happens in a network, told line by line for those who read scenarios.

use quorate::{
    raft::{Message, Ready, Status},
    types::NodeId,
};

use crate::{
    network::Network,
    speech::{beats, in_words, membership, through},
};

impl Network {
    pub(crate) fn tell(&mut self, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(words());
        }
    }

    /// Of what is lost in the same way again and again, once is enough.
    pub(crate) fn tell_message(&mut self, from: NodeId, to: NodeId, message: &Message) {
        if beats(message) && !self.tells_heartbeats {
            return;
        }
        let words = in_words(message);
        let lost =
            self.cut.contains(&(from, to)) || self.nodes.get(&to).is_none_or(|node| !node.up);
        let line = format!("{from:?} -> {to:?} {words}{}", if lost { "  (lost)" } else { "" });
        let known = lost && self.trace.as_ref().is_some_and(|trace| trace.contains(&line));
        if !known {
            self.tell(|| line);
        }
    }

    pub(crate) fn tell_step(&mut self, id: NodeId, before: &Status, ready: &Ready) {
        if self.trace.is_none() {
            return;
        }
        let after = self.nodes[&id].raft.status();
        if (before.role, before.term, before.leader) != (after.role, after.term, after.leader) {
            let leader = after.leader.filter(|&leader| leader != id);
            let leader = leader.map_or(String::new(), |leader| format!(" of {leader:?}"));
            self.tell(|| format!("{id:?} is {:?}{leader} in {:?}", after.role, after.term));
        }
        if before.membership != after.membership {
            let members = membership(&after.membership);
            self.tell(|| format!("{id:?} goes by {members}"));
        }
        if before.commit != after.commit {
            let run = through(before.commit.next(), after.commit);
            self.tell(|| format!("{id:?} commits {run}"));
        }
        if let Some(index) = ready.install {
            self.tell(|| format!("{id:?} installs a snapshot of {index:?}"));
        }
        for snapshot in &ready.snapshots {
            self.tell(|| format!("{id:?} -> {:?} a snapshot", snapshot.to));
        }
        for (ticket, outcome) in &ready.proposals {
            self.tell(|| format!("{id:?} proposal {}: {outcome:?}", ticket.0));
        }
        for (ticket, outcome) in &ready.reads {
            self.tell(|| format!("{id:?} read {}: {outcome:?}", ticket.0));
        }
        for (ticket, outcome) in &ready.transfers {
            self.tell(|| format!("{id:?} transfer {}: {outcome:?}", ticket.0));
        }
    }
}
