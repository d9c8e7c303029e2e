//! How a node keeps doing what it can when it is asked for more: a limit on the calls under way that
//! follows their latency, and shedding by class while the queue before it stands.
//!
//! Lists go first, then keys, then locks; what keeps sessions alive is never shed, since a session
//! that expires under load takes its locks and registrations with it and makes more load. What is
//! refused was not begun. It never looks into a request; the handler of a range does, and asks for a
//! list then.

use std::sync::Arc;

use serde::Deserialize;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    layers::{
        Clock,
        concurrency_limit::{Entry, Place},
        load_shed::{LoadShedHandle, LoadShedLayer},
    },
    machine::refusal,
    observe::{Metrics, OverloadReading},
    pb::command::v1::Reason,
    resilience::{
        concurrency_limit::{self, Aimd, Algorithm, CLASSES},
        load_shed,
    },
    types::Duration,
    wire::status::from_refusal,
};

/// Above this mean latency of reads and changes the limit goes down. Sessions of a few seconds and
/// deadlines of a second leave room for it; a write of a healthy cluster takes a few milliseconds,
/// and one over continents less than this.
const LATENCY_MAX: Duration = Duration::from_millis(250);

/// The limit at the start. High, since it comes down by a half in a second, and a burst of clients is
/// no overload as long as all are answered soon.
const LIMIT_INITIAL: usize = 1_024;

/// The least limit. Writes that come together share an fsync and a round, so that few under way mean
/// few a second; a pause of all, as an election, must not take that.
const LIMIT_MIN: usize = 128;

/// How many calls wait for a place at most.
const QUEUE_MAX: usize = 1_024;

/// How long a call waits for a place at most.
const QUEUE_WAIT_MAX: Duration = Duration::from_millis(50);

/// What the wait in the queue, and in the runtime's own, may come to. A busy machine brings some
/// milliseconds of it to each turn of a task without having more to do than it can.
const QUEUE_TARGET: Duration = Duration::from_millis(25);

/// How long the queue must stand.
const QUEUE_INTERVAL: Duration = Duration::from_millis(100);

/// What percentage of the limit a class may fill: keys leave some to locks and to what sessions ask
/// by their streams, lists leave more than half to keys.
const SHARES: [u32; CLASSES] = [100, 95, 90, 45, 45, 45, 45, 45];

/// How a node protects itself from too many calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverloadControl {
    /// By a limit that follows the latency, up to the fixed one, and by shedding the less important
    /// classes first.
    Adaptive,
    /// By the fixed limits alone.
    #[default]
    Fixed,
}

/// How important a call is. In this order they are let in, and in the opposite one shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// What keeps something alive: sessions, locks that are held, instances; and an operator's way to
    /// move the leader.
    Sessions,
    /// Locks, registrations, and the cluster's status.
    Locks,
    /// Keys and events, and what streams begin with.
    Keys,
    /// What reads much at once.
    Lists,
}

impl Class {
    /// The class of a product's call, as `kv.v1.KvService` and `Put`.
    pub(crate) fn of(service: &str, method: &str) -> Self {
        match (service, method) {
            (_, "List" | "ListServices" | "ListStreams" | "StateHash" | "SaveSnapshot") => {
                Self::Lists
            }
            ("session.v1.SessionService", _) | (_, "Renew" | "TransferLeadership") => {
                Self::Sessions
            }
            ("lock.v1.LockService", "Acquire" | "Release")
            | ("cluster.v1.ClusterService", _)
            | (_, "Register" | "Deregister" | "SetInstanceState") => Self::Locks,
            _ => Self::Keys,
        }
    }

    /// Its name in metrics and refusals.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Locks => "locks",
            Self::Keys => "keys",
            Self::Lists => "lists",
        }
    }
}

/// A node's protection. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Overload {
    limit: Arc<Entry>,
    shed: LoadShedHandle,
    metrics: Metrics,
}

impl Overload {
    pub(crate) fn new(calls_max: usize, metrics: Metrics) -> Self {
        let limit = concurrency_limit::Config {
            algorithm: Algorithm::Aimd(Aimd { latency_max: LATENCY_MAX, ..Aimd::default() }),
            initial: LIMIT_INITIAL,
            min: LIMIT_MIN.min(calls_max),
            max: calls_max.min(1_000_000),
            queue_max: QUEUE_MAX,
            queue_wait_max: QUEUE_WAIT_MAX,
            shares: SHARES,
            ..concurrency_limit::Config::default()
        };
        let shed = load_shed::Config {
            target: QUEUE_TARGET,
            interval: QUEUE_INTERVAL,
            classes: 4,
            never_shed: 1,
        };
        let shed = LoadShedLayer::new(shed.validate().expect("these figures work")).handle();
        let limit = limit.validate().expect("these figures work, and a node takes at least a call");
        let told = shed.clone();
        let entry = Entry::new(limit, Clock::start(), "this node".to_owned());
        let entry = entry.telling(Some(Arc::new(move |class, delay| told.observe(class, delay))));
        let (limit, read) = (Arc::new(entry), shed.clone());
        let of = Arc::clone(&limit);
        metrics.read_overload(move || {
            let stats = of.stats();
            OverloadReading {
                limit: stats.limit,
                in_flight: stats.in_flight,
                queued: stats.queued,
                pressure: read.stats().pressure,
            }
        });
        Self { limit, shed, metrics }
    }

    /// Sheds a call of a class, or lets it in. One that came while the runtime was busy tells so.
    pub(crate) async fn admit(&self, class: Class, arrival: Instant) -> Result<(), Status> {
        self.shed.measure(class as u8, arrival).await;
        self.shed(class)
    }

    /// Sheds what turned out to be a list, or lets it go on.
    pub(crate) fn admit_list(&self) -> Result<(), Status> {
        self.shed(Class::Lists)
    }

    fn shed(&self, class: Class) -> Result<(), Status> {
        if self.shed.admit(class as u8) {
            return Ok(());
        }
        self.metrics.record_overload_refused(class.name(), "shed");
        let sentence = format!(
            "this node is asked for more than it can do, and {} give way first: try again later, \
             or elsewhere",
            class.name()
        );
        Err(from_refusal(refusal(Reason::Overloaded, sentence).with("class", class.name())))
    }

    /// Waits for a place among the calls under way.
    pub(crate) async fn enter(&self, class: Class) -> Result<Place, Status> {
        self.limit.enter(class as u8).await.map_err(|_| {
            self.metrics.record_overload_refused(class.name(), "limit");
            let limit = self.limit.stats().limit;
            let sentence = format!(
                "too many calls are open at this node, which takes {limit} now: try again later, \
                 or elsewhere"
            );
            let refusal = refusal(Reason::Overloaded, sentence);
            from_refusal(refusal.with("class", class.name()).with("limit", limit))
        })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tokio::time::advance;
    use tonic::Code;

    use super::*;
    use crate::{pb, wire::status::reason};

    const MS: Duration = Duration::from_millis(1);

    /// Has the queue stand until so many tenths of a class are shed.
    async fn stand(overload: &Overload, pressure: u32) {
        for _ in 0..5_000 {
            if overload.shed.stats().pressure >= pressure {
                return;
            }
            advance(MS).await;
            overload.shed.observe(Class::Keys as u8, 60 * MS);
        }
        panic!("the pressure never came to {pressure}");
    }

    fn refused(metrics: &Metrics, class: Class, why: &str) -> String {
        let row = format!(
            "quorate_overload_refused_total{{class=\"{}\",reason=\"{why}\"}} ",
            class.name()
        );
        let text = metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(&row));
        line.expect("the row is there from the start").to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn lists_are_shed_first_and_sessions_never() {
        let metrics = Metrics::new();
        let overload = Overload::new(1_000, metrics.clone());
        let classes = [Class::Lists, Class::Keys, Class::Locks, Class::Sessions];
        let admitted = async || {
            let mut admitted = Vec::new();
            for class in classes {
                let of_ten = async |_| overload.admit(class, Instant::now()).await.is_ok();
                let mut count = 0;
                for number in 0..10 {
                    count += usize::from(of_ten(number).await);
                }
                admitted.push(count);
            }
            admitted
        };
        assert_eq!(admitted().await, [10, 10, 10, 10]);
        stand(&overload, 10).await;
        assert_eq!(admitted().await, [0, 10, 10, 10], "lists, wholly");
        stand(&overload, 20).await;
        assert_eq!(admitted().await, [0, 0, 10, 10], "keys too");
        stand(&overload, 30).await;
        assert_eq!(admitted().await, [0, 0, 0, 10]);
        assert_eq!(overload.admit_list().map_err(|status| status.code()), {
            Err(Code::ResourceExhausted)
        });
        assert_eq!(refused(&metrics, Class::Lists, "shed"), "31");
        assert_eq!(refused(&metrics, Class::Sessions, "shed"), "0");
        let status = overload.admit(Class::Keys, Instant::now()).await.expect_err("it is shed");
        assert_eq!(reason(&status), Some(Reason::Overloaded));
        assert!(status.message().contains("keys give way first"), "{}", status.message());
        advance(Duration::from_secs(60)).await;
        assert_eq!(admitted().await, [10, 10, 10, 10], "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_follows_the_latency_within_its_bounds() {
        use crate::resilience::concurrency_limit::Ended;

        let overload = Overload::new(4_096, Metrics::new());
        let end_all = async |latency| {
            for _ in 0..200 {
                let mut places = Vec::new();
                while places.len() < 120 {
                    places.push(overload.enter(Class::Sessions).await.expect("there is room"));
                }
                advance(20 * MS).await;
                places.into_iter().for_each(|place| place.end(Ended::Answered(latency)));
            }
        };
        assert_eq!(overload.limit.stats().limit, LIMIT_INITIAL, "at the start");
        end_all(300 * MS).await;
        assert_eq!(overload.limit.stats().limit, LIMIT_MIN, "too slow for it");
        end_all(200 * MS).await;
        let limit = overload.limit.stats().limit;
        assert!((LIMIT_MIN + 20..LIMIT_MIN + 50).contains(&limit), "{limit} when it is not");
        let few = Overload::new(3, Metrics::new());
        assert_eq!(few.limit.stats().limit, 3, "never more than the fixed limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_place_is_refused_and_counted() {
        let metrics = Metrics::new();
        let overload = Overload::new(1, metrics.clone());
        let place = overload.enter(Class::Keys).await.expect("there is room");
        let status = overload.enter(Class::Keys).await.expect_err("there is none");
        assert_eq!(reason(&status), Some(Reason::Overloaded));
        assert_eq!(refused(&metrics, Class::Keys, "limit"), "1");
        drop(place);
        overload.enter(Class::Keys).await.expect("there is room again");
    }

    #[test]
    fn every_call_has_the_class_that_is_meant() {
        let descriptors = prost_types::FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap();
        let mut of = [const { Vec::new() }; 4];
        for file in &descriptors.file {
            let Some(package) = file.package().strip_prefix("quorate.") else { continue };
            if ["raft.v1", "lab.v1"].contains(&package) {
                continue;
            }
            for service in &file.service {
                for method in &service.method {
                    let full = format!("{package}.{}", service.name());
                    let name =
                        format!("{} {}", service.name().replace("Service", ""), method.name());
                    of[Class::of(&full, method.name()) as usize].push(name);
                }
            }
        }
        let [sessions, locks, keys, lists] = of.map(|mut names| {
            names.sort();
            names.join(", ")
        });
        let expected = "Cluster TransferLeadership, Discovery Renew, Lock Renew, \
                        Session CloseSession, Session KeepAlive, Session OpenSession";
        assert_eq!(sessions, expected);
        let expected = "Cluster Status, Discovery Deregister, Discovery Register, \
                        Discovery SetInstanceState, Lock Acquire, Lock Release";
        assert_eq!(locks, expected);
        assert!(keys.contains("Kv Put") && keys.contains("Kv Range"), "{keys}");
        let expected = "Cluster SaveSnapshot, Cluster StateHash, Discovery ListServices, \
                        Event ListStreams, Lock List";
        assert_eq!(lists, expected);
    }
}
