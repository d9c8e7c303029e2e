//! Random schedules over many seeds: delays, losses, reordering, partitions, slow disks, crashes,
//! restarts and purges; then peace, in which one leader must emerge and all must agree.

use quorate::{
    raft::{Config, Input, Membership, Restored},
    types::Rng,
};

use crate::checks::check_log_matching;
use crate::network::{Network, i, ms, n};

/// How many schedules a plain `cargo test` tries; `QUORATE_RAFT_SEEDS` asks for more.
const SEEDS: u64 = 120;
const ACTIONS: u64 = 1_200;

#[test]
fn random_schedules_keep_every_invariant_and_then_converge() {
    if let Ok(seed) = std::env::var("QUORATE_RAFT_SEED") {
        run(seed.parse().expect("a number"));
        return;
    }
    let seeds = std::env::var("QUORATE_RAFT_SEEDS").map_or(SEEDS, |s| s.parse().expect("a number"));
    for seed in 0..seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        assert!(
            outcome.is_ok(),
            "seed {seed} failed; replay it with QUORATE_RAFT_SEED={seed} \
             cargo test --test raft random_schedules"
        );
    }
}

#[test]
fn one_seed_gives_one_history() {
    assert_eq!(run(7), run(7));
}

/// Runs one schedule and returns a trace of how it ended.
fn run(seed: u64) -> String {
    let mut rng = Rng::new(seed).stream("schedule");
    let size = [1, 2, 3, 3, 3, 5][usize::try_from(rng.below(6)).expect("small")];
    let mut network = cluster(seed, size, &mut rng);
    for _ in 0..ACTIONS {
        act(&mut network, size, &mut rng);
    }
    calm_down(&mut network, size);
    check_log_matching(&network.nodes);
    assert_eq!(network.checks.open(), 0, "every request has its outcome");
    let leader = network.leader().expect("there is one");
    let applied = network.applied(leader);
    for member in network.raft(leader).status().membership.members() {
        let id = member.value();
        assert_eq!(network.applied(id), applied, "{id} and {leader} agree");
    }
    assert_eq!(applied.last().map(String::as_str), Some("last"));
    format!("{:?} {:?} {applied:?}", network.now, network.raft(leader).status())
}

fn cluster(seed: u64, size: u64, rng: &mut Rng) -> Network {
    let early_vote = rng.below(4) > 0;
    let small = rng.below(2) == 0;
    let joint = size == 5 && rng.below(3) == 0;
    let membership = if joint {
        let outgoing = Membership::of([3, 4, 5].map(n)).voters;
        Membership { outgoing, ..Membership::of([1, 2, 3].map(n)) }
    } else {
        Membership::of((1..=size).map(n))
    };
    Network::restored((1..=size).map(|id| {
        let mut config = Config { early_vote, seed: seed * 100 + id, ..Config::new(n(id)) };
        if small {
            config.inflight_messages_max = 2;
            config.inflight_bytes_max = 200;
            config.append_bytes_max = 100;
            config.append_entries_max = 3;
            config.apply_bytes_max = 100;
            config.uncommitted_bytes_max = 1_000;
        }
        (config, Restored { membership: membership.clone(), ..Restored::default() })
    }))
}

fn act(network: &mut Network, size: u64, rng: &mut Rng) {
    let id = 1 + rng.below(size);
    match rng.below(100) {
        0..40 => deliver_any(network, rng),
        40..56 => drop(network.persist_one(id)),
        56..66 => drop(network.apply_one(id)),
        66..76 => {
            let command = format!("c{}", rng.below(1_000_000));
            network.propose(network.leader().unwrap_or(id), &command);
        }
        76..79 => drop(network.read(network.leader().unwrap_or(id))),
        79..87 => {
            network.now = network.now.after(ms(rng.below(60)));
            (1..=size).for_each(|id| network.step(id, Input::Tick));
        }
        87..89 => drop(network.send_snapshots(id)),
        89 => {
            let (from, to) = (n(id), n(1 + rng.below(size)));
            if !network.cut.remove(&(from, to)) {
                network.cut.insert((from, to));
            }
        }
        90 => network.isolate(id),
        91..93 => network.heal(),
        93 => network.crash(id),
        94 => network.crash_silently(id),
        95..97 => {
            let down = (1..=size).find(|&id| !network.node(id).up);
            down.into_iter().for_each(|id| network.restart(id));
        }
        97 => {
            let through =
                i(network.node(id).disk.applied.index.value().saturating_sub(rng.below(4)));
            network.step(id, Input::Purge { through });
        }
        98 => drop(network.transfer(network.leader().unwrap_or(id), Some(1 + rng.below(size)))),
        _ => {
            let stalled = rng.below(2) == 0;
            network.step(id, Input::DiskStalled(stalled));
        }
    }
}

/// Delivers, loses, repeats or reorders a packet.
fn deliver_any(network: &mut Network, rng: &mut Rng) {
    let len = network.packets.len() as u64;
    if len == 0 {
        return;
    }
    // Mostly in order, as real connections are.
    let place = if rng.below(4) == 0 { rng.below(len) } else { 0 };
    let packet =
        network.packets.remove(usize::try_from(place).expect("small")).expect("it is there");
    match rng.below(20) {
        0 => {}
        1 => {
            network.packets.push_back(packet.clone());
            network.deliver(packet);
        }
        _ => network.deliver(packet),
    }
}

fn calm_down(network: &mut Network, size: u64) {
    network.heal();
    for id in 1..=size {
        if network.node(id).up {
            network.step(id, Input::DiskStalled(false));
        } else {
            network.restart(id);
        }
        for other in (1..=size).filter(|&other| other != id) {
            network.step(id, Input::Connected { peer: n(other) });
        }
    }
    let leader = network.await_leader();
    network.run(ms(2_000));
    network.propose(leader, "last");
    network.run(ms(2_000));
}
