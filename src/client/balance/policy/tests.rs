//! What holds for every policy, and the bound on load for those by key.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{
    testing::{asked, backends, endpoints_of, keyed, weighing},
    *,
};
use crate::{client::balance::load::Call, layers::Clock};

fn every_policy() -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(PickFirst),
        Box::new(RoundRobin::new()),
        Box::new(Random),
        Box::new(Weighted::new()),
        Box::new(LeastRequests),
        Box::new(PeakEwma),
        Box::new(RingHash::new()),
        Box::new(RingHash::new().without_load_factor()),
        Box::new(Maglev::new()),
        Box::new(Maglev::new().without_load_factor()),
        Box::new(ZoneAware::new("a", LeastRequests)),
    ]
}

/// A hundred endpoints of different weights in three zones, all with calls in flight.
fn fleet() -> Vec<Arc<Backend>> {
    let endpoint = |at: u32| {
        let endpoint = Endpoint::new(format!("n{at}:1")).expect("it is well formed");
        endpoint.with_weight(1 + at % 7).in_zone(["a", "b", "c"][at as usize % 3])
    };
    (0..100).map(|at| Arc::new(Backend::unconnected(endpoint(at), 1 + at % 5))).collect()
}

#[test]
fn a_pick_allocates_nothing_and_is_one_of_those_that_are_ready() {
    let ready = fleet();
    let all = endpoints_of(&ready);
    for policy in every_policy() {
        let picker = policy.picker(&Candidates { ready: &ready, all: &all });
        let measured = allocation_counter::measure(|| {
            for call in asked(1).take(1_000) {
                assert!(picker.pick(&ready, &call) < ready.len());
            }
        });
        assert_eq!(measured.count_total, 0, "{}", policy.name());
    }
}

#[test]
fn each_policy_picks_the_only_one() {
    let ready = backends(1);
    for policy in every_policy() {
        let picker = policy.picker(&Candidates { ready: &ready, all: &endpoints_of(&ready) });
        assert!(asked(1).take(100).all(|call| picker.pick(&ready, &call) == 0));
    }
}

#[test]
fn policies_have_different_names() {
    let names = every_policy().iter().map(|policy| policy.name()).collect::<BTreeSet<_>>();
    assert_eq!(names.len(), 9, "{names:?}");
}

fn by_key(load_factor: f64) -> [Box<dyn Policy>; 2] {
    [
        Box::new(RingHash::new().with_load_factor(load_factor)),
        Box::new(Maglev::new().with_table_size(1_009).with_load_factor(load_factor)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However skewed the keys, and whatever ends in between: a call is never given to an endpoint
    /// that would have more than the factor times its share by it.
    #[test]
    fn the_load_bound_is_never_exceeded(
        weights in prop::collection::vec(1_u32..5, 1..20),
        keys in prop::collection::vec((0_u64..4, any::<bool>()), 1..300),
        load_factor in 1.01_f64..3.0,
    ) {
        let clock = Clock::start();
        let total: u32 = weights.iter().sum();
        for policy in by_key(load_factor) {
            let ready = weighing(&weights);
            let picker = policy.picker(&Candidates { ready: &ready, all: &[] });
            let mut calls = Vec::new();
            for (key, ends) in &keys {
                let place = picker.pick(&ready, &keyed(*key));
                calls.push(Call::start(Arc::clone(ready[place].shared_load()), clock));
                let share = f64::from(weights[place]) / f64::from(total);
                let most = (load_factor * share * calls.len() as f64).ceil();
                let own = f64::from(ready[place].load().in_flight());
                prop_assert!(own <= most, "{}: {own} where {most} may be", policy.name());
                if *ends {
                    calls.swap_remove(calls.len() / 2);
                }
            }
        }
    }
}

#[test]
fn a_key_stays_at_home_while_there_is_room_and_returns_there() {
    for policy in by_key(1.25) {
        let ready = backends(10);
        let picker = policy.picker(&Candidates { ready: &ready, all: &[] });
        let home = picker.pick(&ready, &keyed(7));
        let clock = Clock::start();
        let call = |place: usize| Call::start(Arc::clone(ready[place].shared_load()), clock);
        let held = [call(home), call(home)];
        let away = picker.pick(&ready, &keyed(7));
        assert_ne!(away, home, "{}: two of three would be more than its share", policy.name());
        assert_eq!(picker.pick(&ready, &keyed(7)), away, "the next is the key's own too");
        drop(held);
        assert_eq!(picker.pick(&ready, &keyed(7)), home);
    }
}

#[test]
fn the_keys_of_a_full_endpoint_part() {
    for policy in by_key(1.25) {
        let ready = backends(10);
        let picker = policy.picker(&Candidates { ready: &ready, all: &[] });
        let theirs = (0..1_000).filter(|key| picker.pick(&ready, &keyed(*key)) == 4);
        let theirs: Vec<u64> = theirs.collect();
        let load = || Call::start(Arc::clone(ready[4].shared_load()), Clock::start());
        let held = [load(), load()];
        let heirs: BTreeSet<_> =
            theirs.iter().map(|key| picker.pick(&ready, &keyed(*key))).collect();
        drop(held);
        assert!(heirs.len() > 6 && !heirs.contains(&4), "{}: {heirs:?}", policy.name());
    }
}

#[test]
fn without_a_bound_a_key_stays_whatever_the_load() {
    let unbounded: [Box<dyn Policy>; 2] = [
        Box::new(RingHash::new().without_load_factor()),
        Box::new(Maglev::new().without_load_factor()),
    ];
    for policy in unbounded {
        let ready = backends(10);
        let picker = policy.picker(&Candidates { ready: &ready, all: &[] });
        let home = picker.pick(&ready, &keyed(7));
        let held: Vec<_> = (0..50)
            .map(|_| Call::start(Arc::clone(ready[home].shared_load()), Clock::start()))
            .collect();
        assert_eq!(picker.pick(&ready, &keyed(7)), home, "with {} in flight", held.len());
    }
}

#[test]
fn calls_without_a_key_go_anywhere() {
    for policy in by_key(1.25) {
        let ready = backends(5);
        let picker = policy.picker(&Candidates { ready: &ready, all: &[] });
        let unkeyed = asked(1).map(|call| Asked { key: None, ..call });
        let places = unkeyed.take(200).map(|call| picker.pick(&ready, &call));
        assert_eq!(places.collect::<BTreeSet<_>>().len(), 5, "{}", policy.name());
    }
}

#[test]
fn two_places_always_differ_and_all_come_up() {
    let mut seen = [[0_u32; 5]; 5];
    for call in asked(1).take(10_000) {
        let (one, other) = call.two_below(5);
        seen[one][other] += 1;
    }
    for (one, row) in seen.iter().enumerate() {
        for (other, count) in row.iter().enumerate() {
            assert_eq!(*count == 0, one == other, "{one} and {other}: {count}");
        }
    }
}
