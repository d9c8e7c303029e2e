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
    model::{Entry, Model},
    seen::{Done, Seen},
};

/// How many different legal answers are told.
const LEGAL_MAX: usize = 8;

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

/// Where the search got no further.
#[derive(Debug)]
pub(crate) struct Stuck {
    /// The operation whose return no order reaches, by its place among the entries.
    pub(crate) entry: usize,
    /// The longest order up to there, by numbers of calls.
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
    let mut search = Search::new(model, entries);
    loop {
        if search.required_left == 0 {
            return Found::Legal;
        }
        match search.forward(budget) {
            Step::Taken => {}
            Step::Blocked => {
                search.note_blocked();
                if !search.back() {
                    return Found::Illegal(search.stuck());
                }
            }
            Step::OutOfBudget => return Found::OutOfBudget,
        }
    }
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
    blocked: Blocked<M::State>,
}

/// Where a search looks: among those that must happen, then among those that may.
#[derive(Clone, Copy, Debug)]
enum Cursor {
    Required(u32),
    Optional(u32),
}

struct Blocked<S> {
    entry: Option<usize>,
    order: Vec<usize>,
    states: Vec<S>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, entries: &'a [Entry<M::Op>]) -> Self {
        let required_left = entries.iter().filter(|entry| entry.returned != usize::MAX).count();
        let (required, optional) = (Links::required(entries), Links::optional(entries));
        Self {
            model,
            entries,
            at: Cursor::Required(required.first()),
            state: model.start(),
            done: Done::new(entries.iter().map(|entry| entry.returned != usize::MAX)),
            seen: Seen::default(),
            twins: twins(model, entries),
            frames: Vec::new(),
            required_left,
            next_states: Vec::new(),
            blocked: Blocked { entry: None, order: Vec::new(), states: Vec::new() },
            required,
            optional,
        }
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
        let first_return = self.entries[self.first_return()?].returned;
        (self.entries[entry].called < first_return).then_some(entry)
    }

    /// The operation that returns first of those that are not done.
    fn first_return(&self) -> Option<usize> {
        self.required.first_return()
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
        let optional = self.entries[entry].returned == usize::MAX;
        if optional {
            // Without effect it may as well not have happened.
            states.retain(|state| *state != self.state);
        }
        self.leave_out_reorderings(entry, &mut states);
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
        if states.is_empty() || self.entries[last.entry].returned != usize::MAX {
            return;
        }
        let mut without = Vec::new();
        self.model.step(&last.before, &self.entries[entry].op, &mut without);
        let mut after = Vec::new();
        if self.entries[entry].returned != usize::MAX || last.entry > entry {
            for state in &without {
                self.model.step(state, &self.entries[last.entry].op, &mut after);
            }
        }
        states.retain(|state| !without.contains(state) && !after.contains(state));
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
        if self.entries[frame.entry].returned == usize::MAX {
            let node = self.optional.unlift(frame.entry);
            self.at = Cursor::Optional(self.optional.next(node));
        } else {
            let node = self.required.unlift(frame.entry);
            self.required_left += 1;
            self.at = Cursor::Required(self.required.next(node));
        }
        true
    }

    /// Remembers how far the search got, judged by the return that it could not reach.
    fn note_blocked(&mut self) {
        let Some(entry) = self.first_return() else { return };
        let returned = |entry: usize| self.entries[entry].returned;
        let further = self.blocked.entry.is_none_or(|best| returned(best) < returned(entry));
        if further
            || (self.blocked.entry == Some(entry) && self.blocked.order.len() < self.frames.len())
        {
            self.blocked.order.clear();
            self.blocked.order.extend(self.frames.iter().map(|frame| frame.entry));
        }
        if further {
            self.blocked.entry = Some(entry);
            self.blocked.states.clear();
        }
        if self.blocked.entry == Some(entry)
            && self.blocked.states.len() < LEGAL_MAX
            && !self.blocked.states.contains(&self.state)
        {
            self.blocked.states.push(self.state.clone());
        }
    }

    fn stuck(&self) -> Stuck {
        let entry = self.blocked.entry.expect("what is not legal was blocked somewhere");
        let op = &self.entries[entry].op;
        let mut legal: Vec<String> =
            self.blocked.states.iter().map(|state| self.model.legal(state, op)).collect();
        legal.sort();
        legal.dedup();
        let order = self.blocked.order.iter().map(|entry| self.entries[*entry].id).collect();
        Stuck { entry, order, legal }
    }
}

/// Of each entry that may happen, the one before it of its class.
fn twins<M: Model>(model: &M, entries: &[Entry<M::Op>]) -> Vec<Option<usize>> {
    let mut last = BTreeMap::new();
    let twin = |(at, entry): (usize, &Entry<M::Op>)| {
        let class = model.class(&entry.op).filter(|_| entry.returned == usize::MAX)?;
        last.insert(class, at)
    };
    entries.iter().enumerate().map(twin).collect()
}

/// A list from which operations are taken out and put back, in the reverse order.
struct Links {
    prev: Vec<u32>,
    next: Vec<u32>,
    /// What each node stands for; the head and the end stand for nothing.
    nodes: Vec<Node>,
    /// Each entry's call.
    call_of: Vec<u32>,
    /// Each entry's return.
    return_of: Vec<u32>,
    /// The returns that are left, in their order.
    returns: Returns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Call(u32),
    Return(u32),
    Border,
}

const NONE: u32 = u32::MAX;

impl Links {
    fn required<O>(entries: &[Entry<O>]) -> Self {
        let mut events = Vec::new();
        for (at, entry) in (0_u32..).zip(entries) {
            if entry.returned != usize::MAX {
                events.push((entry.called, Node::Call(at)));
                events.push((entry.returned, Node::Return(at)));
            }
        }
        Self::new(entries.len(), events)
    }

    fn optional<O>(entries: &[Entry<O>]) -> Self {
        let optional = (0_u32..).zip(entries).filter(|(_, entry)| entry.returned == usize::MAX);
        Self::new(
            entries.len(),
            optional.map(|(at, entry)| (entry.called, Node::Call(at))).collect(),
        )
    }

    fn new(entries: usize, mut events: Vec<(usize, Node)>) -> Self {
        events.sort_by_key(|(line, _)| *line);
        let mut nodes = vec![Node::Border];
        nodes.extend(events.iter().map(|(_, node)| *node));
        nodes.push(Node::Border);
        let (mut call_of, mut return_of) = (vec![NONE; entries], vec![NONE; entries]);
        let mut order = Vec::new();
        for (at, node) in (0_u32..).zip(&nodes) {
            match node {
                Node::Call(entry) => call_of[*entry as usize] = at,
                Node::Return(entry) => {
                    return_of[*entry as usize] = at;
                    order.push(*entry);
                }
                Node::Border => {}
            }
        }
        let len = u32::try_from(nodes.len()).expect("a history is smaller");
        Self {
            prev: (0..len).map(|at| at.wrapping_sub(1)).collect(),
            next: (1..=len).collect(),
            nodes,
            call_of,
            return_of,
            returns: Returns::new(entries, &order),
        }
    }

    fn first(&self) -> u32 {
        self.next[0]
    }

    fn next(&self, node: u32) -> u32 {
        self.next[node as usize]
    }

    fn is_end(&self, node: u32) -> bool {
        self.nodes[node as usize] == Node::Border
    }

    fn is_call(&self, node: u32) -> bool {
        matches!(self.nodes[node as usize], Node::Call(_))
    }

    fn entry(&self, node: u32) -> usize {
        match self.nodes[node as usize] {
            Node::Call(entry) | Node::Return(entry) => entry as usize,
            Node::Border => unreachable!("the walk ends before the border"),
        }
    }

    fn first_return(&self) -> Option<usize> {
        self.returns.first()
    }

    fn lift(&mut self, entry: usize) {
        for node in [self.call_of[entry], self.return_of[entry]] {
            if node != NONE {
                let (prev, next) = (self.prev[node as usize], self.next[node as usize]);
                self.next[prev as usize] = next;
                self.prev[next as usize] = prev;
            }
        }
        self.returns.take(entry);
    }

    /// Puts the entry that was taken last back, and gives its call.
    fn unlift(&mut self, entry: usize) -> u32 {
        for node in [self.return_of[entry], self.call_of[entry]] {
            if node != NONE {
                let (prev, next) = (self.prev[node as usize], self.next[node as usize]);
                self.next[prev as usize] = node;
                self.prev[next as usize] = node;
            }
        }
        self.returns.put_back(entry);
        self.call_of[entry]
    }
}

/// The entries that are left, by the order of their returns.
struct Returns {
    prev: Vec<u32>,
    next: Vec<u32>,
    /// Each entry's place, from 1; 0 is the head.
    place: Vec<u32>,
    entry: Vec<u32>,
}

impl Returns {
    fn new(entries: usize, order: &[u32]) -> Self {
        let mut place = vec![NONE; entries];
        for (at, entry) in (1_u32..).zip(order) {
            place[*entry as usize] = at;
        }
        let len = u32::try_from(order.len() + 2).expect("a history is smaller");
        let entry = [NONE].into_iter().chain(order.iter().copied()).chain([NONE]).collect();
        Self {
            prev: (0..len).map(|at| at.wrapping_sub(1)).collect(),
            next: (1..=len).collect(),
            place,
            entry,
        }
    }

    fn first(&self) -> Option<usize> {
        let entry = self.entry[self.next[0] as usize];
        (entry != NONE).then_some(entry as usize)
    }

    fn take(&mut self, entry: usize) {
        let at = self.place[entry];
        if at != NONE {
            let (prev, next) = (self.prev[at as usize], self.next[at as usize]);
            self.next[prev as usize] = next;
            self.prev[next as usize] = prev;
        }
    }

    fn put_back(&mut self, entry: usize) {
        let at = self.place[entry];
        if at != NONE {
            let (prev, next) = (self.prev[at as usize], self.next[at as usize]);
            self.next[prev as usize] = at;
            self.prev[next as usize] = at;
        }
    }
}
