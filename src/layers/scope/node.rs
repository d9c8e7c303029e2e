//! One scope of a tree, as its handle and its tasks share it: what runs in it and below it, why it
//! was cancelled, what failed.
//!
//! A count of what runs instead of tokio-util's `TaskTracker`: that one cannot be found empty and be
//! closed in one step, and does not know of trees. What enters is counted from the scope up to the
//! root, each under its own lock, so whoever finds a scope empty and closes it has closed all below.
//! Locks are never held together, nor across an await.

use std::{
    iter,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    layers::scope::outcome::{Cause, Counts, Ended, Failure, Outcome, Reason, Tally},
    types::Duration,
};

/// How long tasks and cleanups may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) grace: Duration,
    pub(super) cleanup: Duration,
}

#[derive(Debug)]
pub(super) struct Node {
    parent: Option<Arc<Self>>,
    pub(super) token: CancellationToken,
    state: Mutex<State>,
    /// Told when the last of what ran has ended.
    emptied: Notify,
}

#[derive(Debug)]
struct State {
    /// What runs here and below.
    running: usize,
    /// Nothing begins here or below any more.
    closed: bool,
    /// A failure goes no further up than here.
    contained: bool,
    limits: Limits,
    reason: Option<Reason>,
    tally: Tally,
}

impl Node {
    pub(super) fn root(limits: Limits) -> Arc<Self> {
        Self::new(None, CancellationToken::new(), limits)
    }

    pub(super) fn child(self: &Arc<Self>) -> Arc<Self> {
        Self::new(Some(Arc::clone(self)), self.token.child_token(), self.limits())
    }

    fn new(parent: Option<Arc<Self>>, token: CancellationToken, limits: Limits) -> Arc<Self> {
        let state = State {
            running: 0,
            closed: false,
            contained: false,
            limits,
            reason: None,
            tally: Tally::default(),
        };
        Arc::new(Self { parent, token, state: Mutex::new(state), emptied: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under it panics")
    }

    /// This scope and those above it.
    fn upwards(&self) -> impl Iterator<Item = &Self> {
        iter::successors(Some(self), |node| node.parent.as_deref())
    }

    pub(super) fn limits(&self) -> Limits {
        self.lock().limits
    }

    pub(super) fn set_limits(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut self.lock().limits);
    }

    pub(super) fn contain(&self) {
        self.lock().contained = true;
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().tally.counts
    }

    pub(super) fn running(&self) -> usize {
        self.lock().running
    }

    /// Cancels the scope and all below it. Only the first reason is kept.
    pub(super) fn cancel(&self, reason: Reason) {
        if !self.token.is_cancelled() {
            let running = {
                let mut state = self.lock();
                if state.reason.is_none() && !state.closed {
                    state.reason = Some(reason.clone());
                }
                state.running
            };
            if running > 0 {
                tracing::debug!(%reason, running, "tasks are cancelled");
            }
        }
        self.token.cancel();
    }

    /// Why the scope is cancelled, where it is.
    pub(super) fn reason(&self) -> Option<Reason> {
        self.upwards().find_map(|node| node.lock().reason.clone())
    }

    /// Cancels the tree for a failure, up to the next scope that contains it.
    pub(super) fn fail(&self, task: &'static str, cause: Cause) {
        match &cause {
            Cause::Error(error) => tracing::debug!(task, %error, "a task failed"),
            cause => tracing::error!(task, error = %cause, "a task failed"),
        }
        let failure = Arc::new(Failure { task, cause });
        for node in self.upwards() {
            let contained = {
                let mut state = node.lock();
                state.tally.failure.get_or_insert_with(|| Arc::clone(&failure));
                state.contained
            };
            node.cancel(Reason::Failed(task));
            if contained {
                break;
            }
        }
    }

    /// Writes something down here and in the scopes above.
    pub(super) fn note(&self, mut write: impl FnMut(&mut Tally)) {
        for node in self.upwards() {
            write(&mut node.lock().tally);
        }
    }

    /// Counts something that begins. `None` where the tree, up to some scope, is closed.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        for (entered, node) in self.upwards().enumerate() {
            let mut state = node.lock();
            if state.closed {
                drop(state);
                self.upwards().take(entered).for_each(Self::leave);
                return None;
            }
            state.running += 1;
        }
        Some(Place(Arc::clone(self)))
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.running -= 1;
        if state.running == 0 {
            drop(state);
            self.emptied.notify_waiters();
        }
    }

    /// Waits until nothing runs here or below, and closes that.
    pub(super) async fn closed(&self) {
        loop {
            let mut emptied = pin!(self.emptied.notified());
            emptied.as_mut().enable();
            {
                let mut state = self.lock();
                if state.running == 0 {
                    state.closed = true;
                    return;
                }
            }
            emptied.await;
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        let cancelled = self.reason();
        let Tally { counts, uncancellable, failure } = self.lock().tally.clone();
        Outcome { cancelled, failure, counts, uncancellable }
    }
}

/// The place of something that runs; given back when dropped, so also where the runtime drops it.
#[derive(Debug)]
pub(super) struct Place(Arc<Node>);

impl Place {
    pub(super) fn node(&self) -> &Arc<Node> {
        &self.0
    }

    /// Says how the task that has this place ended.
    pub(super) fn ended(&self, task: &'static str, ended: Ended) {
        self.0.note(|tally| tally.ended(&ended));
        match ended {
            Ended::Failed(error) => self.0.fail(task, Cause::Error(error)),
            Ended::Panicked(words) => self.0.fail(task, Cause::Panicked(words)),
            Ended::Aborted => tracing::warn!(task, "a task outlived its grace and was dropped"),
            Ended::Done | Ended::Cancelled | Ended::NotStarted => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.upwards().for_each(Node::leave);
    }
}
