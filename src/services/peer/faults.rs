//! Faults of the links to peers, as rules: which messages are lost, late, doubled or overtaken.
//!
//! Pure: the time is an argument, and chance comes from a seed that each rule brings. Nothing here
//! sends, waits or knows what a message says. Every rule has a lease and ends with it.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Duration, Instant, NodeId, Rng};

#[cfg(test)]
mod tests;

/// How many rules may be in force at once.
pub(crate) const RULES_MAX: usize = 256;

/// The longest lease.
pub(crate) const LEASE_MAX: Duration = Duration::from_secs(600);

/// The longest delay, and the longest jitter.
pub(crate) const DELAY_MAX: Duration = Duration::from_secs(60);

/// How much later a second copy arrives at most, and for how long a message is held back for others
/// to overtake it.
const SPREAD: Duration = Duration::from_millis(50);

/// Shares are counted in this many parts.
const PARTS: u32 = 1_000_000;

/// Which way between this node and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// What this node sends.
    To,
    /// What reaches this node.
    From,
}

/// A kind of message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Introductions and questions for status.
    Control,
    Vote,
    VoteAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Append,
    AppendAnswer,
    Transfer,
    Forward,
    ForwardAnswer,
    Snapshot,
    SnapshotAnswer,
}

impl Kind {
    /// Whether Raft itself bears it twice and out of order. A second forward could do twice what was
    /// asked once, and snapshots and answers to forwards come on streams that keep order.
    const fn is_of_raft(self) -> bool {
        match self {
            Self::Vote
            | Self::VoteAnswer
            | Self::Heartbeat
            | Self::HeartbeatAnswer
            | Self::Append
            | Self::AppendAnswer
            | Self::Transfer => true,
            Self::Control
            | Self::Forward
            | Self::ForwardAnswer
            | Self::Snapshot
            | Self::SnapshotAnswer => false,
        }
    }
}

/// One kind of message on one way between this node and a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) peer: NodeId,
    pub(crate) way: Way,
    pub(crate) kind: Kind,
}

impl Line {
    /// What this node sends to a peer.
    pub(crate) const fn to(peer: NodeId, kind: Kind) -> Self {
        Self { peer, way: Way::To, kind }
    }

    /// What reaches this node from a peer.
    pub(crate) const fn from(peer: NodeId, kind: Kind) -> Self {
        Self { peer, way: Way::From, kind }
    }
}

/// A part of all messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share(u32);

impl Share {
    /// From 0 to 1; anything else is none.
    pub(crate) fn of(share: f64) -> Option<Self> {
        if !(0.0..=1.0).contains(&share) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to PARTS")]
        let parts = (share * f64::from(PARTS)).round() as u32;
        Some(Self(parts))
    }

    /// As a number from 0 to 1.
    pub(crate) fn value(self) -> f64 {
        f64::from(self.0) / f64::from(PARTS)
    }

    fn hits(self, rng: &mut Rng) -> bool {
        self.0 > 0 && rng.below(u64::from(PARTS)) < u64::from(self.0)
    }
}

/// A fault of one way between this node and a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) peer: NodeId,
    pub(crate) way: Way,
    /// The kinds that it concerns; none says all.
    pub(crate) kinds: BTreeSet<Kind>,
    pub(crate) drop: Share,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
    pub(crate) duplicate: Share,
    pub(crate) reorder: Share,
    /// Breaks connections, and lets none be made.
    pub(crate) cut: bool,
    pub(crate) seed: u64,
}

impl Rule {
    /// Refuses what does nothing, or says two things at once.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let none = Share::default();
        let slower = !self.delay.is_zero() || !self.jitter.is_zero();
        let of_raft = self.duplicate != none || self.reorder != none;
        let other = self.drop != none || slower || of_raft;
        if self.cut && (other || !self.kinds.is_empty()) {
            return Err("a cut concerns every kind of message and goes with nothing else");
        }
        if !self.cut && !other {
            return Err(
                "the fault does nothing: say cut, drop, delay, jitter, duplicate or reorder",
            );
        }
        if self.delay > DELAY_MAX || self.jitter > DELAY_MAX {
            return Err("delay and jitter must not be longer than 60 s");
        }
        let bears = self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.is_of_raft());
        if of_raft && !bears {
            return Err("only messages of Raft itself are duplicated and reordered");
        }
        Ok(())
    }

    fn concerns(&self, line: Line) -> bool {
        let same = self.peer == line.peer && self.way == line.way;
        same && (self.kinds.is_empty() || self.kinds.contains(&line.kind))
    }
}

/// What becomes of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes on at once.
    Passes,
    /// It is lost.
    Lost,
    /// It goes on when these times come, a copy at each. With `in_order` the first copy must not
    /// overtake what is held on its line.
    Held { copies: Vec<Instant>, in_order: bool },
}

/// What faults did on one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) dropped: u64,
    pub(crate) delayed: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    pub(crate) cut: u64,
}

#[derive(Debug)]
struct InForce {
    rule: Rule,
    rng: Rng,
    until: Instant,
}

/// The rules in force at one node, and what they did.
#[derive(Debug, Default)]
pub(crate) struct LinkFaults {
    rules: BTreeMap<u64, InForce>,
    last: u64,
    counts: BTreeMap<Line, Counts>,
    /// When the latest message that keeps its place arrives.
    latest: BTreeMap<Line, Instant>,
}

impl LinkFaults {
    /// Puts a checked rule in force and gives its number; `None` where there are too many.
    pub(crate) fn add(&mut self, now: Instant, rule: Rule, lease: Duration) -> Option<u64> {
        self.expire(now);
        if self.rules.len() >= RULES_MAX {
            return None;
        }
        self.last += 1;
        let rng = Rng::new(rule.seed);
        self.rules.insert(self.last, InForce { rule, rng, until: now.after(lease) });
        Some(self.last)
    }

    /// Takes the rules with these numbers away, or all where there are no numbers.
    pub(crate) fn clear(&mut self, now: Instant, numbers: &[u64]) -> usize {
        self.expire(now);
        let before = self.rules.len();
        self.rules.retain(|number, _| !numbers.is_empty() && !numbers.contains(number));
        before - self.rules.len()
    }

    /// The rules in force with their numbers, and how long each goes on.
    pub(crate) fn rules(&mut self, now: Instant) -> Vec<(u64, Rule, Duration)> {
        self.expire(now);
        let row = |(number, active): (&u64, &InForce)| {
            (*number, active.rule.clone(), active.until.since(now))
        };
        self.rules.iter().map(row).collect()
    }

    /// What faults did so far, those that ended included.
    pub(crate) const fn counts(&self) -> &BTreeMap<Line, Counts> {
        &self.counts
    }

    /// Whether connections of this way are cut.
    pub(crate) fn is_cut(&mut self, now: Instant, peer: NodeId, way: Way) -> bool {
        self.expire(now);
        let cuts = |active: &InForce| {
            active.rule.cut && active.rule.peer == peer && active.rule.way == way
        };
        self.rules.values().any(cuts)
    }

    /// Counts a connection that was broken or turned away by a cut.
    pub(crate) fn count_cut(&mut self, peer: NodeId, way: Way) {
        self.counts.entry(Line { peer, way, kind: Kind::Control }).or_default().cut += 1;
    }

    /// Decides what becomes of a message that is sent, or has arrived, now.
    pub(crate) fn judge(&mut self, now: Instant, line: Line) -> Fate {
        self.expire(now);
        let mut hit = Counts::default();
        let (mut at, mut twin, mut held_back) = (now, None, None);
        for InForce { rule, rng, .. } in self.rules.values_mut() {
            if !rule.concerns(line) {
                continue;
            }
            hit.cut += u64::from(rule.cut);
            hit.dropped += u64::from(rule.drop.hits(rng));
            if !rule.delay.is_zero() || !rule.jitter.is_zero() {
                hit.delayed = 1;
                at = at.after(rule.delay).after(rng.between(Duration::ZERO, rule.jitter));
            }
            if line.kind.is_of_raft() {
                let spread = |rng: &mut Rng| rng.between(SPREAD / 50, SPREAD);
                if rule.duplicate.hits(rng) {
                    twin = Some(spread(rng));
                }
                if rule.reorder.hits(rng) {
                    held_back = Some(spread(rng));
                }
            }
        }
        if hit.cut + hit.dropped > 0 {
            let counts = self.counts.entry(line).or_default();
            if hit.cut > 0 {
                counts.cut += 1;
            } else {
                counts.dropped += 1;
            }
            return Fate::Lost;
        }
        (hit.duplicated, hit.reordered) = (twin.is_some().into(), held_back.is_some().into());
        if hit != Counts::default() {
            let counts = self.counts.entry(line).or_default();
            counts.delayed += hit.delayed;
            counts.duplicated += hit.duplicated;
            counts.reordered += hit.reordered;
        }
        let in_order = held_back.is_none();
        let first = match held_back {
            Some(span) => at.after(span),
            None => self.in_turn(line, now, at),
        };
        let copies: Vec<_> =
            [Some(first), twin.map(|span| at.after(span))].into_iter().flatten().collect();
        if copies == [now] { Fate::Passes } else { Fate::Held { copies, in_order } }
    }

    /// When a message arrives that would at `at`, behind those before it on its line.
    fn in_turn(&mut self, line: Line, now: Instant, at: Instant) -> Instant {
        let latest = self.latest.remove(&line).unwrap_or(now);
        let at = at.max(latest);
        if at > now {
            self.latest.insert(line, at);
        }
        at
    }

    fn expire(&mut self, now: Instant) {
        self.rules.retain(|_, active| active.until > now);
    }
}
