//! A queue: first in, first out.

use std::collections::VecDeque;

use crate::sim::{
    checker::{
        model::{Entry, Model, Names, known},
        ops::Op,
    },
    history::{Answer, Call},
};

/// A queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    names: Names,
}

/// An operation on a queue.
#[derive(Debug)]
pub(crate) enum QueueOp {
    Enqueue {
        value: u32,
    },
    /// The inner `None` is an empty queue, the outer one an unknown outcome.
    Dequeue {
        value: Option<Option<u32>>,
    },
}

impl Model for Queue {
    type State = VecDeque<u32>;
    type Op = QueueOp;

    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<QueueOp>>) {
        let mut model = Self::default();
        let mut entries = Vec::with_capacity(ops.len());
        for op in ops {
            let read = match (op.call, known(op)) {
                (Call::Enqueue { value, .. }, _) => {
                    QueueOp::Enqueue { value: model.names.number(value) }
                }
                (Call::Dequeue { .. }, Some(Answer::Dequeued { value })) => {
                    let value = value.as_deref().map(|value| model.names.number(value));
                    QueueOp::Dequeue { value: Some(value) }
                }
                (Call::Dequeue { .. }, _) => QueueOp::Dequeue { value: None },
                _ => continue,
            };
            entries.push(Entry::new(op, read));
        }
        (model, entries)
    }

    fn start(&self) -> VecDeque<u32> {
        VecDeque::new()
    }

    fn step(&self, state: &VecDeque<u32>, op: &QueueOp, next: &mut Vec<VecDeque<u32>>) {
        let mut after = state.clone();
        match *op {
            QueueOp::Enqueue { value } => after.push_back(value),
            QueueOp::Dequeue { value } => {
                let head = after.pop_front();
                if value.is_some_and(|value| value != head) {
                    return;
                }
            }
        }
        next.push(after);
    }

    fn legal(&self, state: &VecDeque<u32>, op: &QueueOp) -> String {
        match op {
            QueueOp::Enqueue { .. } => "done".into(),
            QueueOp::Dequeue { .. } => self.names.words(state.front().copied()),
        }
    }
}
