//! A balancer's counters in the OpenMetrics format, one row an endpoint.
//!
//! Nothing is counted for it: each scrape reads what the balancer keeps anyway. Rows of endpoints that
//! are gone are gone with them.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};

use crate::client::balance::{
    Balance, Connectivity,
    load::LATENCY_BOUNDS,
    snapshot::{Known, Snapshot},
};

/// A label and its value.
type Label<'a> = (&'static str, &'a str);

/// A balancer's metrics, for a registry of `prometheus-client`.
///
/// ```no_run
/// # fn example(balance: quorate::client::balance::Balance) {
/// use prometheus_client::registry::Registry;
///
/// let mut registry = Registry::default();
/// registry.register_collector(Box::new(balance.metrics("greeter")));
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Metrics {
    balance: Balance,
    target: String,
}

impl Balance {
    /// This balancer's metrics, with `target` as the label that tells it from others. They keep the
    /// balancer alive.
    pub fn metrics(&self, target: impl Into<String>) -> Metrics {
        Metrics { balance: self.clone(), target: target.into() }
    }
}

impl Metrics {
    fn labels<'a>(&'a self, known: &'a Known) -> [Label<'a>; 2] {
        [("target", &self.target), ("endpoint", known.endpoint.address())]
    }

    fn counter(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        snapshot: &Snapshot,
        (name, help): (&str, &str),
        count: impl Fn(&Known) -> u64,
    ) -> fmt::Result {
        let mut rows = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for known in &snapshot.members {
            let labels = self.labels(known);
            rows.encode_family(&labels)?
                .encode_counter::<NoLabelSet, _, u64>(&count(known), None)?;
        }
        Ok(())
    }

    fn gauge(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        snapshot: &Snapshot,
        (name, help): (&str, &str),
        value: impl Fn(&Known) -> f64,
    ) -> fmt::Result {
        let mut rows = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for known in &snapshot.members {
            let labels = self.labels(known);
            rows.encode_family(&labels)?.encode_gauge(&value(known))?;
        }
        Ok(())
    }

    fn calls(&self, encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
        let name = "quorate_client_calls";
        let help = "Calls that ended at an endpoint";
        let mut rows = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for known in &snapshot.members {
            let [target, endpoint] = self.labels(known);
            let ends = [("ok", known.load.successes()), ("failed", known.load.failures())];
            for (result, count) in ends {
                let labels = [target, endpoint, ("result", result)];
                rows.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn state(&self, encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
        let name = "quorate_client_endpoint_state";
        let help = "1 at the state that an endpoint's connection has";
        let mut rows = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for known in &snapshot.members {
            let [target, endpoint] = self.labels(known);
            for state in Connectivity::LIVING {
                let name = state.to_string();
                let labels = [target, endpoint, ("state", name.as_str())];
                let value = u32::from(known.state == state);
                rows.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn latency(&self, encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
        let name = "quorate_client_latency_seconds";
        let help = "Time to the first byte of an answer";
        let mut rows = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for known in &snapshot.members {
            let labels = self.labels(known);
            let (counts, sum) = known.load.latencies();
            let bounds = LATENCY_BOUNDS.iter().map(std::time::Duration::as_secs_f64);
            let buckets: Vec<_> = bounds.chain([f64::MAX]).zip(counts).collect();
            let all = counts.iter().sum();
            rows.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                sum.as_secs_f64(),
                all,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.balance.snapshot();
        let picks = ("quorate_client_picks", "Calls that an endpoint was chosen for");
        self.counter(&mut encoder, &snapshot, picks, |known| known.load.picks())?;
        self.calls(&mut encoder, &snapshot)?;
        let ejections = ("quorate_client_ejections", "How often an endpoint was taken out");
        self.counter(&mut encoder, &snapshot, ejections, |known| known.ejections)?;
        let in_flight = ("quorate_client_in_flight", "Calls under way at an endpoint");
        self.gauge(&mut encoder, &snapshot, in_flight, |known| known.load.in_flight().into())?;
        let ejected = ("quorate_client_ejected", "1 while an endpoint is taken out");
        self.gauge(&mut encoder, &snapshot, ejected, |known| f64::from(u8::from(known.ejected)))?;
        self.state(&mut encoder, &snapshot)?;
        self.latency(&mut encoder, &snapshot)
    }
}
