//! What it costs to put messages on the wire and to take them off: appends between nodes with all
//! their entries, a client's put, and a refusal as a status. `cargo bench --bench wire`.

#![allow(missing_docs)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message as _;
use quorate::{
    machine::refusal,
    pb::{command::v1::Reason, kv::v1::PutRequest, raft::v1 as pb},
    raft::{AppendRequest, Entry, Payload},
    types::{GroupId, LogIndex, LogTime, NodeId, Term},
    wire::{
        raft::{append_request_from_pb, append_request_to_pb},
        status::{from_refusal, to_refusal},
    },
};

const LEADER: NodeId = NodeId::new(1);
const TERM: Term = Term::new(7);

fn append(entries: u64, bytes: usize) -> AppendRequest {
    let data = Bytes::from(vec![7; bytes]);
    let entry = |index| Entry {
        index: LogIndex::new(index),
        term: TERM,
        time: LogTime::from_millis(1_700_000_000_000 + index),
        payload: Payload::Command(data.clone()),
    };
    AppendRequest {
        term: TERM,
        prev_index: LogIndex::new(1_000_000),
        prev_term: TERM,
        entries: (1_000_001..=1_000_000 + entries).map(entry).collect(),
        commit: LogIndex::new(1_000_000),
        round: 9,
    }
}

fn encoded(request: &AppendRequest) -> Vec<u8> {
    let identity = pb::Identity { from_node: LEADER.value(), ..pb::Identity::default() };
    append_request_to_pb(identity, GroupId::SYSTEM, LEADER, request).encode_to_vec()
}

fn appends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    for (entries, bytes) in [(1, 256), (64, 256), (512, 256), (64, 4_096)] {
        let request = append(entries, bytes);
        group.throughput(Throughput::Elements(entries));
        let shape = format!("{entries}x{bytes}");
        group.bench_function(BenchmarkId::new("append encode", &shape), |bencher| {
            bencher.iter(|| encoded(black_box(&request)));
        });
        let data = Bytes::from(encoded(&request));
        group.bench_function(BenchmarkId::new("append decode", &shape), |bencher| {
            bencher.iter(|| {
                let request = pb::AppendEntriesRequest::decode(black_box(data.clone()));
                append_request_from_pb(&request.expect("it was just encoded"))
            });
        });
    }
    group.finish();
}

fn puts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    let request = PutRequest {
        key: Bytes::from_static(b"tenant/service/00007919"),
        value: Bytes::from_static(&[b'v'; 256]),
        request_id: uuid::Uuid::from_u128(7).to_string(),
        ..PutRequest::default()
    };
    group.bench_function("put encode", |bencher| {
        bencher.iter(|| black_box(&request).encode_to_vec());
    });
    let data = Bytes::from(request.encode_to_vec());
    group.bench_function("put decode", |bencher| {
        bencher.iter(|| PutRequest::decode(black_box(data.clone())));
    });
    group.finish();
}

fn statuses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    let refused = refusal(Reason::NotLeader, "this node does not lead")
        .with("leader_id", "2")
        .with("leader_address", "127.0.0.1:7402");
    group.bench_function("status of a refusal", |bencher| {
        bencher.iter(|| from_refusal(black_box(refused.clone())));
    });
    let status = from_refusal(refused.clone());
    group.bench_function("refusal of a status", |bencher| {
        bencher.iter(|| to_refusal(black_box(&status)));
    });
    group.finish();
}

criterion_group!(benches, appends, puts, statuses);
criterion_main!(benches);
