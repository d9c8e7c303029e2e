//! The search for a legal order: Wing and Gong's, with Lowe's memory ("Testing for
//! linearizability", 2017) and Horn and Kroening's split into parts.
//!
//! It walks the operations in the order of their calls, takes one that may come first, and goes
//! on; where nothing fits before the next return it takes the last one back. Operations of
//! unknown outcome are tried last. A place that was reached before with the same operations done,
//! the same state and no more unknown ones used is not entered again: what did not help then does
//! not help now. Nor is an unknown operation followed by one before which it might as well have
//! been left out, or after which it might as well have come: that order is tried by itself.

use std::collections::BTreeMap;

use crate::sim::checker::{
    Budget,
    links::Links,
    model::{Entry, Model},
    refute::refute,
    seen::{Done, Seen},
};

/// How many different legal answers are told.
const LEGAL_MAX: usize = 8;

/// How many steps may be spent on naming further legal answers.
const ANSWER_STEPS_MAX: u64 = 20_000;

/// What a search ended with.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is a legal order.
    Legal,
    /// There is none.
    Illegal(Stuck),
    /// The budget is spent.
    OutOfBudget,
}

/// Where a history stops being legal.
#[derive(Debug)]
pub(crate) struct Stuck {
    /// The operation whose return no order reaches, by its place among the entries.
    pub(crate) entry: usize,
    /// A legal order of everything that returned before, by numbers of calls.
    pub(crate) order: Vec<u64>,
    /// What it might have been answered.
    pub(crate) legal: Vec<String>,
}

/// Looks for a legal order of the entries, which stand in the order of their calls.
pub(crate) fn search<M: Model>(
    model: &M,
    entries: &[Entry<M::Op>],
    budget: &mut Budget<'_>,
) -> Found {
    if refute(model, entries, usize::MAX - 1) {
        return Found::Illegal(stuck(model, entries, budget));
    }
    match Search::new(model, entries, usize::MAX - 1).run(budget) {
        Some(true) => Found::Legal,
        Some(false) => Found::Illegal(stuck(model, entries, budget)),
        None => Found::OutOfBudget,
    }
}

/// Finds the first return that makes an illegal history illegal, and what was legal there. What
/// returns later is taken for unknown.
fn stuck<M: Model>(model: &M, entries: &[Entry<M::Op>], budget: &mut Budget<'_>) -> Stuck {
    let mut returns: Vec<(usize, usize)> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.returned != usize::MAX)
        .map(|(at, entry)| (entry.returned, at))
        .collect();
    returns.sort_unstable();
    let (mut legal, mut illegal) = (0, returns.len());
    // What contradicts itself at once is found at once; the search then looks before that.
    let refuted = returns.partition_point(|(line, _)| !refute(model, entries, *line));
    if refuted < illegal {
        illegal = refuted + 1;
        if let Some(Some(true)) = refuted
            .checked_sub(1)
            .map(|before| Search::new(model, entries, returns[before].0).run(budget))
        {
            legal = refuted;
        }
    }
    while illegal - legal > 1 {
        let middle = usize::midpoint(legal, illegal);
        match Search::new(model, entries, returns[middle - 1].0).run(budget) {
            Some(true) => legal = middle,
            Some(false) => illegal = middle,
            None => break,
        }
    }
    let (line, entry) = returns[illegal - 1];
    let mut search = Search::new(model, entries, line - 1);
    let (mut order, mut states) = (Vec::new(), Vec::new());
    let mut few = Budget::steps(ANSWER_STEPS_MAX);
    while states.len() < LEGAL_MAX {
        let budget = if states.is_empty() { &mut *budget } else { &mut few };
        if search.run(budget) != Some(true) {
            break;
        }
        if states.is_empty() {
            order = search.frames.iter().map(|frame| entries[frame.entry].id).collect();
        }
        for state in search.states_now() {
            if !states.contains(&state) {
                states.push(state);
            }
        }
        if !search.back() {
            break;
        }
    }
    states.truncate(LEGAL_MAX);
    let mut legal: Vec<String> =
        states.iter().map(|state| model.legal(state, &entries[entry].op)).collect();
    legal.sort();
    legal.dedup();
    Stuck { entry, order, legal }
}

enum Step {
    Taken,
    Blocked,
    OutOfBudget,
}

/// An operation that was taken, and what else was possible then.
struct Frame<S> {
    entry: usize,
    before: S,
    /// Further states that may follow the same operation.
    others: Vec<S>,
}

struct Search<'a, M: Model> {
    model: &'a M,
    entries: &'a [Entry<M::Op>],
    /// When each returned; `usize::MAX` where it need not happen.
    returned: Vec<usize>,
    /// Calls and returns of those that must happen, in their order.
    required: Links,
    /// Calls of those that may happen.
    optional: Links,
    state: M::State,
    done: Done,
    seen: Seen<M::State>,
    frames: Vec<Frame<M::State>>,
    /// Of each entry that may happen, the one before it that does the same.
    twins: Vec<Option<usize>>,
    required_left: usize,
    /// Where to look next.
    at: Cursor,
    next_states: Vec<M::State>,
    needs: Needs,
}

/// Where a search looks: among those that must happen, then among those that may.
#[derive(Clone, Copy, Debug)]
enum Cursor {
    Required(u32),
    Optional(u32),
}

impl<'a, M: Model> Search<'a, M> {
    /// A search of what was called up to a line; what returns behind it need not happen.
    fn new(model: &'a M, entries: &'a [Entry<M::Op>], line: usize) -> Self {
        let returned: Vec<usize> = entries
            .iter()
            .map(|entry| if entry.returned <= line { entry.returned } else { usize::MAX })
            .collect();
        let called = |at: usize| entries[at].called <= line;
        let must = |at: usize| returned[at] != usize::MAX;
        let all = || (0..entries.len()).filter(|at| called(*at));
        let required = Links::required(entries, &returned);
        let optional = Links::optional(entries, all().filter(|at| !must(*at)));
        Self {
            model,
            entries,
            at: Cursor::Required(required.first()),
            state: model.start(),
            done: Done::new((0..entries.len()).map(must)),
            seen: Seen::default(),
            twins: twins(model, entries, all().filter(|at| !must(*at))),
            frames: Vec::new(),
            required_left: all().filter(|at| must(*at)).count(),
            next_states: Vec::new(),
            needs: Needs::new(model, entries, all().map(|at| (at, must(at)))),
            returned,
            required,
            optional,
        }
    }

    /// Goes on to the next legal order; `None` where the budget is spent.
    fn run(&mut self, budget: &mut Budget<'_>) -> Option<bool> {
        loop {
            if self.required_left == 0 {
                return Some(true);
            }
            match self.forward(budget) {
                Step::Taken => {}
                Step::Blocked if self.back() => {}
                Step::Blocked => return Some(false),
                Step::OutOfBudget => return None,
            }
        }
    }

    /// Where things stand, and where they stand once one more of those that may happen has.
    fn states_now(&self) -> Vec<M::State> {
        let mut states = vec![self.state.clone()];
        let mut node = self.optional.first();
        while !self.optional.is_end(node) {
            self.model.step(&self.state, &self.entries[self.optional.entry(node)].op, &mut states);
            node = self.optional.next(node);
        }
        states
    }

    fn must(&self, entry: usize) -> bool {
        self.returned[entry] != usize::MAX
    }

    /// Takes the next operation that fits.
    fn forward(&mut self, budget: &mut Budget<'_>) -> Step {
        loop {
            let entry = match self.at {
                Cursor::Required(node) if self.required.is_call(node) => self.required.entry(node),
                // The first return that is left: nothing that was called later comes before it.
                Cursor::Required(_) => {
                    self.at = Cursor::Optional(self.optional.first());
                    continue;
                }
                Cursor::Optional(node) => {
                    let Some(entry) = self.optional_entry(node) else { return Step::Blocked };
                    if self.twins[entry].is_some_and(|twin| !self.done.is_set(twin)) {
                        self.pass();
                        continue;
                    }
                    entry
                }
            };
            if !budget.spend() {
                return Step::OutOfBudget;
            }
            if self.take(entry) {
                return Step::Taken;
            }
            self.pass();
        }
    }

    fn optional_entry(&self, node: u32) -> Option<usize> {
        if self.optional.is_end(node) {
            return None;
        }
        let entry = self.optional.entry(node);
        let first_return = self.returned[self.required.first_return()?];
        (self.entries[entry].called < first_return).then_some(entry)
    }

    fn pass(&mut self) {
        self.at = match self.at {
            Cursor::Required(node) => Cursor::Required(self.required.next(node)),
            Cursor::Optional(node) => Cursor::Optional(self.optional.next(node)),
        };
    }

    /// Does an operation where it fits and leads somewhere new.
    fn take(&mut self, entry: usize) -> bool {
        let mut states = core::mem::take(&mut self.next_states);
        states.clear();
        self.model.step(&self.state, &self.entries[entry].op, &mut states);
        let optional = !self.must(entry);
        if optional {
            // Without effect it may as well not have happened.
            states.retain(|state| *state != self.state);
        }
        self.leave_out_reorderings(entry, &mut states);
        self.leave_out_dead_ends(entry, &mut states);
        if !states.is_empty() {
            self.done.set(entry);
            states.retain(|state| self.seen.insert(&self.done, state));
            if states.is_empty() {
                self.done.unset(entry);
            }
        }
        let taken = states.pop();
        if let Some(state) = taken {
            let others = if states.is_empty() { Vec::new() } else { core::mem::take(&mut states) };
            let before = core::mem::replace(&mut self.state, state);
            self.frames.push(Frame { entry, before, others });
            if optional {
                self.optional.lift(entry);
            } else {
                self.required.lift(entry);
                self.required_left -= 1;
            }
            self.needs.take(entry);
            self.at = Cursor::Required(self.required.first());
            self.next_states = states;
            return true;
        }
        self.next_states = states;
        false
    }

    /// After an operation that may happen: leaves out the states that are reached without it too,
    /// or with it after this one. Of two that may happen the earlier one comes first.
    fn leave_out_reorderings(&self, entry: usize, states: &mut Vec<M::State>) {
        let Some(last) = self.frames.last() else { return };
        if states.is_empty() || self.must(last.entry) {
            return;
        }
        let mut without = Vec::new();
        self.model.step(&last.before, &self.entries[entry].op, &mut without);
        let mut after = Vec::new();
        if self.must(entry) || last.entry > entry {
            for state in &without {
                self.model.step(state, &self.entries[last.entry].op, &mut after);
            }
        }
        states.retain(|state| !without.contains(state) && !after.contains(state));
    }

    /// Leaves out states that have lost what an operation that must happen still needs, where
    /// nothing that is left can bring it back.
    fn leave_out_dead_ends(&mut self, entry: usize, states: &mut Vec<M::State>) {
        let mut lost = Vec::new();
        states.retain(|state| {
            lost.clear();
            self.model.lost(&self.state, state, &mut lost);
            !lost.iter().any(|thing| self.needs.misses(*thing, entry))
        });
    }

    /// Takes the last operation back and goes on behind it; `false` where there is none.
    fn back(&mut self) -> bool {
        let Some(mut frame) = self.frames.pop() else { return false };
        if let Some(other) = frame.others.pop() {
            self.state = other;
            self.frames.push(frame);
            self.at = Cursor::Required(self.required.first());
            return true;
        }
        self.state = frame.before;
        self.done.unset(frame.entry);
        self.needs.put_back(frame.entry);
        if !self.must(frame.entry) {
            let node = self.optional.unlift(frame.entry);
            self.at = Cursor::Optional(self.optional.next(node));
        } else {
            let node = self.required.unlift(frame.entry);
            self.required_left += 1;
            self.at = Cursor::Required(self.required.next(node));
        }
        true
    }
}

/// Of each entry that may happen, the one before it of its class.
fn twins<M: Model>(
    model: &M,
    entries: &[Entry<M::Op>],
    optional: impl Iterator<Item = usize>,
) -> Vec<Option<usize>> {
    let (mut last, mut twins) = (BTreeMap::new(), vec![None; entries.len()]);
    for at in optional {
        if let Some(class) = model.class(&entries[at].op) {
            twins[at] = last.insert(class, at);
        }
    }
    twins
}

/// What operations that are left need of the state, and which of them can bring it about.
struct Needs {
    /// Of each entry that must happen, what it needs.
    needed_by: Vec<Vec<u32>>,
    /// Of each entry, what it can bring about.
    made_by: Vec<Vec<u32>>,
    needed: Vec<u32>,
    made: Vec<u32>,
}

impl Needs {
    fn new<M: Model>(
        model: &M,
        entries: &[Entry<M::Op>],
        counted: impl Iterator<Item = (usize, bool)>,
    ) -> Self {
        let (mut needed_by, mut made_by) =
            (vec![Vec::new(); entries.len()], vec![Vec::new(); entries.len()]);
        let mut most = 0;
        for (at, must) in counted {
            model.makes(&entries[at].op, &mut made_by[at]);
            if must {
                model.needs(&entries[at].op, &mut needed_by[at]);
            }
            most = needed_by[at].iter().chain(&made_by[at]).copied().fold(most, u32::max);
        }
        let count = |lists: &[Vec<u32>]| {
            let mut counts = vec![0; most as usize + 1];
            for thing in lists.iter().flatten() {
                counts[*thing as usize] += 1;
            }
            counts
        };
        let (needed, made) = (count(&needed_by), count(&made_by));
        Self { needed_by, made_by, needed, made }
    }

    /// Whether somebody but an entry needs a thing that nobody but the entry can bring back.
    fn misses(&self, thing: u32, entry: usize) -> bool {
        let Some(needed) = self.needed.get(thing as usize) else { return false };
        let by = |things: &[u32]| things.iter().filter(|one| **one == thing).count() as u64;
        u64::from(*needed) > by(&self.needed_by[entry])
            && u64::from(self.made[thing as usize]) <= by(&self.made_by[entry])
    }

    fn take(&mut self, entry: usize) {
        for thing in &self.needed_by[entry] {
            self.needed[*thing as usize] -= 1;
        }
        for thing in &self.made_by[entry] {
            self.made[*thing as usize] -= 1;
        }
    }

    fn put_back(&mut self, entry: usize) {
        for thing in &self.needed_by[entry] {
            self.needed[*thing as usize] += 1;
        }
        for thing in &self.made_by[entry] {
            self.made[*thing as usize] += 1;
        }
    }
}
