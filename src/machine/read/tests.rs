//! The keyspace against a naive model that keeps a copy of everything at each revision.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use crate::{
    machine::{ChangeKind, MachineConfig, Space, testing::Harness},
    pb::{
        command::v1::{command::Op, outcome},
        kv::v1::{
            CompactRequest, Compare, DeleteRangeRequest, KeyValue, PutRequest, RangeRequest,
            RequestOp, TxnRequest,
            compare::{Operator, Target},
            request_op::Request,
            response_op::Response,
        },
    },
    types::{KeyRange, Revision},
};

type Keys = BTreeMap<Bytes, KeyValue>;

#[derive(Default)]
struct Model {
    now: Keys,
    revision: u64,
    compact: u64,
    past: BTreeMap<u64, Keys>,
    changes: Vec<(ChangeKind, Bytes, u64)>,
}

#[derive(Clone, Debug)]
enum Step {
    Put(Bytes, Bytes),
    Delete(Bytes, Bytes),
    Txn { expect: (Bytes, u64), success: Vec<Self>, failure: Vec<Self> },
    Compact(u64),
}

impl Model {
    /// Carries out writes in one revision.
    fn write(&mut self, steps: &[Step]) {
        let revision = self.revision + 1;
        let before = self.changes.len();
        for step in steps {
            match step {
                Step::Put(key, value) => {
                    let prev = self.now.get(key);
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: prev.map_or(revision, |prev| prev.create_revision),
                        mod_revision: revision,
                        version: prev.map_or(1, |prev| prev.version + 1),
                        session_id: 0,
                    };
                    self.now.insert(key.clone(), kv);
                    self.changes.push((ChangeKind::Put, key.clone(), revision));
                }
                Step::Delete(key, end) => {
                    let range = KeyRange::from_wire(key, end);
                    let keys: Vec<_> =
                        self.now.keys().filter(|key| range.contains(key)).cloned().collect();
                    for key in keys {
                        self.now.remove(&key);
                        self.changes.push((ChangeKind::Delete, key, revision));
                    }
                }
                Step::Txn { .. } | Step::Compact(_) => unreachable!("not a write"),
            }
        }
        if self.changes.len() > before {
            self.revision = revision;
        }
        self.past.insert(self.revision, self.now.clone());
    }

    fn step(&mut self, step: &Step) -> bool {
        match step {
            Step::Compact(revision) if *revision > self.compact && *revision <= self.revision => {
                self.compact = *revision;
            }
            Step::Compact(_) => return false,
            Step::Txn { expect: (key, version), success, failure } => {
                let passed = self.now.get(key).map_or(0, |kv| kv.version) == *version;
                self.write(if passed { success } else { failure });
            }
            write => self.write(core::slice::from_ref(write)),
        }
        true
    }
}

fn request(step: &Step) -> Op {
    match step.clone() {
        Step::Put(key, value) => Op::Put(PutRequest { key, value, ..PutRequest::default() }),
        Step::Delete(key, range_end) => {
            Op::DeleteRange(DeleteRangeRequest { key, range_end, ..Default::default() })
        }
        Step::Compact(revision) => {
            Op::Compact(CompactRequest { revision, ..CompactRequest::default() })
        }
        Step::Txn { expect: (key, version), success, failure } => {
            let ops = |steps: Vec<Step>| {
                let everything = RangeRequest {
                    key: vec![0].into(),
                    range_end: vec![0].into(),
                    ..RangeRequest::default()
                };
                let mut ops: Vec<_> = steps
                    .iter()
                    .map(|step| match request(step) {
                        Op::Put(put) => Request::Put(put),
                        Op::DeleteRange(delete) => Request::DeleteRange(delete),
                        _ => unreachable!("a write"),
                    })
                    .collect();
                ops.push(Request::Range(everything));
                ops.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
            };
            let compare = Compare {
                key,
                operator: Operator::Equal.into(),
                target: Some(Target::Version(version)),
                ..Compare::default()
            };
            Op::Txn(TxnRequest {
                compare: vec![compare],
                success: ops(success),
                failure: ops(failure),
                ..TxnRequest::default()
            })
        }
    }
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec![&b"\0"[..], b"\0\x01", b"a", b"a\0", b"a\0\xff", b"b", b"\xff\xff"])
        .prop_map(Bytes::from_static)
}

fn end() -> impl Strategy<Value = Bytes> {
    prop_oneof![Just(Bytes::new()), key()]
}

fn write() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (key(), any::<u8>()).prop_map(|(key, value)| Step::Put(key, vec![value].into())),
        1 => (key(), end()).prop_map(|(key, end)| Step::Delete(key, end)),
    ]
}

/// Writes that a transaction may hold: no key twice.
fn writes() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(write(), 0..4).prop_map(|steps| {
        let mut taken: Vec<KeyRange> = Vec::new();
        let mut kept = Vec::new();
        for step in steps {
            let range = match &step {
                Step::Put(key, _) => KeyRange::single(key),
                Step::Delete(key, end) => KeyRange::from_wire(key, end),
                _ => unreachable!("a write"),
            };
            let apart = |other: &KeyRange| {
                let before =
                    |a: &KeyRange, b: &KeyRange| a.end.as_ref().is_some_and(|end| *end <= b.start);
                before(&range, other) || before(other, &range)
            };
            if taken.iter().all(apart) {
                taken.push(range);
                kept.push(step);
            }
        }
        kept
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => write(),
        3 => (key(), 0..3_u64, writes(), writes()).prop_map(|(key, version, success, failure)| {
            Step::Txn { expect: (key, version), success, failure }
        }),
        1 => (0..30_u64).prop_map(Step::Compact),
    ]
}

fn expected(model: &Model, revision: u64, range: &KeyRange) -> Vec<KeyValue> {
    let Some((_, keys)) = model.past.range(..=revision).next_back() else { return Vec::new() };
    keys.values().filter(|kv| range.contains(&kv.key)).cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_keyspace_behaves_like_a_copy_of_everything(
        steps in prop::collection::vec(step(), 1..40),
        ranges in prop::collection::vec((key(), end()), 1..6),
    ) {
        let mut harness = Harness::with(MachineConfig { retained_revisions: 0 });
        let mut model = Model::default();
        for step in &steps {
            let done = model.step(step);
            let outcome = harness.outcome(request(step)).result.unwrap();
            prop_assert_eq!(!matches!(outcome, outcome::Result::Refusal(_)), done);
            if let outcome::Result::Txn(response) = outcome {
                prop_assert_eq!(response.revision, model.revision);
                let Some(Response::Range(seen)) = &response.responses.last().unwrap().response else {
                    panic!("the last operation reads")
                };
                prop_assert_eq!(&seen.kvs, &model.now.values().cloned().collect::<Vec<_>>());
            }
            prop_assert_eq!(harness.machine.head().revision.value(), model.revision);
        }
        let view = harness.view();
        for revision in 0..=model.revision {
            for (key, range_end) in &ranges {
                let request = RangeRequest {
                    key: key.clone(), range_end: range_end.clone(), revision, ..RangeRequest::default()
                };
                let found = view.range(&request).unwrap();
                if revision != 0 && revision < model.compact {
                    prop_assert!(found.is_err());
                    continue;
                }
                let at = if revision == 0 { model.revision } else { revision };
                let range = KeyRange::from_wire(key, range_end);
                prop_assert_eq!(found.unwrap().kvs, expected(&model, at, &range));
            }
        }
        let from = model.compact + 1;
        let (changes, _) = view.changes(Space::User, Revision::new(from), usize::MAX).unwrap().unwrap();
        let found: Vec<_> = changes
            .iter()
            .map(|change| (change.kind, change.kv.key.clone(), change.kv.mod_revision))
            .collect();
        let kept: Vec<_> =
            model.changes.iter().filter(|(_, _, revision)| *revision >= from).cloned().collect();
        prop_assert_eq!(found, kept);
        for change in changes {
            let range = KeyRange::single(&change.kv.key);
            let before = expected(&model, change.kv.mod_revision - 1, &range).pop();
            prop_assert_eq!(change.prev, before);
        }
    }
}
