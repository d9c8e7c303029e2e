//! Runs a plan and says what came of it: a panic of the program under test is a broken rule like
//! any other.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    sim::{
        checker::{Budget, Verdict, black_box, witness},
        history::History,
        invariants::Broken,
        plan::{Fault, Plan},
        world::World,
    },
    types::Duration,
};

/// How many steps the black box may take for a history.
const BLACK_BOX_STEPS: u64 = 50_000;

/// How often what happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faults that struck, by the name that a plan gives them.
    pub faults: BTreeMap<String, u64>,
    /// What they and the cluster did.
    pub events: BTreeMap<&'static str, u64>,
    /// What became of clients' calls.
    pub operations: BTreeMap<&'static str, u64>,
}

impl Counts {
    pub(crate) fn count(&mut self, what: &'static str) {
        *self.events.entry(what).or_default() += 1;
    }

    pub(crate) fn add_events(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            *self.events.entry(what).or_default() += count;
        }
    }

    pub(crate) fn at_least(&mut self, what: &'static str, count: u64) {
        if count > 0 {
            let known = self.events.entry(what).or_default();
            *known = count.max(*known);
        }
    }

    pub(crate) fn fault(&mut self, fault: &Fault) {
        *self.faults.entry(fault.name()).or_default() += 1;
    }

    pub(crate) fn operation(&mut self, what: &'static str) {
        *self.operations.entry(what).or_default() += 1;
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.faults {
            *self.faults.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &other.events {
            *self.events.entry(name).or_default() += count;
        }
        for (name, count) in &other.operations {
            *self.operations.entry(name).or_default() += count;
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Report {
    /// The rule that did not hold, if one did not.
    pub broken: Option<Broken>,
    /// How often what happened.
    pub counts: Counts,
    /// What clients saw.
    pub history: History,
    /// What happened, a line each, where that was asked for.
    pub trace: Vec<String>,
    /// How much time was simulated.
    pub simulated: Duration,
}

/// Runs a plan.
#[must_use]
pub fn run(plan: &Plan, traced: bool) -> Report {
    let mut world = World::new(plan.clone(), traced);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let simulated = world.now().since(crate::types::Instant::ZERO);
    let mut broken = match ended {
        Ok(ended) => ended.err(),
        Err(panic) => Some(panicked(panic.as_ref())),
    };
    let (recorder, mut counts, trace) = world.into_parts();
    let history = recorder.into_history();
    if broken.is_none() {
        broken = judge(&history, &mut counts);
    }
    Report { broken, counts, history, trace, simulated }
}

/// What the checkers find in what clients saw. The witness proves or refutes; the black box, which
/// trusts no revision, may run out of its budget, and is counted then.
fn judge(history: &History, counts: &mut Counts) -> Option<Broken> {
    let report = witness(history);
    counts.add_events("overlaps of believed holders", report.counts.overlaps);
    counts.add_events("unknown calls seen to be done", report.counts.placed);
    if let Some(finding) = report.findings.first() {
        return Some(Broken::new(finding.rule, finding.words.clone()));
    }
    if report.verdict != Verdict::Legal {
        let why = report.parts.iter().find_map(|part| part.why.clone()).unwrap_or_default();
        return Some(Broken::new("witness-is-sure", why));
    }
    let report = black_box(history, &mut Budget::steps(BLACK_BOX_STEPS));
    if let Some(finding) = report.findings.first() {
        return Some(Broken::new(finding.rule, finding.words.clone()));
    }
    let unsure = report.parts.iter().filter(|part| part.verdict == Verdict::Unknown);
    let unsure = unsure.count() as u64;
    counts.add_events("black box out of budget", unsure);
    counts.add_events("black box proofs", report.parts.len() as u64 - unsure);
    None
}

/// The rule that a panic names is its message up to the first colon or digit.
fn panicked(panic: &(dyn core::any::Any + Send)) -> Broken {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words");
    let told = message.split_once("` failed: ").map_or(message, |(_, told)| told);
    let rule = told.split([':', '\n']).next().unwrap_or(told);
    let rule: String = rule.chars().filter(|c| !c.is_ascii_digit()).take(80).collect();
    let words: String = message.chars().take(600).collect();
    Broken { rule: format!("panic, {}", rule.trim()), words }
}
