//! Runs a plan and says what came of it: a panic of the program under test is a broken rule like
//! any other.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    sim::{
        history::History,
        invariants::Broken,
        plan::{Fault, Plan},
        world::World,
    },
    types::Duration,
};

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
    let (recorder, counts, trace) = world.into_parts();
    let history = recorder.into_history();
    if broken.is_none() {
        broken = judge(&history);
    }
    Report { broken, counts, history, trace, simulated }
}

/// What the checkers find in what clients saw.
fn judge(_history: &History) -> Option<Broken> {
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
