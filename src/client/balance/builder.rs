//! How a balancer is made.

use std::{fmt, sync::Arc};

use tower::discover::Discover;

use crate::{
    client::balance::{
        Balance, Connect, Discovered, Endpoint, Http2, LeastRequests, Policy, Resolver,
        service::Shared, worker::Worker,
    },
    host,
    resilience::{backoff, outlier},
    types::Duration,
};

/// Below this share of healthy endpoints health is not believed. (Envoy's default.)
const PANIC_THRESHOLD_DEFAULT: f64 = 0.5;

/// How an endpoint that came up a moment ago is spared.
///
/// Its share of the calls grows evenly with the time since its connection stood, from `share_min`
/// to all of it after `window`. (Envoy's slow start, aggression 1.)
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// How long it takes. Zero is no slow start.
    pub window: Duration,
    /// The share of a full share that it gets from the first; above 0, at most 1.
    pub share_min: f64,
}

impl SlowStart {
    /// Over `window`, beginning at a tenth.
    #[must_use]
    pub const fn over(window: Duration) -> Self {
        Self { window, share_min: 0.1 }
    }

    /// The share of its full share that an endpoint gets, `ready_for` after its connection stood.
    #[must_use]
    pub fn share(&self, ready_for: Duration) -> f64 {
        if ready_for >= self.window {
            return 1.0;
        }
        let passed = ready_for.as_secs_f64() / self.window.as_secs_f64();
        passed.max(self.share_min)
    }
}

/// What a balancer does beside its policy.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) policy: Arc<dyn Policy>,
    pub(super) connect: Arc<dyn Connect>,
    pub(super) backoff: backoff::ValidConfig,
    pub(super) outlier: outlier::ValidConfig,
    pub(super) panic_threshold: f64,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) health: Option<Arc<str>>,
    pub(super) wait_for_ready: bool,
    pub(super) seed: u64,
}

/// Builds a [`Balance`].
#[derive(Clone)]
#[must_use]
pub struct Builder {
    options: Options,
}

impl Default for Builder {
    fn default() -> Self {
        let options = Options {
            policy: Arc::new(LeastRequests),
            connect: Arc::new(Http2::new()),
            backoff: backoff::ValidConfig::default(),
            outlier: outlier::ValidConfig::default(),
            panic_threshold: PANIC_THRESHOLD_DEFAULT,
            slow_start: None,
            health: None,
            wait_for_ready: false,
            seed: host::seed(),
        };
        Self { options }
    }
}

impl Builder {
    /// How endpoints are chosen. Default [`LeastRequests`].
    pub fn policy(mut self, policy: impl Policy) -> Self {
        self.options.policy = Arc::new(policy);
        self
    }

    /// How connections are made. Default [`Http2`] in plaintext.
    pub fn connect(mut self, connect: impl Connect) -> Self {
        self.options.connect = Arc::new(connect);
        self
    }

    /// The pauses between attempts to connect to an endpoint. Default gRPC's: 1 s, times 1.6 each, at
    /// most 120 s.
    pub const fn backoff(mut self, backoff: backoff::ValidConfig) -> Self {
        self.options.backoff = backoff;
        self
    }

    /// When endpoints that fail are taken out for a while. Default [`outlier::Config::default`];
    /// [`outlier::Config::off`] never.
    pub const fn outlier(mut self, outlier: outlier::ValidConfig) -> Self {
        self.options.outlier = outlier;
        self
    }

    /// Below which share of the connected endpoints that are healthy and not ejected all of them
    /// are called all the same; 0 never, at most 1. Default 0.5.
    pub const fn panic_threshold(mut self, share: f64) -> Self {
        self.options.panic_threshold = share.clamp(0.0, 1.0);
        self
    }

    /// Spares endpoints that came up a moment ago. Default no.
    pub const fn slow_start(mut self, slow_start: SlowStart) -> Self {
        self.options.slow_start = Some(slow_start);
        self
    }

    /// Watches `grpc.health.v1` of each endpoint for this service, empty for the endpoint as a
    /// whole; only what is SERVING is called. An endpoint without that API counts as healthy.
    /// Default no.
    pub fn health_check(mut self, service: impl AsRef<str>) -> Self {
        self.options.health = Some(service.as_ref().into());
        self
    }

    /// Whether calls wait for an endpoint unless they say otherwise. Default no.
    pub const fn wait_for_ready(mut self, waits: bool) -> Self {
        self.options.wait_for_ready = waits;
        self
    }

    /// Draws all chance from a seed, for tests.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// Makes the balancer over what a resolver tells. Must be called inside a tokio runtime;
    /// connections are made from now on.
    pub fn resolve(self, resolver: impl Resolver) -> Balance {
        self.discover(Discovered::new(resolver))
    }

    /// Makes the balancer over what a [`Discover`] tells. As [`Builder::resolve`].
    pub fn discover<D>(self, discover: D) -> Balance
    where
        D: Discover<Service = Endpoint> + Send + 'static,
        D::Key: AsRef<str> + Send,
        D::Error: fmt::Display + Send,
    {
        let shared = Arc::new(Shared::new(self.options));
        let balance = Balance::new(Arc::clone(&shared));
        tokio::spawn(Worker::new(shared, discover).run());
        balance
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("options", &self.options).finish()
    }
}
