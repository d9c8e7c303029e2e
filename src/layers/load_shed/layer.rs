//! The layer: measures, asks, and refuses.
//!
//! The runtime's delay is how long a task that is ready waits until it runs: from when the service is
//! called until its future is polled, and further until the task, put at the end of the run queue
//! once, has its turn again. Not every call takes that detour, but at most one a millisecond.
//!
//! The machine stands behind a short lock: the interval, what was seen in it and the pressure must
//! agree.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::{task::yield_now, time::Instant as TokioInstant};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::{
    layers::{BoxError, BoxFuture, Clock},
    machine::refusal,
    pb::command::v1::Reason,
    resilience::load_shed::{Change, Shedder, State, Stats, ValidConfig},
    types::{Duration, Instant},
    wire::status::from_refusal,
};

/// How often the run queue is measured at most.
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// Which class a call has; 0 is the most important one.
type Classes = Arc<dyn Fn(&Request<Body>) -> u8 + Send + Sync>;

/// Sheds calls by class while the queue stands. Clones share the machine.
///
/// ```
/// use quorate::{
///     layers::LoadShedLayer, resilience::load_shed::ValidConfig, types::Duration,
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
/// handle.observe(Duration::from_millis(2));
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
}

impl LoadShedLayer {
    /// Sheds nothing yet.
    #[must_use]
    pub fn new(config: ValidConfig) -> Self {
        let clock = Clock::start();
        let machine = Mutex::new(Shedder::new(config, clock.now()));
        let shared = Arc::new(Shared { clock, machine, probed: AtomicU64::new(0) });
        Self { shared, classes: None }
    }

    /// Gives each call a class: 0 is shed last. Without it all are of class 0.
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

    fn observe(&self, delay: Duration, now: Instant) {
        let changed = self.machine().observe(delay, now);
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
    /// Takes in how long something has waited in a queue that the layer does not see.
    pub fn observe(&self, delay: Duration) {
        self.0.observe(delay, self.0.clock.now());
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
            if shared.probes(shared.clock.now()) {
                yield_now().await;
                shared.observe(called.elapsed(), shared.clock.now());
            }
            let now = shared.clock.now();
            let admitted = shared.machine().admit(class, now);
            if admitted { inner.call(request).await } else { Ok(refuse(class).into_http()) }
        })
    }
}

fn refuse(class: u8) -> Status {
    let sentence = format!(
        "the load shedder refused the call before it began: the server has more to do than it can, \
         and calls of class {class} give way first: try again later"
    );
    let refusal = refusal(Reason::Overloaded, sentence);
    from_refusal(refusal.with("layer", "load_shed").with("class", class))
}
