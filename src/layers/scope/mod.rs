//! A cancel scope: a tree of tasks whose drop, deadline or failure cancels and joins all of it.
//!
//! Every task belongs to a [`Scope`], every scope but the root to another one. What ends a scope ends
//! everything below it, and [`Scope::join`] returns only when nothing of it runs any more and every
//! cleanup has been run. No task is lost, and no failure or panic of one is swallowed: the
//! [`Outcome`] tells the first.
//!
//! # How a task ends
//!
//! | spawned with | cancelled before it began | cancelled later |
//! |---|---|---|
//! | [`Scope::spawn`] | is not started | is dropped at the await where it stands |
//! | [`Scope::spawn_with`] | is not started | is told by its [`Task`]; after the grace it is dropped |
//! | [`Task::cleanup`] | is run | is run, for at most the cleanup limit |
//! | [`Task::uncancellable`] | | goes on to its end, which `join` waits for and reports |
//!
//! A task that never awaits cannot be ended by anybody: `join` waits for it.
//!
//! # What cancels a scope
//!
//! | what | [`Reason`] | how far it goes |
//! |---|---|---|
//! | [`Scope::cancel`], [`Scope::close`] | `Asked` | the scope and all below |
//! | [`Scope::with_deadline`] | `Deadline` | the scope and all below |
//! | the scope, or a `join` of it, is dropped | `Dropped` | the scope and all below; nothing blocks |
//! | a task fails or panics, a cleanup panics or takes too long | `Failed` | the whole tree, up to the next scope that is [`Scope::contained`] |
//!
//! The parent's `join` waits for a scope that was dropped. The guarantees end with the tokio runtime:
//! one that shuts down drops every task and runs no cleanup.
//!
//! The rules are those of structured concurrency: Sústrik's 2016 essay of that name, Trio's nurseries
//! and cancel scopes (N. J. Smith, 2018), Kotlin's `supervisorScope` for containment.
//!
//! ```
//! use quorate::{layers::scope::{Reason, Scope}, types::Duration};
//! use tokio::time::Instant;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let scope = Scope::new().with_deadline(Instant::now() + Duration::from_secs(30));
//! let (said, mut heard) = tokio::sync::mpsc::channel(4);
//!
//! // Dropped at its await when the scope is cancelled.
//! let sum = scope.spawn("sum", async { Ok::<_, std::io::Error>(40 + 2) });
//! // Told of it, with a cleanup that is run in any case, and a step that must not be cut off.
//! scope.spawn_with("proposer", async move |task| {
//!     let goodbye = said.clone();
//!     task.cleanup("say goodbye", async move { drop(goodbye.send("goodbye").await) });
//!     let applied = task.uncancellable("propose", async { 7 }).await;
//!     task.cancelled().await;
//!     drop(said.send(if applied == 7 { "applied" } else { "lost" }).await);
//! });
//! assert_eq!(sum.await, Some(42));
//!
//! let outcome = scope.close("the example ends").await;
//! assert_eq!(outcome.cancelled, Some(Reason::Asked("the example ends".into())));
//! assert_eq!((outcome.counts.done, outcome.counts.cleanups), (2, 1));
//! assert!(outcome.failure.is_none());
//! assert_eq!(heard.recv().await, Some("applied"));
//! assert_eq!(heard.recv().await, Some("goodbye"));
//! # }
//! ```

mod caught;
mod node;
mod outcome;
mod run;
mod task;
mod tree;

#[cfg(test)]
mod tests;

pub use outcome::{Cause, Counts, Failure, Outcome, Reason};
pub use task::{Returned, Task, TaskOutput};
pub use tree::{Handle, Scope};
