//! The balancer as callers hold it: pick and send.
//!
//! A call that finds nothing to be sent to waits while connections are being made, and fails once
//! all of them have failed; one that waits for ready goes on waiting. A request that never left
//! goes to another endpoint. Nothing else is sent twice here.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use http::{Extensions, Request, Response};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, body::Body};
use tower::Service;
use tracing::Instrument as _;

use crate::{
    client::balance::{
        Avoid, BoxFuture, Builder, CallError, Connection, Connectivity, Hints, Prefer, Resolver,
        ServedBy, View,
        builder::Options,
        deadline_exceeded,
        load::Call,
        policy::{Asked, Backend},
        report::Reported,
        snapshot::{Snapshot, mix},
    },
    layers::{Clock, NotSent, Tried, code_in, is_failure, timeout_in},
    types::Duration,
};

/// How often a request that never left is given to another endpoint.
const TRANSPARENT_RETRIES_MAX: u32 = 8;

/// How long a connection that takes nothing may look as if it stood.
const STALE_LIMIT: Duration = Duration::from_secs(1);

/// How much later than a call's deadline its wait for an endpoint ends: what is sent ends on time,
/// and is counted against the endpoint.
const GRACE: Duration = Duration::from_millis(1);

/// What the callers and the balancer's task share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) clock: Clock,
    /// What callers see. The sender tells those who wait that another one took its place.
    pub(super) snapshot: ArcSwap<Snapshot>,
    pub(super) published: watch::Sender<()>,
    /// Ends the task.
    pub(super) stop: CancellationToken,
    tickets: AtomicU64,
}

impl Shared {
    pub(super) fn new(options: Options) -> Self {
        Self {
            tickets: AtomicU64::new(options.seed),
            options,
            clock: Clock::start(),
            snapshot: ArcSwap::from_pointee(Snapshot::empty()),
            published: watch::Sender::new(()),
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn publish(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.published.send_replace(());
    }

    fn asked(&self, hints: &Hints<'_>) -> Asked {
        Asked {
            key: hints.key,
            chance: mix(self.tickets.fetch_add(1, Ordering::Relaxed)),
            now: self.clock.now(),
        }
    }

    /// Chooses among what can be called now.
    fn choose(&self, hints: &Hints<'_>) -> Option<Picked> {
        let snapshot = self.snapshot.load();
        let place = self.place(&snapshot, hints)?;
        Some(Picked {
            backend: Arc::clone(&snapshot.ready[place]),
            connection: Arc::clone(&snapshot.connections[place]),
            clock: self.clock,
            attempt: 1,
        })
    }

    fn place(&self, snapshot: &Snapshot, hints: &Hints<'_>) -> Option<usize> {
        if let Some(address) = hints.prefer {
            let at = |backend: &Arc<Backend>| backend.endpoint().address() == address;
            if let Some(place) = snapshot.ready.iter().position(at) {
                return Some(place);
            }
        }
        let asked = self.asked(hints);
        let slow_start = self.options.slow_start.filter(|_| self.options.policy.warms_up());
        // Chance of its own: the other one chose.
        let roll = || (mix(asked.chance) >> 32) as f64 / f64::from(u32::MAX);
        snapshot.pick(asked, |backend, is_first| {
            let address = backend.endpoint().address();
            if hints.avoid.iter().any(|avoided| **avoided == *address) {
                return false;
            }
            slow_start.is_none_or(|slow| {
                let share = slow.share(backend.ready_for(asked.now));
                // Tried again and again, one with little in flight would be let through in the end.
                share >= 1.0 || (is_first && roll() < share)
            })
        })
    }

    /// Chooses, and waits until there is something to choose where it is to.
    async fn choose_or_wait(&self, hints: &Hints<'_>) -> Result<Picked, Status> {
        if let Some(picked) = self.choose(hints) {
            return Ok(picked);
        }
        let waits = hints.wait_for_ready.unwrap_or(self.options.wait_for_ready);
        let mut published = self.published.subscribe();
        loop {
            published.mark_unchanged();
            if let Some(picked) = self.choose(hints) {
                return Ok(picked);
            }
            let failed = {
                let snapshot = self.snapshot.load();
                let over = snapshot.state == Connectivity::Shutdown;
                let fails = snapshot.state == Connectivity::TransientFailure && !waits;
                (over || fails).then(|| snapshot.failure.clone())
            };
            if let Some(failure) = failed {
                let (message, cause) =
                    failure.unwrap_or_else(|| ("no endpoint can be called".into(), None));
                return Err(NotSent::status(message, cause));
            }
            if published.changed().await.is_err() {
                return Err(NotSent::status("the balancer has ended".into(), None));
            }
        }
    }
}

/// A balancer. Cheap to clone; clones share their connections, which are closed when the last one
/// is dropped.
///
/// It is a [`tower::Service`] of gRPC requests: hand it to a client that tonic generated. Put
/// [`HashKey`], [`WaitForReady`], [`Prefer`] or [`Avoid`] into the extensions of a request where that call
/// wants something of its own; a response's extensions hold [`ServedBy`]. The deadline in
/// `grpc-timeout` is kept on this side as well, and answered with DEADLINE_EXCEEDED.
///
/// Each attempt is a span of `tracing` at the level debug, `attempt`, with its `endpoint` and the
/// number of the `attempt`.
///
/// Dropping the future of a call cancels it at the endpoint.
#[derive(Clone, Debug)]
pub struct Balance {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

impl Balance {
    /// Starts to build one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A balancer with every default over what a resolver tells. Must be called inside a tokio
    /// runtime.
    #[must_use]
    pub fn over(resolver: impl Resolver) -> Self {
        Self::builder().resolve(resolver)
    }

    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let stop = Arc::new(shared.stop.clone().drop_guard());
        Self { shared, _stop: stop }
    }

    /// Chooses an endpoint for one call; what it returns sends that call and no other. `hints` as in
    /// a request's extensions. Waits as a call does. Cancel-safe.
    ///
    /// # Errors
    /// UNAVAILABLE with [`NotSent`] as its source where nothing can be called.
    pub async fn pick(&self, hints: &Extensions) -> Result<Picked, Status> {
        self.pick_by(Hints::of(hints)).await
    }

    /// As [`Balance::pick`].
    pub(crate) async fn pick_by(&self, hints: Hints<'_>) -> Result<Picked, Status> {
        self.shared.choose_or_wait(&hints).await
    }

    /// Chooses an endpoint among those that can be called now, without waiting: what a call does
    /// first. `None` where there is none.
    #[must_use]
    pub fn try_pick(&self, hints: &Extensions) -> Option<Picked> {
        self.try_pick_by(&Hints::of(hints))
    }

    /// As [`Balance::try_pick`].
    pub(crate) fn try_pick_by(&self, hints: &Hints<'_>) -> Option<Picked> {
        self.shared.choose(hints)
    }

    /// The state of all endpoints together.
    #[must_use]
    pub fn connectivity(&self) -> Connectivity {
        self.shared.snapshot.load().state
    }

    /// Waits until an endpoint can be called. Cancel-safe.
    ///
    /// # Errors
    /// UNAVAILABLE where all endpoints have failed.
    pub async fn ready(&self) -> Result<(), Status> {
        self.pick(&Extensions::new()).await.map(drop)
    }

    /// Waits until an endpoint that is being connected to can be called, or cannot. Cancel-safe.
    pub(crate) async fn settled(&self, address: &str) {
        let mut published = self.shared.published.subscribe();
        loop {
            published.mark_unchanged();
            let is_settled = {
                let snapshot = self.shared.snapshot.load();
                let mut members = snapshot.members.iter();
                members.find(|known| known.endpoint.address() == address).is_some_and(|known| {
                    matches!(known.state, Connectivity::Ready | Connectivity::TransientFailure)
                })
            };
            if is_settled || published.changed().await.is_err() {
                return;
            }
        }
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// How things stand, for people and support: `Debug` and JSON.
    #[must_use]
    pub fn view(&self) -> View {
        let snapshot = self.shared.snapshot.load();
        View::of(&self.shared.options, &snapshot, self.shared.clock.now())
    }
}

impl Service<Request<Body>> for Balance {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Result<Response<Body>, Status>>;

    /// Always ready: a call waits for an endpoint itself, where it is to.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The call keeps the balancer alive: it may be all that is left of it.
        let Self { shared, _stop: stop } = self.clone();
        Box::pin(async move {
            let _stop = stop;
            let deadline = deadline_of(&request);
            let sending = send(&shared, request, deadline);
            match deadline {
                None => sending.await,
                // While it waits for an endpoint; once it was sent, who sent it sees to that.
                Some(at) => match timeout_at(at + GRACE, sending).await {
                    Ok(answered) => answered,
                    Err(_) => Err(deadline_exceeded()),
                },
            }
        })
    }
}

/// Sends a request, and again to another endpoint while it never left.
async fn send(
    shared: &Shared,
    mut request: Request<Body>,
    deadline: Option<Instant>,
) -> Result<Response<Body>, Status> {
    let mut retries = 0;
    avoid_tried(&mut request);
    // Nothing is listened for until a request comes back.
    let mut published: Option<watch::Receiver<()>> = None;
    loop {
        if let Some(published) = &mut published {
            published.mark_unchanged();
        }
        let picked = shared.choose_or_wait(&Hints::of(request.extensions())).await?;
        if let Some(tried) = request.extensions().get::<Tried>() {
            tried.note(Arc::clone(picked.backend.endpoint().shared_address()));
        }
        let (again, error) = match picked.send(request, deadline, retries + 1).await {
            Ok(answered) => return Ok(answered),
            Err(CallError::Broken(error)) => return Err(Status::from_error(error)),
            Err(CallError::NotSent(again, error)) => (again, error),
        };
        retries += 1;
        request = *again;
        let hints = request.extensions_mut();
        let mut avoid = hints.remove::<Avoid>().unwrap_or_default();
        let is_second = avoid.0.iter().any(|avoided| **avoided == *picked.address());
        // There was no other choice: its end is about to be seen, and then there may be one.
        let published = published.get_or_insert_with(|| shared.published.subscribe());
        let stuck = is_second && timeout(STALE_LIMIT, published.changed()).await.is_err();
        if stuck || retries > TRANSPARENT_RETRIES_MAX {
            let message = format!("{}: {error}", picked.address());
            return Err(NotSent::status(message.into(), Some(Arc::new(error))));
        }
        avoid.0.push(picked.address().into());
        hints.insert(avoid);
        hints.remove::<Prefer>();
    }
}

/// Has a later attempt of a call go to another endpoint than the ones before.
fn avoid_tried(request: &mut Request<Body>) {
    let Some(tried) = request.extensions().get::<Tried>() else { return };
    let addresses = tried.addresses();
    if !addresses.is_empty() {
        request.extensions_mut().get_or_insert_default::<Avoid>().0.extend(addresses);
        request.extensions_mut().remove::<Prefer>();
    }
}

/// An endpoint that was chosen for a call.
#[derive(Clone)]
#[must_use]
pub struct Picked {
    backend: Arc<Backend>,
    connection: Arc<dyn Connection>,
    clock: Clock,
    /// Which attempt of a call it carries, for the span.
    attempt: u32,
}

impl Picked {
    /// The endpoint has not answered for long: the policies take that for a failure, though the call
    /// may yet be answered.
    pub(crate) fn is_silent(&self) {
        self.backend.load().silent(self.clock.now());
    }

    /// The same for a later attempt of a call; they count from 1.
    pub(crate) fn for_attempt(self, attempt: u32) -> Self {
        Self { attempt, ..self }
    }

    /// The endpoint's address, as `host:port`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.backend.endpoint().address()
    }

    /// The endpoint and its counters.
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// One attempt, up to the beginning of its answer, in a span of its own.
    fn send(
        &self,
        request: Request<Body>,
        deadline: Option<Instant>,
        attempt: u32,
    ) -> impl Future<Output = Result<Response<Body>, CallError>> + Send {
        let span = tracing::debug_span!("attempt", endpoint = self.address(), attempt);
        self.attempt(request, deadline).instrument(span)
    }

    async fn attempt(
        &self,
        request: Request<Body>,
        deadline: Option<Instant>,
    ) -> Result<Response<Body>, CallError> {
        let mut call = Call::start(Arc::clone(self.backend.shared_load()), self.clock);
        let answer = self.connection.call(request);
        let mut timer = deadline.map(|at| Box::pin(sleep_until(at)));
        let answered = match &mut timer {
            None => answer.await,
            Some(timer) => tokio::select! {
                biased;
                answered = answer => answered,
                () = timer => {
                    call.ended(true);
                    return Err(CallError::Broken(deadline_exceeded().into()));
                }
            },
        };
        let mut response = match answered {
            Ok(response) => response,
            // It says nothing of the endpoint but that its connection is gone.
            Err(not_sent @ CallError::NotSent(..)) => {
                call.not_sent();
                return Err(not_sent);
            }
            Err(CallError::Broken(error)) => return Err(CallError::Broken(call.broke(error))),
        };
        call.answered();
        let endpoint = self.backend.endpoint();
        response.extensions_mut().insert(ServedBy {
            id: Arc::clone(endpoint.shared_id()),
            address: Arc::clone(endpoint.shared_address()),
        });
        if let Some(code) = code_in(response.headers()) {
            call.ended(is_failure(code));
            return Ok(response);
        }
        Ok(response.map(|body| Body::new(Reported::new(body, call, timer))))
    }
}

impl fmt::Debug for Picked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picked").field("endpoint", self.backend.endpoint()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Picked {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let picked = self.clone();
        Box::pin(async move {
            let deadline = deadline_of(&request);
            match picked.send(request, deadline, picked.attempt).await {
                Ok(answered) => Ok(answered),
                Err(CallError::Broken(error)) => Err(Status::from_error(error)),
                Err(CallError::NotSent(_, error)) => {
                    let message = format!("{}: {error}", picked.address());
                    Err(NotSent::status(message.into(), Some(Arc::new(error))))
                }
            }
        })
    }
}

/// The deadline that `grpc-timeout` asks for, counted from now.
fn deadline_of(request: &Request<Body>) -> Option<Instant> {
    Instant::now().checked_add(timeout_in(request.headers())?)
}
