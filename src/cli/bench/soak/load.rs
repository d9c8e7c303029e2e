//! The clients of a soak, each in one part: writer, reader, holder of locks, appender, watcher or
//! subscriber. Each checks on the way what it can.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;

use crate::{
    cli::{
        Error,
        bench::{
            lock::Held,
            soak::{
                proof::{KeyHistory, StreamHistory, Wrongs},
                tally::{Kind, Tally},
            },
        },
        lock::to_proto,
    },
    client::{self, Client, prefix_end},
    pb::{
        event::v1::{AppendRequest, Event, ReadRequest, SubscribeRequest},
        kv::v1::{KeyValue, PutRequest, RangeRequest, WatchRequest, kv_event::Kind as Change},
        lock::v1::{AcquireRequest, ReleaseRequest},
    },
    types::Duration,
};

/// How many keys each writer has.
pub(super) const KEYS_EACH: u64 = 1_000;

/// How many parts there are: one client of each is the least.
pub(super) const PARTS: u64 = 6;

/// How many holders share a lock.
const HOLDERS: u64 = 2;

/// Longer than any outage, so that a grant which was long under way is still one.
const LOCK_TTL: Duration = Duration::from_secs(30);

/// How long a holder stands in line.
const LOCK_WAIT: Duration = Duration::from_secs(40);

/// What the clients share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) tally: Tally,
    pub(super) value_size: usize,
    /// The newest revision that anybody was told.
    pub(super) revision: Arc<AtomicU64>,
    /// The acknowledged sequence of each writer's keys, plus one; a key's figure is no bound any
    /// more, and `u64::MAX`, once one of its writes had an unknown outcome.
    floors: Arc<Vec<Vec<AtomicU64>>>,
    locks: Arc<Vec<Held>>,
}

/// What a client found, for the proof.
#[derive(Debug)]
pub(super) enum Found {
    Keys(u64, Vec<KeyHistory>),
    Stream(u64, StreamHistory),
    Wrongs(Wrongs),
}

impl Shared {
    pub(super) fn new(tally: Tally, clients: u64, value_size: usize) -> Self {
        let many = usize::try_from(clients.div_ceil(PARTS)).expect("few clients");
        let keys = || (0..KEYS_EACH).map(|_| AtomicU64::new(0)).collect();
        Self {
            tally,
            value_size,
            revision: Arc::default(),
            floors: Arc::new((0..many).map(|_| keys()).collect()),
            locks: Arc::new((0..many).map(|_| Held::default()).collect()),
        }
    }

    /// What the locks saw.
    pub(super) fn lock_wrongs(&self) -> Wrongs {
        let mut wrongs = Wrongs::default();
        for held in self.locks.iter() {
            wrongs.add("grants while another held the lock", held.together());
            wrongs.add("fencing tokens that did not grow", held.not_grown());
        }
        wrongs
    }

    fn value(&self, sequence: u64) -> Bytes {
        let mut value = vec![b'x'; self.value_size.max(8)];
        value[..8].copy_from_slice(&sequence.to_be_bytes());
        value.into()
    }
}

/// Runs a client until the soak stops.
pub(super) async fn client(number: u64, client: Client, shared: Shared) -> Found {
    let nth = number / PARTS;
    match number % PARTS {
        0 => write(nth, client, shared).await,
        1 => read(nth, client, shared).await,
        2 => lock(nth, client, shared).await,
        3 => append(nth, client, shared).await,
        4 => Found::Wrongs(watch(nth, client, shared).await),
        _ => Found::Wrongs(subscribe(nth, client, shared).await),
    }
}

async fn write(nth: u64, client: Client, shared: Shared) -> Found {
    let (kv, floors) = (client.kv(), &shared.floors[at(nth)]);
    let mut histories = vec![KeyHistory::default(); at(KEYS_EACH)];
    let mut sequence = 0;
    while !shared.tally.is_stopped() {
        let number = sequence % KEYS_EACH;
        let value = shared.value(sequence);
        let request = PutRequest { key: key(nth, number), value, ..Default::default() };
        let outcome = shared.tally.call(Kind::Put, kv.put(request)).await;
        histories[at(number)].note(sequence, &outcome);
        match &outcome {
            Ok(answer) => {
                shared.revision.fetch_max(answer.revision, Ordering::Relaxed);
                floors[at(number)].fetch_max(sequence + 1, Ordering::SeqCst);
            }
            Err(error) if error.outcome_unknown() => {
                floors[at(number)].store(u64::MAX, Ordering::SeqCst);
            }
            Err(_) => {}
        }
        sequence += 1;
    }
    Found::Keys(nth, histories)
}

async fn read(nth: u64, client: Client, shared: Shared) -> Found {
    let (kv, floors) = (client.kv(), &shared.floors[at(nth)]);
    let mut stale = 0;
    let mut sequence: u64 = 0;
    while !shared.tally.is_stopped() {
        // Coprime to the number of keys, and not the writer's order.
        sequence = (sequence + 617) % KEYS_EACH;
        let floor = floors[at(sequence)].load(Ordering::SeqCst);
        if let Ok(found) = shared.tally.call(Kind::Get, kv.get(key(nth, sequence))).await {
            let seen = found.as_ref().and_then(sequence_of).map_or(0, |sequence| sequence + 1);
            let bounded = floors[at(sequence)].load(Ordering::SeqCst) != u64::MAX;
            stale += u64::from(bounded && seen < floor);
        }
    }
    let mut wrongs = Wrongs::default();
    wrongs.add("reads older than an acknowledged write", stale);
    Found::Wrongs(wrongs)
}

async fn lock(nth: u64, client: Client, shared: Shared) -> Found {
    let (locks, held) = (client.locks(), &shared.locks[at(nth / HOLDERS)]);
    let span = |span| to_proto(span, "").expect("a constant span fits");
    let (ttl, wait) = (Some(span(LOCK_TTL)), Some(span(LOCK_WAIT)));
    let name = format!("soak/lock/{:05}", nth / HOLDERS);
    while !shared.tally.is_stopped() {
        let pair = async {
            let request = AcquireRequest { name: name.clone(), ttl, wait, ..Default::default() };
            let grant = locks.acquire(request).await?;
            held.enter(grant.fencing_token);
            held.leave();
            let (name, fencing_token) = (grant.name, grant.fencing_token);
            locks.release(ReleaseRequest { name, fencing_token, ..Default::default() }).await
        };
        tokio::select! {
            // Told already; a holder has nothing to prove at the end.
            _told = shared.tally.call(Kind::LockPair, pair) => {}
            () = shared.tally.stopped() => break,
        }
    }
    Found::Wrongs(Wrongs::default())
}

async fn append(nth: u64, client: Client, shared: Shared) -> Found {
    let events = client.events();
    let mut history = StreamHistory::default();
    let mut sequence = 0;
    while !shared.tally.is_stopped() {
        let data = shared.value(sequence);
        let event = Event { r#type: "Soak".to_owned(), data, ..Default::default() };
        let request =
            AppendRequest { stream: stream(nth), events: vec![event], ..Default::default() };
        let outcome = shared.tally.call(Kind::Append, events.append(request)).await;
        history.note(sequence, &outcome);
        sequence += 1;
    }
    Found::Stream(nth, history)
}

/// Watches a writer's keys: each key's versions must come one after the other.
async fn watch(nth: u64, client: Client, shared: Shared) -> Wrongs {
    let prefix = key_prefix(nth).into_bytes();
    let mut request = WatchRequest {
        range_end: prefix_end(&prefix),
        key: prefix.into(),
        start_revision: 1,
        ..Default::default()
    };
    let (mut versions, mut wrongs) = (BTreeMap::<Bytes, u64>::new(), Wrongs::default());
    let mut next = request.start_revision;
    loop {
        request.start_revision = next;
        let mut watch = client.kv().watch(request.clone());
        let error = loop {
            let told = tokio::select! {
                told = watch.next() => told,
                () = shared.tally.stopped() => return wrongs,
            };
            let response = match told {
                Ok(Some(response)) => response,
                Ok(None) => continue,
                Err(error) => break error,
            };
            for event in &response.events {
                let Some(kv) = event.kv.as_ref() else { continue };
                let before = versions.insert(kv.key.clone(), kv.version).unwrap_or_default();
                let follows = kv.version == before + 1 && event.kind() == Change::Put;
                wrongs.add("changes that a watcher missed or got twice", u64::from(!follows));
            }
            next = next.max(response.revision + 1);
            shared.tally.delivered(Kind::WatchedChange, response.events.len());
        };
        // Without its history, what it has seen proves nothing any more.
        shared.tally.fail(&error).await;
        if error.reason() == "COMPACTED" {
            wrongs.add("watchers that compaction overtook", 1);
            return wrongs;
        }
    }
}

/// Follows an appender's stream: versions must come one after the other, from 1.
async fn subscribe(nth: u64, client: Client, shared: Shared) -> Wrongs {
    let (mut seen, mut wrongs) = (0, Wrongs::default());
    loop {
        let request = SubscribeRequest { stream: stream(nth), from: seen + 1, from_end: false };
        let subscribed = client.events().subscribe(request).await;
        let error = match subscribed {
            Err(error) => error,
            Ok(mut subscription) => loop {
                let told = tokio::select! {
                    told = subscription.next() => told,
                    () = shared.tally.stopped() => return wrongs,
                };
                let response = match told {
                    Ok(Some(response)) => response,
                    Ok(None) => continue,
                    Err(error) => break error,
                };
                for event in &response.events {
                    let missed = event.version != seen + 1;
                    wrongs.add("events that a subscriber missed or got twice", u64::from(missed));
                    seen = event.version;
                }
                shared.tally.delivered(Kind::SubscribedEvent, response.events.len());
            },
        };
        shared.tally.fail(&error).await;
    }
}

/// Reads back what the writers and appenders were told, and compares.
pub(super) async fn verify(client: &Client, found: Vec<Found>) -> Result<(u64, Wrongs), Error> {
    let (mut acknowledged, mut wrongs) = (0, Wrongs::default());
    for found in found {
        match found {
            Found::Wrongs(other) => wrongs.join(other),
            Found::Keys(nth, histories) => {
                let there = keys(client, nth).await?;
                for (number, history) in (0..).zip(&histories) {
                    acknowledged += history.acknowledged();
                    let there = there.get(&key(nth, number));
                    let wrong =
                        history.check(there.and_then(|kv| Some((sequence_of(kv)?, kv.version))));
                    wrongs.add(
                        &format!("keys {}", wrong.unwrap_or_default()),
                        u64::from(wrong.is_some()),
                    );
                }
            }
            Found::Stream(nth, history) => {
                let there = sequences(client, nth).await?;
                acknowledged += u64::try_from(history.acknowledged().len()).unwrap_or(u64::MAX);
                let (missing, wrong) = history.check(there);
                wrongs.add("acknowledged events missing", missing);
                wrongs.add("events twice, out of order or refused", wrong);
            }
        }
    }
    Ok((acknowledged, wrongs))
}

/// A writer's keys as they are; linearizable. There are few enough for one answer.
async fn keys(client: &Client, nth: u64) -> Result<BTreeMap<Bytes, KeyValue>, client::Error> {
    let prefix = key_prefix(nth).into_bytes();
    let range_end = prefix_end(&prefix);
    let request = RangeRequest { key: prefix.into(), range_end, ..Default::default() };
    let there = client.kv().range(request).await?.kvs;
    Ok(there.into_iter().map(|kv| (kv.key.clone(), kv)).collect())
}

/// The sequence numbers in an appender's stream, in its order.
async fn sequences(client: &Client, nth: u64) -> Result<Vec<u64>, client::Error> {
    let mut read = client.events().read(ReadRequest { stream: stream(nth), ..Default::default() });
    let mut there = Vec::new();
    while let Some(response) = read.next().await? {
        there.extend(response.events.iter().filter_map(|event| leading(&event.data)));
    }
    Ok(there)
}

fn sequence_of(kv: &KeyValue) -> Option<u64> {
    leading(&kv.value)
}

/// The number that a value begins with.
fn leading(data: &[u8]) -> Option<u64> {
    data.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn key_prefix(nth: u64) -> String {
    format!("soak/key/{nth:05}/")
}

fn key(nth: u64, number: u64) -> Bytes {
    format!("{}{number:05}", key_prefix(nth)).into()
}

fn stream(nth: u64) -> String {
    format!("soak/stream/{nth:05}")
}

fn at(number: u64) -> usize {
    usize::try_from(number).expect("few clients and keys")
}
