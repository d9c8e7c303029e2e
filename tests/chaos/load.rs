//! The clients of a run, its watch and its subscriptions.
//!
//! Each client goes on under a new number after an outcome that nobody knows. Watches and
//! subscriptions are taken up again by the client library where they broke, and now and then by the
//! test itself, at another node.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use quorate::{
    client::{self, Client, Error},
    pb::{
        event::v1::SubscribeRequest,
        kv::v1::{KvEvent, WatchRequest, kv_event},
    },
    sim::{
        history::{Call, Line, Outcome},
        workload::{self, Family, Intent, Planned, Shape, generate},
    },
    types::Rng,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    executor::{self, Guarded, carry_out, text},
    record::Record,
};

/// How many clients there are at a time.
pub(crate) const CLIENTS: u64 = 8;

/// How many keys, locks, services and streams there are, each.
pub(crate) const NAMES: u64 = 3;

/// How long a call may take with all its attempts: of patient clients, and of others whose outcomes
/// stay unknown more often.
const CALL_LIMIT: Duration = Duration::from_secs(3);
const HASTY_LIMIT: Duration = Duration::from_millis(500);

/// How long a client thinks at most between two calls, in milliseconds.
const THINK_MS_MAX: u64 = 50;

/// How long a watch stays with one node before the test moves it, in milliseconds.
const STAY_MS: u64 = 1_500;

/// What everything that loads the cluster shares.
pub(crate) struct Load {
    pub(crate) record: Arc<Record>,
    endpoints: Vec<String>,
    guarded: Guarded,
    /// The last client's number.
    clients: AtomicU64,
    stop: AtomicBool,
    /// What the watch has been told, as a revision, and the subscriptions, as versions and positions.
    watched: AtomicU64,
    told: [AtomicU64; STREAMS.len()],
}

/// What is subscribed to; empty is all.
const STREAMS: [&str; 2] = ["", "e0"];

impl Load {
    pub(crate) fn new(record: Arc<Record>, endpoints: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            record,
            endpoints,
            guarded: Guarded::default(),
            clients: AtomicU64::new(CLIENTS),
            stop: AtomicBool::new(false),
            watched: AtomicU64::new(0),
            told: Default::default(),
        })
    }

    /// Starts all clients, until [`Load::stop`].
    pub(crate) fn start(self: &Arc<Self>, rng: &Rng) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for client in 1..=CLIENTS {
            let rng = rng.stream(&format!("client {client}"));
            tasks.spawn(Arc::clone(self).client(client, rng));
        }
        tasks
    }

    /// Starts the watch and the subscriptions; they end with the returned set.
    pub(crate) fn listen(self: &Arc<Self>, rng: &Rng) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(self).watch(rng.stream("watch")));
        for number in 0..STREAMS.len() {
            let rng = rng.stream(&format!("subscription {number}"));
            tasks.spawn(Arc::clone(self).subscribe(number, rng));
        }
        tasks
    }

    /// Lets the clients end with the calls that they are at.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The revision up to which the watch was told everything.
    pub(crate) fn watched(&self) -> u64 {
        self.watched.load(Ordering::Relaxed)
    }

    /// The place up to which a subscription was told everything: of all, and of `e0`.
    pub(crate) fn told(&self) -> [u64; STREAMS.len()] {
        [0, 1].map(|number| self.told[number].load(Ordering::Relaxed))
    }

    /// Carries one call out at one node, and writes it down.
    pub(crate) async fn call(&self, number: u64, node: usize, call: Call) -> Outcome {
        let client = self.client_at(node);
        self.recorded(number, node, &client, &client, call).await
    }

    /// A number that no client had.
    pub(crate) fn fresh_number(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed) + 1
    }

    async fn recorded(
        &self,
        number: u64,
        node: usize,
        client: &Client,
        one: &Client,
        call: Call,
    ) -> Outcome {
        let asked = self.id_of(node);
        let life = self.record.life(asked);
        let id = self.record.call(number, Some(asked), call.clone());
        let mut outcome = carry_out(client, one, &self.guarded, &call).await;
        if is_stale(&call) && self.record.life(asked) != life {
            // Nobody knows which life it tells of.
            outcome = Outcome::Refused { reason: "KILLED_MEANWHILE".to_owned(), actual: None };
        }
        self.record.returned(id, outcome.clone());
        outcome
    }

    fn id_of(&self, node: usize) -> u64 {
        u64::try_from(node % self.endpoints.len()).expect("small") + 1
    }

    async fn client(self: Arc<Self>, number: u64, mut rng: Rng) {
        let node = usize::try_from(number).expect("small");
        let (mut client, one) = (self.client_from(node), self.client_at(node));
        if number.is_multiple_of(2) {
            client = client.with_timeout(HASTY_LIMIT);
        }
        let mut known = workload::Client::new(number);
        let mut life = 0;
        let shape = Shape {
            families: Family::ALL.to_vec(),
            clients: 1,
            intents: 100,
            names: NAMES,
            think_ms_max: THINK_MS_MAX,
        };
        while !self.stop.load(Ordering::Relaxed) {
            for Planned { think_ms, intent, .. } in generate(&shape, &mut rng) {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                sleep_until(Instant::now() + Duration::from_millis(think_ms)).await;
                let Some(call) = known.call(&shortened(intent)) else { continue };
                // What a node's own state was promises nothing of the node's next life.
                let life_now = self.record.life(self.id_of(node));
                if is_stale(&call) && std::mem::replace(&mut life, life_now) != life_now {
                    known = workload::Client::new(self.fresh_number());
                }
                let outcome = self.recorded(known.id(), node, &client, &one, call.clone()).await;
                known.learn(&call, &outcome);
                if matches!(outcome, Outcome::Unknown { .. }) {
                    known = workload::Client::new(self.fresh_number());
                }
            }
        }
    }

    /// Watches all keys of the workload, now here, now there.
    async fn watch(self: Arc<Self>, mut rng: Rng) {
        let (key, range_end) = ("k".to_owned(), "l".to_owned());
        let mut after = 0;
        for turn in 0.. {
            let client = self.client_from(turn);
            let (from, to) = (key.clone(), range_end.clone());
            self.record.line(|time| Line::WatchBegins {
                time,
                watch: 1,
                key: from,
                range_end: to,
                after,
            });
            let mut watch = client.kv().watch(WatchRequest {
                key: key.clone().into(),
                range_end: range_end.clone().into(),
                start_revision: after + 1,
                prev_kv: false,
            });
            let leave = Instant::now() + Duration::from_millis(STAY_MS + rng.below(STAY_MS));
            while let Ok(next) = timeout(leave - Instant::now().min(leave), watch.next()).await {
                match next {
                    Ok(Some(response)) => {
                        self.note_changes(&response.events);
                        if response.revision > 0 {
                            after = response.revision;
                            self.note_progress(after);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        if let Some(through) = compacted(&error) {
                            self.record.line(|time| Line::WatchCompacted {
                                time,
                                watch: 1,
                                through,
                            });
                            after = after.max(through);
                        }
                        break;
                    }
                }
            }
        }
    }

    fn note_changes(&self, events: &[KvEvent]) {
        for (at, event) in events.iter().enumerate() {
            let Some(kv) = &event.kv else { continue };
            let next = events.get(at + 1).and_then(|next| next.kv.as_ref());
            let last = next.is_none_or(|next| next.mod_revision != kv.mod_revision);
            let put = event.kind() == kv_event::Kind::Put;
            self.record.line(|time| Line::WatchTold {
                time,
                watch: 1,
                key: text(&kv.key),
                value: put.then(|| text(&kv.value)),
                revision: kv.mod_revision,
                last,
            });
        }
    }

    fn note_progress(&self, revision: u64) {
        self.record.line(|time| Line::WatchProgress { time, watch: 1, revision });
        self.watched.store(revision, Ordering::Relaxed);
    }

    /// Subscribes to a stream, now here, now there.
    async fn subscribe(self: Arc<Self>, number: usize, mut rng: Rng) {
        let stream = STREAMS[number].to_owned();
        let subscription = u64::try_from(number).expect("small") + 1;
        let mut from = 1;
        for turn in number.. {
            let client = self.client_from(turn);
            let name = stream.clone();
            self.record.line(|time| Line::SubscriptionBegins {
                time,
                subscription,
                stream: name,
                from,
            });
            let request = SubscribeRequest { stream: stream.clone(), from, from_end: false };
            let leave = Instant::now() + Duration::from_millis(STAY_MS + rng.below(STAY_MS));
            let opened = timeout(leave - Instant::now(), client.events().subscribe(request)).await;
            let Ok(Ok(mut told)) = opened else { continue };
            while let Ok(Ok(Some(response))) =
                timeout(leave - Instant::now().min(leave), told.next()).await
            {
                for event in response.events {
                    let event = executor::event(event);
                    from = 1 + if stream.is_empty() { event.position } else { event.version };
                    self.record.line(|time| Line::SubscriptionTold { time, subscription, event });
                    self.told[number].store(from - 1, Ordering::Relaxed);
                }
            }
        }
    }

    /// A client of all nodes.
    fn client_from(&self, node: usize) -> Client {
        let count = self.endpoints.len();
        let endpoints = (0..count).map(|next| self.endpoints[(node + next) % count].clone());
        build(Client::builder().endpoints(endpoints))
    }

    /// A client that asks this node only.
    fn client_at(&self, node: usize) -> Client {
        let endpoint = self.endpoints[node % self.endpoints.len()].clone();
        build(Client::builder().endpoints([endpoint]).discover(false))
    }
}

fn build(builder: client::Builder) -> Client {
    builder.timeout(CALL_LIMIT).build().expect("the cluster's own addresses are well formed")
}

const fn is_stale(call: &Call) -> bool {
    matches!(call, Call::Get { stale: true, .. })
}

/// A wait in line counts against the run's few seconds.
fn shortened(intent: Intent) -> Intent {
    match intent {
        Intent::Acquire { lock, ttl_ms, wait_ms, in_session } => {
            Intent::Acquire { lock, ttl_ms, wait_ms: wait_ms / 3, in_session }
        }
        other => other,
    }
}

/// Up to where history was discarded, where that is why a watch ended.
fn compacted(error: &Error) -> Option<u64> {
    let through = error.fact("compact_revision")?.parse().ok()?;
    (error.reason() == "COMPACTED").then_some(through)
}
