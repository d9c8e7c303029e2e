//! Writers that note what became of each write, and the check of all of it afterwards.
//!
//! A write is acknowledged, refused for certain, or of unknown outcome. The first must be there
//! once, the second must not be there, the third at most once. Nothing here knows what is done to
//! the cluster meanwhile.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use quorate::{
    client::{Client, Error, prefix_end},
    pb::{
        event::v1::{AppendRequest, Event, ReadRequest, RecordedEvent},
        kv::v1::{KeyValue, PutRequest, RangeRequest},
    },
    testing::Cluster,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::LIMIT;

/// The writers of a test, unless it says otherwise.
pub(crate) const WRITERS: usize = 16;

/// How many streams they append to, several writers to one.
const STREAMS: usize = 4;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

/// A key that was written once, by one writer.
#[derive(Debug)]
struct Put {
    key: String,
    value: Bytes,
    fate: Fate,
    revision: u64,
}

/// Events that were appended together.
#[derive(Debug)]
struct Append {
    stream: String,
    ids: Vec<String>,
    fate: Fate,
    first_version: u64,
    first_position: u64,
}

/// What writers did.
#[derive(Debug, Default)]
pub(crate) struct Written {
    puts: Vec<Put>,
    appends: Vec<Append>,
}

/// Writers that write until they are told to stop.
pub(crate) struct Load {
    stop: CancellationToken,
    acknowledged: watch::Receiver<u64>,
    writers: JoinSet<Written>,
}

impl Load {
    /// Starts writers, each with connections of its own; they begin at different nodes.
    pub(crate) fn start(cluster: &Cluster, writers: usize) -> Self {
        let stop = CancellationToken::new();
        let (count, acknowledged) = watch::channel(0);
        let count = Arc::new(count);
        let mut set = JoinSet::new();
        for number in 0..writers {
            let mut endpoints = cluster.endpoints();
            let first = number % endpoints.len();
            endpoints.rotate_left(first);
            let client = Client::builder().endpoints(endpoints).build().expect("well formed");
            set.spawn(write(number, client, Arc::clone(&count), stop.clone()));
        }
        Self { stop, acknowledged, writers: set }
    }

    /// Waits until so many further writes are acknowledged; returns how long that took.
    pub(crate) async fn progress(&mut self, writes: u64) -> Duration {
        let (before, began) = (*self.acknowledged.borrow(), Instant::now());
        let enough = self.acknowledged.wait_for(|count| *count >= before + writes);
        let done = timeout(LIMIT, enough).await;
        let done = done.unwrap_or_else(|_| panic!("waited {LIMIT:?} for {writes} writes"));
        drop(done.expect("the writers run"));
        began.elapsed()
    }

    /// Lets each writer end its write, and tells what they did.
    pub(crate) async fn stop(mut self) -> Written {
        self.stop.cancel();
        let mut all = Written::default();
        while let Some(written) = self.writers.join_next().await {
            let written = written.expect("a writer does not panic");
            all.puts.extend(written.puts);
            all.appends.extend(written.appends);
        }
        all
    }
}

/// One writer: a key, an append, and again.
async fn write(
    number: usize,
    client: Client,
    count: Arc<watch::Sender<u64>>,
    stop: CancellationToken,
) -> Written {
    let mut written = Written::default();
    for round in 0.. {
        if stop.is_cancelled() {
            break;
        }
        let put = put(&client, format!("load/{number:02}/{round:06}")).await;
        let append = append(&client, format!("load-{}", number % STREAMS)).await;
        let acknowledged =
            [put.fate, append.fate].map(|fate| u64::from(fate == Fate::Acknowledged));
        count.send_modify(|count| *count += acknowledged.iter().sum::<u64>());
        written.puts.push(put);
        written.appends.push(append);
    }
    written
}

async fn put(client: &Client, key: String) -> Put {
    let value = Bytes::from(Uuid::new_v4().to_string());
    let request =
        PutRequest { key: key.clone().into(), value: value.clone(), ..Default::default() };
    let answer = client.kv().put(request).await;
    Put { key, value, fate: fate(&answer), revision: answer.map_or(0, |answer| answer.revision) }
}

/// Appends two events. Where the outcome is unknown the event ids make it safe to ask again, as a
/// request of its own.
async fn append(client: &Client, stream: String) -> Append {
    let ids: Vec<_> = (0..2).map(|_| Uuid::new_v4().to_string()).collect();
    let mut append =
        Append { stream, ids, fate: Fate::Refused, first_version: 0, first_position: 0 };
    for _ in 0..2 {
        let answer = client.events().append(request(&append.stream, &append.ids)).await;
        append.fate = match (append.fate, fate(&answer)) {
            (Fate::Unknown, Fate::Refused) => Fate::Unknown,
            (_, fate) => fate,
        };
        if let Ok(answer) = answer {
            (append.first_version, append.first_position) =
                (answer.first_version, answer.first_position);
        }
        if append.fate != Fate::Unknown {
            break;
        }
    }
    append
}

/// A request that appends events of these ids.
pub(crate) fn request(stream: &str, ids: &[String]) -> AppendRequest {
    let events = ids.iter().map(|id| Event {
        id: id.clone(),
        r#type: "Written".to_owned(),
        data: Bytes::from(format!("data of {id}")),
        ..Default::default()
    });
    AppendRequest { stream: stream.to_owned(), events: events.collect(), ..Default::default() }
}

fn fate<T>(answer: &Result<T, Error>) -> Fate {
    match answer {
        Ok(_) => Fate::Acknowledged,
        Err(error) if error.outcome_unknown() => Fate::Unknown,
        Err(error) if error.code() == tonic::Code::Unavailable => Fate::Refused,
        Err(error) => panic!("nothing is wrong with this request: {:?} {error}", error.code()),
    }
}

impl Written {
    /// Compares what is there with what was told of it.
    pub(crate) async fn check(&self, client: &Client) {
        // Hashing and reading in a debug build takes its time.
        let client = client.with_timeout(LIMIT);
        self.check_puts(range(&client, b"load/").await);
        self.check_appends(&events(&client, "").await);
    }

    fn check_puts(&self, mut found: BTreeMap<Bytes, KeyValue>) {
        let mut acknowledged = 0;
        for put in &self.puts {
            let there = found.remove(put.key.as_bytes());
            match (put.fate, there) {
                (Fate::Acknowledged, None) => panic!("lost: {put:?}"),
                (Fate::Refused, Some(there)) => panic!("refused, and done: {put:?}, {there:?}"),
                (fate, Some(there)) => {
                    assert_eq!(there.value, put.value, "{put:?}");
                    assert_eq!(there.version, 1, "written twice: {put:?}, {there:?}");
                    if fate == Fate::Acknowledged {
                        acknowledged += 1;
                        assert_eq!(there.mod_revision, put.revision, "{put:?}, {there:?}");
                    }
                }
                (Fate::Refused | Fate::Unknown, None) => {}
            }
        }
        assert!(found.is_empty(), "nobody wrote these: {:?}", found.keys());
        assert!(acknowledged > 0, "the test wrote nothing");
    }

    fn check_appends(&self, found: &[RecordedEvent]) {
        let mut by_id: HashMap<&str, &RecordedEvent> = HashMap::new();
        let mut versions: HashMap<&str, u64> = HashMap::new();
        for (event, position) in found.iter().zip(1..) {
            assert_eq!(event.position, position, "the global order has no gaps");
            let version = versions.entry(&event.stream).or_default();
            *version += 1;
            assert_eq!(event.version, *version, "a stream has no gaps: {event:?}");
            let twice = by_id.insert(&event.id, event);
            assert!(twice.is_none(), "appended twice: {twice:?}, {event:?}");
        }
        for append in &self.appends {
            let there: Vec<_> = append.ids.iter().filter_map(|id| by_id.remove(&**id)).collect();
            match append.fate {
                Fate::Refused => assert!(there.is_empty(), "refused, and done: {append:?}"),
                Fate::Unknown => assert!(there.is_empty() || there.len() == append.ids.len()),
                Fate::Acknowledged => {
                    assert_eq!(there.len(), append.ids.len(), "lost: {append:?}");
                    for (event, offset) in there.iter().zip(0..) {
                        assert_eq!(event.stream, append.stream);
                        assert_eq!(event.version, append.first_version + offset, "{append:?}");
                        assert_eq!(event.position, append.first_position + offset, "{append:?}");
                        assert_eq!(event.data, format!("data of {}", event.id));
                    }
                }
            }
        }
        assert!(by_id.is_empty(), "nobody appended these: {by_id:?}");
    }
}

/// All keys of a prefix, page by page.
pub(crate) async fn range(client: &Client, prefix: &'static [u8]) -> BTreeMap<Bytes, KeyValue> {
    let mut all = BTreeMap::new();
    let mut key = Bytes::from_static(prefix);
    loop {
        let request = RangeRequest { key, range_end: prefix_end(prefix), ..Default::default() };
        let answer = client.kv().range(request).await.expect("read");
        all.extend(answer.kvs.into_iter().map(|kv| (kv.key.clone(), kv)));
        if !answer.more {
            return all;
        }
        let last: &Bytes = all.keys().next_back().expect("a page that was cut holds something");
        key = [last.as_ref(), &[0]].concat().into();
    }
}

/// All events of a stream, or of all streams where the name is empty.
pub(crate) async fn events(client: &Client, stream: &str) -> Vec<RecordedEvent> {
    let request = ReadRequest { stream: stream.to_owned(), ..Default::default() };
    let mut read = client.events().read(request);
    let mut all = Vec::new();
    while let Some(batch) = timeout(LIMIT, read.next()).await.expect("in time").expect("read") {
        all.extend(batch.events);
    }
    all
}
