//! What a lock guards: it takes no token below the largest that it has seen.

use crate::sim::{
    checker::{
        model::{Entry, Model, known},
        ops::Op,
    },
    history::{Answer, Call},
};

/// A guarded resource.
#[derive(Debug)]
pub(crate) struct Guard;

/// A write to it.
#[derive(Debug)]
pub(crate) struct GuardOp {
    token: u64,
    accepted: Option<bool>,
}

impl Model for Guard {
    type State = u64;
    type Op = GuardOp;

    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<GuardOp>>) {
        let read = |op: &&Op<'_>| {
            let Call::GuardedWrite { fencing_token, .. } = op.call else { return None };
            let accepted = match known(op) {
                Some(Answer::Guarded { accepted }) => Some(*accepted),
                _ => None,
            };
            Some(Entry::new(op, GuardOp { token: *fencing_token, accepted }))
        };
        (Self, ops.iter().filter_map(read).collect())
    }

    fn start(&self) -> u64 {
        0
    }

    fn step(&self, state: &u64, op: &GuardOp, next: &mut Vec<u64>) {
        let takes = op.token >= *state;
        if op.accepted.is_none_or(|accepted| accepted == takes) {
            next.push(op.token.max(*state));
        }
    }

    fn legal(&self, state: &u64, op: &GuardOp) -> String {
        let takes = if op.token >= *state { "accepted" } else { "turned away" };
        format!("{takes}, for it had seen token {state}")
    }
}
