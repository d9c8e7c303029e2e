//! Handles that keep themselves, under faults: what two guards of one lock claim never overlaps.
//!
//! Each worker has a host of its own, which faults keep from the nodes while others reach them, and
//! says every simulated millisecond whether it claims the lock. No test over real time can hold
//! these side by side.

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

/// How often a worker is cut off in a run, and how many other faults come before each time.
const ROUNDS: u64 = 4;
const FAULTS: u64 = 2;

/// How many seeds are run.
const SEEDS: u64 = 2;

/// What the workers say.
#[derive(Debug, Default)]
struct Said {
    /// Which worker claims the lock, and with which token.
    claims: BTreeMap<u64, u64>,
    /// The tokens of locks that were lost or released.
    over: BTreeSet<u64>,
    grants: u64,
    lapsed: u64,
    refused: u64,
}

#[test]
fn no_two_guards_claim_one_lock_at_a_time_whatever_the_faults() {
    let mut lapsed = 0;
    for seed in 1..=SEEDS {
        println!("seed {seed}");
        let said = run(seed);
        println!("{} grants, {} lapsed, {} refused", said.grants, said.lapsed, said.refused);
        assert!(said.grants > 5, "hardly anything was done");
        lapsed += said.lapsed;
    }
    assert!(lapsed > 0, "no guard ever lapsed: the faults are too mild");
}

fn run(seed: u64) -> Said {
    let (said, stop) = (Rc::new(RefCell::new(Said::default())), CancellationToken::new());
    let workers = |world: &World| {
        let worker = |number| -> Beside {
            let rng = Rng::new(seed).stream(&worker(number));
            let (client, said) = (world.client(), Rc::clone(&said));
            let stop = stop.clone();
            (self::worker(number), Box::pin(work(number, client, said, rng, stop)))
        };
        (0..WORKERS).map(worker).collect()
    };
    let ended = stop.clone();
    simulate_beside(Setup::new(seed, 3), workers, async move |world: World| {
        let mut rng = Rng::new(seed).stream("faults");
        for _ in 0..ROUNDS {
            faults(&world, Rng::new(rng.below(u64::MAX)), FAULTS).await;
            cut_off(&world, &mut rng).await;
        }
        world.leader(&[]).await;
        ended.cancel();
    });
    said.take()
}

fn worker(number: u64) -> String {
    format!("worker-{number}")
}

/// Keeps one worker from all nodes for a while: messages are held up, or lost.
async fn cut_off(world: &World, rng: &mut Rng) {
    let (worker, held) = (worker(rng.below(WORKERS)), rng.below(2) == 0);
    world.note(format!("{worker} is cut off, held: {held}"));
    for id in world.ids() {
        if held {
            turmoil::hold(worker.as_str(), name(id));
        } else {
            turmoil::partition(worker.as_str(), name(id));
        }
    }
    pause(rng.between(TTL, 3 * TTL)).await;
    for id in world.ids() {
        if held {
            turmoil::release(worker.as_str(), name(id));
        } else {
            turmoil::repair(worker.as_str(), name(id));
        }
    }
    pause(rng.between(TTL / 2, TTL)).await;
}

/// Takes the lock again and again, and holds it for a while or until it is lost.
async fn work(
    number: u64,
    client: Client,
    said: Rc<RefCell<Said>>,
    mut rng: Rng,
    stop: CancellationToken,
) {
    let client = client.with_timeout(Duration::from_secs(2));
    while !stop.is_cancelled() {
        let asked = client.locks().lock("jobs").ttl(TTL).wait(4 * TTL).acquire();
        let Ok(guard) = asked.await else {
            pause(TTL / 10).await;
            continue;
        };
        said.borrow_mut().grants += 1;
        // Mostly long enough to be cut off.
        let span = rng.between(TTL, 4 * TTL);
        let work = async {
            tokio::select! {
                held = guard.while_held(pause(span)) => held,
                () = say(number, &guard, &said) => unreachable!("it says so for ever"),
            }
        };
        let done = work.await;
        {
            let mut said = said.borrow_mut();
            said.claims.remove(&number);
            said.over.insert(guard.fencing_token());
            match done {
                Ok(()) => {}
                Err(Loss::Lapsed { .. }) => said.lapsed += 1,
                Err(_) => said.refused += 1,
            }
        }
        if rng.below(2) == 0 {
            drop(guard);
        } else {
            // Where it is lost this says so.
            let _ = guard.release().await;
        }
    }
}

/// Says over and over whether the worker claims the lock, and looks at what the others say.
async fn say(number: u64, guard: &LockGuard, said: &RefCell<Said>) {
    loop {
        {
            let mut said = said.borrow_mut();
            if guard.is_held() {
                assert!(!said.over.contains(&guard.fencing_token()), "{guard:?} came back");
                said.claims.insert(number, guard.fencing_token());
            } else {
                said.claims.remove(&number);
                said.over.insert(guard.fencing_token());
            }
            assert!(said.claims.len() <= 1, "at {:?} {:?}", now(), said.claims);
        }
        pause(Duration::from_millis(1)).await;
    }
}
