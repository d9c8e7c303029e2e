//! What one key held at which revision, as far as it is known, and what was seen of it.

use std::collections::BTreeMap;

/// What a key held from a revision on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version<'a> {
    pub(super) at: u64,
    /// `None` where it was absent.
    pub(super) value: Option<&'a str>,
    /// Who wrote it; `None` before the first write.
    pub(super) op: Option<usize>,
    /// Whether the change certainly was one: a transaction's deletion may have found nothing.
    pub(super) sure: bool,
    /// Whether the revision is known; else it is the latest possible.
    pub(super) exact: bool,
}

const ABSENT: Version<'static> = Version { at: 0, value: None, op: None, sure: true, exact: true };

/// What one key held.
#[derive(Debug, Default)]
pub(super) struct Timeline<'a> {
    versions: BTreeMap<u64, Version<'a>>,
    /// By the version that ended unseen: the lowest revision at which it was found to be gone.
    ended: BTreeMap<u64, u64>,
}

impl<'a> Timeline<'a> {
    /// Adds a version; gives the one that stands there already.
    pub(super) fn add(&mut self, version: Version<'a>) -> Option<Version<'a>> {
        if let Some(there) = self.versions.get(&version.at) {
            return Some(*there);
        }
        self.versions.insert(version.at, version);
        None
    }

    /// The version that a revision made.
    pub(super) fn made_at(&self, revision: u64) -> Option<Version<'a>> {
        self.versions.get(&revision).copied()
    }

    /// The last known version at or below a revision.
    pub(super) fn at(&self, revision: u64) -> Version<'a> {
        self.versions.range(..=revision).next_back().map_or(ABSENT, |(_, version)| *version)
    }

    /// Where a version was found to be gone at or below a revision.
    pub(super) fn ended(&self, version: Version<'_>, revision: u64) -> Option<u64> {
        self.ended.get(&version.at).copied().filter(|ended| *ended <= revision)
    }

    /// Notes that a version was found to be gone.
    pub(super) fn end(&mut self, version: Version<'_>, revision: u64) {
        self.ended.entry(version.at).or_insert(revision);
    }

    /// All of them, by revision.
    pub(super) fn versions(&self) -> impl Iterator<Item = &Version<'a>> {
        self.versions.values()
    }
}

/// What was seen of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What<'a> {
    /// It held this.
    Is(&'a str),
    /// It held this, of this revision.
    IsOf(&'a str, u64),
    /// It was absent.
    Absent,
    /// It was there.
    Present,
    /// It did not hold this.
    Not(&'a str),
}

/// A sight of a key at a revision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    pub(super) key: &'a str,
    pub(super) at: u64,
    pub(super) what: What<'a>,
    /// Who saw it.
    pub(super) op: usize,
    /// The line at which that was known.
    pub(super) line: usize,
    /// The rule that a wrong one breaks.
    pub(super) rule: &'static str,
}
