//! Log matching (Raft figure 3), by induction: whoever holds an entry of an index and term holds
//! the same one, after an entry of the same term. So logs that agree on an entry agree below it.

use crate::{
    raft::{Append, Raft},
    sim::invariants::{Broken, Checks, raft::content},
    types::{LogIndex, Term},
};

impl Checks {
    /// A node appends, in the course of one turn; `raft` stands behind the last one.
    pub(crate) fn appended(
        &mut self,
        node: usize,
        raft: &Raft,
        appends: &[&Append],
    ) -> Result<(), Broken> {
        for (at, append) in appends.iter().enumerate() {
            let first = append.entries.first();
            let mut before = first.and_then(|first| {
                let previous = first.index.previous();
                term_before(appends, at, previous).unwrap_or_else(|| raft.term_at(previous))
            });
            for entry in &append.entries {
                let held = (before, content(entry));
                before = Some(entry.term);
                let known = self.seen.entry((entry.index, entry.term)).or_insert(held);
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
                known.0 = known.0.or(held.0);
            }
        }
        Ok(())
    }
}

/// The term at an index when the append at `at` was made; `Some(None)` where later ones have hidden
/// it, `None` where the turn's appends left it alone, so that the log still tells.
fn term_before(appends: &[&Append], at: usize, index: LogIndex) -> Option<Option<Term>> {
    let (earlier, later) = appends.split_at(at);
    let start = |append: &Append| append.reset_to.filter(|start| start.index == index);
    let own = start(later[0]).map(|start| start.term);
    let term = own.or_else(|| {
        earlier.iter().rev().find_map(|append| {
            let entry = append.entries.iter().find(|entry| entry.index == index);
            entry.map(|entry| entry.term).or_else(|| start(append).map(|start| start.term))
        })
    });
    let replaces = |append: &&Append| {
        append.reset_to.is_some() || append.truncate_from.is_some_and(|from| from <= index)
    };
    match term {
        Some(term) => Some(Some(term)),
        None => later[1..].iter().any(replaces).then_some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        raft::{Entry, HardMark, HardState, LogMark, Payload},
        types::LogTime,
    };

    fn append(truncate_from: Option<u64>, entries: &[(u64, u64)]) -> Append {
        let entry = |&(index, term)| Entry {
            index: LogIndex::new(index),
            term: Term::new(term),
            time: LogTime::default(),
            payload: Payload::Noop,
        };
        Append {
            hard: HardState::default(),
            reset_to: None,
            truncate_from: truncate_from.map(LogIndex::new),
            entries: entries.iter().map(entry).collect(),
            hard_mark: HardMark::default(),
            log_mark: LogMark::default(),
        }
    }

    fn before(appends: &[Append], at: usize) -> Option<Option<u64>> {
        let appends: Vec<&Append> = appends.iter().collect();
        let previous = appends[at].entries[0].index.previous();
        term_before(&appends, at, previous).map(|term| term.map(Term::value))
    }

    #[test]
    fn an_entry_stands_behind_what_was_there_when_it_was_appended() {
        // Seed 20780011138: a node that was paused takes in two leaders' appends in one turn.
        let appends = [
            append(None, &[(5, 3), (6, 3)]),
            append(None, &[(7, 3)]),
            append(Some(6), &[(6, 5), (7, 5), (8, 5)]),
            append(None, &[(9, 5)]),
        ];
        assert_eq!(before(&appends, 0), None, "nothing in this turn touched entry 4");
        assert_eq!(before(&appends, 1), Some(Some(3)), "not the 5 that came later");
        assert_eq!(before(&appends, 2), Some(Some(3)));
        assert_eq!(before(&appends, 3), Some(Some(5)));
        let hidden = [append(None, &[(7, 3)]), append(Some(6), &[(6, 5), (7, 5)])];
        assert_eq!(before(&hidden, 0), Some(None), "its log has another 6 by now");
    }
}
