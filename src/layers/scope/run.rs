//! How a task is carried: polled until its end or its cancellation, then cleaned up after. The task's
//! own future is gone before the first cleanup begins.

use std::sync::Arc;

use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};

use crate::layers::{
    BoxError, BoxFuture,
    scope::{
        caught::{Caught, Payload, words},
        node::{Node, Place},
        outcome::{Cause, Ended},
        task::Told,
    },
};

/// What a task does, and what it comes to.
pub(super) type Work = Caught<Result<(), BoxError>>;

/// Carries a task from its beginning to the end of its last cleanup.
pub(super) async fn run(place: Place, name: &'static str, mut work: Work, told: Option<Arc<Told>>) {
    let ended = match drive(place.node(), &mut work, told.as_deref()).await {
        // What is left of the future goes before its cleanups begin.
        ended @ (Ended::Cancelled | Ended::Aborted | Ended::NotStarted) => {
            work.end().map_or_else(|payload| Ended::Panicked(words(&payload)), |()| ended)
        }
        ended => ended,
    };
    // Before the cleanups: the others are to hear of a failure at once.
    place.ended(name, ended);
    if let Some(told) = told {
        while let Some((cleanup, future)) = told.next_cleanup() {
            clean(place.node(), name, cleanup, future).await;
        }
    }
}

async fn drive(node: &Node, work: &mut Work, told: Option<&Told>) -> Ended {
    if node.token.is_cancelled() {
        return Ended::NotStarted;
    }
    select! {
        biased;
        () = node.token.cancelled() => {}
        ended = &mut *work => return ended_as(ended),
    }
    let Some(told) = told else { return Ended::Cancelled };
    let until = Instant::now() + node.limits().grace;
    select! {
        biased;
        ended = &mut *work => return ended_as(ended),
        () = sleep_until(until) => {}
    }
    while told.is_in_section() {
        select! {
            biased;
            // First, so that the task is not polled again once it has left the section.
            () = told.left_section() => {}
            ended = &mut *work => return ended_as(ended),
        }
    }
    Ended::Aborted
}

fn ended_as(ended: Result<Result<(), BoxError>, Payload>) -> Ended {
    match ended {
        Ok(Ok(())) => Ended::Done,
        Ok(Err(error)) => Ended::Failed(error),
        Err(payload) => Ended::Panicked(words(&payload)),
    }
}

/// Runs a cleanup to its end, or for as long as the limit says.
pub(super) async fn clean(
    node: &Node,
    task: &'static str,
    cleanup: &'static str,
    future: BoxFuture<()>,
) {
    let mut caught = Caught::new(future);
    let cause = match timeout(node.limits().cleanup, &mut caught).await {
        Ok(Ok(())) => return node.note(|tally| tally.counts.cleanups += 1),
        Ok(Err(payload)) => Cause::CleanupPanicked(cleanup, words(&payload)),
        Err(_) => match caught.end() {
            Ok(()) => Cause::CleanupLate(cleanup),
            Err(payload) => Cause::CleanupPanicked(cleanup, words(&payload)),
        },
    };
    node.note(|tally| tally.counts.cleanups_failed += 1);
    node.fail(task, cause);
}
