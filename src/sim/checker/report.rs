//! What a checker found: a verdict, the broken rules by name, and what was counted.
//!
//! The name of a rule is stable: shrinking demands that the same one breaks, and `docs/history.md`
//! lists them all. Nothing here decides anything.

use std::collections::BTreeMap;

use serde::Serialize;

/// How a history was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It follows the rules; proven.
    Legal,
    /// Nobody can tell: out of budget, or the answers do not carry enough. Never to be read as
    /// legal.
    Unknown,
    /// It breaks a rule.
    Illegal,
}

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule's name, one of [`super::RULES`].
    pub rule: &'static str,
    /// What happened, in words.
    pub words: String,
    /// The call that shows it, by its number.
    pub op: Option<u64>,
    /// The line that shows it, counted from 0 without the header.
    pub line: Option<usize>,
    /// Answers that would have been legal there, in words; empty where that is not known.
    pub legal: Vec<String>,
}

/// A part of a history that is judged by itself: a key, a set of keys that transactions connect, a
/// lock, a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is, such as `keys k0 k1` or `lock l0`.
    pub name: String,
    /// How many operations it has.
    pub operations: usize,
    /// How it was judged.
    pub verdict: Verdict,
    /// Why it is unknown, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Of an illegal part, the calls of the longest legal order that was found, by their numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<u64>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Calls.
    pub operations: u64,
    /// Calls that were carried out.
    pub ok: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Calls of which nobody knows.
    pub unknown: u64,
    /// Calls of unknown outcome whose effect somebody saw.
    pub placed: u64,
    /// Pairs of clients that believed to hold one lock at one time.
    pub overlaps: u64,
    /// Changes that watches were told.
    pub told_changes: u64,
    /// Events that subscriptions were told.
    pub told_events: u64,
    /// Steps of the search.
    pub steps: u64,
}

/// What a checker found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of the whole history: illegal where a part is, else unknown where a part is.
    pub verdict: Verdict,
    /// The broken rules, the first one first.
    pub findings: Vec<Finding>,
    /// The parts, by name.
    pub parts: Vec<Part>,
    /// What was counted.
    pub counts: Counts,
}

impl Report {
    /// Sums parts and findings up.
    pub(crate) fn new(findings: Vec<Finding>, mut parts: Vec<Part>, counts: Counts) -> Self {
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        let worst = parts.iter().map(|part| part.verdict).max().unwrap_or(Verdict::Legal);
        let verdict = if findings.is_empty() { worst } else { Verdict::Illegal };
        Self { verdict, findings, parts, counts }
    }

    /// A history that contradicts itself in its form.
    pub(crate) fn malformed(line: usize, words: String) -> Self {
        let part = Part {
            name: "history".into(),
            operations: 0,
            verdict: Verdict::Unknown,
            why: Some(format!("line {} after the header: {words}", line + 1)),
            order: Vec::new(),
        };
        Self::new(Vec::new(), vec![part], Counts::default())
    }

    /// Both oracles' findings as one report. A part is illegal where one oracle says so, legal
    /// where one proves it.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        let mut parts: BTreeMap<String, Part> = BTreeMap::new();
        for part in self.parts.drain(..).chain(other.parts) {
            let Some(known) = parts.get_mut(&part.name) else {
                parts.insert(part.name.clone(), part);
                continue;
            };
            let rank = |verdict| match verdict {
                Verdict::Illegal => 2,
                Verdict::Legal => 1,
                Verdict::Unknown => 0,
            };
            let order =
                if known.order.is_empty() { part.order.clone() } else { known.order.clone() };
            if rank(part.verdict) > rank(known.verdict) {
                *known = part;
            }
            known.order = order;
        }
        self.findings.extend(other.findings);
        let counts = Counts {
            placed: self.counts.placed.max(other.counts.placed),
            overlaps: self.counts.overlaps.max(other.counts.overlaps),
            told_changes: self.counts.told_changes.max(other.counts.told_changes),
            told_events: self.counts.told_events.max(other.counts.told_events),
            steps: self.counts.steps + other.counts.steps,
            ..self.counts
        };
        Self::new(self.findings, parts.into_values().collect(), counts)
    }
}
