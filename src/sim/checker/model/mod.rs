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
use std::collections::BTreeMap;

pub(crate) use guard::Guard;
pub(crate) use keys::Keys;
pub(crate) use lock::Lock;
pub(crate) use queue::Queue;
pub(crate) use register::Register;
pub(crate) use service::Service;
pub(crate) use stream::Stream;

use crate::sim::{checker::ops::Op, history::Answer};

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
}

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

    pub(crate) fn text(&self, number: u32) -> &str {
        &self.texts[number as usize]
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
