//! The instances of one service, each with a TTL.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{
        model::{Entry, Model, Names, expiry_min, known},
        ops::Op,
    },
    history::{Answer, Call},
};

/// A service.
#[derive(Debug, Default)]
pub(crate) struct Service {
    names: Names,
}

/// An operation on a service; times in nanoseconds.
#[derive(Debug)]
pub(crate) enum ServiceOp {
    Register { instance: u32, gone_from: u64 },
    Deregister { instance: u32, sure: bool },
    Resolve { instances: Vec<u32>, until: u64 },
}

impl Model for Service {
    /// When each instance may expire.
    type State = BTreeMap<u32, u64>;
    type Op = ServiceOp;

    fn read(ops: &[&Op<'_>]) -> (Self, Vec<Entry<ServiceOp>>) {
        let mut model = Self::default();
        let mut entries = Vec::with_capacity(ops.len());
        for op in ops {
            let read = match (op.call, known(op)) {
                (Call::Register { instance, ttl_ms, .. }, _) => ServiceOp::Register {
                    instance: model.names.number(instance),
                    gone_from: expiry_min(op.call_time, *ttl_ms),
                },
                (Call::Deregister { instance, .. }, answer) => ServiceOp::Deregister {
                    instance: model.names.number(instance),
                    sure: answer.is_some(),
                },
                (Call::Resolve { .. }, Some(Answer::Resolved { instances, .. })) => {
                    let mut instances: Vec<u32> =
                        instances.iter().map(|name| model.names.number(name)).collect();
                    instances.sort_unstable();
                    ServiceOp::Resolve { instances, until: op.return_time }
                }
                _ => continue,
            };
            entries.push(Entry::new(op, read));
        }
        (model, entries)
    }

    fn start(&self) -> Self::State {
        BTreeMap::new()
    }

    fn step(&self, state: &Self::State, op: &ServiceOp, next: &mut Vec<Self::State>) {
        let mut after = state.clone();
        match op {
            ServiceOp::Register { instance, gone_from } => {
                after.insert(*instance, *gone_from);
            }
            ServiceOp::Deregister { instance, sure } => {
                if after.remove(instance).is_none() && *sure {
                    return;
                }
            }
            ServiceOp::Resolve { instances, until } => {
                let listed = |instance: &u32| instances.binary_search(instance).is_ok();
                let all = instances.iter().all(|instance| after.contains_key(instance));
                after.retain(|instance, gone_from| listed(instance) || *gone_from > *until);
                if !all || after.len() != instances.len() {
                    return;
                }
            }
        }
        next.push(after);
    }

    fn legal(&self, state: &Self::State, op: &ServiceOp) -> String {
        let ServiceOp::Resolve { until, .. } = op else { return "done".into() };
        let name = |(instance, gone_from): (&u32, &u64)| {
            let expired = if gone_from <= until { " unless expired" } else { "" };
            format!("{}{expired}", self.names.text(*instance))
        };
        format!("[{}]", state.iter().map(name).collect::<Vec<_>>().join(", "))
    }
}
