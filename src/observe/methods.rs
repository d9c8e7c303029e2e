//! What is counted of each method of our services. Whoever serves a method looks its counters up
//! once; a request then costs a few atomic additions.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::{
    observe::histogram::{Histogram, TIMES},
    types::Duration,
};

/// The codes of gRPC by their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The counters of one method. Clones count together.
#[derive(Clone)]
pub struct MethodMetrics {
    core: Arc<Core>,
}

struct Core {
    service: Arc<str>,
    method: Arc<str>,
    open: AtomicI64,
    ended: [AtomicU64; CODES.len()],
    duration: Histogram,
}

impl MethodMetrics {
    fn new(service: &str, method: &str) -> Self {
        let core = Core {
            service: service.into(),
            method: method.into(),
            open: AtomicI64::new(0),
            ended: [const { AtomicU64::new(0) }; CODES.len()],
            duration: Histogram::new(&TIMES),
        };
        Self { core: Arc::new(core) }
    }

    /// The full name of its service, such as `quorate.lock.v1.LockService`.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.core.service
    }

    /// Its name, such as `Acquire`.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.core.method
    }

    /// Counts an open request in; pair it with [`MethodMetrics::closed`].
    pub fn opened(&self) {
        self.core.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request out that ended with this gRPC code after this time.
    pub fn closed(&self, code: usize, duration: Duration) {
        let core = &*self.core;
        core.open.fetch_sub(1, Ordering::Relaxed);
        core.ended[code.min(CODES.len() - 1)].fetch_add(1, Ordering::Relaxed);
        core.duration.observe_time(duration, 1);
    }

    /// The name of a gRPC code in its specification.
    #[must_use]
    pub const fn code_name(code: usize) -> &'static str {
        if code < CODES.len() { CODES[code] } else { "UNKNOWN" }
    }
}

impl fmt::Debug for MethodMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.core.service, self.core.method)
    }
}

/// Every method that somebody serves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Methods(Arc<Mutex<Vec<MethodMetrics>>>);

impl Methods {
    /// The counters of a method, the same ones each time.
    pub(crate) fn of(&self, service: &str, method: &str) -> MethodMetrics {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |m: &&MethodMetrics| m.service() == service && m.method() == method;
        if let Some(known) = all.iter().find(same) {
            return known.clone();
        }
        let fresh = MethodMetrics::new(service, method);
        all.push(fresh.clone());
        fresh
    }

    fn all(&self) -> Vec<MethodMetrics> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How many requests ended, by method and code. What never happened has no row.
#[derive(Debug)]
pub(crate) struct Ended(pub(crate) Methods);

impl EncodeMetric for Ended {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for each in self.0.all() {
            for (name, count) in CODES.iter().zip(&each.core.ended) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let labels =
                        [("service", each.service()), ("method", each.method()), ("code", *name)];
                    encoder
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// How long requests took, by method.
#[derive(Debug)]
pub(crate) struct Durations(pub(crate) Methods);

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for each in self.0.all().iter().filter(|each| each.core.duration.count() > 0) {
            let labels = [("service", each.service()), ("method", each.method())];
            each.core.duration.encode_row(&mut encoder, &labels)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// How many requests are under way, by method.
#[derive(Debug)]
pub(crate) struct OpenNow(pub(crate) Methods);

impl EncodeMetric for OpenNow {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for each in self.0.all() {
            let open = each.core.open.load(Ordering::Relaxed);
            if open != 0 || each.core.duration.count() > 0 {
                let labels = [("service", each.service()), ("method", each.method())];
                encoder.encode_family(&labels)?.encode_gauge(&open)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}
