//! A scope under virtual time: what ends it, what it waits for, and what it tells.

use std::{
    future::pending,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::{Cause, Outcome, Reason, Scope};
use crate::types::Duration;

mod property;

const HOUR: Duration = Duration::from_secs(3600);

async fn pause(millis: u64) {
    sleep_until(Instant::now() + Duration::from_millis(millis)).await;
}

/// Lets every task run until it waits.
async fn settle() {
    pause(1).await;
}

/// Counts what is alive.
#[derive(Clone, Default)]
struct Alive(Arc<AtomicUsize>);

struct Living(Alive);

impl Alive {
    fn live(&self) -> Living {
        self.0.fetch_add(1, SeqCst);
        Living(self.clone())
    }

    fn count(&self) -> usize {
        self.0.load(SeqCst)
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// What happened, in order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<&'static str>>>);

impl Diary {
    fn write(&self, word: &'static str) {
        self.0.lock().unwrap().push(word);
    }

    fn read(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }
}

fn asked(words: &'static str) -> Option<Reason> {
    Some(Reason::Asked(words.into()))
}

fn task_that_failed(outcome: &Outcome) -> Option<&'static str> {
    outcome.failure.as_ref().map(|failure| failure.task)
}

#[tokio::test(start_paused = true)]
async fn join_waits_for_the_end_of_every_task_and_cancels_none() {
    let scope = Scope::new();
    let begun = Instant::now();
    let long = scope.spawn("long", async {
        pause(5_000).await;
        Ok::<_, io::Error>("long")
    });
    scope.spawn("short", pause(10));
    let outcome = scope.join().await;
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert!(outcome.is_ok() && outcome.counts.done == 2, "{outcome:?}");
    assert_eq!(long.await, Some("long"), "values outlive the scope");
}

#[tokio::test(start_paused = true)]
async fn a_scope_without_tasks_is_joined_at_once() {
    let begun = Instant::now();
    assert!(Scope::new().with_deadline(begun + HOUR).join().await.is_ok());
    let outcome = Scope::default().close("nothing to do").await;
    assert_eq!(outcome.cancelled, asked("nothing to do"));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_is_dropped_where_it_stands() {
    let (scope, alive) = (Scope::new(), Alive::default());
    let living = alive.live();
    let never = scope.spawn("waits", async move {
        let _living = living;
        pending::<()>().await;
    });
    settle().await;
    assert_eq!((alive.count(), scope.handle().running()), (1, 1));
    let begun = Instant::now();
    let outcome = scope.close("enough").await;
    assert_eq!((alive.count(), begun.elapsed()), (0, Duration::ZERO), "no grace: nobody asked");
    assert_eq!((outcome.cancelled, outcome.counts.cancelled), (asked("enough"), 1));
    assert_eq!(never.await, None);
}

#[tokio::test(start_paused = true)]
async fn the_first_reason_of_a_cancellation_is_the_one_told() {
    let scope = Scope::new();
    let handle = scope.handle().clone();
    assert!(!handle.is_cancelled() && handle.reason().is_none());
    handle.cancel("first");
    scope.cancel("second");
    assert!(handle.is_cancelled());
    assert_eq!(scope.join().await.cancelled, asked("first"));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_told_ends_in_its_own_time_within_the_grace() {
    let (scope, diary) = (Scope::new(), Diary::default());
    let said = diary.clone();
    let value = scope.spawn_with("heeds", async move |task| {
        task.cancelled().await;
        pause(900).await;
        said.write("flushed");
        Ok::<_, io::Error>(task.name())
    });
    settle().await;
    let begun = Instant::now();
    let outcome = scope.close("stop").await;
    assert_eq!(begun.elapsed(), Duration::from_millis(900));
    assert_eq!(diary.read(), ["flushed"]);
    assert_eq!((outcome.counts.done, value.await), (1, Some("heeds")));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ignores_its_cancellation_is_dropped_after_the_grace() {
    let (scope, alive) = (Scope::new().with_grace(Duration::from_secs(3)), Alive::default());
    let living = alive.live();
    scope.spawn_with("ignores", async move |_task| {
        let _living = living;
        pending::<()>().await;
    });
    settle().await;
    let begun = Instant::now();
    let outcome = scope.close("stop").await;
    assert_eq!((begun.elapsed(), alive.count()), (Duration::from_secs(3), 0));
    assert_eq!((outcome.counts.aborted, outcome.counts.done), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_cancels_everything_below_at_its_time() {
    let begun = Instant::now();
    let scope = Scope::new().with_deadline(begun + Duration::from_secs(7));
    let child = scope.child();
    child.spawn("in the child", pending::<()>());
    scope.spawn("in the scope", pending::<()>());
    let outcome = scope.join().await;
    assert_eq!(begun.elapsed(), Duration::from_secs(7));
    assert_eq!((outcome.cancelled, outcome.counts.cancelled), (Some(Reason::Deadline), 2));
    assert_eq!(child.join().await.cancelled, Some(Reason::Deadline), "a child tells it too");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_of_a_child_leaves_its_parent_alone() {
    let begun = Instant::now();
    let scope = Scope::new().with_deadline(begun + HOUR);
    let child = scope.child().with_deadline(begun + Duration::from_secs(1));
    child.spawn("slow", pending::<()>());
    let done = scope.spawn("patient", pause(2_000));
    assert_eq!(child.join().await.cancelled, Some(Reason::Deadline));
    let outcome = scope.join().await;
    assert_eq!((outcome.is_ok(), outcome.counts.cancelled), (true, 1), "{outcome:?}");
    assert_eq!(done.await, Some(()));
    assert_eq!(begun.elapsed(), Duration::from_secs(2), "the hour was not waited for");
}

#[tokio::test(start_paused = true)]
async fn the_first_failure_cancels_the_tree_and_is_told() {
    let scope = Scope::new();
    let child = scope.child();
    let sibling = scope.child();
    sibling.spawn("in a sibling", pending::<()>());
    scope.spawn("in the root", pending::<()>());
    scope.spawn_with("fails because of it", async |task| {
        task.cancelled().await;
        Err::<(), _>("the other side is gone")
    });
    child.spawn("fails", async {
        pause(10).await;
        Err::<(), _>(io::Error::other("disk full"))
    });
    let outcome = scope.join().await;
    assert_eq!(outcome.cancelled, Some(Reason::Failed("fails")));
    assert_eq!((outcome.counts.cancelled, outcome.counts.failed), (2, 2));
    let failure = outcome.failure.expect("a task failed");
    assert_eq!(failure.to_string(), "task fails: disk full");
    assert!(matches!(&failure.cause, Cause::Error(error) if error.is::<io::Error>()));
    assert_eq!(task_that_failed(&child.join().await), Some("fails"));
}

#[tokio::test(start_paused = true)]
async fn a_contained_failure_goes_no_further_up() {
    let scope = Scope::new();
    let other = scope.spawn("other", pause(50));
    let child = scope.child().contained();
    let grandchild = child.child();
    grandchild.spawn("fails", async {
        settle().await;
        Err::<(), _>("no")
    });
    child.spawn("beside it", pending::<()>());
    let outcome = child.join().await;
    assert_eq!((task_that_failed(&outcome), outcome.counts.cancelled), (Some("fails"), 1));
    let outcome = scope.join().await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!((outcome.counts.failed, other.await), (1, Some(())), "counted, but no reason");
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_reported_and_cancels_the_tree() {
    let scope = Scope::new();
    scope.spawn("beside it", pending::<()>());
    let value = scope.spawn("panics", async {
        settle().await;
        panic!("index {} of 3", 7);
    });
    let outcome = scope.join().await;
    assert_eq!(outcome.cancelled, Some(Reason::Failed("panics")));
    let failure = outcome.failure.expect("it is told");
    assert_eq!(failure.to_string(), "task panics: panicked: index 7 of 3");
    assert_eq!((outcome.counts.panicked, outcome.counts.cancelled), (1, 1));
    assert_eq!(value.await, None);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_drop_of_a_cancelled_task_is_reported() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("badly dropped");
        }
    }
    let scope = Scope::new();
    scope.spawn("bad", async {
        let _bad = Bad;
        pending::<()>().await;
    });
    settle().await;
    let outcome = scope.close("stop").await;
    assert_eq!(outcome.cancelled, asked("stop"));
    assert_eq!(
        outcome.failure.expect("it is told").to_string(),
        "task bad: panicked: badly dropped"
    );
}

#[tokio::test(start_paused = true)]
async fn a_dropped_scope_is_cancelled_without_blocking_and_its_parent_waits_for_it() {
    let (scope, diary) = (Scope::new(), Diary::default());
    let child = scope.child();
    let said = diary.clone();
    child.spawn_with("slow to end", async move |task| {
        task.cancelled().await;
        pause(500).await;
        said.write("ended");
    });
    settle().await;
    let begun = Instant::now();
    drop(child);
    assert_eq!((begun.elapsed(), scope.handle().running()), (Duration::ZERO, 1));
    assert!(!scope.handle().is_cancelled(), "a drop cancels downwards only");
    let outcome = scope.join().await;
    assert_eq!((begun.elapsed(), diary.read()), (Duration::from_millis(500), vec!["ended"]));
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_join_that_is_given_up_cancels_the_scope() {
    let (scope, alive) = (Scope::new(), Alive::default());
    let (living, handle) = (alive.live(), scope.handle().clone());
    scope.spawn("waits", async move {
        let _living = living;
        pending::<()>().await;
    });
    assert!(timeout(Duration::from_secs(1), scope.join()).await.is_err());
    handle.cancelled().await;
    settle().await;
    assert_eq!((handle.reason(), alive.count()), (Some(Reason::Dropped), 0));
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_goes_down_the_tree_and_not_up() {
    let scope = Scope::new();
    let child = scope.child();
    let (grandchild, sibling) = (child.child(), scope.child());
    for scope in [&scope, &child, &grandchild, &sibling] {
        scope.spawn("waits", pending::<()>());
    }
    settle().await;
    let outcome = child.close("this branch").await;
    assert_eq!((outcome.cancelled, outcome.counts.cancelled), (asked("this branch"), 2));
    assert_eq!(grandchild.join().await.cancelled, asked("this branch"));
    assert_eq!((scope.handle().running(), scope.handle().is_cancelled()), (2, false));
    assert_eq!(scope.handle().stats().cancelled, 2, "the parent counts what is below");
    let outcome = scope.close("the rest").await;
    assert_eq!((outcome.cancelled, outcome.counts.cancelled), (asked("the rest"), 4));
    assert_eq!(sibling.join().await.cancelled, asked("the rest"));
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_in_a_scope_that_is_cancelled_or_joined() {
    let scope = Scope::new();
    let (handle, child) = (scope.handle().clone(), scope.child());
    let begin = |name| async move { panic!("{name} began") };
    scope.cancel("stop");
    let first = scope.spawn("after cancel", begin("after cancel"));
    let second = child.spawn_with("below", move |_task| begin("below"));
    let outcome = scope.join().await;
    assert_eq!((outcome.counts.not_started, outcome.failure.is_none()), (2, true));
    let third = handle.spawn("after join", async {});
    let fourth = child.handle().child().spawn("below", async {});
    assert_eq!(handle.running(), 0, "not even for a moment");
    let refused = (first.await, second.await, third.await, fourth.await);
    assert_eq!((refused, handle.running()), ((None, None, None, None), 0));
}

#[tokio::test(start_paused = true)]
async fn cleanups_run_once_the_task_is_gone_and_the_last_one_first() {
    let (scope, diary, alive) = (Scope::new(), Diary::default(), Alive::default());
    for ends in [true, false] {
        let (diary, living) = (diary.clone(), alive.live());
        let alive = alive.clone();
        scope.spawn_with("careful", async move |task| {
            let _living = living;
            for word in ["close the file", "flush it"] {
                let (diary, alive) = (diary.clone(), alive.clone());
                task.cleanup(word, async move {
                    pause(100).await;
                    assert_eq!(alive.count(), 0, "the task is gone");
                    diary.write(word);
                });
            }
            if !ends {
                pending::<()>().await;
            }
        });
        if ends {
            pause(300).await;
        }
    }
    settle().await;
    assert_eq!(diary.read(), ["flush it", "close the file"], "also where nothing was cancelled");
    let outcome = scope.close("stop").await;
    assert_eq!(diary.read()[2..], ["flush it", "close the file"], "and after a cancellation");
    assert_eq!((outcome.counts.cleanups, outcome.counts.aborted), (4, 1));
    assert!(outcome.failure.is_none(), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn cleanups_run_after_a_failure_and_a_panic() {
    for panics in [false, true] {
        let (scope, diary) = (Scope::new(), Diary::default());
        let said = diary.clone();
        scope.spawn_with("ends badly", async move |task| {
            task.cleanup("tidy", async move {
                pause(10).await;
                said.write("tidy");
            });
            assert!(!panics, "on purpose");
            Err::<(), _>("on purpose")
        });
        let outcome = scope.join().await;
        assert_eq!((diary.read(), outcome.counts.cleanups), (vec!["tidy"], 1));
        assert_eq!(task_that_failed(&outcome), Some("ends badly"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_cleanup_is_bounded_and_reported_and_the_others_still_run() {
    let scope = Scope::new().with_cleanup_limit(Duration::from_secs(2));
    let diary = Diary::default();
    let said = diary.clone();
    scope.spawn_with("unclean", async move |task| {
        task.cleanup("runs", async move { said.write("ran") });
        task.cleanup("panics", async { panic!("on purpose") });
        task.cleanup("hangs", pending());
    });
    let begun = Instant::now();
    let outcome = scope.join().await;
    assert_eq!((begun.elapsed(), diary.read()), (Duration::from_secs(2), vec!["ran"]));
    assert_eq!((outcome.counts.cleanups, outcome.counts.cleanups_failed), (1, 2));
    let failure = outcome.failure.expect("it is told");
    assert!(matches!(failure.cause, Cause::CleanupLate("hangs")), "the first of both: {failure}");
}

#[tokio::test(start_paused = true)]
async fn a_cleanup_that_comes_after_its_task_is_run_all_the_same() {
    let (scope, diary) = (Scope::new(), Diary::default());
    let (give, given) = oneshot::channel();
    scope.spawn_with("gives itself away", async move |task| {
        assert!(give.send(task).is_ok(), "somebody takes it");
    });
    let task = given.await.expect("it comes");
    settle().await;
    let said = diary.clone();
    task.cleanup("late", async move {
        pause(100).await;
        said.write("late");
    });
    let outcome = scope.join().await;
    assert_eq!((diary.read(), outcome.counts.cleanups), (vec!["late"], 1));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_cancelled_is_waited_for_and_told() {
    let (scope, diary) = (Scope::new(), Diary::default());
    let said = diary.clone();
    scope.spawn_with("proposer", async move |task| {
        let log = said.clone();
        let propose = async move {
            pause(30_000).await;
            log.write("applied");
            7
        };
        assert_eq!(task.uncancellable("propose", propose).await, 7);
        said.write("recorded");
        pending::<()>().await;
    });
    settle().await;
    let begun = Instant::now();
    let outcome = scope.close("stop").await;
    assert_eq!(begun.elapsed(), Duration::from_millis(29_999), "far beyond the grace of 1 s");
    assert_eq!(diary.read(), ["applied", "recorded"], "up to its next await, and no further");
    assert_eq!((outcome.uncancellable, outcome.counts.uncancellable), (vec!["propose"], 1));
    assert_eq!(outcome.counts.aborted, 1);
}

#[tokio::test(start_paused = true)]
async fn a_section_that_ended_before_the_cancellation_is_not_told() {
    let scope = Scope::new();
    let index = scope.spawn_with("proposer", async |task| {
        Ok::<_, io::Error>(task.uncancellable("propose", async { 7 }).await)
    });
    assert_eq!(index.await, Some(7));
    let outcome = scope.close("stop").await;
    assert_eq!((outcome.uncancellable.len(), outcome.counts.uncancellable), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_section_goes_on_where_its_task_looks_away() {
    let (scope, diary) = (Scope::new(), Diary::default());
    let said = diary.clone();
    scope.spawn_with("impatient", async move |task| {
        let propose = task.uncancellable("propose", async move {
            pause(5_000).await;
            said.write("applied");
        });
        assert!(timeout(Duration::from_secs(1), propose).await.is_err());
    });
    let begun = Instant::now();
    let outcome = scope.join().await;
    assert_eq!((begun.elapsed(), diary.read()), (Duration::from_secs(5), vec!["applied"]));
    assert!(outcome.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_section_is_its_tasks_or_else_its_own() {
    let scope = Scope::new();
    scope.spawn_with("waits for it", async |task| {
        task.uncancellable("propose", async { panic!("on purpose") }).await
    });
    assert_eq!(task_that_failed(&scope.join().await), Some("waits for it"));
    let scope = Scope::new();
    scope.spawn_with("looks away", async |task| {
        let propose = task.uncancellable("propose", async {
            pause(5_000).await;
            panic!("on purpose");
        });
        assert!(timeout(Duration::from_secs(1), propose).await.is_err());
    });
    let outcome = scope.join().await;
    assert_eq!((task_that_failed(&outcome), outcome.counts.done), (Some("propose"), 1));
}

#[tokio::test(start_paused = true)]
async fn a_task_spawns_into_its_own_scope_and_below_it() {
    let (scope, (tell, mut told)) = (Scope::new(), mpsc::channel(2));
    scope.spawn_with("parent", async move |task| {
        let below = tell.clone();
        task.scope().spawn("beside", async move { below.send("beside").await });
        let child = task.scope().child();
        child.spawn("below", async move { tell.send("below").await });
        assert!(child.join().await.is_ok());
    });
    let outcome = scope.join().await;
    assert_eq!((outcome.is_ok(), outcome.counts.done), (true, 3), "{outcome:?}");
    assert_eq!((told.recv().await, told.recv().await), (Some("beside"), Some("below")));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_cancelled_with_the_scope_and_not_the_other_way_round() {
    let scope = Scope::new();
    let (one, other) = (scope.handle().token(), scope.handle().token());
    one.cancel();
    assert!(!scope.handle().is_cancelled() && !other.is_cancelled());
    scope.cancel("stop");
    assert!(other.is_cancelled());
}
