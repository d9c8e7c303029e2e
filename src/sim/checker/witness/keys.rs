//! Keys: every answer is held against what the key held at the answer's revision.
//!
//! Writes of unknown outcome are placed where somebody saw them: by the revision of a value that
//! was read or told, else by a compare that must have met them. Values that are written once make
//! this sure; where two writes of one value are open, either may be the one.

use std::collections::{BTreeMap, BTreeSet};

use crate::sim::{
    checker::{
        ops::{End, Op},
        witness::{
            judge::{Judge, Stamp, stamp},
            timeline::{Sight, Timeline, Version, What},
        },
        words,
    },
    history::{Answer, Call, Line, Versioned},
};

/// A change of a key, for watches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) revision: u64,
    pub(super) key: &'a str,
    pub(super) value: Option<&'a str>,
    pub(super) op: usize,
    pub(super) sure: bool,
}

/// Judges the keys, and gives all changes whose revision is known, in order.
pub(super) fn judge<'a>(judge: &mut Judge<'a>) -> Vec<Change<'a>> {
    let mut keys = Keys::new(judge);
    keys.note_known();
    keys.place_by_revision();
    let sights = keys.sights();
    for sight in &sights {
        keys.weigh(sight);
    }
    keys.check_failed_txns();
    keys.changes()
}

/// What a call writes where it is carried out.
fn writes(call: &Call) -> Vec<(&str, Option<&str>)> {
    match call {
        Call::Put { key, value, .. } | Call::Cas { key, value, .. } => {
            vec![(key, Some(value.as_str()))]
        }
        Call::Delete { key } => vec![(key, None)],
        Call::Txn { changes, .. } => {
            changes.iter().map(|change| (change.key.as_str(), change.value.as_deref())).collect()
        }
        _ => Vec::new(),
    }
}

/// What a call demands of the keys.
fn demands(call: &Call) -> Vec<(&str, Option<&str>)> {
    match call {
        Call::Cas { key, expected, .. } => vec![(key, expected.as_deref())],
        Call::Txn { compares, .. } => {
            compares.iter().map(|one| (one.key.as_str(), one.value.as_deref())).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether an answered call made its changes.
fn changed(op: &Op<'_>) -> bool {
    match op.end {
        End::Ok(Answer::Swapped { swapped, .. }) => *swapped,
        End::Ok(Answer::Txn { succeeded, .. }) => *succeeded,
        End::Ok(Answer::Deleted { existed, .. }) => *existed,
        End::Ok(_) => matches!(op.call, Call::Put { .. }),
        _ => false,
    }
}

/// Whether nobody knows at which revision an operation took effect, if it did.
fn is_open(op: &Op<'_>) -> bool {
    op.is_unknown() || (changed(op) && stamp(op).is_none())
}

struct Keys<'j, 'a> {
    judge: &'j mut Judge<'a>,
    lines: BTreeMap<&'a str, Timeline<'a>>,
    /// Who writes, or wrote, or would have written, a value to a key.
    writers: BTreeMap<(&'a str, &'a str), Vec<usize>>,
    /// Who may have changed a key.
    unknown: BTreeMap<&'a str, Vec<usize>>,
    /// Where operations of unknown outcome were placed, and the line that showed it.
    placed: BTreeMap<usize, (u64, usize)>,
    /// Keys and revisions at which several say that they changed it.
    contested: BTreeSet<(&'a str, u64)>,
}

impl<'j, 'a> Keys<'j, 'a> {
    fn new(judge: &'j mut Judge<'a>) -> Self {
        let (mut writers, mut unknown) = (BTreeMap::new(), BTreeMap::new());
        for (at, op) in judge.ops.iter().enumerate() {
            for (key, value) in writes(op.call) {
                if let Some(value) = value {
                    writers.entry((key, value)).or_insert_with(Vec::new).push(at);
                }
                if is_open(op) {
                    unknown.entry(key).or_insert_with(Vec::new).push(at);
                }
            }
        }
        Self {
            judge,
            lines: BTreeMap::new(),
            writers,
            unknown,
            placed: BTreeMap::new(),
            contested: BTreeSet::new(),
        }
    }

    fn line(&mut self, key: &'a str) -> &mut Timeline<'a> {
        self.lines.entry(key).or_default()
    }

    /// Writes down what answers say was written.
    fn note_known(&mut self) {
        for at in 0..self.judge.ops.len() {
            let op = self.judge.ops[at];
            let Some(Stamp { revision, .. }) = stamp(&op).filter(|_| changed(&op)) else {
                continue;
            };
            self.write(at, revision, true);
        }
    }

    /// Writes an operation's changes down; a deletion of a transaction may have found nothing.
    fn write(&mut self, at: usize, revision: u64, exact: bool) {
        let op = self.judge.ops[at];
        let certain = matches!(op.call, Call::Delete { .. });
        for (key, value) in writes(op.call) {
            let sure = value.is_some() || certain;
            let version = Version { at: revision, value, op: Some(at), sure, exact };
            if self.line(key).add(version).is_some_and(|there| there.op != Some(at)) {
                self.contested.insert((key, revision));
            }
        }
    }

    /// Places operations of unknown outcome where a revision names their value.
    fn place_by_revision(&mut self) {
        // By revision: what was seen of it, by whom, and the line.
        let mut seen: Vec<(u64, usize, &'a str, &'a str, Option<usize>)> = Vec::new();
        for (at, op) in self.judge.ops.iter().enumerate() {
            for (key, read) in reads(op) {
                let Some(Versioned { value, mod_revision: Some(revision) }) = read else {
                    continue;
                };
                seen.push((*revision, op.returned, key, value, Some(at)));
            }
        }
        // By revision: the keys that a watch was told to be deleted, and the first line of it.
        let mut deleted: BTreeMap<u64, (usize, Vec<&'a str>)> = BTreeMap::new();
        for (at, line) in self.judge.history.lines.iter().enumerate() {
            match line {
                Line::WatchTold { key, value: Some(value), revision, .. } => {
                    seen.push((*revision, at, key, value, None));
                }
                Line::WatchTold { key, value: None, revision, .. } => {
                    deleted.entry(*revision).or_insert((at, Vec::new())).1.push(key);
                }
                _ => {}
            }
        }
        seen.sort_unstable();
        for (revision, line, key, value, op) in seen {
            if self.line(key).made_at(revision).is_none() {
                self.place_value(key, value, revision, line, op);
            }
        }
        for (revision, (line, mut keys)) in deleted {
            keys.retain(|key| self.line(key).made_at(revision).is_none());
            let Some(at) = self.open_deletion(&keys, revision, line) else { continue };
            if writes(self.judge.ops[at].call).iter().all(|(_, value)| value.is_none()) {
                self.place(at, revision, line);
                continue;
            }
            // Nobody saw what else it writes, so it may be another one that nobody can tell.
            for key in keys {
                let (value, op) = (None, Some(at));
                self.line(key).add(Version { at: revision, value, op, sure: true, exact: true });
            }
        }
    }

    /// Places the operation that wrote a value at a revision; it is told where there is none.
    fn place_value(
        &mut self,
        key: &'a str,
        value: &'a str,
        revision: u64,
        line: usize,
        op: Option<usize>,
    ) {
        let writers = self.writers.get(&(key, value)).cloned().unwrap_or_default();
        let open = |at: &&usize| {
            let writer = &self.judge.ops[**at];
            is_open(writer) && writer.called < line && !self.placed.contains_key(*at)
        };
        let fits = |at: &&usize| self.judge.floors[**at].revision < revision;
        let (fitting, any) = (writers.iter().filter(open).find(fits), writers.iter().find(open));
        if let Some(at) = fitting.or(any).copied() {
            let floor = self.judge.floors[at];
            if floor.revision >= revision {
                let by = self.judge.known_by(floor);
                let why = format!(
                    "its value stands at revision {revision}, but revision {} was known before \
                     the call, by {by}",
                    floor.revision
                );
                self.judge.find("real-time-order", at, why, Vec::new());
            }
            return self.place(at, revision, line);
        }
        let (rule, why) = self.why_not(&writers, key, value, revision, line);
        self.tell(rule, op, line, why);
    }

    /// Why nobody can have written a value at a revision.
    fn why_not(
        &self,
        writers: &[usize],
        key: &str,
        value: &str,
        revision: u64,
        line: usize,
    ) -> (&'static str, String) {
        let what = format!("{value:?} of key {key} at revision {revision}");
        let before = |at: &&usize| self.judge.ops[**at].called < line;
        let Some(at) = writers.iter().find(before) else {
            return ("phantom-value", format!("nobody had written {what}"));
        };
        let writer = &self.judge.ops[*at];
        match (writer.end, self.placed.get(at)) {
            (End::Unknown, Some((other, _))) => {
                let words = writer.words();
                ("write-once", format!("{what} was seen at revision {other} too: {words}"))
            }
            (End::Refused { .. }, _) => {
                ("refused-seen", format!("{what} was written by {}", writer.words()))
            }
            _ if !changed(writer) => {
                ("refused-seen", format!("{what} was written by {}", writer.words()))
            }
            _ => ("read-value", format!("{what}, but it was written by {}", writer.words())),
        }
    }

    fn tell(&mut self, rule: &'static str, op: Option<usize>, line: usize, why: String) {
        match op {
            Some(op) => self.judge.find(rule, op, why, Vec::new()),
            None => {
                let Some(Line::WatchTold { watch, .. }) = self.judge.history.lines.get(line) else {
                    return;
                };
                self.judge.find_fed(rule, &format!("watch {watch}"), line, why);
            }
        }
    }

    fn place(&mut self, at: usize, revision: u64, line: usize) {
        self.placed.insert(at, (revision, line));
        self.judge.note_placed(at);
        self.judge.note_entry(revision, at);
        self.write(at, revision, true);
    }

    /// A deletion of unknown outcome that may have taken these keys at or below a revision.
    fn open_deletion(&self, keys: &[&str], revision: u64, line: usize) -> Option<usize> {
        let deletes = |at: &&usize| {
            let writes = writes(self.judge.ops[**at].call);
            keys.iter().all(|key| writes.contains(&(*key, None)))
        };
        let open = self.open(keys.first()?, revision, line);
        let open: Vec<usize> = open.filter(deletes).copied().collect();
        let plain = |at: &&usize| matches!(self.judge.ops[**at].call, Call::Delete { .. });
        open.iter().find(plain).or_else(|| open.first()).copied()
    }

    /// Operations of unknown outcome that may have changed a key at or below a revision, unseen.
    fn open(&self, key: &str, revision: u64, line: usize) -> impl Iterator<Item = &usize> {
        self.unknown.get(key).into_iter().flatten().filter(move |at| {
            self.judge.ops[**at].called < line
                && self.judge.floors[**at].revision < revision
                && !self.placed.contains_key(*at)
        })
    }

    /// Everything that answers tell of keys, by revision.
    fn sights(&mut self) -> Vec<Sight<'a>> {
        let mut sights = Vec::new();
        for at in 0..self.judge.ops.len() {
            self.sights_of(at, &mut sights);
        }
        sights.sort_by_key(|sight| (sight.at, sight.line));
        sights
    }

    fn sights_of(&mut self, at: usize, sights: &mut Vec<Sight<'a>>) {
        let op = self.judge.ops[at];
        let placed = self.placed.get(&at).copied();
        let Some((revision, line)) =
            stamp(&op).map(|stamp| (stamp.revision, op.returned)).or(placed)
        else {
            return;
        };
        let mut see = |key: &'a str, at_revision: u64, what: What<'a>, rule: &'static str| {
            sights.push(Sight { key, at: at_revision, what, op: at, line, rule });
        };
        let before = revision.saturating_sub(u64::from(self.made(at, revision)));
        let took_effect = placed.is_some() || changed(&op);
        if let End::Ok(Answer::Deleted { existed, .. }) = op.end
            && let Call::Delete { key } = op.call
        {
            let what = if *existed { What::Present } else { What::Absent };
            see(key, before, what, "read-value");
        }
        let mut demands = demands(op.call);
        if took_effect && self.is_unsure(at, revision, line) {
            demands.clear();
        }
        let single = demands.len() == 1;
        for (key, value) in demands {
            match (took_effect, value) {
                (true, Some(value)) => see(key, before, What::Is(value), "compare-value"),
                (true, None) => see(key, before, What::Absent, "compare-value"),
                (false, Some(value)) if single => {
                    see(key, revision, What::Not(value), "compare-value");
                }
                (false, None) if single => see(key, revision, What::Present, "compare-value"),
                _ => {}
            }
        }
        let own = if took_effect { writes(op.call) } else { Vec::new() };
        for (key, read) in reads(&op) {
            if let Some((_, value)) = own.iter().rev().find(|(own, _)| *own == key) {
                let same = read.map(|read| read.value.as_str()) == *value
                    && read.and_then(|read| read.mod_revision).is_none_or(|of| of == revision);
                if !same {
                    let legal = vec![format!("{} of revision {revision}", words::value(*value))];
                    let why = format!("it wrote key {key} itself");
                    self.judge.find("read-value", at, why, legal);
                }
                continue;
            }
            let what = match read {
                None => What::Absent,
                Some(Versioned { value, mod_revision: None }) => What::Is(value),
                Some(Versioned { value, mod_revision: Some(of) }) => What::IsOf(value, *of),
            };
            see(key, revision, what, "read-value");
        }
    }

    /// Whether a transaction may or may not have made its revision: it only deletes, and others
    /// may have deleted the same before.
    fn is_unsure(&self, at: usize, revision: u64, line: usize) -> bool {
        let op = &self.judge.ops[at];
        let writes = writes(op.call);
        matches!(op.call, Call::Txn { .. })
            && writes.iter().all(|(_, value)| value.is_none())
            && writes.iter().any(|(key, _)| {
                self.contested.contains(&(*key, revision))
                    || self.open(key, revision, line).next().is_some()
            })
    }

    /// Whether an operation made the revision that it was answered.
    fn made(&self, at: usize, revision: u64) -> bool {
        let op = &self.judge.ops[at];
        if self.placed.contains_key(&at) {
            return true;
        }
        match stamp(op) {
            Some(Stamp { writes: true, .. }) => true,
            // A transaction that deletes only: where a key was there to be deleted.
            Some(_) if changed(op) => writes(op.call).iter().any(|(key, _)| {
                let line = self.lines.get(key);
                line.is_some_and(|line| {
                    line.made_at(revision).is_some_and(|version| version.op == Some(at))
                        && line.at(revision.saturating_sub(1)).value.is_some()
                })
            }),
            _ => false,
        }
    }

    /// Holds a sight against what is known.
    fn weigh(&mut self, sight: &Sight<'a>) {
        let line = self.line(sight.key);
        let version = line.at(sight.at);
        let gone = line.ended(version, sight.at).is_some();
        let fits = match sight.what {
            What::Is(value) => !gone && version.value == Some(value),
            What::IsOf(value, of) => {
                !gone && version.value == Some(value) && (version.at == of || !version.exact)
            }
            What::Absent => gone || version.value.is_none(),
            What::Present => gone || version.value.is_some(),
            What::Not(value) => gone || version.value != Some(value),
        };
        if fits || self.explain(sight, version) {
            return;
        }
        let held = match version.op {
            Some(op) => format!(
                "key {} held {} of revision {}, by {}",
                sight.key,
                words::value(version.value),
                version.at,
                self.judge.ops[op].words()
            ),
            None => format!("key {} was absent", sight.key),
        };
        let gone = match self.line(sight.key).ended(version, sight.at) {
            Some(revision) => format!(", and was found changed at revision {revision}"),
            None => String::new(),
        };
        let why = format!("at revision {} {held}{gone}", sight.at);
        let legal = vec![words::value(version.value)];
        self.judge.find(sight.rule, sight.op, why, legal);
    }

    /// Whether an operation of unknown outcome explains a sight.
    fn explain(&mut self, sight: &Sight<'a>, version: Version<'a>) -> bool {
        match sight.what {
            What::Is(value) => {
                let writers = self.writers.get(&(sight.key, value)).cloned().unwrap_or_default();
                let found = self
                    .open(sight.key, sight.at, sight.line)
                    .find(|at| writers.contains(at))
                    .copied();
                let Some(at) = found else { return false };
                // It stands at or below the sight, above everything that is known there.
                if self.line(sight.key).made_at(sight.at).is_some() {
                    return false;
                }
                self.placed.insert(at, (sight.at, sight.line));
                self.judge.note_placed(at);
                self.write(at, sight.at, false);
                true
            }
            What::Absent => {
                let found = self.open_deletion(&[sight.key], sight.at, sight.line);
                let Some(at) = found.filter(|_| version.at < sight.at) else { return false };
                self.placed.insert(at, (sight.at, sight.line));
                self.judge.note_placed(at);
                self.line(sight.key).end(version, sight.at);
                true
            }
            What::Present | What::Not(_) => {
                let open = self.open(sight.key, sight.at, sight.line).next().is_some();
                if open && version.at < sight.at {
                    self.line(sight.key).end(version, sight.at);
                    return true;
                }
                false
            }
            What::IsOf(..) => false,
        }
    }

    /// A transaction of several compares that failed: one of them did not hold.
    fn check_failed_txns(&mut self) {
        for at in 0..self.judge.ops.len() {
            let op = self.judge.ops[at];
            let (End::Ok(Answer::Txn { succeeded: false, .. }), Some(stamp)) = (op.end, stamp(&op))
            else {
                continue;
            };
            let demands = demands(op.call);
            if demands.len() == 1 {
                continue;
            }
            let holds = demands.iter().all(|(key, value)| {
                let Some(line) = self.lines.get(key) else { return value.is_none() };
                let version = line.at(stamp.revision);
                version.value == *value && line.ended(version, stamp.revision).is_none()
            });
            let open = demands
                .iter()
                .any(|(key, _)| self.open(key, stamp.revision, op.returned).next().is_some());
            if holds && !open {
                let why = format!("all compares held at revision {}", stamp.revision);
                self.judge.find("compare-value", at, why, vec!["succeeded".into()]);
            }
        }
    }

    fn changes(self) -> Vec<Change<'a>> {
        let mut changes = Vec::new();
        for (key, line) in &self.lines {
            for version in line.versions().filter(|version| version.exact) {
                let Some(op) = version.op else { continue };
                let (revision, value, sure) = (version.at, version.value, version.sure);
                changes.push(Change { revision, key, value, op, sure });
            }
        }
        changes.sort_by_key(|change| (change.revision, change.key));
        changes
    }
}

/// What an answer tells of keys.
fn reads<'a>(op: &Op<'a>) -> Vec<(&'a str, Option<&'a Versioned>)> {
    match (op.call, op.end) {
        (Call::Get { key, .. }, End::Ok(Answer::Got { value, .. })) => {
            vec![(key, value.as_ref())]
        }
        (Call::Txn { reads, .. }, End::Ok(Answer::Txn { reads: read, .. })) => {
            reads.iter().map(String::as_str).zip(read.iter().map(Option::as_ref)).collect()
        }
        _ => Vec::new(),
    }
}
