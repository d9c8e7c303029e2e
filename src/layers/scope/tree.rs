//! The scope as its owner holds it, and the handle with which others spawn in it. Only the owner
//! joins, and whose owner is gone is cancelled.

use std::{borrow::Cow, sync::Arc};

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::{
    layers::scope::{
        node::{Limits, Node},
        outcome::{Counts, Outcome, Reason},
        task::{Returned, Task, TaskOutput, Told, start, work},
    },
    types::Duration,
};

/// How long a task that was told of its cancellation may go on.
const GRACE: Duration = Duration::from_secs(1);

/// How long one cleanup may take.
const CLEANUP_LIMIT: Duration = Duration::from_secs(5);

/// A tree of tasks that end together; see the [module](super). Dropping it cancels all of them and
/// does not wait.
#[derive(Debug)]
#[must_use = "dropping it cancels what it runs"]
pub struct Scope(Handle);

impl Scope {
    /// A scope of its own, with a grace of 1 s and a cleanup limit of 5 s.
    pub fn new() -> Self {
        Self(Handle(Node::root(Limits { grace: GRACE, cleanup: CLEANUP_LIMIT })))
    }

    /// Cancels the scope at `deadline`, of tokio's clock. Of several the first counts; those of the
    /// scopes above count as well. Must be called inside a tokio runtime.
    pub fn with_deadline(self, deadline: Instant) -> Self {
        let node = Arc::clone(self.0.node());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                // Joined or dropped as well.
                () = node.token.cancelled() => {}
                () = sleep_until(deadline) => node.cancel(Reason::Deadline),
            }
        });
        self
    }

    /// How long a task spawned with [`Scope::spawn_with`] may go on once it is cancelled, before it
    /// is dropped; 1 s where nothing is said. Scopes made below this one later begin with it.
    pub fn with_grace(self, grace: Duration) -> Self {
        self.0.node().set_limits(|limits| limits.grace = grace);
        self
    }

    /// How long each cleanup may take; 5 s where nothing is said. Scopes made below this one later
    /// begin with it.
    pub fn with_cleanup_limit(self, limit: Duration) -> Self {
        self.0.node().set_limits(|limits| limits.cleanup = limit);
        self
    }

    /// Keeps failures in this scope: one of a task here or below cancels all of it, but nothing
    /// above, and only the outcome of this scope tells of it.
    pub fn contained(self) -> Self {
        self.0.node().contain();
        self
    }

    /// What others may spawn in this scope and cancel it with.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.0
    }

    /// As [`Handle::child`].
    pub fn child(&self) -> Self {
        self.0.child()
    }

    /// As [`Handle::spawn`].
    pub fn spawn<F>(
        &self,
        name: &'static str,
        future: F,
    ) -> Returned<<F::Output as TaskOutput>::Value>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        self.0.spawn(name, future)
    }

    /// As [`Handle::spawn_with`].
    pub fn spawn_with<F, Fut>(
        &self,
        name: &'static str,
        body: F,
    ) -> Returned<<Fut::Output as TaskOutput>::Value>
    where
        F: FnOnce(Task) -> Fut + Send + 'static,
        Fut: Future<Output: TaskOutput> + Send + 'static,
    {
        self.0.spawn_with(name, body)
    }

    /// As [`Handle::cancel`].
    pub fn cancel(&self, reason: impl Into<Cow<'static, str>>) {
        self.0.cancel(reason);
    }

    /// Waits until every task here and below has ended by itself or by a cancellation, and every
    /// cleanup has been run. Nothing begins in the scope after that. It cancels nothing itself; see
    /// [`Scope::close`].
    ///
    /// Dropping this future drops the scope, and so cancels it.
    pub async fn join(self) -> Outcome {
        let node = self.0.node();
        node.closed().await;
        let outcome = node.outcome();
        // For those who only wait for the end, such as the deadline.
        node.token.cancel();
        outcome
    }

    /// Cancels the scope and joins it.
    pub async fn close(self, reason: impl Into<Cow<'static, str>>) -> Outcome {
        self.cancel(reason);
        self.join().await
    }
}

impl Default for Scope {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.0.node().cancel(Reason::Dropped);
    }
}

/// A way into a [`Scope`] for those who do not own it. Cheap to clone; does not keep the scope alive.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Node>);

impl Handle {
    pub(super) const fn node(&self) -> &Arc<Node> {
        &self.0
    }

    /// A scope below this one: cancelled with it, joined by it, with its grace and cleanup limit. Its
    /// own cancellation leaves this one alone; a failure in it does not, unless it is
    /// [`Scope::contained`].
    pub fn child(&self) -> Scope {
        Scope(Self(self.0.child()))
    }

    /// Starts a task that is dropped at the await where it stands when the scope is cancelled. An
    /// error that it returns, or a panic, cancels the tree. In a scope that is cancelled or closed it
    /// is not started. Must be called inside a tokio runtime.
    pub fn spawn<F>(
        &self,
        name: &'static str,
        future: F,
    ) -> Returned<<F::Output as TaskOutput>::Value>
    where
        F: Future<Output: TaskOutput> + Send + 'static,
    {
        let (work, returned) = work(future);
        start(&self.0, name, work, None);
        returned
    }

    /// Starts a task that is told of a cancellation by its [`Task`] and has the grace to end; then it
    /// is dropped. Otherwise as [`Handle::spawn`]. `body` is called when the task begins.
    pub fn spawn_with<F, Fut>(
        &self,
        name: &'static str,
        body: F,
    ) -> Returned<<Fut::Output as TaskOutput>::Value>
    where
        F: FnOnce(Task) -> Fut + Send + 'static,
        Fut: Future<Output: TaskOutput> + Send + 'static,
    {
        let told = Told::new();
        let task = Task::new(name, self.clone(), Arc::clone(&told));
        let (work, returned) = work(async move { body(task).await });
        start(&self.0, name, work, Some(told));
        returned
    }

    /// Cancels the scope and all below it, for a reason that the outcome tells. Of several the first
    /// counts. Returns at once.
    pub fn cancel(&self, reason: impl Into<Cow<'static, str>>) {
        self.0.cancel(Reason::Asked(reason.into()));
    }

    /// Whether the scope is cancelled or joined.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.token.is_cancelled()
    }

    /// Waits until the scope is cancelled or joined. Cancel-safe.
    pub async fn cancelled(&self) {
        self.0.token.cancelled().await;
    }

    /// A token that is cancelled with the scope, for code that takes one. Cancelling it leaves the
    /// scope alone.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.0.token.child_token()
    }

    /// Why the scope is cancelled, where it is.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.0.reason()
    }

    /// How many tasks, uncancellable sections and late cleanups run here and below.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.running()
    }

    /// How the tasks that are over ended, here and below.
    #[must_use]
    pub fn stats(&self) -> Counts {
        self.0.counts()
    }
}
