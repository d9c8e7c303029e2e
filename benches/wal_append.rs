//! How long the log takes to make entries durable on the real disk: one append of a batch and one
//! sync. Put `TMPDIR` on the disk in question; a file system in memory measures nothing.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quorate::{
    raft::{Append, Entry, HardMark, HardState, LogMark, Payload},
    storage::{Wal, WalOptions, files::DiskFiles},
    types::{GroupId, LogIndex, LogTime, Term},
};

const TERM: Term = Term::new(1);
/// Entries kept in the log; more are purged, so that segments are recycled as in a node.
const KEPT: u64 = 20_000;

fn batch(first: u64, entries: u64, bytes: usize) -> Append {
    let payload = Payload::Command(Bytes::from(vec![7; bytes]));
    let entry = |index| Entry {
        index: LogIndex::new(index),
        term: TERM,
        time: LogTime::from_millis(index),
        payload: payload.clone(),
    };
    let last = LogIndex::new(first + entries - 1);
    Append {
        hard: HardState { term: TERM, vote: None, commit: LogIndex::new(first).previous() },
        reset_to: None,
        truncate_from: None,
        entries: (first..first + entries).map(entry).collect(),
        hard_mark: HardMark { term: TERM, vote: None },
        log_mark: LogMark { leader_term: TERM, index: last },
    }
}

fn append_and_sync(c: &mut Criterion) {
    let mut group = c.benchmark_group("wal");
    group.sample_size(30);
    for (entries, bytes) in [(1, 128), (64, 128), (512, 128), (64, 4_096)] {
        let directory = tempfile::tempdir().expect("a directory");
        let files = DiskFiles::open(directory.path()).expect("the directory opens");
        let (mut wal, _) = Wal::open(files, WalOptions::default()).expect("an empty log opens");
        let mut next = 1;
        group.throughput(Throughput::Elements(entries));
        group.bench_function(BenchmarkId::new("append_sync", format!("{entries}x{bytes}")), |b| {
            b.iter_batched(
                || {
                    next += entries;
                    batch(next - entries, entries, bytes)
                },
                |append| {
                    wal.append(GroupId::SYSTEM, black_box(&append)).expect("the disk is well");
                    let purge = append.log_mark.index.value().saturating_sub(KEPT);
                    if purge > 0 {
                        let purge = LogIndex::new(purge);
                        wal.purge(GroupId::SYSTEM, purge, TERM, LogTime::ZERO)
                            .expect("the disk is well");
                    }
                    wal.sync().expect("the disk is well");
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, append_and_sync);
criterion_main!(benches);
