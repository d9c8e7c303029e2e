//! One run: a cluster, its load, its faults, and what must be true afterwards.

use std::{env, sync::Arc, time::Duration};

use quorate::{
    pb::cluster::v1::StateHashRequest,
    sim::history::{Answer, Call, Outcome},
    testing::Cluster,
    types::Rng,
};

use crate::{
    LIMIT, PROGRAM,
    driver::{Driver, Fault},
    eventually, judge,
    load::{Load, NAMES},
    record::{KeptOnFailure, Record},
};

/// For how long faults come, unless `QUORATE_CHAOS_SECONDS` says otherwise.
const SPAN: Duration = Duration::from_secs(8);

/// The smallest log that a node may keep for those that lag.
const SETTINGS: &str = "retained_log_bytes = 1048576\n";

/// The key that is written and read last, outside of what is watched.
const LAST: &str = "z";

/// A named mix of faults.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) faults: &'static [Fault],
}

impl Scenario {
    pub(crate) async fn run(self) {
        let Self { name, faults } = self;
        run(name, async |cluster, record, rng| {
            let driver = Driver::new(cluster, Arc::clone(record), rng);
            let fired = driver.run(faults, span()).await;
            println!("{name}: what fired: {fired:?}");
        })
        .await;
    }
}

/// Loads a cluster while `breaks` does its worst, and judges what the clients saw.
pub(crate) async fn run(
    name: &'static str,
    breaks: impl AsyncFnOnce(&mut Cluster, &Arc<Record>, Rng),
) {
    let seed = seed();
    println!("{name}: QUORATE_CHAOS_SEED={seed}");
    let rng = Rng::new(seed).stream(name);
    let record = Arc::new(Record::new(name, seed));
    let _kept = KeptOnFailure(Arc::clone(&record));
    let mut cluster = start().await;
    let load = Load::new(Arc::clone(&record), cluster.endpoints());
    let mut listeners = load.listen(&rng);
    let mut clients = load.start(&rng);

    breaks(&mut cluster, &record, rng.stream("faults")).await;
    cluster.heal_links().await;
    record.note(None, "the faults are over");

    load.stop();
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client does not panic");
    }
    settle(&mut cluster, &load).await;
    listeners.abort_all();
    while listeners.join_next().await.is_some() {}
    let history = record.history();
    judge::judge(name, &history);
    judge::lies_are_found(name, &history);
}

/// Three processes that may be broken in every way.
async fn start() -> Cluster {
    Cluster::builder(3).program(PROGRAM).settings(SETTINGS).lab().start().await
}

/// What must be true once the faults are over: every node serves, all are of one state, everything
/// is read once more, and who listens has been told everything.
async fn settle(cluster: &mut Cluster, load: &Load) {
    cluster.wait_until_ready().await;
    cluster.wait_for_leader().await;
    for node in 0..cluster.ids().len() {
        let written = insist(load, node, "a write at every node", |number| Call::Put {
            key: format!("k{}", u64::try_from(node).expect("small") % NAMES),
            value: format!("c{number}.1"),
            require_lock: None,
        });
        assert!(matches!(written.await, Answer::Done { .. }));
        let appended = insist(load, node, "an append at every node", |number| Call::Append {
            stream: "e0".to_owned(),
            data: vec![format!("c{number}.1")],
            expected_version: None,
        });
        assert!(matches!(appended.await, Answer::Appended { .. }));
    }
    let (revision, position, version) = read_everything(load).await;
    eventually("the watch to be told everything", async || {
        (load.watched() >= revision).then_some(())
    })
    .await;
    eventually("the subscriptions to be told everything", async || {
        let [all, one] = load.told();
        (all >= position && one >= version).then_some(())
    })
    .await;
    of_one_state(cluster).await;
}

/// Reads all that a workload may have written; gives the newest revision of a key, the last
/// position, and the last version of the stream that is subscribed to.
async fn read_everything(load: &Load) -> (u64, u64, u64) {
    let mut newest = 0;
    for number in 0..NAMES {
        let node = usize::try_from(number).expect("small");
        let get = |_| Call::Get { key: format!("k{number}"), stale: false };
        if let Answer::Got { value: Some(value), .. } = insist(load, node, "a read", get).await {
            newest = newest.max(value.mod_revision.unwrap_or_default());
        }
        let describe = |_| Call::Describe { lock: format!("l{number}") };
        insist(load, node, "a lock's description", describe).await;
        let resolve = |_| Call::Resolve { service: format!("s{number}") };
        insist(load, node, "a service's instances", resolve).await;
    }
    let last = async |stream: &str| {
        let read = |_| Call::ReadStream { stream: stream.to_owned(), from: 1 };
        let Answer::Events { events } = insist(load, 0, "the events", read).await else {
            panic!("another answer to a read of events");
        };
        events.last().map_or((0, 0), |event| (event.position, event.version))
    };
    // Nobody else touches this key: no call of unknown outcome can explain that it were gone.
    let key = || LAST.to_owned();
    let put = |number| Call::Put { key: key(), value: format!("c{number}.1"), require_lock: None };
    insist(load, 1, "the last write", put).await;
    insist(load, 2, "the last read", |_| Call::Get { key: key(), stale: false }).await;
    let (position, _) = last("").await;
    let (_, version) = last("e0").await;
    for number in 1..NAMES {
        let stream = format!("e{number}");
        let number = load.fresh_number();
        // It may never have been appended to.
        load.call(number, 1, Call::ReadStream { stream, from: 1 }).await;
    }
    (newest, position, version)
}

/// Makes a call again and again, each time as another client, until it is carried out.
async fn insist(load: &Load, node: usize, what: &str, call: impl Fn(u64) -> Call) -> Answer {
    eventually(what, async || {
        let number = load.fresh_number();
        match load.call(number, node, call(number)).await {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Refused { .. } | Outcome::Unknown { .. } => None,
        }
    })
    .await
}

/// Nodes that have applied the same have the same state.
async fn of_one_state(cluster: &Cluster) {
    eventually("all nodes to be equally far", async || {
        let mut hashes = Vec::new();
        for id in cluster.ids() {
            let client = cluster.client_at(id).with_timeout(LIMIT);
            hashes.push(client.cluster().state_hash(StateHashRequest::default()).await.ok()?);
        }
        let [first, others @ ..] = hashes.as_slice() else { panic!("a cluster has nodes") };
        let as_far = others.iter().all(|other| other.applied_index == first.applied_index);
        if !as_far {
            return None;
        }
        for other in others {
            assert_eq!(other.hash, first.hash, "the keys differ: {hashes:#?}");
            assert_eq!(other.full_hash, first.full_hash, "the state differs: {hashes:#?}");
        }
        Some(())
    })
    .await;
}

/// How long faults come.
fn span() -> Duration {
    let seconds = env::var("QUORATE_CHAOS_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("QUORATE_CHAOS_SECONDS is a number"));
    seconds.map_or(SPAN, Duration::from_secs)
}

/// What chance is drawn from; another each time unless `QUORATE_CHAOS_SEED` says otherwise.
fn seed() -> u64 {
    let seed = env::var("QUORATE_CHAOS_SEED").ok();
    let seed = seed.map(|text| text.parse().expect("QUORATE_CHAOS_SEED is a number"));
    seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 40)
}
