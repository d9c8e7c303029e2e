//! Carries the checks out, one after another, and keeps what they share: which revision was known
//! to anybody when an operation was called, and which change made which revision.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::{
    checker::{
        Counts, Finding, Part, Report, Verdict,
        black_box::{Group, Kind, split},
        ops::{self, End, Op},
        witness::{discovery, events, guard, keys, locks, sessions, watches},
    },
    history::{Answer, Call, History, Line},
};

/// The most findings that are told.
const FINDINGS_MAX: usize = 100;

/// Judges a history by the revisions and positions that its answers carry.
#[must_use]
pub fn witness(history: &History) -> Report {
    let ops = match ops::read(history) {
        Ok(ops) => ops,
        Err(malformed) => return Report::malformed(malformed.line, malformed.words),
    };
    let mut judge = Judge::new(history, ops);
    judge.check_order();
    judge.check_stale_reads();
    judge.note_entries();
    let sessions = sessions::judge(&mut judge);
    locks::judge(&mut judge, &sessions);
    guard::judge(&mut judge);
    discovery::judge(&mut judge);
    let changes = keys::judge(&mut judge);
    watches::judge(&mut judge, &changes);
    events::judge(&mut judge);
    judge.report()
}

/// A revision that somebody knew, and who.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Floor {
    pub(super) revision: u64,
    /// The operation that was answered it; `None` where a watch was told.
    op: Option<usize>,
}

/// Whose a revision is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Maker {
    /// An operation's that makes a revision of its own.
    Entry(usize),
    /// A release's, which may grant the lock on.
    Release(usize),
    /// A grant's; what ends several holds at once grants several locks at once.
    Grant(usize),
}

/// What the checks share.
pub(super) struct Judge<'a> {
    pub(super) history: &'a History,
    pub(super) ops: Vec<Op<'a>>,
    /// What was known when each operation was called.
    pub(super) floors: Vec<Floor>,
    pub(super) counts: Counts,
    makers: BTreeMap<u64, Maker>,
    findings: Vec<Finding>,
    placed: BTreeSet<usize>,
    /// Watches and subscriptions, with the numbers of their lines.
    feeds: BTreeMap<String, usize>,
    /// Those of them that break a rule.
    broken_feeds: BTreeSet<String>,
}

impl<'a> Judge<'a> {
    fn new(history: &'a History, ops: Vec<Op<'a>>) -> Self {
        let floors = floors(history, &ops);
        let counts = Counts::of(&ops);
        Self {
            history,
            ops,
            floors,
            counts,
            makers: BTreeMap::new(),
            findings: Vec::new(),
            placed: BTreeSet::new(),
            feeds: BTreeMap::new(),
            broken_feeds: BTreeSet::new(),
        }
    }

    /// Records a broken rule that an operation shows.
    pub(super) fn find(
        &mut self,
        rule: &'static str,
        op: usize,
        why: impl core::fmt::Display,
        legal: Vec<String>,
    ) {
        let op = &self.ops[op];
        let line = if op.returned == usize::MAX { op.called } else { op.returned };
        self.findings.push(Finding {
            rule,
            words: format!("{}: {why}", op.words()),
            op: Some(op.id),
            line: Some(line),
            legal,
        });
    }

    /// Records a broken rule that a watch or a subscription shows.
    pub(super) fn find_fed(&mut self, rule: &'static str, feed: &str, line: usize, why: String) {
        self.broken_feeds.insert(feed.to_owned());
        let time = self.history.lines.get(line).map_or(0, Line::time);
        let words = format!("{feed} ({}): {why}", super::super::words::time(time));
        self.findings.push(Finding { rule, words, op: None, line: Some(line), legal: Vec::new() });
    }

    /// Counts a line of a watch or a subscription.
    pub(super) fn note_feed(&mut self, feed: &str) {
        match self.feeds.get_mut(feed) {
            Some(lines) => *lines += 1,
            None => {
                self.feeds.insert(feed.to_owned(), 1);
            }
        }
    }

    /// Notes that somebody saw the effect of an operation of unknown outcome.
    pub(super) fn note_placed(&mut self, op: usize) {
        self.placed.insert(op);
    }

    /// Notes that an operation made a revision of its own.
    pub(super) fn note_entry(&mut self, revision: u64, op: usize) {
        self.note_maker(revision, Maker::Entry(op));
    }

    fn note_maker(&mut self, revision: u64, maker: Maker) {
        use Maker::{Entry, Grant, Release};
        let Some(before) = self.makers.insert(revision, maker) else { return };
        let (mut one, mut two) = match (before, maker) {
            (Grant(_), Grant(_)) => return,
            (Release(_), Grant(_)) | (Grant(_), Release(_)) => return,
            (Entry(one) | Release(one) | Grant(one), Entry(two) | Release(two) | Grant(two)) => {
                (one, two)
            }
        };
        if one == two {
            return;
        }
        if self.ops[one].returned > self.ops[two].returned {
            core::mem::swap(&mut one, &mut two);
        }
        let why = format!("revision {revision} was made by {}", self.ops[one].words());
        self.find("revision-unique", two, why, Vec::new());
    }

    /// Notes the revisions that answers say were made.
    fn note_entries(&mut self) {
        for at in 0..self.ops.len() {
            let Some(Stamp { revision, writes: true }) = stamp(&self.ops[at]) else { continue };
            let maker = match self.ops[at].call {
                Call::Acquire { .. } => Maker::Grant(at),
                Call::Release { .. } => Maker::Release(at),
                _ => Maker::Entry(at),
            };
            self.note_maker(revision, maker);
        }
    }

    /// What returned before a call is not ordered after it.
    fn check_order(&mut self) {
        for at in 0..self.ops.len() {
            let op = &self.ops[at];
            if matches!(op.call, Call::Get { stale: true, .. }) {
                continue;
            }
            let Some(Stamp { revision, writes }) = stamp(op) else { continue };
            let floor = self.floors[at];
            if revision < floor.revision || (writes && revision == floor.revision) {
                let by = self.known_by(floor);
                let legal = if writes { "above" } else { "from" };
                let legal = vec![format!("a revision {legal} {}", floor.revision)];
                let why = format!("revision {} was known before the call, by {by}", floor.revision);
                self.find("real-time-order", at, why, legal);
            }
        }
    }

    /// Who knew a revision, in words.
    pub(super) fn known_by(&self, floor: Floor) -> String {
        floor.op.map_or_else(|| "a watch".to_owned(), |op| self.ops[op].words())
    }

    /// A client's stale reads never go back.
    fn check_stale_reads(&mut self) {
        let mut last: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for at in 0..self.ops.len() {
            let op = self.ops[at];
            let (Call::Get { stale: true, .. }, Some(Stamp { revision, .. })) =
                (op.call, stamp(&op))
            else {
                continue;
            };
            let reads = last.entry(op.client).or_default();
            let seen = |read: &usize| {
                let read = &self.ops[*read];
                stamp(read).filter(|_| read.before(&op)).map_or(0, |stamp| stamp.revision)
            };
            let floor = reads.iter().map(seen).max().unwrap_or(0);
            // One call is open at a time, so the last few reads are all that may overlap.
            if reads.len() > 4 {
                reads.sort_by_key(|read| stamp(&self.ops[*read]).map(|stamp| stamp.revision));
                reads.drain(..reads.len() - 4);
            }
            reads.push(at);
            if revision < floor {
                let why = format!("the client had read at revision {floor} before");
                let legal = vec![format!("a revision from {floor}")];
                self.find("stale-read-goes-back", at, why, legal);
            }
        }
    }

    fn report(mut self) -> Report {
        self.counts.placed = self.placed.len() as u64;
        let broken: BTreeSet<u64> = self.findings.iter().filter_map(|found| found.op).collect();
        let mut parts: Vec<Part> =
            split(&self.ops).into_iter().map(|(name, group)| part(name, &group, &broken)).collect();
        for (name, lines) in &self.feeds {
            let broken = self.broken_feeds.contains(name);
            let verdict = if broken { Verdict::Illegal } else { Verdict::Legal };
            let (name, operations) = (name.clone(), *lines);
            parts.push(Part { name, operations, verdict, why: None, order: Vec::new() });
        }
        self.findings.sort_by_key(|found| found.line);
        self.findings.truncate(FINDINGS_MAX);
        Report::new(self.findings, parts, self.counts)
    }
}

fn part(name: String, group: &Group<'_>, broken: &BTreeSet<u64>) -> Part {
    let bare = group.ops.iter().filter(|op| lacks_stamp(op)).count();
    let (verdict, why) = if group.ops.iter().any(|op| broken.contains(&op.id)) {
        (Verdict::Illegal, None)
    } else if group.kind == Kind::Queue {
        (Verdict::Unknown, Some("the log witness knows nothing of queues".to_owned()))
    } else if bare > 0 {
        (Verdict::Unknown, Some(format!("{bare} answers carry no revision")))
    } else {
        (Verdict::Legal, None)
    };
    Part { name, operations: group.ops.len(), verdict, why, order: Vec::new() }
}

/// Whether an answer should carry a revision, and does not.
fn lacks_stamp(op: &Op<'_>) -> bool {
    let End::Ok(answer) = op.end else { return false };
    let answer_carries = !matches!(
        answer,
        Answer::Renewed
            | Answer::Guarded { .. }
            | Answer::Dequeued { .. }
            | Answer::Appended { .. }
            | Answer::Events { .. }
            | Answer::Opened { .. }
    );
    answer_carries && stamp(op).is_none() && !matches!(op.call, Call::CloseSession { .. })
}

/// Where an answer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) revision: u64,
    /// Whether the operation certainly made this revision.
    pub(super) writes: bool,
}

/// Where an answer says that it stands.
pub(super) fn stamp(op: &Op<'_>) -> Option<Stamp> {
    let End::Ok(answer) = op.end else { return None };
    let (revision, writes) = match answer {
        Answer::Got { revision, .. }
        | Answer::Described { revision, .. }
        | Answer::Resolved { revision, .. }
        | Answer::Opened { revision, .. } => (*revision, false),
        Answer::Done { revision } => {
            let writes = matches!(
                op.call,
                Call::Put { .. } | Call::Release { .. } | Call::Deregister { .. }
            );
            (*revision, writes)
        }
        Answer::Deleted { existed, revision } => (*revision, *existed),
        Answer::Swapped { swapped, revision } => (*revision, *swapped),
        Answer::Txn { succeeded, revision, .. } => {
            let puts = match op.call {
                Call::Txn { changes, .. } => changes.iter().any(|change| change.value.is_some()),
                _ => false,
            };
            (*revision, *succeeded && puts)
        }
        Answer::Acquired { fencing_token, .. } => (Some(*fencing_token), true),
        Answer::Registered { revision } => (*revision, true),
        Answer::Renewed
        | Answer::Guarded { .. }
        | Answer::Dequeued { .. }
        | Answer::Appended { .. }
        | Answer::Events { .. } => (None, false),
    };
    revision.map(|revision| Stamp { revision, writes })
}

/// The largest revision that anybody knew when each operation was called.
fn floors(history: &History, ops: &[Op<'_>]) -> Vec<Floor> {
    let mut returns: Vec<(usize, usize)> = ops
        .iter()
        .enumerate()
        .filter(|(_, op)| op.returned != usize::MAX)
        .map(|(at, op)| (op.returned, at))
        .collect();
    returns.sort_unstable();
    let (mut returns, mut calls) = (returns.into_iter().peekable(), ops.iter().peekable());
    let mut floors = Vec::with_capacity(ops.len());
    let mut floor = Floor::default();
    for (at, line) in history.lines.iter().enumerate() {
        if calls.next_if(|op| op.called == at).is_some() {
            floors.push(floor);
        }
        let known = match line {
            Line::Return { .. } => returns
                .next_if(|(line, _)| *line == at)
                .and_then(|(_, op)| Some((stamp(&ops[op])?.revision, Some(op)))),
            Line::WatchTold { revision, .. } | Line::WatchProgress { revision, .. } => {
                Some((*revision, None))
            }
            _ => None,
        };
        if let Some((revision, op)) = known
            && revision > floor.revision
        {
            floor = Floor { revision, op };
        }
    }
    floors
}
