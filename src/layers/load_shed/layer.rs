//! The layer: measures, asks, and refuses.
//!
//! The runtime's delay is how long a task that is ready waits until it runs: from when the service is
//! called until its future is polled, and further until the task, put at the end of the run queue
//! once, has its turn again. Not every call takes that detour, but at most one a millisecond.
//!
//! The machine stands behind a short lock: the interval, what was seen in it and the pressure must
//! agree.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::{task::yield_now, time::Instant as TokioInstant};
use tonic::{Code, body::Body};
use tower::{Layer, Service};

use crate::{
    layers::{BoxError, BoxFuture, Clock, refusal::Refusal},
    resilience::load_shed::{Change, Shedder, State, Stats, ValidConfig},
    types::{Duration, Instant},
};

/// When to try again that was shed: a queue that stands takes some intervals to go.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// The `ErrorInfo` reason of what is shed.
pub const LOAD_SHED: &str = "LOAD_SHED";

/// How often the run queue is measured at most.
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// Which class a call has; 0 is the most important one.
type Classes = Arc<dyn Fn(&Request<Body>) -> u8 + Send + Sync>;

/// Sheds calls by class while the queue stands. Clones share the machine.
///
/// ```
/// use quorate::{
///     layers::load_shed::LoadShedLayer, resilience::load_shed::ValidConfig, types::Duration,
/// };
/// use tonic::{Status, body::Body};
/// use tower::{Service, ServiceBuilder, ServiceExt as _, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // For a tonic server: `Server::builder().layer(shed)`.
/// let class = |request: &http::Request<Body>| match request.uri().path() {
///     "/shop.v1.Shop/Pay" => 0,
///     "/shop.v1.Shop/Search" => 3,
///     _ => 1,
/// };
/// let shed = LoadShedLayer::new(ValidConfig::default()).by_class(class);
/// let handle = shed.handle();
/// let service = service_fn(async |_: http::Request<Body>| {
///     Ok::<_, std::convert::Infallible>(Status::ok("").into_http::<Body>())
/// });
/// let mut service = ServiceBuilder::new().layer(shed).service(service);
///
/// // A queue behind the layer, such as a pool of workers, may tell its delay too.
/// handle.observe(3, Duration::from_millis(2));
/// let request = http::Request::post("/shop.v1.Shop/Search").body(Body::empty())?;
/// let response = service.ready().await?.call(request).await?;
/// assert_eq!(response.headers()["grpc-status"], "0");
/// assert_eq!(handle.stats().shed, [0; 8]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct LoadShedLayer {
    shared: Arc<Shared>,
    classes: Option<Classes>,
}

struct Shared {
    clock: Clock,
    machine: Mutex<Shedder>,
    /// When the run queue was measured last, in nanoseconds.
    probed: AtomicU64,
    /// What it was then, in nanoseconds.
    runtime: AtomicU64,
    /// Whether a queue tells its delays. What passes it without waiting tells so too, so the calls
    /// that measure the run queue must not speak for it.
    told: AtomicBool,
}

impl LoadShedLayer {
    /// Sheds nothing yet.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        let clock = Clock::start();
        let machine = Mutex::new(Shedder::new(config, clock.now()));
        let (probed, runtime, told) = Default::default();
        let shared = Arc::new(Shared { clock, machine, probed, runtime, told });
        Self { shared, classes: None }
    }

    /// Gives each call a class: 0 is shed last. Without it all are of class 0, and begin to be shed at
    /// once only where the configuration has one class.
    #[must_use]
    pub fn by_class(self, class: impl Fn(&Request<Body>) -> u8 + Send + Sync + 'static) -> Self {
        Self { classes: Some(Arc::new(class)), ..self }
    }

    /// For support, and for queues behind the layer.
    #[must_use]
    pub fn handle(&self) -> LoadShedHandle {
        LoadShedHandle(Arc::clone(&self.shared))
    }
}

impl Shared {
    fn machine(&self) -> MutexGuard<'_, Shedder> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A delay in a queue, and that of the runtime with it.
    fn observe(&self, class: u8, delay: Duration, now: Instant) {
        let delay = delay.saturating_add(Duration::from_nanos(self.runtime.load(Relaxed)));
        let changed = self.machine().observe(class, delay, now);
        match changed {
            None => {}
            Some(Change::Sheds { class }) => {
                let delay_ms = delay.as_millis();
                tracing::warn!(
                    class,
                    delay_ms,
                    "the queue stands: calls from this class on are shed"
                );
            }
            Some(Change::Calm) => tracing::info!("the queue has gone: nothing is shed any more"),
        }
    }

    async fn measure(&self, class: u8, called: TokioInstant) {
        if self.probes(self.clock.now()) {
            yield_now().await;
            let delay = u64::try_from(called.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.runtime.store(delay, Relaxed);
            if !self.told.load(Relaxed) {
                self.observe(class, Duration::ZERO, self.clock.now());
            }
        }
    }

    /// Whether this call is to measure the run queue.
    fn probes(&self, now: Instant) -> bool {
        let probed = self.probed.load(Relaxed);
        let due = Instant::from_nanos(probed).after(PROBE_INTERVAL);
        now >= due && self.probed.compare_exchange(probed, now.as_nanos(), Relaxed, Relaxed).is_ok()
    }
}

impl<S> Layer<S> for LoadShedLayer {
    type Service = LoadShed<S>;

    fn layer(&self, inner: S) -> LoadShed<S> {
        LoadShed { inner, layer: self.clone() }
    }
}

impl fmt::Debug for LoadShedLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShedLayer").field("stats", &self.handle().stats()).finish()
    }
}

/// For support: how the shedding stands. Cheap to clone.
#[derive(Clone)]
pub struct LoadShedHandle(Arc<Shared>);

/// How the shedding stands, and what it did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadShedStats {
    /// Whether anything is shed.
    pub state: State,
    /// How much; see [`Shedder::pressure`].
    pub pressure: u32,
    /// How many calls of each class were admitted.
    pub admitted: [u64; 8],
    /// How many calls of each class were shed.
    pub shed: [u64; 8],
}

impl LoadShedHandle {
    /// Takes in how long a call of a class has waited in a queue that the layer does not see; to be
    /// told of calls that did not wait too. The layer adds the runtime's own delay to it.
    pub fn observe(&self, class: u8, delay: Duration) {
        if !self.0.told.load(Relaxed) {
            self.0.told.store(true, Relaxed);
        }
        self.0.observe(class, delay, self.0.clock.now());
    }

    /// Measures the runtime's delay where that is due: the time from `called` until the task has its
    /// turn. The layer does so itself; this is for what is no tower service.
    pub async fn measure(&self, class: u8, called: TokioInstant) {
        self.0.measure(class, called).await;
    }

    /// Whether a call of a class may begin. The layer asks itself; this is for who learns the class of
    /// a call only when it is under way.
    #[must_use]
    pub fn admit(&self, class: u8) -> bool {
        self.0.machine().admit(class, self.0.clock.now())
    }

    /// How it stands, and what it did so far.
    #[must_use]
    pub fn stats(&self) -> LoadShedStats {
        let machine = self.0.machine();
        let Stats { admitted, shed } = machine.stats();
        LoadShedStats { state: machine.state(), pressure: machine.pressure(), admitted, shed }
    }
}

impl fmt::Debug for LoadShedHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadShedHandle").field("stats", &self.stats()).finish()
    }
}

/// A service that sheds load.
#[derive(Clone, Debug)]
pub struct LoadShed<S> {
    inner: S,
    layer: LoadShedLayer,
}

impl<S> Service<Request<Body>> for LoadShed<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Into<BoxError> + Send,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let class = self.layer.classes.as_ref().map_or(0, |classes| classes(&request));
        let shared = Arc::clone(&self.layer.shared);
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let called = TokioInstant::now();
        Box::pin(async move {
            shared.measure(class, called).await;
            let now = shared.clock.now();
            let admitted = shared.machine().admit(class, now);
            if admitted { inner.call(request).await } else { Ok(refuse(class)) }
        })
    }
}

fn refuse(class: u8) -> Response<Body> {
    let message = format!(
        "the load shedder refused the call before it began: the server has more to do than it can, \
         and calls of class {class} give way first: try again later"
    );
    let facts = HashMap::from([("class".to_owned(), class.to_string())]);
    let (code, reason) = (Code::ResourceExhausted, LOAD_SHED);
    Refusal { code, reason, message, retry_after: Some(RETRY_AFTER), facts }.into_response()
}
