//! The guard of the disk's room: says when a node has too little left to take in more.
//!
//! It looks every second, off every hot path. What is short is told to the replica each time, which
//! tells the leader (`replica/space.rs`), and to the handle, which refuses at once. Room inside the
//! state's own file counts, because the store fills it again before the file grows; but never all
//! of the rest, which the log needs (`docs/decisions/0007-room-on-the-disk.md`).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
    mpsc::{Receiver, RecvTimeoutError},
};

use arc_swap::ArcSwapOption;

use crate::{
    machine::{grows, refusal},
    node::{replica::Event, shared::Shared},
    pb::command::v1::{Reason, Refusal, command},
    storage::free_bytes,
    types::{Duration, Instant, NodeId},
};

/// How often the guard looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often it asks for the room inside the state's file, while it matters: the answer reads much.
const REUSABLE_INTERVAL: Duration = Duration::from_secs(10);
/// How much more than is needed must be free before writes are taken again, at most.
const CLEAR_BYTES_MAX: u64 = 16 << 20;

/// A disk with too little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    /// Whose disk.
    pub(crate) node: NodeId,
    /// What is free in the file system, in bytes.
    pub(crate) free: u64,
    /// What the state's own file has room for, in bytes.
    pub(crate) reusable: u64,
    /// What must be free, in bytes.
    pub(crate) needed: u64,
}

impl Shortage {
    /// The refusal of what would take more room.
    pub(crate) fn refusal(&self) -> Refusal {
        let sentence = format!(
            "node {} has {} bytes left on its disk and needs {}: trim streams, delete and compact \
             keys, or make room there; what makes nothing larger goes on",
            self.node,
            self.free.saturating_add(self.reusable),
            self.needed
        );
        refusal(Reason::NoSpace, sentence)
            .with("node_id", self.node)
            .with("free_bytes", self.free)
            .with("reusable_bytes", self.reusable)
            .with("needed_bytes", self.needed)
    }
}

/// What the guard saw last, for those who ask without waiting.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    free: AtomicU64,
    shortage: ArcSwapOption<Shortage>,
}

impl Seen {
    /// What is free in the file system, in bytes; 0 before the first look.
    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Whether there is too little, and how little.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        self.shortage.load().as_deref().copied()
    }

    /// Refuses a command that would make the state larger, while there is too little.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn admit(&self, op: &command::Op) -> Result<(), Refusal> {
        match &*self.shortage.load() {
            Some(shortage) if grows(op) => Err(shortage.refusal()),
            _ => Ok(()),
        }
    }

    /// Returns what was short before.
    fn set(&self, free: u64, shortage: Option<Shortage>) -> Option<Shortage> {
        self.free.store(free, Ordering::Relaxed);
        self.shortage.swap(shortage.map(Arc::new)).as_deref().copied()
    }
}

/// What the guard knows.
#[derive(Debug)]
pub(crate) struct Guard {
    node: NodeId,
    /// 0 watches nothing.
    needed: u64,
    short: bool,
    /// The room inside the state's file, and when it was asked for.
    reusable: Option<(Instant, u64)>,
}

impl Guard {
    pub(crate) const fn new(node: NodeId, needed: u64) -> Self {
        Self { node, needed, short: false, reusable: None }
    }

    /// Judges what is free now. `ask` tells the room inside the state's file; it is asked only
    /// where it decides.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        free: u64,
        ask: impl FnOnce() -> u64,
    ) -> Option<Shortage> {
        let needed = self.needed;
        let spare = if self.short { (needed / 8).min(CLEAR_BYTES_MAX) } else { 0 };
        let wanted = needed.saturating_add(spare);
        if needed == 0 || free >= wanted {
            (self.short, self.reusable) = (false, None);
            return None;
        }
        let known = self.reusable.filter(|(at, _)| now.since(*at) < REUSABLE_INTERVAL);
        let reusable = known.map_or_else(ask, |(_, bytes)| bytes);
        self.reusable = Some((known.map_or(now, |(at, _)| at), reusable));
        // The log grows in files of its own, whatever room the state's has.
        let log = (needed / 4).saturating_add(spare / 4);
        self.short = free < log || free.saturating_add(reusable) < wanted;
        self.short.then_some(Shortage { node: self.node, free, reusable, needed })
    }
}

/// Looks until the other end of `stop` is gone.
pub(crate) fn run(shared: &Arc<Shared>, stop: &Receiver<()>) {
    let needed = shared.tuning.min_free_disk;
    let mut guard = Guard::new(shared.directory.node_id, needed);
    loop {
        match free_bytes(shared.data.path()) {
            Ok(free) => {
                let ask = || reusable(shared);
                let shortage = guard.look(shared.clock.now(), free, ask);
                tell(shared, free, shortage);
            }
            Err(error) => tracing::warn!(%error, "the disk's room cannot be read"),
        }
        match stop.recv_timeout(LOOK_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn reusable(shared: &Shared) -> u64 {
    shared.store.load().reusable_bytes().unwrap_or_else(|error| {
        tracing::warn!(%error, "the room in the state's file cannot be read");
        0
    })
}

fn tell(shared: &Shared, free: u64, shortage: Option<Shortage>) {
    let before = shared.space.set(free, shortage);
    shared.metrics.set_disk_space(free, shared.tuning.min_free_disk, shortage.is_some());
    match (before, shortage) {
        (None, Some(Shortage { free, reusable, needed, .. })) => {
            tracing::warn!(
                free,
                reusable,
                needed,
                "the disk has too little room: writes are refused"
            );
        }
        (Some(_), None) => tracing::info!(free, "the disk has room again: writes are taken"),
        (None, None) => return,
        (Some(_), Some(_)) => {}
    }
    // The end of a shortage is said once: it may not get lost.
    shared.insist(Event::Space(shortage));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: u64 = 1_000_000;

    fn at(seconds: u64) -> Instant {
        Instant::ZERO.after(Duration::from_secs(seconds))
    }

    fn guard() -> Guard {
        Guard::new(NodeId::new(2), NEEDED)
    }

    #[test]
    fn it_is_short_below_what_is_needed_and_well_again_a_little_above() {
        let mut guard = guard();
        assert_eq!(guard.look(at(1), NEEDED, || panic!("not asked while there is room")), None);
        let short = guard.look(at(2), NEEDED - 1, || 0).expect("short");
        assert_eq!((short.node.value(), short.free, short.needed), (2, NEEDED - 1, NEEDED));
        assert!(guard.look(at(3), NEEDED + 1, || 0).is_some(), "no to and fro at the edge");
        assert_eq!(guard.look(at(4), NEEDED + NEEDED / 8, || 0), None);
        assert_eq!(guard.look(at(5), NEEDED, || 0), None, "back to the plain bound");
    }

    #[test]
    fn room_inside_the_state_counts_but_the_log_needs_some_outside() {
        let mut guard = guard();
        assert_eq!(guard.look(at(1), NEEDED / 2, || NEEDED), None);
        let asked_again = || panic!("the answer is kept for a while");
        assert_eq!(guard.look(at(2), NEEDED / 2, asked_again), None);
        assert!(guard.look(at(3), NEEDED / 4 - 1, || 0).is_some(), "the log has too little");
        assert!(guard.look(at(20), NEEDED / 2, || NEEDED / 2).is_some());
        assert_eq!(guard.look(at(40), NEEDED / 2, || NEEDED), None, "what was let go counts");
    }

    #[test]
    fn without_a_bound_it_never_is_short() {
        let mut guard = Guard::new(NodeId::new(1), 0);
        assert_eq!(guard.look(at(1), 0, || panic!("not asked")), None);
        let mut guard = Guard::new(NodeId::new(1), u64::MAX);
        assert!(guard.look(at(1), u64::MAX - 1, || 0).is_some());
        assert_eq!(guard.look(at(2), u64::MAX, || 0), None, "nothing overflows");
    }

    #[test]
    fn the_refusal_names_node_and_bytes() {
        let shortage = guard().look(at(1), 5, || 7).expect("short");
        let refusal = shortage.refusal();
        assert_eq!(refusal.reason(), Reason::NoSpace);
        for (key, value) in [
            ("node_id", "2"),
            ("free_bytes", "5"),
            ("reusable_bytes", "7"),
            ("needed_bytes", "1000000"),
        ] {
            assert_eq!(refusal.metadata[key], value);
        }
    }
}
