//! How fast the state machine applies, on a store in memory: what a run of entries costs beyond
//! the log and the disk. `cargo bench --bench apply`.

#![allow(missing_docs)]

use std::{hint::black_box, sync::Arc};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message as _;
use quorate::{
    machine::{COMMAND_VERSION, Machine, MachineConfig, View, store::Store},
    pb::{
        command::v1::{Command, Origin, command::Op},
        kv::v1::{PutRequest, RangeRequest},
    },
    raft::{Entry, Payload},
    storage::store::MemoryStore,
    types::{LogIndex, LogTime, Term},
};

/// How many entries a run has; what a busy leader commits at once.
const RUN: u64 = 64;

/// How many keys the puts cycle through.
const KEYS: u64 = 10_000;

fn machine() -> Machine {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Machine::open(store, MachineConfig::default()).expect("an empty store opens")
}

fn run(from: LogIndex, request_ids: bool) -> Vec<Entry> {
    let entry = |at| {
        let index = from.forward(at);
        let request_id = match request_ids {
            true => uuid::Uuid::from_u128(u128::from(index.value())).to_string(),
            false => String::new(),
        };
        let request = PutRequest {
            key: format!("key/{:08}", index.value() * 7_919 % KEYS).into(),
            value: Bytes::from_static(&[b'v'; 256]),
            request_id,
            ..PutRequest::default()
        };
        let command = Command {
            version: COMMAND_VERSION,
            origin: Some(Origin { node_id: 1, boot: 1, sequence: index.value() }),
            op: Some(Op::Put(request)),
        };
        Entry {
            index,
            term: Term::new(1),
            time: LogTime::from_millis(index.value()),
            payload: Payload::Command(command.encode_to_vec().into()),
        }
    };
    (1..=RUN).map(entry).collect()
}

fn puts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply");
    group.throughput(Throughput::Elements(RUN));
    for (name, request_ids) in [("put", false), ("put with request id", true)] {
        let mut machine = machine();
        let mut from = machine.head().index;
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let entries = run(from, request_ids);
                    from = from.forward(RUN);
                    entries
                },
                |entries| machine.apply(&entries).expect("memory does not fail"),
                // Runs must be applied in the order in which they are made.
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let mut machine = machine();
    for at in 0..KEYS / RUN {
        machine.apply(&run(LogIndex::new(at * RUN), false)).expect("memory does not fail");
    }
    let view = View::new(machine.store().snapshot());
    let mut group = criterion.benchmark_group("read");
    let one = RangeRequest { key: "key/00007919".into(), ..RangeRequest::default() };
    group.bench_function("one key", |bencher| {
        bencher.iter(|| black_box(view.range(&one)));
    });
    let prefix = RangeRequest {
        key: "key/000010".into(),
        range_end: "key/000011".into(),
        ..RangeRequest::default()
    };
    group.bench_function("100 keys", |bencher| {
        bencher.iter(|| black_box(view.range(&prefix)));
    });
    let past = RangeRequest { revision: KEYS / 2, ..prefix };
    group.bench_function("100 keys at a past revision", |bencher| {
        bencher.iter(|| black_box(view.range(&past)));
    });
    group.finish();
}

criterion_group!(benches, puts, reads);
criterion_main!(benches);
