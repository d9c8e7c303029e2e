//! Workloads by chance from a seed.

use serde::{Deserialize, Serialize};

use crate::{
    sim::workload::{Expect, Intent},
    types::Rng,
};

/// A family of intents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Keys: reads, writes, compare-and-set, transactions, compaction.
    Keys,
    /// Sessions and locks with what they guard.
    Locks,
    /// Discovery.
    Discovery,
    /// Event streams.
    Events,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Keys, Self::Locks, Self::Discovery, Self::Events];
}

/// How a workload looks.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What is done; at least one.
    pub families: Vec<Family>,
    /// How many clients there are.
    pub clients: u64,
    /// How many intents there are, of all clients together.
    pub intents: u64,
    /// How many keys, locks, services and streams there are, each.
    pub names: u64,
    /// The longest time that a client thinks between two calls, in milliseconds.
    pub think_ms_max: u64,
}

/// An intent of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// The client.
    pub client: u64,
    /// How long the client waits after its last answer, in milliseconds.
    pub think_ms: u64,
    /// What it then wants.
    #[serde(flatten)]
    pub intent: Intent,
}

/// Draws a workload. Each client's intents stand in their order.
#[must_use]
pub fn generate(shape: &Shape, rng: &mut Rng) -> Vec<Planned> {
    let draw = |_| {
        let client = 1 + rng.below(shape.clients);
        let think_ms = rng.below(shape.think_ms_max + 1);
        let family = shape.families[pick(rng, shape.families.len())];
        let intent = match family {
            Family::Keys => keys(shape, rng),
            Family::Locks => locks(shape, rng),
            Family::Discovery => discovery(shape, rng),
            Family::Events => events(shape, rng),
        };
        Planned { client, think_ms, intent }
    };
    (0..shape.intents).map(draw).collect()
}

fn pick(rng: &mut Rng, len: usize) -> usize {
    usize::try_from(rng.below(len as u64)).expect("it was a length")
}

fn name(prefix: &str, shape: &Shape, rng: &mut Rng) -> String {
    format!("{prefix}{}", rng.below(shape.names.max(1)))
}

fn keys(shape: &Shape, rng: &mut Rng) -> Intent {
    let key = name("k", shape, rng);
    match rng.below(100) {
        0..28 => Intent::Get { key, stale: false },
        28..36 => Intent::Get { key, stale: true },
        36..62 => Intent::Put { key },
        62..68 => Intent::Delete { key },
        68..84 => Intent::Cas { key },
        84..98 => {
            let mut keys = vec![key, name("k", shape, rng)];
            keys.dedup();
            Intent::Txn { keys }
        }
        _ => Intent::Compact { keep: rng.below(20) },
    }
}

fn locks(shape: &Shape, rng: &mut Rng) -> Intent {
    let lock = name("l", shape, rng);
    match rng.below(100) {
        0..26 => Intent::Acquire {
            lock,
            ttl_ms: 1_000 + rng.below(4_000),
            wait_ms: rng.below(2) * rng.below(6_000),
            in_session: rng.below(4) == 0,
        },
        26..40 => Intent::GuardedWrite { lock },
        40..50 => Intent::RenewLock { lock },
        50..66 => Intent::Release { lock },
        66..70 => Intent::ReleaseWrongly { lock },
        70..76 => Intent::Describe { lock },
        76..82 => Intent::PutLocked { key: name("k", shape, rng), lock },
        82..86 => Intent::OpenSession { ttl_ms: 1_000 + rng.below(4_000) },
        86..98 => Intent::RenewSession,
        _ => Intent::CloseSession,
    }
}

fn discovery(shape: &Shape, rng: &mut Rng) -> Intent {
    let service = name("s", shape, rng);
    match rng.below(10) {
        0..4 => Intent::Register { service, ttl_ms: 1_000 + rng.below(4_000) },
        4..6 => Intent::Deregister { service },
        _ => Intent::Resolve { service },
    }
}

fn events(shape: &Shape, rng: &mut Rng) -> Intent {
    let stream = name("e", shape, rng);
    match rng.below(10) {
        0..6 => {
            let expect = match rng.below(10) {
                0..6 => Expect::Anything,
                6..9 => Expect::Known,
                _ => Expect::Wrong,
            };
            Intent::Append { stream, count: 1 + rng.below(3), expect }
        }
        6..9 => Intent::ReadStream { stream },
        _ => Intent::ReadStream { stream: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_workload_of_the_families_asked_for() {
        let shape = Shape {
            families: vec![Family::Discovery],
            clients: 3,
            intents: 50,
            names: 2,
            think_ms_max: 10,
        };
        let planned = generate(&shape, &mut Rng::new(1));
        assert_eq!(planned, generate(&shape, &mut Rng::new(1)));
        assert_eq!(planned.len(), 50);
        let of_discovery = |planned: &Planned| {
            matches!(
                planned.intent,
                Intent::Register { .. } | Intent::Deregister { .. } | Intent::Resolve { .. }
            )
        };
        assert!(planned.iter().all(of_discovery));
        assert!(planned.iter().all(|planned| (1..=3).contains(&planned.client)));
    }
}
