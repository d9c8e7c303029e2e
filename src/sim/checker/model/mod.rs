//! What the black box takes the services for: small state machines, one a file.
//!
//! A model says which states may follow an operation with its answer; none is to say that the
//! answer is illegal there. Operations of unknown outcome bring every state that they may leave
//! behind. Nothing here knows of order, time or search.

mod guard;
mod keys;
mod lock;
mod queue;
mod register;
mod service;
mod stream;

use core::{fmt::Debug, hash::Hash};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) use guard::Guard;
pub(crate) use keys::Keys;
pub(crate) use lock::Lock;
pub(crate) use queue::Queue;
pub(crate) use register::Register;
pub(crate) use service::Service;
pub(crate) use stream::Stream;

use crate::sim::{
    checker::ops::Op,
    history::{Answer, Call},
};

/// A service as clients see it.
pub(crate) trait Model: Sized {
    /// Where it stands.
    type State: Clone + Eq + Hash + Debug;
    /// An operation with its answer.
    type Op: Debug;

    /// Reads the operations of one part of a history.
    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<Self::Op>>);

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Adds the states that may follow.
    fn step(&self, state: &Self::State, op: &Self::Op, next: &mut Vec<Self::State>);

    /// Things of the state without which an operation, with its answer, cannot happen; numbers
    /// that are small and dense.
    fn needs(&self, _op: &Self::Op, _things: &mut Vec<u32>) {}

    /// Things of the state that an operation may bring about.
    fn makes(&self, _op: &Self::Op, _things: &mut Vec<u32>) {}

    /// Things that one state has and the next has not.
    fn lost(&self, _before: &Self::State, _after: &Self::State, _things: &mut Vec<u32>) {}

    /// Which of several things exclude each other: a key's values have one number. `None` for what
    /// may be brought about again and again.
    fn place(&self, _thing: u32) -> Option<u32> {
        None
    }

    /// Which operations of unknown outcome do the same: of these only the first that is left is
    /// tried.
    fn class(&self, _op: &Self::Op) -> Option<u64> {
        None
    }

    /// What the operation might have been answered, in words.
    fn legal(&self, state: &Self::State, op: &Self::Op) -> String;
}

/// An operation of a search.
#[derive(Debug)]
pub(crate) struct Entry<O> {
    pub(crate) id: u64,
    pub(crate) op: O,
    pub(crate) called: usize,
    /// `usize::MAX` where nobody knows whether it took effect.
    pub(crate) returned: usize,
}

impl<O> Entry<O> {
    pub(crate) fn new(from: &Op<'_>, op: O) -> Self {
        Self { id: from.id, op, called: from.called, returned: from.returned }
    }
}

/// Texts as numbers.
#[derive(Debug, Default)]
pub(crate) struct Names {
    numbers: BTreeMap<String, u32>,
    texts: Vec<String>,
    /// What answers and compares speak of.
    seen: BTreeSet<String>,
}

/// All values of which no answer and no compare speaks.
const UNSEEN: u32 = u32::MAX;

impl Names {
    pub(crate) fn number(&mut self, text: &str) -> u32 {
        if let Some(known) = self.numbers.get(text) {
            return *known;
        }
        let number = u32::try_from(self.texts.len()).expect("a history is smaller");
        self.numbers.insert(text.to_owned(), number);
        self.texts.push(text.to_owned());
        number
    }

    /// Names whose values matter: those that an answer or a compare speaks of.
    fn seen(ops: &[&Op<'_>]) -> Self {
        let mut names = Self::default();
        let mut see = |value: &str| {
            names.seen.insert(value.to_owned());
        };
        for op in ops {
            match op.call {
                Call::Cas { expected: Some(expected), .. } => see(expected),
                Call::Txn { compares, .. } => {
                    compares.iter().filter_map(|one| one.value.as_deref()).for_each(&mut see);
                }
                _ => {}
            }
            match known(op) {
                Some(Answer::Got { value: Some(read), .. }) => see(&read.value),
                Some(Answer::Txn { reads, .. }) => {
                    reads.iter().flatten().for_each(|read| see(&read.value));
                }
                _ => {}
            }
        }
        names
    }

    /// The number of a value that an operation writes: of unknown outcome, all values that nobody
    /// speaks of are one.
    fn written(&mut self, op: &Op<'_>, value: &str) -> u32 {
        if op.is_unknown() && !self.seen.contains(value) { UNSEEN } else { self.number(value) }
    }

    /// How many there are.
    fn len(&self) -> u32 {
        u32::try_from(self.texts.len()).expect("a history is smaller")
    }

    pub(crate) fn text(&self, number: u32) -> &str {
        self.texts.get(number as usize).map_or("a value that nobody saw", String::as_str)
    }

    pub(crate) fn words(&self, value: Option<u32>) -> String {
        super::words::value(value.map(|number| self.text(number)))
    }
}

/// How much of a TTL passes at least before anything may expire, in per cent: clocks drift.
const TTL_PERCENT_MIN: u64 = 90;

/// The earliest moment at which what lives for a TTL from a moment on may have expired; all in
/// nanoseconds.
pub(crate) const fn expiry_min(from: u64, ttl_ms: u64) -> u64 {
    from.saturating_add(ttl_ms.saturating_mul(1_000_000 * TTL_PERCENT_MIN / 100))
}

/// The answer, where it is known.
pub(crate) const fn known<'a>(op: &Op<'a>) -> Option<&'a Answer> {
    match op.end {
        crate::sim::checker::ops::End::Ok(answer) => Some(answer),
        _ => None,
    }
}
