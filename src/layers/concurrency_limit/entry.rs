//! The machine with the time, those who wait, and what a place is.
//!
//! The machine stands behind a short lock: the limit, what is in flight and the queue must agree,
//! and no two of them fit a word. Nobody is woken under it.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::Response;
use tokio::{
    sync::oneshot,
    time::{Instant as TokioInstant, timeout_at},
};
use tonic::{Code, body::Body};

use crate::{
    layers::{Clock, Due, Outcome, keyed::Idle, refusal::Refusal},
    resilience::concurrency_limit::{
        Admission, Ended, Limiter, Next, Permit, Stats, Ticket, ValidConfig,
    },
    types::{Duration, Instant, Rng},
};

/// So long after the last refusal a limit counts as at peace again, for the log.
const PEACE: Duration = Duration::from_secs(1);

/// When to try again that was refused: about the time that a queue takes to change.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The `ErrorInfo` reason of what a limit refuses.
pub const LIMIT_REACHED: &str = "LIMIT_REACHED";

/// Told how long each call of a class that left the queue had waited there.
pub(super) type Delays = Arc<dyn Fn(u8, Duration) + Send + Sync>;

/// What the end of a call tells a limit: as in Netflix's library, an answer counts with its latency,
/// UNAVAILABLE as overload, and so do RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED; what is given up or
/// broken, or failed for a reason of its own, counts as nothing.
#[must_use]
pub const fn sample_of(outcome: Outcome, latency: Duration) -> Ended {
    match outcome {
        Outcome::Status(Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded) => {
            Ended::Dropped
        }
        Outcome::Status(
            Code::Cancelled
            | Code::Unknown
            | Code::Internal
            | Code::DataLoss
            | Code::Unimplemented
            | Code::Unauthenticated,
        )
        | Outcome::Broken
        | Outcome::Cancelled => Ended::Ignored,
        Outcome::Status(_) => Ended::Answered(latency),
    }
}

/// For support: how a limit stands. Cheap to clone.
#[derive(Clone)]
pub struct ConcurrencyLimitHandle(pub(super) Arc<Entry>);

impl ConcurrencyLimitHandle {
    /// How it stands, and what it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }
}

impl fmt::Debug for ConcurrencyLimitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitHandle").field("stats", &self.stats()).finish()
    }
}

/// Why a call got no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The queue was full.
    Full,
    /// More important calls took its place in the queue.
    Displaced,
    /// It waited too long.
    Expired,
}

/// What is sent to one that waits.
type Turn = Result<Place, Why>;

/// One limit and its queue.
pub(crate) struct Entry {
    clock: Clock,
    machine: Mutex<Limiter<oneshot::Sender<Turn>>>,
    /// What it limits, for people: `all calls`, or a key.
    name: String,
    delays: Option<Delays>,
    /// When it last refused a call, in nanoseconds; zero where the latest news is that it takes them.
    refused: AtomicU64,
}

impl Entry {
    pub(crate) fn new(config: ValidConfig, clock: Clock, name: String) -> Self {
        // All that chance decides is when Vegas probes, which many should not do together.
        let seed = RandomState::new().hash_one(&name);
        Self {
            clock,
            machine: Mutex::new(Limiter::new(config, Rng::new(seed))),
            name,
            delays: None,
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn telling(mut self, delays: Option<Delays>) -> Self {
        self.delays = delays;
        self
    }

    fn machine(&self) -> MutexGuard<'_, Limiter<oneshot::Sender<Turn>>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn stats(&self) -> Stats {
        self.machine().stats()
    }

    /// Waits for a place as long as may be. Given up, it leaves the queue.
    pub(crate) async fn enter(self: &Arc<Self>, class: u8) -> Result<Place, Why> {
        let now = self.clock.now();
        let mut turn = None;
        let admission = self.machine().arrive(class, now, || {
            let (sender, receiver) = oneshot::channel();
            turn = Some(receiver);
            sender
        });
        match admission {
            Admission::Admitted(permit) => {
                self.tell(class, Duration::ZERO, now);
                Ok(Place::new(Arc::clone(self), permit))
            }
            Admission::Refused => Err(self.refused(Why::Full)),
            Admission::Queued { ticket, until, displaced } => {
                if let Some(displaced) = displaced {
                    // Nobody listens any more where its caller has just given up.
                    let _ = displaced.send(Err(Why::Displaced));
                }
                let turn = turn.expect("a queued call has made its waiter");
                let waiting = Waiting { entry: self, ticket };
                let got = waiting.turn(turn, self.clock.at(until)).await;
                if matches!(got, Err(Why::Expired)) {
                    let gone = self.clock.now();
                    self.tell(class, gone.since(now), gone);
                }
                got.map_err(|why| self.refused(why))
            }
        }
    }

    fn finish(self: &Arc<Self>, permit: Permit, ended: Ended) {
        let now = self.clock.now();
        let changed = self.machine().finish(permit, ended, now);
        if let Some(limit) = changed {
            tracing::debug!(name = self.name, limit, "the concurrency limit changed");
        }
        self.pump();
    }

    /// Gives free places to those who wait.
    fn pump(self: &Arc<Self>) {
        loop {
            let now = self.clock.now();
            let next = self.machine().next(now);
            match next {
                None => break,
                Some(Next::Expired(waiter)) => {
                    let _ = waiter.send(Err(Why::Expired));
                }
                Some(Next::Admitted { waiter, permit, class, since }) => {
                    self.tell(class, now.since(since), now);
                    let place = Place::new(Arc::clone(self), permit);
                    if let Err(Ok(mut place)) = waiter.send(Ok(place))
                        && let Some(permit) = place.permit.take()
                    {
                        // It was given up in this moment. Not by dropping the place, which would
                        // call this again, once for each that was given up.
                        self.machine().finish(permit, Ended::Ignored, now);
                    }
                }
            }
        }
    }

    fn tell(&self, class: u8, delay: Duration, now: Instant) {
        if let Some(delays) = &self.delays {
            delays(class, delay);
        }
        let refused = self.refused.load(Relaxed);
        // Most calls find it at peace: do not take the line for nothing.
        if refused != 0
            && now.since(Instant::from_nanos(refused)) > PEACE
            && self.refused.swap(0, Relaxed) != 0
        {
            tracing::info!(name = self.name, "the concurrency limit refuses no more calls");
        }
    }

    /// Notes a refusal.
    fn refused(&self, why: Why) -> Why {
        if self.refused.swap(self.clock.now().as_nanos().max(1), Relaxed) == 0 {
            let (name, Stats { limit, in_flight, queued, .. }) = (&self.name, self.stats());
            tracing::warn!(name, limit, in_flight, queued, "the concurrency limit refuses calls");
        }
        why
    }

    /// What a call is answered that got no place.
    pub(super) fn answer(&self, why: Why) -> Response<Body> {
        let limit = self.stats().limit;
        let why = match why {
            Why::Full => "too many calls wait for a place",
            Why::Displaced => "more important calls took its place in the queue",
            Why::Expired => "the call waited too long for a place",
        };
        let message = format!(
            "the concurrency limit of {name} refused the call before it began: {why} ({limit} may be \
             under way): try again later",
            name = self.name
        );
        let facts = HashMap::from([("limit".to_owned(), limit.to_string())]);
        let (code, reason) = (Code::ResourceExhausted, LIMIT_REACHED);
        Refusal { code, reason, message, retry_after: Some(RETRY_AFTER), facts }.into_response()
    }
}

impl Idle for Entry {
    fn is_idle(&self, _: Instant) -> bool {
        self.machine().is_idle()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = self.machine().stats();
        f.debug_struct("Entry").field("name", &self.name).field("stats", &stats).finish()
    }
}

/// One that waits. Dropped, it leaves the queue.
struct Waiting<'a> {
    entry: &'a Arc<Entry>,
    ticket: Ticket,
}

impl Waiting<'_> {
    async fn turn(self, mut turn: oneshot::Receiver<Turn>, until: TokioInstant) -> Turn {
        if let Ok(told) = timeout_at(until, &mut turn).await {
            return told.unwrap_or(Err(Why::Expired));
        }
        if self.entry.machine().leave(self.ticket, true).is_some() {
            return Err(Why::Expired);
        }
        // It left the queue in this moment, and is about to be told.
        turn.await.unwrap_or(Err(Why::Expired))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Behind one that leaves, another may go now whose class has more of the limit.
        if self.entry.machine().leave(self.ticket, false).is_some() {
            self.entry.pump();
        }
    }
}

/// One call under way. Dropped, it ends as one that says nothing, or as overload once it is due.
#[derive(Debug)]
pub(crate) struct Place {
    entry: Arc<Entry>,
    /// Taken when it was given back.
    permit: Option<Permit>,
    since: TokioInstant,
    due: Option<Due>,
}

impl Place {
    fn new(entry: Arc<Entry>, permit: Permit) -> Self {
        Self { entry, permit: Some(permit), since: TokioInstant::now(), due: None }
    }

    /// When its answer is due: whoever ends it then drops it, and never says why.
    pub(crate) const fn answer_due(mut self, due: Option<Due>) -> Self {
        self.due = due;
        self
    }

    /// How long it is under way.
    pub(crate) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// The call ended.
    pub(crate) fn end(mut self, ended: Ended) {
        if let Some(permit) = self.permit.take() {
            self.entry.finish(permit, ended);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            let late = self.due.is_some_and(|due| due.left().is_zero());
            self.entry.finish(permit, if late { Ended::Dropped } else { Ended::Ignored });
        }
    }
}
