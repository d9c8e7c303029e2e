//! Watches: in order, each change once, no revision split, nothing left out, nothing made up.
//!
//! A watch that begins again is judged anew from where it asks to go on; whatever it was told
//! before of a revision that was cut off does not count.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{
        witness::{judge::Judge, keys::Change},
        words,
    },
    history::{Call, Line},
};

/// A watch as it goes.
struct Watch<'a> {
    name: String,
    key: &'a str,
    range_end: &'a str,
    after: u64,
    /// Everything up to here was told.
    through: u64,
    /// The revision that is being told, and its keys so far.
    revision: u64,
    keys: Vec<&'a str>,
    /// Whether the revision's last change was told.
    complete: bool,
    /// The next change that it may have to tell, by its place among all.
    next: usize,
    /// It was turned away, and tells nothing until it begins again.
    over: bool,
}

/// Judges all watches against the changes, which stand in the order of their revisions.
pub(super) fn judge(judge: &mut Judge<'_>, changes: &[Change<'_>]) {
    let mut watches: BTreeMap<u64, Watch<'_>> = BTreeMap::new();
    let history = judge.history;
    let mut compacted = if history.header.compacts { u64::MAX } else { 0 };
    for (at, line) in history.lines.iter().enumerate() {
        match line {
            Line::Call { call: Call::Compact { revision }, .. } => {
                compacted = compacted.max(*revision);
            }
            Line::WatchBegins { watch, key, range_end, after, .. } => {
                let name = format!("watch {watch}");
                judge.note_feed(&name);
                let begun = Watch {
                    name,
                    key,
                    range_end,
                    after: *after,
                    through: *after,
                    revision: *after,
                    keys: Vec::new(),
                    complete: true,
                    next: changes.partition_point(|change| change.revision <= *after),
                    over: false,
                };
                watches.insert(*watch, begun);
            }
            Line::WatchTold { watch, key, value, revision, last, .. } => {
                if let Some(watch) = begun(judge, &mut watches, *watch, at) {
                    let told = Told { key, value: value.as_deref(), revision: *revision };
                    watch.told(judge, changes, at, told, *last);
                    judge.counts.told_changes += 1;
                }
            }
            Line::WatchProgress { watch, revision, .. } => {
                if let Some(watch) = begun(judge, &mut watches, *watch, at) {
                    watch.progress(judge, changes, at, *revision);
                }
            }
            Line::WatchCompacted { watch, through, .. } => {
                if let Some(watch) = begun(judge, &mut watches, *watch, at) {
                    watch.turned_away(judge, at, *through, compacted);
                }
            }
            _ => {}
        }
    }
}

fn begun<'w, 'a>(
    judge: &mut Judge<'_>,
    watches: &'w mut BTreeMap<u64, Watch<'a>>,
    number: u64,
    at: usize,
) -> Option<&'w mut Watch<'a>> {
    let name = format!("watch {number}");
    judge.note_feed(&name);
    let watch = watches.get_mut(&number);
    if watch.as_ref().is_none_or(|watch| watch.over) {
        judge.find_fed("watch-range", &name, at, "it had not begun".into());
        return None;
    }
    watch
}

/// One change as it was told.
#[derive(Clone, Copy)]
struct Told<'a> {
    key: &'a str,
    value: Option<&'a str>,
    revision: u64,
}

impl<'a> Watch<'a> {
    fn covers(&self, key: &str) -> bool {
        key >= self.key && key < self.range_end
    }

    fn told(
        &mut self,
        judge: &mut Judge<'_>,
        changes: &[Change<'_>],
        at: usize,
        told: Told<'a>,
        last: bool,
    ) {
        let Told { key, revision, .. } = told;
        let mut wrong = |rule, why: String| judge.find_fed(rule, &self.name, at, why);
        if !self.covers(key) || revision <= self.after {
            let range = format!("{:?}..{:?} after {}", self.key, self.range_end, self.after);
            wrong("watch-range", format!("{key} at revision {revision} is not in {range}"));
            return;
        }
        if revision < self.revision || (revision <= self.through && revision != self.revision) {
            let why = format!("revision {revision} follows revision {}", self.revision);
            let rule = if revision <= self.through && revision > self.revision {
                "watch-progress"
            } else {
                "watch-order"
            };
            return wrong(rule, why);
        }
        if revision == self.revision {
            if self.keys.contains(&key) {
                return wrong("watch-order", format!("{key} at revision {revision} comes twice"));
            }
            if self.complete {
                let why = format!("revision {revision} goes on after its last change");
                return wrong("watch-atomic", why);
            }
        } else {
            if !self.complete {
                let why = format!(
                    "revision {} was not complete when revision {revision} came",
                    self.revision
                );
                wrong("watch-atomic", why);
            }
            self.check_gap(judge, changes, at, revision.saturating_sub(1));
            (self.revision, self.complete) = (revision, false);
            self.keys.clear();
        }
        self.keys.push(key);
        self.check_value(judge, changes, at, told);
        if last {
            self.complete = true;
            self.check_missing_of_revision(judge, changes, at);
            self.through = revision;
        }
    }

    /// What is told was written at that revision.
    fn check_value(
        &self,
        judge: &mut Judge<'_>,
        changes: &[Change<'_>],
        at: usize,
        told: Told<'_>,
    ) {
        let Told { key, value, revision } = told;
        let place = changes.binary_search_by(|one| (one.revision, one.key).cmp(&(revision, key)));
        let what = |value: Option<&str>| match value {
            Some(value) => format!("{key} = {value:?}"),
            None => format!("{key} deleted"),
        };
        match place {
            Ok(place) if changes[place].value == value => {}
            Ok(place) => {
                let change = &changes[place];
                let why = format!(
                    "at revision {revision} it told {}, but it was {}, by {}",
                    what(value),
                    what(change.value),
                    judge.ops[change.op].words()
                );
                judge.find_fed("watch-value", &self.name, at, why);
            }
            // A value that nobody wrote was found with the keys.
            Err(_) if value.is_some() => {}
            Err(_) => {
                let why = format!("{} at revision {revision}, which nobody did", what(value));
                judge.find_fed("watch-value", &self.name, at, why);
            }
        }
    }

    /// Every known change of the range up to a revision was told; those of the revisions that
    /// were told are judged when these are complete.
    fn check_gap(&mut self, judge: &mut Judge<'_>, changes: &[Change<'_>], at: usize, to: u64) {
        while let Some(change) = changes.get(self.next).filter(|change| change.revision <= to) {
            self.next += 1;
            if change.revision > self.revision && change.sure && self.covers(change.key) {
                self.missing(judge, at, change);
            }
        }
    }

    fn check_missing_of_revision(
        &mut self,
        judge: &mut Judge<'_>,
        changes: &[Change<'_>],
        at: usize,
    ) {
        while let Some(change) = changes.get(self.next) {
            if change.revision > self.revision {
                break;
            }
            self.next += 1;
            let told = self.keys.contains(&change.key);
            if !told && change.sure && self.covers(change.key) {
                self.missing(judge, at, change);
            }
        }
    }

    fn missing(&self, judge: &mut Judge<'_>, at: usize, change: &Change<'_>) {
        let why = format!(
            "{} = {} at revision {} was left out; it was written by {}",
            change.key,
            words::value(change.value),
            change.revision,
            judge.ops[change.op].words()
        );
        judge.find_fed("watch-gap", &self.name, at, why);
    }

    fn progress(&mut self, judge: &mut Judge<'_>, changes: &[Change<'_>], at: usize, to: u64) {
        if !self.complete {
            let why = format!("progress came before revision {} was complete", self.revision);
            judge.find_fed("watch-atomic", &self.name, at, why);
        }
        if to < self.through {
            let why = format!("progress at revision {to} follows revision {}", self.through);
            return judge.find_fed("watch-progress", &self.name, at, why);
        }
        self.check_gap(judge, changes, at, to);
        self.through = to;
    }

    fn turned_away(&mut self, judge: &mut Judge<'_>, at: usize, through: u64, compacted: u64) {
        self.over = true;
        if through > compacted {
            let why = format!(
                "it was told that everything up to revision {through} is gone; the most that \
                 anybody compacted is {compacted}"
            );
            judge.find_fed("watch-compacted", &self.name, at, why);
        } else if through < self.through {
            let why = format!(
                "it was told that everything up to revision {through} is gone, but had been told \
                 everything up to {}",
                self.through
            );
            judge.find_fed("watch-compacted", &self.name, at, why);
        }
    }
}
