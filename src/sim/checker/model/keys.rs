//! Several keys that transactions connect. Every operation is read as a transaction.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{
        model::{Entry, Model, Names, UNSEEN, known},
        ops::Op,
    },
    history::{Answer, Call},
};

/// The most values of keys that are counted to foresee dead ends.
const THINGS_MAX: u32 = 1 << 24;

/// Several keys.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    keys: BTreeMap<String, usize>,
    names: Names,
}

/// A transaction with its answer; keys are numbers.
#[derive(Debug, Default)]
pub(crate) struct KeysOp {
    compares: Vec<(usize, Option<u32>)>,
    changes: Vec<(usize, Option<u32>)>,
    reads: Vec<usize>,
    succeeded: Option<bool>,
    /// Whether a deletion found its key.
    existed: Option<bool>,
    values: Option<Vec<Option<u32>>>,
}

impl Keys {
    fn key(&mut self, key: &str) -> usize {
        let next = self.keys.len();
        *self.keys.entry(key.to_owned()).or_insert(next)
    }

    fn value(&mut self, value: Option<&str>) -> Option<u32> {
        value.map(|value| self.names.number(value))
    }

    /// A value of a key as a thing that others may need; none for one that nobody saw, and none at
    /// all where there are too many to count.
    fn thing(&self, key: usize, value: Option<u32>) -> Option<u32> {
        let value = match value {
            None => 0,
            Some(UNSEEN) => return None,
            Some(value) => value + 1,
        };
        let width = self.names.len() + 1;
        let thing = u32::try_from(key).ok()?.checked_mul(width)?.checked_add(value)?;
        (thing < THINGS_MAX).then_some(thing)
    }

    fn op(&mut self, op: &Op<'_>) -> Option<KeysOp> {
        let answer = known(op);
        let mut read = KeysOp::default();
        match op.call {
            Call::Get { key, .. } => {
                let Some(Answer::Got { value, .. }) = answer else { return None };
                read.reads.push(self.key(key));
                let value = self.value(value.as_ref().map(|read| read.value.as_str()));
                read.values = Some(vec![value]);
            }
            Call::Put { key, value, .. } => {
                let change = (self.key(key), Some(self.names.written(op, value)));
                read.changes.push(change);
            }
            Call::Delete { key } => {
                read.changes.push((self.key(key), None));
                if let Some(Answer::Deleted { existed, .. }) = answer {
                    read.existed = Some(*existed);
                }
            }
            Call::Cas { key, expected, value } => {
                let key = self.key(key);
                read.compares.push((key, self.value(expected.as_deref())));
                read.changes.push((key, Some(self.names.written(op, value))));
                if let Some(Answer::Swapped { swapped, .. }) = answer {
                    read.succeeded = Some(*swapped);
                }
            }
            Call::Txn { compares, changes, reads } => {
                for one in compares {
                    let compare = (self.key(&one.key), self.value(one.value.as_deref()));
                    read.compares.push(compare);
                }
                for one in changes {
                    let value = one.value.as_ref().map(|value| self.names.written(op, value));
                    let change = (self.key(&one.key), value);
                    read.changes.push(change);
                }
                read.reads = reads.iter().map(|key| self.key(key)).collect();
                if let Some(Answer::Txn { succeeded, reads, .. }) = answer {
                    read.succeeded = Some(*succeeded);
                    let values = reads
                        .iter()
                        .map(|read| self.value(read.as_ref().map(|read| read.value.as_str())));
                    read.values = Some(values.collect());
                }
            }
            _ => return None,
        }
        Some(read)
    }
}

impl Model for Keys {
    type State = Vec<Option<u32>>;
    type Op = KeysOp;

    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<KeysOp>>) {
        let mut model = Self { keys: BTreeMap::new(), names: Names::seen(ops) };
        let entries =
            ops.iter().filter_map(|op| Some(Entry::new(op, model.op(op)?))).collect::<Vec<_>>();
        (model, entries)
    }

    fn start(&self) -> Self::State {
        vec![None; self.keys.len()]
    }

    fn step(&self, state: &Self::State, op: &KeysOp, next: &mut Vec<Self::State>) {
        let holds = op.compares.iter().all(|(key, value)| state[*key] == *value);
        if op.succeeded.is_some_and(|succeeded| succeeded != holds) {
            return;
        }
        if let (Some(existed), [(key, _)]) = (op.existed, op.changes.as_slice())
            && existed != state[*key].is_some()
        {
            return;
        }
        let mut after = state.clone();
        if holds {
            for (key, value) in &op.changes {
                after[*key] = *value;
            }
        }
        let read = |values: &Vec<Option<u32>>| {
            op.reads.iter().zip(values).all(|(key, value)| after[*key] == *value)
        };
        if op.values.as_ref().is_none_or(read) {
            next.push(after);
        }
    }

    fn needs(&self, op: &KeysOp, things: &mut Vec<u32>) {
        if op.succeeded != Some(false) {
            for (key, value) in &op.compares {
                things.extend(self.thing(*key, *value));
            }
        }
        // What it writes itself it need not find.
        let own = |key: usize| {
            op.succeeded != Some(false) && op.changes.iter().any(|(own, _)| *own == key)
        };
        for (key, value) in op.reads.iter().zip(op.values.iter().flatten()) {
            if !own(*key) {
                things.extend(self.thing(*key, *value));
            }
        }
        if let (Some(false), [(key, _)]) = (op.existed, op.changes.as_slice()) {
            things.extend(self.thing(*key, None));
        }
    }

    fn makes(&self, op: &KeysOp, things: &mut Vec<u32>) {
        if op.succeeded != Some(false) {
            things.extend(op.changes.iter().filter_map(|(key, value)| self.thing(*key, *value)));
        }
    }

    fn lost(&self, before: &Self::State, after: &Self::State, things: &mut Vec<u32>) {
        for (key, (before, after)) in before.iter().zip(after).enumerate() {
            if before != after {
                things.extend(self.thing(key, *before));
            }
        }
    }

    fn place(&self, thing: u32) -> Option<u32> {
        let width = self.names.len() + 1;
        (!thing.is_multiple_of(width)).then_some(thing / width)
    }

    fn class(&self, op: &KeysOp) -> Option<u64> {
        if op.values.is_some() || op.existed.is_some() || op.succeeded.is_some() {
            return None;
        }
        match (op.compares.as_slice(), op.changes.as_slice()) {
            ([], [(key, None)]) => Some(2 * *key as u64),
            ([], [(key, Some(UNSEEN))]) => Some(2 * *key as u64 + 1),
            _ => None,
        }
    }

    fn legal(&self, state: &Self::State, op: &KeysOp) -> String {
        let holds = op.compares.iter().all(|(key, value)| state[*key] == *value);
        if let (Some(_), [(key, _)]) = (op.existed, op.changes.as_slice()) {
            let existed = state[*key].is_some();
            return if existed { "deleted" } else { "there was nothing to delete" }.into();
        }
        let mut after = state.clone();
        if holds {
            for (key, value) in &op.changes {
                after[*key] = *value;
            }
        }
        let reads: Vec<_> = op.reads.iter().map(|key| self.names.words(after[*key])).collect();
        match (op.succeeded, reads.as_slice()) {
            (None, [read]) => read.clone(),
            (None, _) => "done".into(),
            (Some(_), _) => {
                let held: Vec<_> =
                    op.compares.iter().map(|(key, _)| self.names.words(state[*key])).collect();
                let done = if holds { "succeeded" } else { "compares failed" };
                format!("{done}, for it held [{}], read [{}]", held.join(", "), reads.join(", "))
            }
        }
    }
}
