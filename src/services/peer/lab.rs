//! Faults of the links while they run: what the rules lose is dropped here, what they delay is held
//! until it is due.
//!
//! There is one only in a node that was started with `--lab`; the paths of other nodes ask for it
//! once and find none. Nothing here decides: [`LinkFaults`] does.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    select,
    sync::{Notify, watch},
    time::{Instant as Deadline, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    pb::raft::v1::{ForwardRequest, ForwardResponse},
    raft::Message,
    types::{Duration, GroupId, Instant, NodeId},
};

use super::{
    faults::{Counts, Fate, Kind, Line, LinkFaults, Rule, Way},
    inbox::Inbox,
    link::lock,
};

/// Messages that may be held at once; further ones are lost.
const HELD_MAX: usize = 65_536;

/// The faults of one node's links.
pub struct LinkLab {
    epoch: Deadline,
    state: Mutex<State>,
    /// Something is held that may be due before all else.
    earlier: Notify,
    /// The rules changed.
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    faults: LinkFaults,
    held: BTreeMap<(Instant, u64), Held>,
    /// How many messages that keep their place are held on each line.
    waiting: BTreeMap<Line, usize>,
    sequence: u64,
}

struct Held {
    line: Line,
    in_order: bool,
    go_on: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for LinkLab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkLab").field("faults", &self.state().faults).finish_non_exhaustive()
    }
}

impl Default for LinkLab {
    fn default() -> Self {
        Self {
            epoch: Deadline::now(),
            state: Mutex::default(),
            earlier: Notify::new(),
            changed: watch::Sender::new(()),
        }
    }
}

impl LinkLab {
    /// Puts a checked rule in force and gives its number; `None` where there are too many.
    pub(crate) fn add(&self, rule: Rule, lease: Duration) -> Option<u64> {
        let number = self.state().faults.add(self.now(), rule, lease);
        self.changed.send_replace(());
        number
    }

    /// As [`LinkFaults::clear`].
    pub(crate) fn clear(&self, numbers: &[u64]) -> usize {
        self.state().faults.clear(self.now(), numbers)
    }

    /// As [`LinkFaults::rules`].
    pub(crate) fn rules(&self) -> Vec<(u64, Rule, Duration)> {
        self.state().faults.rules(self.now())
    }

    /// As [`LinkFaults::counts`].
    pub(crate) fn counts(&self) -> BTreeMap<Line, Counts> {
        self.state().faults.counts().clone()
    }

    /// Lets what is held go on when it is due, until `stop`.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let due = self.let_due_go();
            let wait = async {
                match due {
                    Some(due) => sleep_until(self.deadline(due)).await,
                    None => std::future::pending().await,
                }
            };
            select! {
                () = stop.cancelled() => break,
                () = self.earlier.notified() => {}
                () = wait => {}
            }
        }
        self.state().held.clear();
    }

    /// Passes a message on: at once, later, twice or never. `true` where it was taken, which is
    /// also what a sender believes of one that is lost.
    pub(super) fn carry(
        &self,
        line: Line,
        go_on: impl Fn() -> bool + Send + Sync + 'static,
    ) -> bool {
        let mut state = self.state();
        let now = self.now();
        let (copies, in_order) = match state.faults.judge(now, line) {
            Fate::Lost => return true,
            Fate::Passes if !state.waiting.contains_key(&line) => {
                drop(state);
                return go_on();
            }
            Fate::Passes => (vec![now], true),
            Fate::Held { copies, in_order } => (copies, in_order),
        };
        if state.held.len() >= HELD_MAX {
            return true;
        }
        let go_on: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            // One that came too late for its connection is lost, like any other.
            let _ = go_on();
        });
        let mut in_order = in_order;
        for due in copies {
            state.hold(due, Held { line, in_order, go_on: Arc::clone(&go_on) });
            in_order = false;
        }
        drop(state);
        self.earlier.notify_one();
        true
    }

    /// Waits for as long as a message of a stream is to be late. `false` where it is lost.
    pub(super) async fn hold(&self, line: Line) -> bool {
        match self.judge(line) {
            Fate::Passes => true,
            Fate::Lost => false,
            Fate::Held { copies, .. } => {
                sleep_until(self.deadline(copies[0])).await;
                true
            }
        }
    }

    /// Decides of a message that the caller itself holds back; see [`LinkLab::deadline`].
    pub(super) fn judge(&self, line: Line) -> Fate {
        self.state().faults.judge(self.now(), line)
    }

    /// A time of a [`Fate`] as one to sleep until.
    pub(super) fn deadline(&self, due: Instant) -> Deadline {
        self.epoch + Duration::from_nanos(due.as_nanos())
    }

    /// Whether connections of this way are cut; one that is turned away for it is counted.
    pub(super) fn turns_away(&self, peer: NodeId, way: Way) -> bool {
        let mut state = self.state();
        let cut = state.faults.is_cut(self.now(), peer, way);
        if cut {
            state.faults.count_cut(peer, way);
        }
        cut
    }

    /// Waits until connections of this way are cut.
    pub(super) async fn cut(&self, peer: NodeId, way: Way) {
        let mut changed = self.changed.subscribe();
        while !self.turns_away(peer, way) {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// A message of Raft has arrived.
    pub(super) fn deliver(
        &self,
        inbox: &Arc<dyn Inbox>,
        from: NodeId,
        group: GroupId,
        message: Message,
    ) {
        let (line, inbox) = (Line::from(from, kind_of(&message)), Arc::clone(inbox));
        self.carry(line, move || {
            inbox.deliver(from, group, message.clone());
            true
        });
    }

    /// What a peer passes on has arrived.
    pub(super) fn forwarded(&self, inbox: &Arc<dyn Inbox>, from: NodeId, request: ForwardRequest) {
        let inbox = Arc::clone(inbox);
        self.carry(Line::from(from, Kind::Forward), move || {
            inbox.forwarded(from, request.clone());
            true
        });
    }

    /// An answer to what was passed on has arrived.
    pub(super) fn answered(&self, inbox: &Arc<dyn Inbox>, from: NodeId, answer: ForwardResponse) {
        let inbox = Arc::clone(inbox);
        self.carry(Line::from(from, Kind::ForwardAnswer), move || {
            inbox.answered(from, answer.clone());
            true
        });
    }

    /// Lets go on what is due; says when the next is.
    fn let_due_go(&self) -> Option<Instant> {
        loop {
            let mut state = self.state();
            let due = state.held.keys().next()?.0;
            if due > self.now() {
                return Some(due);
            }
            let (_, held) = state.held.pop_first()?;
            drop(state);
            (held.go_on)();
            if held.in_order {
                self.state().left(held.line);
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::ZERO.after(self.epoch.elapsed())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn hold(&mut self, due: Instant, held: Held) {
        if held.in_order {
            *self.waiting.entry(held.line).or_default() += 1;
        }
        self.sequence += 1;
        self.held.insert((due, self.sequence), held);
    }

    fn left(&mut self, line: Line) {
        if let Some(waiting) = self.waiting.get_mut(&line) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(&line);
            }
        }
    }
}

/// The kind of a message of Raft.
pub(super) const fn kind_of(message: &Message) -> Kind {
    match message {
        Message::VoteRequest(_) => Kind::Vote,
        Message::VoteResponse(_) => Kind::VoteAnswer,
        Message::Heartbeat(_) => Kind::Heartbeat,
        Message::HeartbeatResponse(_) => Kind::HeartbeatAnswer,
        Message::AppendRequest(_) => Kind::Append,
        Message::AppendResponse(_) => Kind::AppendAnswer,
        Message::TimeoutNow(_) => Kind::Transfer,
    }
}
