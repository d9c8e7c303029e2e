//! What a pick costs with 100 endpoints, for every policy, with calls in flight at each. No
//! connection, no wire: only the choice. `cargo bench --bench pick`.
//!
//! That a pick allocates nothing is a unit test of the policies.

#![allow(missing_docs)]

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use quorate::{
    client::balance::{
        Endpoint, LeastRequests, Maglev, PeakEwma, PickFirst, Policy, Random, RingHash, RoundRobin,
        Weighted, ZoneAware,
        policy::{Asked, Backend, Candidates},
    },
    types::{Duration, Instant, Rng},
};

/// How many endpoints there are.
const ENDPOINTS: u32 = 100;

/// Of different weights, in three zones, with one to five calls in flight: the bound on load has
/// to look at all of them.
fn fleet() -> Vec<Arc<Backend>> {
    let endpoint = |at: u32| {
        let endpoint = Endpoint::new(format!("10.0.0.{at}:80")).expect("it is well formed");
        endpoint.with_weight(1 + at % 7).in_zone(["a", "b", "c"][at as usize % 3])
    };
    (0..ENDPOINTS).map(|at| Arc::new(Backend::unconnected(endpoint(at), 1 + at % 5))).collect()
}

fn pick(criterion: &mut Criterion) {
    let ready = fleet();
    let all: Vec<Endpoint> = ready.iter().map(|backend| backend.endpoint().clone()).collect();
    let policies: [(&str, Box<dyn Policy>); 11] = [
        ("pick_first", Box::new(PickFirst)),
        ("round_robin", Box::new(RoundRobin::new())),
        ("random", Box::new(Random)),
        ("weighted", Box::new(Weighted::new())),
        ("least_requests", Box::new(LeastRequests)),
        ("peak_ewma", Box::new(PeakEwma)),
        ("zone_aware", Box::new(ZoneAware::new("a", LeastRequests))),
        ("ring_hash", Box::new(RingHash::new())),
        ("ring_hash_unbounded", Box::new(RingHash::new().without_load_factor())),
        ("maglev", Box::new(Maglev::new())),
        ("maglev_unbounded", Box::new(Maglev::new().without_load_factor())),
    ];
    let mut group = criterion.benchmark_group("pick");
    for (name, policy) in policies {
        let picker = policy.picker(&Candidates { ready: &ready, all: &all });
        let mut rng = Rng::new(1);
        let mut now = Instant::ZERO;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                // Time moves on, or estimates that decay would cost nothing.
                now = now.after(Duration::from_micros(10));
                let call = Asked { key: Some(rng.next_u64()), chance: rng.next_u64(), now };
                black_box(picker.pick(black_box(&ready), &call))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pick);
criterion_main!(benches);
