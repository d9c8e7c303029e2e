//! What a leader knows of one member: how far it matches, what is in flight, and when to try again.
//!
//! Three states: `Probe` looks for the point of agreement, one message at a time; `Replicate` sends
//! ahead of the answers within a window; `Snapshot` waits for one to be installed. Each has a timed
//! way out (rule 22).

use std::collections::VecDeque;

use crate::{
    raft::{Config, log::Log},
    types::{Duration, Instant, LogIndex, Term},
};

/// How long a snapshot may be under way without a word of its end. The transport reports every
/// end; this is the way out if it does not. Longer than any snapshot takes, because another one
/// ends the one under way.
pub(crate) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(crate) struct Progress {
    /// The highest index known to match, durable there.
    pub(crate) matched: LogIndex,
    /// The next index to send.
    pub(crate) next: LogIndex,
    /// The highest commit index sent along with an append.
    pub(crate) commit_sent: LogIndex,
    /// The highest round confirmed.
    pub(crate) round: u64,
    /// When it last answered in this term; at first when the leader was elected.
    pub(crate) contact: Instant,
    /// Whether it answered in this term at all.
    pub(crate) heard: bool,
    /// What the leader does about it.
    pub(crate) state: ProgressState,
}

#[derive(Debug)]
pub(crate) enum ProgressState {
    /// Looking for the point of agreement; paused once a probe is on its way.
    Probe { sent: Option<Instant> },
    /// Sending ahead of the answers.
    Replicate(Inflight),
    /// Waiting for a snapshot that is on its way, which covers the log up to `through` at least, or,
    /// after one failed, for the next one; at most until then.
    Snapshot { until: Instant, failed: bool, through: LogIndex },
}

/// What was sent and not answered yet.
#[derive(Debug)]
pub(crate) struct Inflight {
    /// Of each message the last index and the bytes.
    messages: VecDeque<(LogIndex, usize)>,
    bytes: usize,
    /// When something was last sent into an empty window, answered, or asked for again.
    moved: Instant,
}

impl Progress {
    pub(crate) const fn new(next: LogIndex, now: Instant) -> Self {
        Self {
            matched: LogIndex::ZERO,
            next,
            commit_sent: LogIndex::ZERO,
            round: 0,
            contact: now,
            heard: false,
            state: ProgressState::Probe { sent: None },
        }
    }

    pub(crate) fn become_probe(&mut self, next: LogIndex) {
        self.next = next.max(self.matched.next());
        self.commit_sent = LogIndex::ZERO;
        self.state = ProgressState::Probe { sent: None };
    }

    pub(crate) fn become_replicate(&mut self, now: Instant) {
        self.next = self.matched.next();
        self.state =
            ProgressState::Replicate(Inflight { messages: VecDeque::new(), bytes: 0, moved: now });
    }

    pub(crate) fn become_snapshot(&mut self, until: Instant, through: LogIndex) {
        self.state = ProgressState::Snapshot { until, failed: false, through };
    }

    pub(crate) fn fail_snapshot(&mut self, retry: Instant) {
        if let ProgressState::Snapshot { until, failed, .. } = &mut self.state {
            (*until, *failed) = (retry, true);
        }
    }

    /// What the member has, or will have once the snapshot is there: it needs the log after it.
    /// `None` where nobody knows whether it will ask for more.
    pub(crate) fn has(&self, now: Instant, config: &Config) -> Option<LogIndex> {
        let answers = now.since(self.contact) < config.election_timeout_max;
        match self.state {
            ProgressState::Snapshot { failed: false, through, .. } => Some(through),
            ProgressState::Snapshot { failed: true, .. } => None,
            ProgressState::Probe { .. } | ProgressState::Replicate(_) => {
                (self.heard && answers).then_some(self.matched)
            }
        }
    }

    /// The member matches through `index`.
    pub(crate) fn on_matched(&mut self, index: LogIndex, log: &Log, now: Instant) {
        self.matched = self.matched.max(index);
        self.next = self.next.max(self.matched.next());
        match &mut self.state {
            ProgressState::Replicate(inflight) => inflight.free(index, now),
            // A late answer that still leaves a gap changes nothing.
            ProgressState::Probe { .. } | ProgressState::Snapshot { .. }
                if self.matched < log.start().index => {}
            ProgressState::Probe { .. } | ProgressState::Snapshot { .. } => {
                self.become_replicate(now);
            }
        }
    }

    /// The log was cut: it may no longer reach back to a member that fell silent.
    pub(crate) fn on_purged(&mut self, log: &Log) {
        let replicates = matches!(self.state, ProgressState::Replicate(_));
        if replicates && log.term(self.next.previous()).is_none() {
            self.become_probe(self.next);
        }
    }

    /// The member refused `rejected`, where it has a run of `term` that begins at `index`, or
    /// nothing if `term` is zero (Raft §5.3, back-tracking by term).
    pub(crate) fn on_conflict(
        &mut self,
        rejected: LogIndex,
        index: LogIndex,
        term: Term,
        log: &Log,
    ) {
        let stale = match self.state {
            ProgressState::Probe { .. } => rejected != self.next.previous(),
            ProgressState::Replicate(_) => rejected <= self.matched || rejected >= self.next,
            ProgressState::Snapshot { .. } => true,
        };
        if stale {
            return;
        }
        let before = rejected.previous();
        let previous = if term.is_zero() {
            index.previous().min(before)
        } else {
            // The member's terms up to `rejected` are at most `term`, so nothing of a later term
            // can match there; and if this log has nothing of that term, nothing of its run can.
            let last = log.last_at_most(term, before);
            if log.term(last) == Some(term) { last } else { last.min(index.previous()) }
        };
        self.become_probe(previous.next());
    }

    /// The connection broke or stands again: what was in flight is probably gone.
    pub(crate) fn on_connection(&mut self) {
        match self.state {
            ProgressState::Probe { .. } => self.become_probe(self.next),
            ProgressState::Replicate(_) => self.become_probe(self.matched.next()),
            ProgressState::Snapshot { failed: true, .. } => self.become_probe(self.next),
            // The transport reports how the snapshot ended.
            ProgressState::Snapshot { failed: false, .. } => {}
        }
    }

    /// Gives a paused state its way out. Returns whether an empty append should ask where the
    /// member stands: it costs no entries, and a member that misses some says so at once.
    pub(crate) fn on_timer(&mut self, now: Instant, config: &Config) -> bool {
        let patience = config.heartbeat_interval.saturating_mul(2);
        match &mut self.state {
            ProgressState::Probe { sent } => {
                if sent.is_some_and(|sent| now.since(sent) >= patience) {
                    *sent = None;
                }
                false
            }
            ProgressState::Replicate(inflight) => {
                let ask = !inflight.messages.is_empty() && now.since(inflight.moved) >= patience;
                if ask {
                    inflight.moved = now;
                }
                ask
            }
            ProgressState::Snapshot { until, .. } => {
                if now >= *until {
                    let next = self.next;
                    self.become_probe(next);
                }
                false
            }
        }
    }
}

impl Inflight {
    pub(crate) fn is_full(&self, config: &Config) -> bool {
        self.messages.len() >= config.inflight_messages_max
            || self.bytes >= config.inflight_bytes_max
    }

    pub(crate) fn push(&mut self, last: LogIndex, bytes: usize, now: Instant) {
        if self.messages.is_empty() {
            self.moved = now;
        }
        self.messages.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn free(&mut self, through: LogIndex, now: Instant) {
        while let Some(&(last, bytes)) = self.messages.front()
            && last <= through
        {
            self.messages.pop_front();
            self.bytes -= bytes;
            self.moved = now;
        }
    }
}
