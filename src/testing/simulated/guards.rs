//! Handles that keep themselves, under faults: what two guards of one lock claim never overlaps.
//!
//! Every simulated millisecond somebody looks at all guards at once, which no test over real time
//! can do.

use std::sync::{Arc, Mutex, Weak};

use tokio_util::sync::CancellationToken;

use super::{sweep::faults, *};
use crate::{
    client::{LockGuard, Loss},
    types::Rng,
};

/// The shortest that there is: most often lost.
const TTL: Duration = Duration::from_secs(1);

/// How many want the lock.
const WORKERS: u64 = 3;

/// How many faults there are in a run.
const FAULTS: u64 = 12;

/// How many seeds are run.
const SEEDS: u64 = 2;

/// The guards that there are.
type Guards = Arc<Mutex<Vec<Weak<LockGuard>>>>;

/// What became of a worker's grants.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    grants: u64,
    lapsed: u64,
    refused: u64,
}

#[test]
fn no_two_guards_claim_one_lock_at_a_time_whatever_the_faults() {
    let mut sum = Tally::default();
    for seed in 1..=SEEDS {
        println!("seed {seed}");
        let tally = Rc::new(RefCell::default());
        let told = Rc::clone(&tally);
        simulate(Setup::new(seed, 3), async move |world: World| {
            *told.borrow_mut() = contend(&world, seed).await;
        });
        let tally: Tally = *tally.borrow();
        println!("{tally:?}");
        assert!(tally.grants > 10, "seed {seed}: hardly anything was done");
        sum.lapsed += tally.lapsed;
        sum.refused += tally.refused;
    }
    assert!(sum.lapsed > 0, "no guard ever lapsed: the faults are too mild");
}

async fn contend(world: &World, seed: u64) -> Tally {
    world.leader(&[]).await;
    let (guards, stop) = (Guards::default(), CancellationToken::new());
    let workers: Vec<_> = (0..WORKERS)
        .map(|n| {
            let rng = Rng::new(seed).stream(&format!("worker {n}"));
            tokio::spawn(work(world.client(), Arc::clone(&guards), rng, stop.clone()))
        })
        .collect();
    let watched = tokio::spawn(watch(Arc::clone(&guards), stop.clone()));
    let mut rng = Rng::new(seed).stream("faults");
    for _ in 0..FAULTS / 4 {
        faults(world, Rng::new(rng.below(u64::MAX)), 3).await;
        cut_off(world, &mut rng).await;
    }
    world.leader(&[]).await;
    stop.cancel();
    soon("the watch", watched).await.expect("two never claim the lock");
    let mut sum = Tally::default();
    for worker in workers {
        let tally = soon("a worker", worker).await.expect("no panic");
        sum.grants += tally.grants;
        sum.lapsed += tally.lapsed;
        sum.refused += tally.refused;
    }
    sum
}

/// Keeps all workers from all nodes for a while: messages are held up, or lost.
async fn cut_off(world: &World, rng: &mut Rng) {
    let held = rng.below(2) == 0;
    for id in world.ids() {
        if held {
            turmoil::hold("client", name(id));
        } else {
            world.cut("client", &name(id));
        }
    }
    pause(rng.between(TTL / 2, 3 * TTL)).await;
    for id in world.ids() {
        if held {
            turmoil::release("client", name(id));
        } else {
            world.mend("client", &name(id));
        }
    }
    pause(rng.between(TTL / 2, 3 * TTL)).await;
}

/// Takes the lock again and again, and holds it for a while or until it is lost.
async fn work(client: Client, guards: Guards, mut rng: Rng, stop: CancellationToken) -> Tally {
    let client = client.with_timeout(Duration::from_secs(2));
    let (mut tally, mut last) = (Tally::default(), 0);
    while !stop.is_cancelled() {
        let asked = client.locks().lock("jobs").ttl(TTL).wait(2 * TTL).acquire();
        let Ok(guard) = asked.await else { continue };
        assert!(guard.fencing_token() > last, "a token went back");
        last = guard.fencing_token();
        tally.grants += 1;
        let guard = Arc::new(guard);
        guards.lock().expect("nobody panics with it").push(Arc::downgrade(&guard));
        let span = rng.between(TTL / 10, 4 * TTL);
        match guard.while_held(pause(span)).await {
            Ok(()) => assert!(guard.is_held()),
            Err(loss) => {
                assert!(!guard.is_held(), "{guard:?}");
                match loss {
                    Loss::Lapsed { .. } => tally.lapsed += 1,
                    _ => tally.refused += 1,
                }
            }
        }
        let guard = Arc::into_inner(guard).expect("who looks at it lets it go at once");
        if rng.below(2) == 0 {
            drop(guard);
        } else {
            // Where it is lost this says so.
            let _ = guard.release().await;
        }
    }
    tally
}

/// Looks at all guards at once, over and over.
async fn watch(guards: Guards, stop: CancellationToken) {
    let mut lost = BTreeSet::new();
    while !stop.is_cancelled() {
        {
            let mut guards = guards.lock().expect("nobody panics with it");
            guards.retain(|guard| guard.strong_count() > 0);
            let there: Vec<_> = guards.iter().filter_map(Weak::upgrade).collect();
            let held: Vec<_> = there.iter().filter(|guard| guard.is_held()).collect();
            assert!(held.len() <= 1, "{held:?} at {:?}", now());
            for guard in &there {
                let token = guard.fencing_token();
                assert!(!guard.is_held() || !lost.contains(&token), "{guard:?} came back");
                if !guard.is_held() {
                    lost.insert(token);
                }
            }
        }
        pause(Duration::from_millis(1)).await;
    }
}
