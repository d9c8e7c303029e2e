//! The state machine across nodes: the same entry leaves the same state, and locks keep their word
//! at every entry.

use std::collections::BTreeMap;

use crate::{
    machine::{Applied, ChangeKind, Head, Space, View},
    sim::invariants::{Broken, Checks},
    types::LogIndex,
};

/// The locks as the log's changes tell, by name.
#[derive(Debug, Default)]
pub(super) struct Locks {
    /// How far the changes were followed.
    through: LogIndex,
    /// The token that holds each lock, and the largest that each ever had.
    held: BTreeMap<Vec<u8>, u64>,
    largest: BTreeMap<Vec<u8>, u64>,
    /// Who waited where, in line, when it was last looked at.
    lines: BTreeMap<Vec<u8>, Vec<(u64, String)>>,
}

impl Checks {
    /// A node has the state after an entry.
    pub(crate) fn applied(&mut self, node: usize, head: &Head, hash: u64) -> Result<(), Broken> {
        if head.index == LogIndex::ZERO {
            return Ok(());
        }
        let known = *self.states.entry(head.index).or_insert(hash);
        if known != hash {
            let words =
                format!("n{} has another state after {:?} than another node", node + 1, head.index);
            return Err(Broken::new("state-machine-safety", words));
        }
        Ok(())
    }

    /// A run of entries was applied: follows the locks where nobody was as far before.
    pub(crate) fn changed(
        &mut self,
        before: &Head,
        applied: &Applied,
        view: &View,
    ) -> Result<(), Broken> {
        let locks = &mut self.locks;
        if before.index != locks.through {
            if before.index > locks.through {
                // Nobody was seen to apply what lies between: follow from here.
                locks.lines.clear();
                locks.held.clear();
            } else {
                return Ok(());
            }
        }
        locks.through = applied.head.index;
        let mut touched = Vec::new();
        for change in applied.changes.iter().filter(|change| change.space == Space::Locks) {
            let (key, revision) = (change.kv.key.to_vec(), change.kv.mod_revision);
            if change.kind == ChangeKind::Delete {
                locks.held.remove(&key);
            } else {
                let largest = locks.largest.entry(key.clone()).or_default();
                if revision <= *largest {
                    let words = format!("token {revision} of {} after {largest}", text(&key));
                    return Err(Broken::new("lock-token-grows", words));
                }
                *largest = revision;
                if let Some(holder) = locks.held.insert(key.clone(), revision) {
                    let words = format!(
                        "{} was granted with token {revision} while {holder} held it",
                        text(&key)
                    );
                    return Err(Broken::new("lock-exclusive", words));
                }
            }
            touched.push(key);
        }
        for key in touched {
            locks.line_moved(&key, view)?;
        }
        Ok(())
    }
}

impl Locks {
    /// Whoever stands in the line stood there before in the same order, and nobody was overtaken by
    /// a waiter behind.
    fn line_moved(&mut self, key: &[u8], view: &View) -> Result<(), Broken> {
        let described = view.lock(&text(key)).expect("memory is readable").lock.unwrap_or_default();
        let now: Vec<(u64, String)> =
            described.waiters.into_iter().map(|waiter| (waiter.session_id, waiter.owner)).collect();
        if described.holder.is_none() && !now.is_empty() {
            let words = format!("{} is free, and {now:?} wait for it", text(key));
            return Err(Broken::new("lock-line-moves", words));
        }
        let old = self.lines.insert(key.to_vec(), now.clone()).unwrap_or_default();
        let place = |waiter: &(u64, String)| old.iter().position(|other| other == waiter);
        let places: Vec<usize> = now.iter().filter_map(place).collect();
        if !places.is_sorted() {
            let words = format!("the line of {} went from {old:?} to {now:?}", text(key));
            return Err(Broken::new("lock-fifo", words));
        }
        let holder = described.holder.map(|holder| (holder.session_id, holder.owner));
        let overtook = holder.as_ref().and_then(place);
        if let (Some(granted), Some(&first)) = (overtook, places.first())
            && first < granted
        {
            let words =
                format!("{} went to {:?}, {:?} waited longer", text(key), holder, old[first]);
            return Err(Broken::new("lock-fifo", words));
        }
        Ok(())
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
