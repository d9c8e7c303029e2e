//! Streams: whatever becomes of connections and nodes, a reader gets everything once, in order, or
//! is told what it cannot have.

use bytes::Bytes;
use tonic::Code;

use super::*;
use crate::{
    client::prefix_end,
    pb::{
        event::v1::{AppendRequest, Event, SubscribeRequest},
        kv::v1::{CompactRequest, RangeRequest, WatchRequest},
        lock::v1::AcquireRequest,
    },
};

/// How many changes a run is about.
const CHANGES: u64 = 240;

/// How long writers and readers try.
const TRIED: Duration = Duration::from_secs(120);

fn prefix() -> (Bytes, Bytes) {
    (Bytes::from_static(b"k/"), prefix_end(b"k/"))
}

fn patient(client: Client) -> Client {
    client.with_timeout(TRIED)
}

/// Puts keys one after the other; returns the revisions.
async fn write_keys(client: Client) -> Vec<u64> {
    let mut revisions = Vec::new();
    for n in 0..CHANGES {
        let put = client.kv().set(format!("k/{n:04}"), "v").await;
        revisions.push(put.expect("somebody takes it in time"));
        pause(Duration::from_millis(80)).await;
    }
    revisions
}

/// Watches from the first revision until so many changes came; returns their revisions.
async fn watch_keys(client: Client) -> (Vec<u64>, u64) {
    let (key, range_end) = prefix();
    let request = WatchRequest { key, range_end, start_revision: 1, ..Default::default() };
    let mut watch = client.kv().watch(request);
    let mut seen: Vec<u64> = Vec::new();
    while (seen.len() as u64) < CHANGES {
        let update = watch.next().await.expect("it resumes").expect("it does not end");
        let changed = update.events.into_iter().map(|event| event.kv.expect("of a key"));
        seen.extend(changed.map(|kv| kv.mod_revision));
    }
    (seen, watch.breaks())
}

fn event(n: u64) -> AppendRequest {
    let data = Bytes::from(n.to_string());
    let event = Event { r#type: "counted".to_owned(), data, ..Default::default() };
    AppendRequest { stream: "s".to_owned(), events: vec![event], ..Default::default() }
}

async fn append_events(client: Client) {
    for n in 1..=CHANGES {
        let appended = client.events().append(event(n)).await.expect("somebody takes it in time");
        assert_eq!((appended.first_version, appended.last_version), (n, n), "appended once");
        pause(Duration::from_millis(80)).await;
    }
}

/// Subscribes until so many events came; they must be dense and in order.
async fn subscribe_events(client: Client) -> u64 {
    let request = SubscribeRequest { stream: "s".to_owned(), from: 1, ..Default::default() };
    let mut events = client.events().subscribe(request).await.expect("from a version");
    let mut next = 1;
    while next <= CHANGES {
        for event in events.next().await.expect("it resumes").expect("it does not end").events {
            assert_eq!((event.version, &event.data), (next, &Bytes::from(next.to_string())));
            next += 1;
        }
    }
    events.breaks()
}

/// Runs writers and readers while `faults` happen; everything must come once and in order.
async fn readers_miss_nothing(world: World, faults: impl AsyncFnOnce(&World)) {
    world.leader(&[]).await;
    let other = || patient(world.client_of(world.ids().collect::<Vec<_>>().into_iter().rev()));
    let keys = tokio::spawn(write_keys(patient(world.client())));
    let watch = tokio::spawn(watch_keys(other()));
    let events = tokio::spawn(append_events(other()));
    let subscription = tokio::spawn(subscribe_events(patient(world.client())));
    faults(&world).await;
    let written = soon("the puts", keys).await.expect("no panic");
    let (seen, breaks) = soon("the watch", watch).await.expect("no panic");
    assert_eq!(seen, written, "every change once, in order");
    soon("the appends", events).await.expect("no panic");
    let resumed = soon("the subscription", subscription).await.expect("no panic");
    world.note(format!("the watch broke {breaks} times, the subscription {resumed} times"));
    assert!(breaks + resumed > 0, "nothing was resumed");
    world.converge().await;
}

#[test]
fn readers_miss_nothing_where_connections_are_cut() {
    simulate(Setup::new(11, 3), async |world: World| {
        readers_miss_nothing(world, async |world: &World| {
            for id in [1, 3, 2, 1] {
                world.cut("client", &name(id));
                pause(Duration::from_secs(5)).await;
                world.mend("client", &name(id));
                pause(Duration::from_secs(1)).await;
            }
        })
        .await;
    });
}

#[test]
fn readers_miss_nothing_where_nodes_crash_and_come_back() {
    simulate(Setup::new(12, 3), async |world: World| {
        readers_miss_nothing(world, async |world: &World| {
            for id in [1, 3, 2, 1, 3] {
                world.crash(id).await;
                pause(Duration::from_millis(2_500)).await;
                world.restart(id).await;
                pause(Duration::from_millis(1_500)).await;
            }
        })
        .await;
    });
}

#[test]
fn readers_at_a_node_that_is_cut_off_from_its_peers_get_the_rest_when_it_is_back() {
    simulate(Setup::new(13, 3), async |world: World| {
        world.leader(&[]).await;
        let at = 3;
        let readers = [tokio::spawn(watch_keys(patient(world.client_of([at]))))];
        let writer = tokio::spawn(write_keys(patient(world.client_of([1, 2]))));
        for _ in 0..3 {
            world.isolate(at);
            pause(Duration::from_secs(4)).await;
            world.rejoin(at);
            pause(Duration::from_secs(2)).await;
        }
        let written = soon("the puts", writer).await.expect("no panic");
        for reader in readers {
            let (seen, breaks) = soon("the watch", reader).await.expect("no panic");
            assert_eq!(seen, written);
            assert_eq!(breaks, 0, "its connection stood all the time");
        }
    });
}

#[test]
fn a_node_that_drains_hands_its_readers_and_callers_over() {
    let trace = simulate(Setup::new(14, 3), async |world: World| {
        readers_miss_nothing(world, async |world: &World| {
            let holder = AcquireRequest { name: "jobs".to_owned(), ..Default::default() };
            let ttl = Some(prost_types::Duration { seconds: 30, nanos: 0 });
            let holder = AcquireRequest { ttl, ..holder };
            world.client().locks().acquire(holder.clone()).await.expect("free");
            let waiter = world.client_of([1, 2, 3]);
            let waiter = tokio::spawn(async move { waiter.locks().acquire(holder).await });
            for id in [1, 3] {
                pause(Duration::from_secs(2)).await;
                let (began, leader) = (now(), world.leader(&[]).await);
                world.stop(id);
                soon("the end of the node", world.gone(id)).await;
                world.note(format!("{id} of leader {leader} took {:?}", now() - began));
                assert!(now() - began < Duration::from_secs(10));
                world.restart(id).await;
                world.leader(&[]).await;
            }
            assert!(!waiter.is_finished(), "it waits in the same line, whoever serves it");
            waiter.abort();
        })
        .await;
    });
    let in_order = trace.iter().filter(|line| line.ends_with("in order: true")).count();
    assert_eq!(in_order, 2, "{trace:#?}");
}

#[test]
fn a_reader_that_was_away_beyond_a_compaction_is_told_and_gets_no_gap() {
    simulate(Setup::new(15, 3), async |world: World| {
        world.leader(&[]).await;
        let (reader, writer) = (patient(world.client_of([1])), world.client_of([2, 3]));
        let (key, range_end) = prefix();
        let request = WatchRequest { key, range_end, ..Default::default() };
        let mut watch = reader.kv().watch(WatchRequest { start_revision: 1, ..request });
        writer.kv().set("k/0", "seen").await.expect("put");
        let seen = loop {
            let update = watch.next().await.expect("delivered").expect("it does not end");
            if let Some(event) = update.events.first() {
                break event.kv.clone().expect("of a key");
            }
        };
        assert_eq!(seen.value, "seen");
        world.cut("client", "node-1");
        let reading = tokio::spawn(async move {
            loop {
                match watch.next().await {
                    Ok(update) => {
                        let events = update.expect("it does not end").events;
                        assert!(events.is_empty(), "a gap: {events:?}");
                    }
                    Err(error) => return error,
                }
            }
        });
        for n in 0..5 {
            writer.kv().set("k/0", n.to_string()).await.expect("put");
        }
        let (key, range_end) = prefix();
        let newest = writer.kv().range(RangeRequest { key, range_end, ..Default::default() }).await;
        let revision = newest.expect("read").revision;
        let compact = CompactRequest { revision, ..Default::default() };
        writer.kv().compact(compact).await.expect("compacted");
        pause(Duration::from_secs(6)).await;
        world.mend("client", "node-1");
        let refused = soon("the refusal", reading).await.expect("no gap");
        assert_eq!((refused.code(), refused.reason()), (Code::OutOfRange, "COMPACTED"));
        let next: u64 =
            refused.fact("compact_revision").map_or(0, |it| it.parse().expect("digits"));
        assert_eq!(next, revision, "it says from where on history is kept: {refused}");
    });
}
