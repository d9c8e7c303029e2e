//! Histograms for the paths of single requests: fixed bounds, two atomic additions an observation.
//!
//! The exposition library's own takes a lock for each observation. This one takes none, and its
//! parts are read one after the other: a scrape may be one observation ahead of itself.

use core::fmt;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::types::Duration;

/// The most bounds that a histogram has.
const BOUNDS_MAX: usize = 20;

/// The upper bounds of a histogram's buckets, and what is to be told of a value.
#[derive(Debug)]
pub(crate) struct Bounds {
    limits: &'static [u64],
    per_unit: f64,
}

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;

/// Times: from 10 microseconds to 10 seconds, recorded in nanoseconds, told in seconds.
pub(crate) static TIMES: Bounds = Bounds {
    limits: &[
        10 * US,
        25 * US,
        50 * US,
        100 * US,
        250 * US,
        500 * US,
        MS,
        2 * MS + 500 * US,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        1_000 * MS,
        2_500 * MS,
        5_000 * MS,
        10_000 * MS,
    ],
    per_unit: 1e9,
};

/// Numbers of things: from 1 to 4,096.
pub(crate) static COUNTS: Bounds =
    Bounds { limits: &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096], per_unit: 1.0 };

/// Sizes in bytes: from 512 to 16 Mi.
pub(crate) static SIZES: Bounds = Bounds {
    limits: &[
        512,
        1 << 10,
        1 << 11,
        1 << 12,
        1 << 13,
        1 << 14,
        1 << 15,
        1 << 16,
        1 << 17,
        1 << 18,
        1 << 19,
        1 << 20,
        1 << 21,
        1 << 22,
        1 << 23,
        1 << 24,
    ],
    per_unit: 1.0,
};

/// A histogram. Clones count together.
#[derive(Clone)]
pub(crate) struct Histogram {
    core: Arc<Core>,
}

struct Core {
    bounds: &'static Bounds,
    /// One for each bound, then what lies above them.
    buckets: [AtomicU64; BOUNDS_MAX + 1],
    sum: AtomicU64,
}

impl Histogram {
    /// An empty one.
    pub(crate) fn new(bounds: &'static Bounds) -> Self {
        assert!(bounds.limits.len() <= BOUNDS_MAX, "a histogram has room for its bounds");
        let buckets = [const { AtomicU64::new(0) }; BOUNDS_MAX + 1];
        Self { core: Arc::new(Core { bounds, buckets, sum: AtomicU64::new(0) }) }
    }

    /// Counts `times` things of this value in.
    pub(crate) fn observe(&self, value: u64, times: u64) {
        let core = &*self.core;
        let bucket = core.bounds.limits.partition_point(|limit| *limit < value);
        core.buckets[bucket].fetch_add(times, Ordering::Relaxed);
        core.sum.fetch_add(value.saturating_mul(times), Ordering::Relaxed);
    }

    /// Counts `times` things in that took this long.
    pub(crate) fn observe_time(&self, span: Duration, times: u64) {
        self.observe(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX), times);
    }

    /// How many were counted in.
    pub(crate) fn count(&self) -> u64 {
        self.core.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// Writes it as one row of a family.
    pub(crate) fn encode_row(
        &self,
        encoder: &mut MetricEncoder<'_>,
        labels: &impl EncodeLabelSet,
    ) -> fmt::Result {
        self.encode(encoder.encode_family(labels)?)
    }
}

#[expect(clippy::cast_precision_loss, reason = "what is lost of a large sum is not worth telling")]
impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let core = &*self.core;
        let per_unit = core.bounds.per_unit;
        let limits = core.bounds.limits.iter().map(|limit| *limit as f64 / per_unit);
        let counts = core.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<_> = limits.chain([f64::INFINITY]).zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = core.sum.load(Ordering::Relaxed) as f64 / per_unit;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("count", &self.count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    fn text(histogram: &Histogram) -> String {
        let (mut registry, mut text) = (Registry::default(), String::new());
        registry.register("it", "What", histogram.clone());
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it_and_in_all_above() {
        let histogram = Histogram::new(&TIMES);
        histogram.observe_time(Duration::from_micros(10), 1);
        histogram.observe_time(Duration::from_micros(11), 3);
        histogram.observe_time(Duration::from_secs(3_600), 1);
        let text = text(&histogram);
        for line in [
            "it_bucket{le=\"0.00001\"} 1",
            "it_bucket{le=\"0.000025\"} 4",
            "it_bucket{le=\"10.0\"} 4",
            "it_bucket{le=\"+Inf\"} 5",
            "it_count 5",
            "it_sum 3600.000043",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn bounds_grow_and_counts_are_told_as_they_are() {
        for bounds in [&TIMES, &COUNTS, &SIZES] {
            assert!(bounds.limits.is_sorted_by(|a, b| a < b));
            Histogram::new(bounds).observe(u64::MAX, 1);
        }
        let histogram = Histogram::new(&COUNTS);
        histogram.observe(7, 1);
        assert!(text(&histogram).contains("it_bucket{le=\"8.0\"} 1\n"));
        assert!(text(&histogram).contains("it_sum 7.0\n"));
    }
}
