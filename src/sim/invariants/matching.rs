//! Log matching (Raft figure 3), by induction: whoever holds an entry of an index and term holds
//! the same one, after an entry of the same term. So logs that agree on an entry agree below it.

use crate::{
    raft::{Append, Raft},
    sim::invariants::{Broken, Checks, raft::content},
};

impl Checks {
    /// A node appends.
    pub(crate) fn appended(
        &mut self,
        node: usize,
        raft: &Raft,
        append: &Append,
    ) -> Result<(), Broken> {
        let first = append.entries.first();
        let mut before = first.and_then(|entry| raft.term_at(entry.index.previous()));
        for entry in &append.entries {
            let held = (before, content(entry));
            before = Some(entry.term);
            let known = *self.seen.entry((entry.index, entry.term)).or_insert(held);
            let other_before = matches!((known.0, held.0), (Some(a), Some(b)) if a != b);
            if other_before || known.1 != held.1 {
                let words = format!(
                    "n{} has {:?} of {:?} after {:?}, another node after {:?}, or with other content",
                    node + 1,
                    entry.index,
                    entry.term,
                    held.0,
                    known.0
                );
                return Err(Broken::new("log-matching", words));
            }
        }
        Ok(())
    }
}
