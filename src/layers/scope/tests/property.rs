//! Trees of every shape under virtual time, and a storm on real threads: after the join nothing
//! runs, every cleanup began exactly once, every section came to its end, every task is counted.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::layers::scope::{Counts, Handle};

/// What a task does.
#[derive(Clone, Copy, Debug)]
enum Does {
    Ends(u64),
    Fails(u64),
    Panics(u64),
    Waits,
    Heeds(u64),
    Ignores,
    Proposes(u64),
    LooksAway(u64),
    Spawns(u64),
}

#[derive(Clone, Debug)]
struct TaskPlan {
    does: Does,
    /// How long each of its cleanups takes.
    cleanups: Vec<u64>,
}

/// What becomes of the owner of a scope.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Drops(u64),
    Cancels(u64),
    Joins,
    Keeps,
}

#[derive(Clone, Debug)]
struct ScopePlan {
    /// Which scope it is below, of those before it.
    parent: usize,
    contained: bool,
    deadline: Option<u64>,
    owner: Owner,
    tasks: Vec<TaskPlan>,
}

fn task_plan() -> impl Strategy<Value = TaskPlan> {
    let does = prop_oneof![
        (0_u64..300).prop_map(Does::Ends),
        (0_u64..300).prop_map(Does::Fails),
        (0_u64..300).prop_map(Does::Panics),
        Just(Does::Waits),
        (0_u64..300).prop_map(Does::Heeds),
        Just(Does::Ignores),
        (0_u64..300).prop_map(Does::Proposes),
        (0_u64..300).prop_map(Does::LooksAway),
        (0_u64..300).prop_map(Does::Spawns),
    ];
    // The limit is 100 ms: some are cut.
    let cleanups = prop::collection::vec(0_u64..150, 0..4);
    (does, cleanups).prop_map(|(does, cleanups)| TaskPlan { does, cleanups })
}

fn scope_plan() -> impl Strategy<Value = ScopePlan> {
    let owner = prop_oneof![
        (0_u64..300).prop_map(Owner::Drops),
        (0_u64..300).prop_map(Owner::Cancels),
        Just(Owner::Joins),
        Just(Owner::Keeps),
    ];
    let deadline = prop::option::of(0_u64..300);
    let tasks = prop::collection::vec(task_plan(), 0..5);
    (any::<usize>(), any::<bool>(), deadline, owner, tasks).prop_map(
        |(parent, contained, deadline, owner, tasks)| ScopePlan {
            parent,
            contained,
            deadline,
            owner,
            tasks,
        },
    )
}

/// What is alive, and what was begun.
#[derive(Clone, Default)]
struct Ledger {
    alive: Alive,
    spawned: Arc<AtomicUsize>,
    /// Cleanups that were handed over, by number, with how often each was begun.
    cleanups: Arc<Mutex<BTreeMap<usize, u32>>>,
    sections: Alive,
}

impl Ledger {
    fn cleanup(&self, task: &super::super::Task, millis: u64) {
        let number = {
            let mut cleanups = self.cleanups.lock().unwrap();
            let number = cleanups.len();
            cleanups.insert(number, 0);
            number
        };
        let ledger = self.clone();
        task.cleanup("cleanup", async move {
            let _alive = ledger.alive.live();
            *ledger.cleanups.lock().unwrap().get_mut(&number).unwrap() += 1;
            pause(millis).await;
        });
    }

    /// A section that must be left by its end, and not by being dropped.
    fn section(&self, millis: u64) -> impl Future<Output = ()> + Send + 'static {
        let ledger = self.clone();
        async move {
            let _alive = ledger.alive.live();
            std::mem::forget(ledger.sections.live());
            pause(millis).await;
            ledger.sections.0.fetch_sub(1, SeqCst);
        }
    }

    fn begin(&self, scope: &Handle, plan: TaskPlan) {
        self.spawned.fetch_add(1, SeqCst);
        let ledger = self.clone();
        if matches!(plan.does, Does::Waits) {
            scope.spawn("waits", async move {
                let _alive = ledger.alive.live();
                pending::<()>().await;
            });
            return;
        }
        scope.spawn_with("task", async move |task| {
            let _alive = ledger.alive.live();
            for millis in plan.cleanups {
                ledger.cleanup(&task, millis);
            }
            match plan.does {
                Does::Ends(millis) => pause(millis).await,
                Does::Fails(millis) => {
                    pause(millis).await;
                    return Err("on purpose");
                }
                Does::Panics(millis) => {
                    pause(millis).await;
                    panic!("on purpose");
                }
                Does::Heeds(millis) => {
                    task.cancelled().await;
                    pause(millis).await;
                }
                Does::Proposes(millis) => {
                    task.uncancellable("propose", ledger.section(millis)).await;
                    pending::<()>().await;
                }
                Does::LooksAway(millis) => {
                    let propose = task.uncancellable("propose", ledger.section(millis));
                    drop(timeout(Duration::from_millis(20), propose).await);
                }
                Does::Spawns(millis) => {
                    pause(millis).await;
                    let plan = TaskPlan { does: Does::Ignores, cleanups: vec![1] };
                    ledger.begin(task.scope(), plan);
                }
                Does::Waits | Does::Ignores => pending::<()>().await,
            }
            Ok(())
        });
    }

    fn check(&self, counts: Counts, handle: &Handle) {
        assert_eq!((self.alive.count(), handle.running()), (0, 0), "something still runs");
        assert_eq!(self.sections.count(), 0, "a section was cut off");
        let cleanups = self.cleanups.lock().unwrap();
        assert!(cleanups.values().all(|runs| *runs == 1), "not once each: {cleanups:?}");
        assert_eq!(counts.cleanups + counts.cleanups_failed, cleanups.len() as u64);
        let Counts { done, failed, panicked, cancelled, aborted, not_started, .. } = counts;
        let ended = done + failed + panicked + cancelled + aborted + not_started;
        assert_eq!(ended, self.spawned.load(SeqCst) as u64, "{counts:?}");
    }
}

async fn own(scope: Scope, owner: Owner) {
    match owner {
        Owner::Drops(millis) => {
            pause(millis).await;
            drop(scope);
        }
        Owner::Cancels(millis) => {
            pause(millis).await;
            scope.cancel("asked");
            pending::<()>().await;
        }
        Owner::Joins => drop(scope.join().await),
        Owner::Keeps => pending().await,
    }
}

async fn grow(plans: Vec<ScopePlan>, end: u64) {
    let ledger = Ledger::default();
    let limit = Duration::from_millis(100);
    let root = Scope::new().with_grace(limit).with_cleanup_limit(limit);
    let mut scopes = Vec::new();
    let mut handles = vec![root.handle().clone()];
    for plan in plans {
        let mut scope = handles[plan.parent % handles.len()].child();
        if plan.contained {
            scope = scope.contained();
        }
        if let Some(millis) = plan.deadline {
            scope = scope.with_deadline(Instant::now() + Duration::from_millis(millis));
        }
        for task in plan.tasks {
            ledger.begin(scope.handle(), task);
        }
        handles.push(scope.handle().clone());
        scopes.push((scope, plan.owner));
    }
    let owners: Vec<_> =
        scopes.into_iter().map(|(scope, owner)| tokio::spawn(own(scope, owner))).collect();
    pause(end).await;
    let outcome = root.close("the end").await;
    ledger.check(outcome.counts, &handles[0]);
    // What is asked for later does not begin either, and nothing wakes up again.
    for handle in &handles {
        drop(handle.spawn("late", async { panic!("it began") }));
    }
    pause(10_000).await;
    let counts = Counts { not_started: outcome.counts.not_started, ..handles[0].stats() };
    ledger.check(counts, &handles[0]);
    owners.into_iter().for_each(|owner| owner.abort());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn after_the_join_nothing_runs_and_every_cleanup_ran_once(
        plans in prop::collection::vec(scope_plan(), 1..8),
        end in 0_u64..400,
    ) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(grow(plans, end));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_real_threads_the_join_finds_nothing_running_either() {
    for round in 0..300_u64 {
        let ledger = Ledger::default();
        let root = Scope::new().with_grace(Duration::from_millis(1));
        let child = root.child();
        for at in 0..8 {
            let does = match (round + at) % 6 {
                0 => Does::Waits,
                1 => Does::Heeds(0),
                2 => Does::Ignores,
                3 => Does::Proposes(1),
                4 => Does::Spawns(0),
                _ => Does::Ends(0),
            };
            let scope = if at % 2 == 0 { root.handle() } else { child.handle() };
            ledger.begin(scope, TaskPlan { does, cleanups: vec![0; (at % 3) as usize] });
        }
        let handle = root.handle().clone();
        let canceller = tokio::spawn({
            let handle = handle.clone();
            async move { handle.cancel("from elsewhere") }
        });
        if round % 2 == 0 {
            drop(child);
        }
        let outcome = root.join().await;
        ledger.check(outcome.counts, &handle);
        canceller.await.unwrap();
    }
}
