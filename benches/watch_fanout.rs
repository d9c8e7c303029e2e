//! One writer's changes to many watchers: from the feed through a cursor and its stream to the
//! encoded response, with every watcher served before the next batch. One thread, no network, no
//! disk. `cargo bench --bench watch_fanout`.

#![allow(missing_docs)]

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message as _;
use quorate::{
    machine::{Change, ChangeKind, Space, store::StoreError},
    node::{Feed, FeedHead, Published},
    observe::{Metrics, ReaderKind},
    pb::{
        command::v1::Refusal,
        kv::v1::{KeyValue, KvEvent, WatchResponse, kv_event::Kind},
    },
    streaming::{Cursor, Piece, Source, Terms, Update, follow, gather},
    types::{KeyRange, LogIndex, Revision},
};
use tokio::sync::Notify;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

/// How many changes the writer publishes at once; what a busy applier takes in one batch.
const CHANGES: u64 = 64;

/// As in `streaming/changes.rs`.
const BYTES_MAX: usize = 768 * 1024;
const BATCHES_MAX: usize = 64;

/// The user's changes in a feed that has no state behind it.
#[derive(Clone)]
struct Live {
    feed: Arc<Feed>,
    range: KeyRange,
}

impl Source for Live {
    type Item = Change;
    type Place = Revision;

    const KIND: ReaderKind = ReaderKind::Changes;

    fn number(place: Revision) -> u64 {
        place.value()
    }

    fn history(&self, _: Revision) -> Result<Result<Piece<Self>, Refusal>, StoreError> {
        Err(StoreError("a watcher fell behind, which this measures nothing of".to_owned()))
    }

    fn live(&self, after: Revision) -> Option<Piece<Self>> {
        let batches = self.feed.after_revision(after, BATCHES_MAX)?;
        let wants = |change: &Change| self.range.contains(&change.kv.key);
        let (items, place, more) = gather(&batches, after, BYTES_MAX, wants);
        Some(Piece { items, place, more })
    }

    fn is_behind(&self, place: Revision, head: &FeedHead) -> bool {
        place < head.revision
    }
}

/// Who has seen what.
#[derive(Default)]
struct Seen {
    watchers: AtomicU64,
    bytes: AtomicU64,
    all: Notify,
}

fn respond(update: Update<Live>) -> WatchResponse {
    let event = |change: Change| KvEvent {
        kind: Kind::Put.into(),
        kv: Some(change.kv),
        prev_kv: change.prev,
    };
    WatchResponse {
        events: update.items.into_iter().map(event).collect(),
        revision: update.place.value(),
        ..WatchResponse::default()
    }
}

fn batch(before: Revision) -> Published {
    let change = |number: u64| {
        let kv = KeyValue {
            key: format!("service/{:08}", number % 10_000).into(),
            value: vec![7; 256].into(),
            mod_revision: before.value() + number,
            ..KeyValue::default()
        };
        Change {
            space: Space::User,
            kind: ChangeKind::Put,
            kv,
            replaced: Revision::ZERO,
            prev: None,
        }
    };
    Published {
        revision_before: before,
        revision: Revision::new(before.value() + CHANGES),
        changes: (1..=CHANGES).map(change).collect(),
        ..Published::default()
    }
}

async fn watch(source: Live, seen: Arc<Seen>, watchers: u64) {
    let metrics = Metrics::new();
    let head = source.feed.subscribe();
    let cursor = Cursor::caught_up(source, head, Revision::ZERO).measured(&metrics);
    let terms = Terms { drain: CancellationToken::new(), deadline: None, permit: None, metrics };
    let mut updates = follow(terms, Vec::new(), cursor, respond);
    while let Some(Ok(response)) = updates.next().await {
        seen.bytes.fetch_add(response.encode_to_vec().len() as u64, Ordering::Relaxed);
        let rest = response.revision % CHANGES;
        if rest == 0 && seen.watchers.fetch_add(1, Ordering::Relaxed) + 1 == watchers {
            seen.all.notify_one();
        }
    }
}

fn fanout(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch_fanout");
    for watchers in [1, 100, 1_000] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime");
        let feed = Arc::new(Feed::new(FeedHead::default()));
        let seen = Arc::new(Seen::default());
        for _ in 0..watchers {
            let source = Live { feed: feed.clone(), range: KeyRange::prefix(b"service/") };
            runtime.spawn(watch(source, seen.clone(), watchers));
        }
        let mut revision = Revision::ZERO;
        group.throughput(Throughput::Elements(CHANGES * watchers));
        group.bench_function(BenchmarkId::new("watchers", watchers), |bencher| {
            bencher.iter(|| {
                seen.watchers.store(0, Ordering::Relaxed);
                let batch = batch(revision);
                revision = batch.revision;
                feed.publish(LogIndex::new(revision.value()), batch);
                runtime.block_on(seen.all.notified());
            });
        });
        assert!(seen.bytes.load(Ordering::Relaxed) > 0, "nobody was told anything");
    }
    group.finish();
}

criterion_group!(benches, fanout);
criterion_main!(benches);
