//! A call's deadline on its way: in the header, in the extensions of a request, and around the task
//! that serves it.
//!
//! It is tokio's time, because it passes between layers whose machines count from starts of their
//! own. Nothing here ends a call.

use std::future::Future;

use http::{HeaderMap, HeaderValue, Request};
use tokio::{task_local, time::Instant};

use crate::{resilience::deadline::Timeout, types::Duration};

/// The header that a deadline travels in, as what is left of it.
const GRPC_TIMEOUT: &str = "grpc-timeout";

task_local! {
    static CURRENT: Due;
}

/// When the call that a request, or a task, belongs to must have ended.
///
/// [`super::ServerDeadlineLayer`] puts it into the extensions of a request, where a handler finds it,
/// and around the handler and its stream, so that [`super::DeadlineLayer`] finds it wherever the
/// handler calls on. A task of its own does not inherit it: spawn `due.scope(future)`, or put the
/// `Due` into the extensions of each request.
///
/// ```
/// use quorate::layers::Due;
/// use tokio::time::{Duration, Instant};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let due = Due::at(Instant::now() + Duration::from_secs(5));
/// assert_eq!(Due::current(), None);
/// let spawned = tokio::spawn(due.scope(async { Due::current() }));
/// assert_eq!(spawned.await.expect("it ran"), Some(due));
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due(Instant);

impl Due {
    /// At this time.
    #[must_use]
    pub const fn at(instant: Instant) -> Self {
        Self(instant)
    }

    /// What the request has with it: the mark of a layer further out, else `grpc-timeout` counted
    /// from now. `None` where it may take for ever.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> Option<Self> {
        let marked = request.extensions().get::<Self>().copied();
        marked.or_else(|| Some(Self(Instant::now().checked_add(timeout_in(request.headers())?)?)))
    }

    /// That of the call that the current task serves.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.try_with(|due| *due).ok()
    }

    /// Runs a future as a part of the call that is due then.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Runs a closure as a part of the call that is due then.
    pub(super) fn sync_scope<R>(self, part: impl FnOnce() -> R) -> R {
        CURRENT.sync_scope(self, part)
    }

    /// The time.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// What is left until then; zero once it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// The span that `grpc-timeout` asks for. A malformed one counts as none, as with tonic.
#[must_use]
pub fn timeout_in(headers: &HeaderMap) -> Option<Duration> {
    let timeout: Timeout = headers.get(GRPC_TIMEOUT)?.to_str().ok()?.parse().ok()?;
    Some(timeout.span())
}

/// Tells the other side what is left.
pub(in crate::layers) fn set_timeout(headers: &mut HeaderMap, left: Duration) {
    let value = HeaderValue::try_from(Timeout::of(left).to_string());
    headers.insert(GRPC_TIMEOUT, value.expect("digits and a letter"));
}
