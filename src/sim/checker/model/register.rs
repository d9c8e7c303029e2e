//! One key: reads, writes, deletes and compare-and-set. Absent is a value like any other.

use crate::sim::{
    checker::{
        model::{Entry, Model, Names, UNSEEN, known},
        ops::Op,
    },
    history::{Answer, Call},
};

/// One key.
#[derive(Debug, Default)]
pub(crate) struct Register {
    names: Names,
}

/// An operation on a key; what is `None` of an answer is not known.
#[derive(Debug)]
pub(crate) enum RegisterOp {
    Read { value: Option<u32> },
    Write { value: u32 },
    Delete { existed: Option<bool> },
    Cas { expected: Option<u32>, value: u32, swapped: Option<bool> },
}

/// A value as a thing that others may need; none for one that nobody saw.
const fn thing(value: Option<u32>) -> Option<u32> {
    match value {
        None => Some(0),
        Some(UNSEEN) => None,
        Some(value) => Some(value + 1),
    }
}

impl Model for Register {
    type State = Option<u32>;
    type Op = RegisterOp;

    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<RegisterOp>>) {
        let mut model = Self { names: Names::seen(ops) };
        let names = &mut model.names;
        let mut entries = Vec::with_capacity(ops.len());
        for op in ops {
            let answer = known(op);
            let read = match (op.call, answer) {
                (Call::Get { .. }, Some(Answer::Got { value, .. })) => {
                    RegisterOp::Read { value: value.as_ref().map(|read| names.number(&read.value)) }
                }
                (Call::Put { value, .. }, _) => {
                    RegisterOp::Write { value: names.written(op, value) }
                }
                (Call::Delete { .. }, Some(Answer::Deleted { existed, .. })) => {
                    RegisterOp::Delete { existed: Some(*existed) }
                }
                (Call::Delete { .. }, _) => RegisterOp::Delete { existed: None },
                (Call::Cas { expected, value, .. }, answer) => RegisterOp::Cas {
                    expected: expected.as_deref().map(|value| names.number(value)),
                    value: names.written(op, value),
                    swapped: match answer {
                        Some(Answer::Swapped { swapped, .. }) => Some(*swapped),
                        _ => None,
                    },
                },
                _ => continue,
            };
            entries.push(Entry::new(op, read));
        }
        (model, entries)
    }

    fn start(&self) -> Self::State {
        None
    }

    fn step(&self, state: &Self::State, op: &RegisterOp, next: &mut Vec<Self::State>) {
        match *op {
            RegisterOp::Read { value } if *state == value => next.push(*state),
            RegisterOp::Write { value } => next.push(Some(value)),
            RegisterOp::Delete { existed } if existed.is_none_or(|was| was == state.is_some()) => {
                next.push(None);
            }
            RegisterOp::Cas { expected, value, swapped } => {
                let holds = *state == expected;
                if swapped.is_none_or(|swapped| swapped == holds) {
                    next.push(if holds { Some(value) } else { *state });
                }
            }
            _ => {}
        }
    }

    fn needs(&self, op: &RegisterOp, things: &mut Vec<u32>) {
        match op {
            RegisterOp::Read { value } => things.extend(thing(*value)),
            RegisterOp::Delete { existed: Some(false) } => things.extend(thing(None)),
            RegisterOp::Cas { expected, swapped: Some(true), .. } => {
                things.extend(thing(*expected));
            }
            _ => {}
        }
    }

    fn makes(&self, op: &RegisterOp, things: &mut Vec<u32>) {
        match op {
            RegisterOp::Write { value }
            | RegisterOp::Cas { value, swapped: None | Some(true), .. } => {
                things.extend(thing(Some(*value)));
            }
            RegisterOp::Delete { existed: None | Some(true) } => things.extend(thing(None)),
            _ => {}
        }
    }

    fn lost(&self, before: &Self::State, after: &Self::State, things: &mut Vec<u32>) {
        if before != after {
            things.extend(thing(*before));
        }
    }

    fn place(&self, thing: u32) -> Option<u32> {
        // Absent is what any deletion brings about.
        (thing > 0).then_some(0)
    }

    fn class(&self, op: &RegisterOp) -> Option<u64> {
        match *op {
            RegisterOp::Delete { existed: None } => Some(0),
            RegisterOp::Write { value: UNSEEN } => Some(1),
            RegisterOp::Cas { expected, value: UNSEEN, .. } => {
                Some(2 + expected.map_or(0, |expected| 1 + u64::from(expected)))
            }
            _ => None,
        }
    }

    fn legal(&self, state: &Self::State, op: &RegisterOp) -> String {
        match op {
            RegisterOp::Read { .. } => self.names.words(*state),
            RegisterOp::Write { .. } => "done".into(),
            RegisterOp::Delete { .. } if state.is_some() => "deleted".into(),
            RegisterOp::Delete { .. } => "there was nothing to delete".into(),
            RegisterOp::Cas { expected, .. } => {
                let swapped = if state == expected { "swapped" } else { "not as expected" };
                format!("{swapped}, for it held {}", self.names.words(*state))
            }
        }
    }
}
