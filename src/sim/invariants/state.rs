//! The state machine across nodes: the same entry leaves the same state, and locks keep their word
//! at every entry.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;

use crate::{
    machine::{Applied, ChangeKind, Head, SessionEffect, Space, View},
    pb::{
        command::v1::{Command, command::Op, outcome},
        lock::v1::Lock,
    },
    raft::{Entry, Payload},
    sim::invariants::{Broken, Checks},
    types::LogIndex,
};

/// Who waits: session and owner. A session that an acquire brought is that acquire's alone.
type Waiter = (u64, String);

/// The locks as the log's changes tell, by name.
#[derive(Debug, Default)]
pub(super) struct Locks {
    /// How far the changes were followed.
    through: LogIndex,
    /// The token and session that hold each lock, and the largest token that each ever had.
    held: BTreeMap<Vec<u8>, (u64, u64)>,
    largest: BTreeMap<Vec<u8>, u64>,
    /// Who waited where, in line, when it was last looked at.
    lines: BTreeMap<Vec<u8>, Vec<Waiter>>,
    /// Sessions that clients opened: who waits in one may leave and come back unseen.
    opened: BTreeSet<u64>,
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
        entries: &[Entry],
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
        locks.opened.extend(applied.outcomes.iter().filter_map(
            |(_, outcome)| match &outcome.result {
                Some(outcome::Result::OpenSession(opened)) => Some(opened.session_id),
                _ => None,
            },
        ));
        let of_locks = || applied.changes.iter().filter(|change| change.space == Space::Locks);
        if of_locks().next().is_none() {
            return Ok(());
        }
        let causes = Causes::of(entries, applied);
        let mut touched = Vec::new();
        for change in of_locks() {
            let (key, revision) = (change.kv.key.to_vec(), change.kv.mod_revision);
            if let Some((token, session)) = locks.held.remove(&key)
                && !causes.ends(&key, token, session)
            {
                let words = format!(
                    "{} was taken from token {token} at revision {revision}: neither released, \
                     nor did session {session} end",
                    text(&key)
                );
                return Err(Broken::new("lock-exclusive", words));
            }
            if change.kind == ChangeKind::Put {
                let largest = locks.largest.entry(key.clone()).or_default();
                if revision <= *largest {
                    let words = format!("token {revision} of {} after {largest}", text(&key));
                    return Err(Broken::new("lock-token-grows", words));
                }
                *largest = revision;
                let lock = Lock::decode(change.kv.value.clone()).unwrap_or_default();
                let session = lock.holder.map_or(0, |holder| holder.session_id);
                locks.held.insert(key.clone(), (revision, session));
            }
            touched.push(key);
        }
        for key in touched {
            locks.line_moved(&key, view)?;
        }
        Ok(())
    }
}

/// What a run of entries gives as reasons for a lock to change hands.
struct Causes {
    /// Released with a token, or taken back without one.
    released: BTreeSet<(Vec<u8>, Option<u64>)>,
    ended: BTreeSet<u64>,
}

impl Causes {
    fn of(entries: &[Entry], applied: &Applied) -> Self {
        let mut released = BTreeSet::new();
        for entry in entries {
            let Payload::Command(bytes) = &entry.payload else { continue };
            match Command::decode(bytes.clone()).ok().and_then(|command| command.op) {
                Some(Op::Release(release)) => {
                    released.insert((release.name.into_bytes(), Some(release.fencing_token)));
                }
                Some(Op::CancelAcquire(cancel)) => {
                    released.insert((cancel.name.into_bytes(), None));
                }
                _ => {}
            }
        }
        let ended = applied.sessions.iter().filter_map(|effect| match effect {
            SessionEffect::Closed { session } => Some(session.value()),
            SessionEffect::Started { .. } => None,
        });
        Self { released, ended: ended.collect() }
    }

    fn ends(&self, key: &[u8], token: u64, session: u64) -> bool {
        self.ended.contains(&session)
            || self.released.contains(&(key.to_vec(), Some(token)))
            || self.released.contains(&(key.to_vec(), None))
    }
}

impl Locks {
    /// Whoever stands in the line stood there before in the same order, and nobody was overtaken by
    /// a waiter behind.
    fn line_moved(&mut self, key: &[u8], view: &View) -> Result<(), Broken> {
        let described = view.lock(&text(key)).expect("memory is readable").lock.unwrap_or_default();
        let now: Vec<Waiter> = described
            .waiters
            .into_iter()
            .map(|waiter| (waiter.session_id, waiter.owner))
            .filter(|(session, _)| !self.opened.contains(session))
            .collect();
        if described.holder.is_none() && !now.is_empty() {
            let words = format!("{} is free, and {now:?} wait for it", text(key));
            return Err(Broken::new("lock-line-moves", words));
        }
        let old = self.lines.insert(key.to_vec(), now.clone()).unwrap_or_default();
        let place = |waiter: &Waiter| old.iter().position(|other| other == waiter);
        let places: Vec<usize> = now.iter().filter_map(place).collect();
        if !places.is_sorted() {
            let words = format!("the line of {} went from {old:?} to {now:?}", text(key));
            return Err(Broken::new("lock-fifo", words));
        }
        let holder = described.holder.map(|holder| (holder.session_id, holder.owner));
        let overtook = holder.as_ref().and_then(|(session, owner)| {
            old.iter()
                .rposition(|other| (other.0, &other.1) == (*session, owner) && !now.contains(other))
        });
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
