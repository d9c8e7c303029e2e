//! Runs in which a seed chooses the faults, and one seed run twice.
//!
//! `QUORATE_TURMOIL_SEEDS=N` runs N seeds instead of a few; `QUORATE_TURMOIL_SEED=S` one alone.

use std::{collections::BTreeSet, env};

use bytes::Bytes;

use super::*;
use crate::{
    client::Error,
    pb::{
        event::v1::{AppendRequest, Event, ReadRequest, SubscribeRequest},
        lock::v1::{AcquireRequest, ReleaseRequest},
    },
    types::Rng,
};

/// How many seeds the ordinary run takes.
const SEEDS: u64 = 2;
/// How many faults there are in a run.
const FAULTS: u64 = 12;
/// How many clients append.
const WRITERS: u64 = 3;

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Appended,
    Unknown,
    Refused,
}

impl Fate {
    fn of<T>(answer: &Result<T, Error>) -> Self {
        match answer {
            Ok(_) => Self::Appended,
            Err(error) if error.outcome_unknown() => Self::Unknown,
            Err(_) => Self::Refused,
        }
    }
}

#[test]
fn whatever_the_faults_acknowledged_is_there_once_and_refused_is_not() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("digits"));
    if let Some(seed) = number("QUORATE_TURMOIL_SEED") {
        println!("{:#?}", run(seed, FAULTS));
        return;
    }
    for seed in 1..=number("QUORATE_TURMOIL_SEEDS").unwrap_or(SEEDS) {
        println!("QUORATE_TURMOIL_SEED={seed}");
        run(seed, FAULTS);
    }
}

#[test]
fn one_seed_run_twice_is_the_same_run() {
    let first = run(77, 4);
    assert_eq!(first, run(77, 4));
    assert_ne!(first, run(78, 4), "the seed chooses nothing");
}

fn run(seed: u64, count: u64) -> Vec<String> {
    simulate(Setup::new(seed, 3), async move |world: World| {
        world.leader(&[]).await;
        let rng = Rng::new(seed).stream("faults");
        let ids: Vec<_> = world.ids().collect();
        let client = |first: usize| {
            let ids = (0..ids.len()).map(|n| ids[(first + n) % ids.len()]);
            world.client_of(ids).with_timeout(Duration::from_secs(2))
        };
        let stop = tokio_util::sync::CancellationToken::new();
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| tokio::spawn(append(n, client(n as usize), stop.clone())))
            .collect();
        let lockers: Vec<_> =
            (0..2).map(|n| tokio::spawn(lock(client(n + 1), stop.clone()))).collect();
        let subscription = tokio::spawn(subscribe(client(2).with_timeout(PATIENCE), stop.clone()));
        faults(&world, rng, count).await;
        world.leader(&[]).await;
        stop.cancel();

        let mut fates = BTreeMap::new();
        for writer in writers {
            fates.extend(soon("a writer", writer).await.expect("no panic"));
        }
        let mut tokens = Vec::new();
        for locker in lockers {
            tokens.extend(soon("a locker", locker).await.expect("no panic"));
        }
        world.converge().await;
        // What the subscription must still get comes before this.
        let last = client(0).events().append(request("end")).await.expect("all is well");
        let seen = soon("the subscription", subscription).await.expect("no panic");
        let there = read(client(0), last.last_version).await;
        assert_eq!(seen, there, "the subscription got everything once, in order");
        check(&fates, &there);
        // One holder after the other; a token is never given twice.
        let distinct: BTreeSet<_> = tokens.iter().collect();
        assert_eq!(distinct.len(), tokens.len(), "a token was given twice");
        let count = |fate| fates.values().filter(|it| **it == fate).count();
        world.note(format!(
            "{} appended, {} unknown, {} refused, {} grants, {} events",
            count(Fate::Appended),
            count(Fate::Unknown),
            count(Fate::Refused),
            tokens.len(),
            there.len()
        ));
        assert!(count(Fate::Appended) > 20 && tokens.len() > 5, "hardly anything was done");
    })
}

/// Acknowledged is there once, refused is not there, and nothing is there that nobody sent.
fn check(fates: &BTreeMap<String, Fate>, there: &[String]) {
    let mut counts = BTreeMap::<&str, usize>::new();
    for event in there {
        *counts.entry(event).or_default() += 1;
    }
    for (event, fate) in fates {
        let count = counts.remove(event.as_str()).unwrap_or(0);
        let fits = match fate {
            Fate::Appended => count == 1,
            Fate::Unknown => count <= 1,
            Fate::Refused => count == 0,
        };
        assert!(fits, "{event}: {fate:?}, and is there {count} times");
    }
    assert_eq!(counts.remove("end"), Some(1));
    assert!(counts.is_empty(), "nobody sent {counts:?}");
}

fn request(data: &str) -> AppendRequest {
    let data = Bytes::copy_from_slice(data.as_bytes());
    let event = Event { r#type: "said".to_owned(), data, ..Default::default() };
    AppendRequest { stream: "s".to_owned(), events: vec![event], ..Default::default() }
}

async fn append(
    writer: u64,
    client: Client,
    stop: tokio_util::sync::CancellationToken,
) -> Vec<(String, Fate)> {
    let mut fates = Vec::new();
    while !stop.is_cancelled() {
        let event = format!("{writer}-{}", fates.len());
        let answer = client.events().append(request(&event)).await;
        fates.push((event, Fate::of(&answer)));
        pause(Duration::from_millis(150)).await;
    }
    fates
}

/// Takes a lock again and again; the tokens that it got.
async fn lock(client: Client, stop: tokio_util::sync::CancellationToken) -> Vec<u64> {
    let span = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let mut tokens: Vec<u64> = Vec::new();
    while !stop.is_cancelled() {
        let name = "jobs".to_owned();
        let acquire = AcquireRequest { name, ttl: span(2), wait: span(4), ..Default::default() };
        let Ok(grant) = client.locks().acquire(acquire).await else { continue };
        assert!(tokens.last().is_none_or(|last| *last < grant.fencing_token), "a token went back");
        tokens.push(grant.fencing_token);
        pause(Duration::from_millis(200)).await;
        let (name, fencing_token) = (grant.name, grant.fencing_token);
        // Where it is lost meanwhile its time runs out.
        let release = ReleaseRequest { name, fencing_token, ..Default::default() };
        let _ = client.locks().release(release).await;
    }
    tokens
}

async fn subscribe(client: Client, stop: tokio_util::sync::CancellationToken) -> Vec<String> {
    let request = SubscribeRequest { stream: "s".to_owned(), from: 1, ..Default::default() };
    let mut events = client.events().subscribe(request).await.expect("from a version");
    let mut seen = Vec::new();
    loop {
        let update = events.next().await.expect("it resumes").expect("it does not end");
        seen.extend(update.events.iter().map(|event| text(&event.data)));
        if stop.is_cancelled() && seen.last().is_some_and(|last| last == "end") {
            return seen;
        }
    }
}

async fn read(client: Client, last: u64) -> Vec<String> {
    let request = ReadRequest { stream: "s".to_owned(), limit: last, ..Default::default() };
    let mut read = client.events().read(request);
    let mut there = Vec::new();
    while let Some(page) = read.next().await.expect("read") {
        there.extend(page.events.iter().map(|event| text(&event.data)));
    }
    there
}

fn text(data: &Bytes) -> String {
    String::from_utf8_lossy(data).into_owned()
}

/// One fault after the other, each taken back before the next but one; at the end all is well.
pub(super) async fn faults(world: &World, mut rng: Rng, count: u64) {
    let span = |rng: &mut Rng| rng.between(Duration::from_millis(100), Duration::from_secs(3));
    for _ in 0..count {
        let a = 1 + rng.below(3);
        let b = 1 + (a + rng.below(2)) % 3;
        match rng.below(6) {
            0 => {
                world.crash(a).await;
                pause(span(&mut rng)).await;
                world.restart(a).await;
            }
            1 => {
                world.isolate(a);
                pause(span(&mut rng)).await;
                world.rejoin(a);
            }
            2 => {
                world.cut("client", &name(a));
                pause(span(&mut rng)).await;
                world.mend("client", &name(a));
            }
            3 => {
                world.note(format!("lose from {a} to {b}"));
                turmoil::partition_oneway(name(a), name(b));
                pause(span(&mut rng)).await;
                turmoil::repair_oneway(name(a), name(b));
            }
            4 => {
                world.note(format!("lose answers of {a}"));
                turmoil::partition_oneway(name(a), "client");
                pause(span(&mut rng)).await;
                turmoil::repair_oneway(name(a), "client");
            }
            _ => {
                world.note(format!("hold between {a} and {b}"));
                turmoil::hold(name(a), name(b));
                pause(span(&mut rng)).await;
                turmoil::release(name(a), name(b));
            }
        }
        pause(span(&mut rng)).await;
    }
}
