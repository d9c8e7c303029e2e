//! The state store after a power loss (design, "Storage").
//!
//! The store works on a disk in memory that forgets: after a crash each sector written since the
//! last sync is old, new, zeroed or garbage, and the file is as long as before or as after. The
//! crash comes between persists, in the middle of one or right after it. The store must open at a
//! prefix of the batches, whole, that is no older than the last persist.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::{
    machine::store::{Batch, Reader as _, Store as _, StoreError},
    storage::{
        files::{Fault, Files as _, MemoryFiles},
        store::RedbStore,
    },
    types::Rng,
};

const HEAD: &[u8] = b"head";
const FILE: &str = "rows.redb";

/// The rows that batch number `number` writes: small ones, large ones, deletions, and its number.
fn batch(number: u64) -> Batch {
    let mut rng = Rng::new(number);
    let mut batch = Batch::default();
    for _ in 0..1 + rng.below(12) {
        let key = Bytes::from(format!("key/{:04}", rng.below(400)));
        let bytes = if rng.below(5) == 0 { rng.below(9_000) } else { rng.below(150) };
        let value = vec![1 + rng.below(250) as u8; bytes as usize];
        batch.rows.push((key, (rng.below(6) > 0).then(|| value.into())));
    }
    let number = number.to_be_bytes().to_vec();
    batch.rows.push((Bytes::from_static(HEAD), Some(number.into())));
    batch
}

/// What the store holds after a number of batches.
fn state(batches: u64) -> BTreeMap<Bytes, Bytes> {
    let mut rows = BTreeMap::new();
    for (key, value) in (1..=batches).flat_map(|number| batch(number).rows) {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
    rows
}

fn open(files: &MemoryFiles) -> Result<RedbStore, StoreError> {
    RedbStore::open_on(files.open(FILE).expect("it was made"), FILE)
}

fn head(store: &RedbStore) -> u64 {
    let head = store.get(HEAD).expect("reads");
    head.map_or(0, |head| u64::from_be_bytes(head.as_ref().try_into().expect("a number")))
}

/// Where the crash comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Crash {
    BetweenPersists,
    /// In the sync of this number within a persist.
    InSync(u64),
    AfterPersist,
}

/// Runs a store through some crashes; counts how far behind the persist under way each opened.
fn run(seed: u64, outcomes: &mut BTreeMap<(Crash, &'static str), u64>) {
    let files = MemoryFiles::new();
    drop(files.create(FILE, 0).expect("the disk is well"));
    files.sync_dir().expect("the disk is well");
    let mut store = open(&files).expect("an empty store opens");
    let mut rng = Rng::new(seed);
    let (mut last, mut persisted) = (0, 0);
    for round in 0..4 {
        for _ in 0..rng.below(60) {
            last += 1;
            store.commit(batch(last)).expect("commits");
            if rng.below(20) == 0 {
                store.persist().expect("persists");
                persisted = last;
            }
        }
        let crash = match rng.below(4) {
            0 => Crash::BetweenPersists,
            1 => Crash::AfterPersist,
            _ => Crash::InSync(rng.below(2)),
        };
        match crash {
            Crash::BetweenPersists => {}
            Crash::AfterPersist => {
                store.persist().expect("persists");
                persisted = last;
            }
            Crash::InSync(number) => {
                files.fail(Fault::Sync, number);
                store.persist().expect_err("the fault strikes");
                store.persist().expect_err("a failed sync is not retried");
            }
        }
        files.crash(&mut rng);
        drop(store);
        store = open(&files).unwrap_or_else(|error| {
            panic!("seed {seed}, round {round}, {crash:?}: does not open: {error}")
        });
        let found = head(&store);
        assert!((persisted..=last).contains(&found), "{persisted} <= {found} <= {last}");
        let rows: Result<BTreeMap<_, _>, _> = store.scan(b"", None).collect();
        assert!(rows.expect("reads") == state(found), "not what batch {found} left");
        let outcome = if found == last { "all" } else { "the last persist" };
        *outcomes.entry((crash, outcome)).or_default() += 1;
        (last, persisted) = (found, found);
    }
}

#[test]
fn a_power_loss_leaves_a_prefix_no_older_than_the_last_persist() {
    let mut outcomes = BTreeMap::new();
    let seeds = std::env::var("QUORATE_SEEDS").map_or(20, |n| n.parse().expect("a number"));
    for seed in 0..seeds {
        run(seed, &mut outcomes);
    }
    println!("{outcomes:#?}");
    let reached = |crash, outcome| outcomes.contains_key(&(crash, outcome));
    assert!(reached(Crash::InSync(0), "the last persist"), "{outcomes:?}");
    assert!(reached(Crash::InSync(1), "all"), "{outcomes:?}");
}
