//! What a task holds of its scope: to hear of cancellation, to have things cleaned up after it, and
//! to mark what must not be cut off. And what the spawner holds of the task: its value.

use std::{
    fmt,
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use tokio::sync::{Notify, oneshot};

use crate::layers::{
    BoxError, BoxFuture,
    scope::{
        caught::{Caught, words},
        node::Node,
        outcome::Cause,
        run,
        tree::Handle,
    },
};

type Cleanup = (&'static str, BoxFuture<()>);

/// What a task spawned with [`super::Scope::spawn_with`] holds of its scope.
#[derive(Debug)]
pub struct Task {
    name: &'static str,
    handle: Handle,
    told: Arc<Told>,
}

impl Task {
    pub(super) const fn new(name: &'static str, handle: Handle, told: Arc<Told>) -> Self {
        Self { name, handle, told }
    }

    /// The name that it was spawned with.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The task's scope, to spawn more in it.
    #[must_use]
    pub const fn scope(&self) -> &Handle {
        &self.handle
    }

    /// Whether the task is to end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.handle.is_cancelled()
    }

    /// Waits until the task is to end. What is not done by the end of the grace is not done.
    ///
    /// Cancel-safe.
    pub async fn cancelled(&self) {
        self.handle.cancelled().await;
    }

    /// Has `future` run once the task has ended and its own future is dropped, however it ended. The
    /// last that was handed over is run first; each for at most the scope's cleanup limit, then it is
    /// dropped and reported. `join` waits for them.
    ///
    /// What is handed over when the task has ended already, by a `Task` that left it, is run at once.
    pub fn cleanup(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let future: BoxFuture<()> = Box::pin(future);
        let late = match &mut self.told.lock().cleanups {
            Some(cleanups) => {
                cleanups.push((name, future));
                return;
            }
            None => future,
        };
        let (node, task) = (Arc::clone(self.handle.node()), self.name);
        tracing::warn!(task, cleanup = name, "a cleanup came after the end of its task");
        // Counted where anybody can still wait for it.
        let place = node.enter();
        tokio::spawn(async move {
            run::clean(&node, task, name, late).await;
            drop(place);
        });
    }

    /// Carries out what cannot be taken back once it is begun, such as a proposal that was sent to a
    /// log: neither a cancellation nor the end of the grace stops it, and the task that awaits it is
    /// not dropped. `join` waits for it, and the outcome names it where it ended after a
    /// cancellation. It has no limit of its own: bring a deadline along.
    ///
    /// `future` runs in a task of its own, so it goes on also where this future is dropped. A panic
    /// in it is resumed here; where nobody waits any more it is reported under `name`.
    pub async fn uncancellable<F>(&self, name: &'static str, future: F) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let _inside = Inside::enter(&self.told);
        let node = Arc::clone(self.handle.node());
        let (tell, told) = oneshot::channel();
        let place = node.enter();
        tokio::spawn(async move {
            let ended = Caught::new(future).await;
            if node.token.is_cancelled() {
                tracing::debug!(section = name, "waited for what could not be cancelled");
                node.note(|tally| tally.waited_for(name));
            }
            if let Err(Err(payload)) = tell.send(ended) {
                node.fail(name, Cause::Panicked(words(&payload)));
            }
            drop(place);
        });
        match told.await {
            Ok(Ok(output)) => output,
            Ok(Err(payload)) => resume_unwind(payload),
            // The runtime shuts down, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// What a [`Task`] and whoever carries the task share.
pub(super) struct Told {
    state: Mutex<State>,
    left: Notify,
}

struct State {
    /// `None` once they were run.
    cleanups: Option<Vec<Cleanup>>,
    /// Uncancellable sections that the task is in.
    sections: usize,
}

impl Told {
    pub(super) fn new() -> Arc<Self> {
        let state = State { cleanups: Some(Vec::new()), sections: 0 };
        Arc::new(Self { state: Mutex::new(state), left: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing under it panics")
    }

    pub(super) fn is_in_section(&self) -> bool {
        self.lock().sections > 0
    }

    pub(super) async fn left_section(&self) {
        self.left.notified().await;
    }

    /// The cleanup to run next. After `None` none is taken any more.
    pub(super) fn next_cleanup(&self) -> Option<Cleanup> {
        let cleanups = &mut self.lock().cleanups;
        let next = cleanups.as_mut().and_then(Vec::pop);
        if next.is_none() {
            *cleanups = None;
        }
        next
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Told")
            .field("cleanups", &state.cleanups.as_ref().map(Vec::len))
            .field("sections", &state.sections)
            .finish_non_exhaustive()
    }
}

/// An uncancellable section that the task is in.
struct Inside<'a>(&'a Told);

impl<'a> Inside<'a> {
    fn enter(told: &'a Told) -> Self {
        told.lock().sections += 1;
        Self(told)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.lock().sections -= 1;
        self.0.left.notify_one();
    }
}

/// What a task may return: nothing, a result whose error cancels the tree, or never.
pub trait TaskOutput {
    /// What the spawner gets.
    type Value: Send + 'static;

    /// The value, or what the task failed with.
    ///
    /// # Errors
    /// What the task failed with.
    fn into_value(self) -> Result<Self::Value, BoxError>;
}

impl TaskOutput for () {
    type Value = ();

    fn into_value(self) -> Result<(), BoxError> {
        Ok(())
    }
}

/// A task that goes on until it is cancelled returns `!`, which stable Rust cannot name but as what a
/// function returns.
impl TaskOutput for <fn() -> ! as Returns>::Output {
    type Value = ();

    fn into_value(self) -> Result<(), BoxError> {
        match self {}
    }
}

#[doc(hidden)]
pub trait Returns {
    type Output;
}

impl<T> Returns for fn() -> T {
    type Output = T;
}

impl<T: Send + 'static, E: Into<BoxError>> TaskOutput for Result<T, E> {
    type Value = T;

    fn into_value(self) -> Result<T, BoxError> {
        self.map_err(Into::into)
    }
}

/// The value of a task, when it is awaited; `None` where the task failed, panicked or was cancelled:
/// the scope's outcome tells which. Comes before the task's cleanups are run. Dropping it changes
/// nothing for the task.
#[derive(Debug)]
pub struct Returned<T>(oneshot::Receiver<T>);

impl<T> Future for Returned<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        Pin::new(&mut self.0).poll(context).map(Result::ok)
    }
}

/// The work of a task, and where its value comes out.
pub(super) fn work<F>(future: F) -> (run::Work, Returned<<F::Output as TaskOutput>::Value>)
where
    F: Future<Output: TaskOutput> + Send + 'static,
{
    let (tell, told) = oneshot::channel();
    let work = Caught::new(async move {
        let value = future.await.into_value()?;
        // Nobody may want it.
        let _ = tell.send(value);
        Ok(())
    });
    (work, Returned(told))
}

/// Starts `work` where the scope is neither cancelled nor closed.
pub(super) fn start(
    node: &Arc<Node>,
    name: &'static str,
    work: run::Work,
    told: Option<Arc<Told>>,
) {
    match node.enter() {
        Some(place) => drop(tokio::spawn(run::run(place, name, work, told))),
        None => {
            tracing::debug!(task = name, "a task came after the end of its scope");
            node.note(|tally| tally.counts.not_started += 1);
        }
    }
}
