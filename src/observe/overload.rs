//! The metrics of a node's protection against overload: its limit, what is under way, and what was
//! refused, by class.
//!
//! The gauges are read from whoever protects the node when somebody asks. Labels are our own words.

use std::fmt;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::observe::Metrics;

/// The classes of calls, the most important first.
const CLASSES: [&str; 4] = ["sessions", "locks", "keys", "lists"];

/// Why calls are refused.
const REASONS: [&str; 2] = ["limit", "shed"];

#[derive(Default)]
pub(super) struct Overload {
    limit: Gauge,
    in_flight: Gauge,
    queued: Gauge,
    pressure: Gauge,
    refused: Family<RefusalLabel, Counter>,
    read: std::sync::OnceLock<Box<dyn Fn() -> OverloadReading + Send + Sync>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    class: &'static str,
    reason: &'static str,
}

/// How a node's protection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverloadReading {
    /// How many reads and changes may be under way.
    pub limit: usize,
    /// How many are.
    pub in_flight: usize,
    /// How many wait for a place.
    pub queued: usize,
    /// How much is shed, in tenths of a class.
    pub pressure: u32,
}

impl Overload {
    /// Registers them, every row of the counter at zero.
    pub(super) fn register(&self, registry: &mut Registry) {
        for class in CLASSES {
            for reason in REASONS {
                drop(self.refused.get_or_create(&RefusalLabel { class, reason }));
            }
        }
        for (name, help, gauge) in [
            ("overload_limit", "Reads and changes that may be under way", &self.limit),
            ("overload_in_flight", "Reads and changes under way", &self.in_flight),
            ("overload_queued", "Reads and changes that wait for a place", &self.queued),
            ("overload_pressure", "How much is shed, in tenths of a class", &self.pressure),
        ] {
            registry.register(name, help, gauge.clone());
        }
        let help = "Calls that were refused because there was too much to do";
        registry.register("overload_refused", help, self.refused.clone());
    }
}

impl fmt::Debug for Overload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overload").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Metrics {
    /// Says where the gauges are read. Only the first one that is said counts.
    pub fn read_overload(&self, read: impl Fn() -> OverloadReading + Send + Sync + 'static) {
        let _ = self.overload().read.set(Box::new(read));
    }

    /// Brings the gauges up to date.
    pub fn measure_overload(&self) {
        let overload = self.overload();
        let Some(read) = overload.read.get() else { return };
        let OverloadReading { limit, in_flight, queued, pressure } = read();
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        overload.limit.set(count(limit));
        overload.in_flight.set(count(in_flight));
        overload.queued.set(count(queued));
        overload.pressure.set(pressure.into());
    }

    /// Counts a call that was refused; `class` and `reason` are our own words.
    pub fn record_overload_refused(&self, class: &'static str, reason: &'static str) {
        self.overload().refused.get_or_create(&RefusalLabel { class, reason }).inc();
    }
}
