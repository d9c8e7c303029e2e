//! What a run found, for people and as JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    cli::{
        Error, OutputFormat,
        bench::drive::Measured,
        show::{Show, Shown},
        table::span_text,
    },
    types::Duration,
};

/// The percentiles that are told, and their names in JSON.
const PERCENTILES: [(f64, &str); 5] =
    [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p999"), (100.0, "max")];

/// What a run found.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) operations: u64,
    pub(super) errors: BTreeMap<String, u64>,
    measured: Measured,
    checks: Vec<Check>,
}

/// Something that was counted and must hold.
#[derive(Debug)]
pub(super) struct Check {
    /// Its name in JSON.
    pub(super) name: &'static str,
    /// What is counted, for people.
    pub(super) what: &'static str,
    pub(super) count: u64,
    /// Whether it must be zero.
    pub(super) must_be_zero: bool,
}

impl Report {
    pub(super) fn new(measured: Measured) -> Self {
        Self {
            operations: measured.latencies.len(),
            errors: measured.errors.clone(),
            measured,
            checks: Vec::new(),
        }
    }

    /// Adds a number that is told.
    pub(super) fn count(mut self, name: &'static str, what: &'static str, count: u64) -> Self {
        self.checks.push(Check { name, what, count, must_be_zero: false });
        self
    }

    /// Adds a number that must be zero.
    pub(super) fn none(mut self, name: &'static str, what: &'static str, count: u64) -> Self {
        self.checks.push(Check { name, what, count, must_be_zero: true });
        self
    }

    /// What should hold and does not.
    pub(super) fn broken(&self) -> Option<String> {
        let broken = self.checks.iter().find(|check| check.must_be_zero && check.count > 0)?;
        Some(format!("{} {}", broken.count, broken.what))
    }

    pub(super) fn print(
        &self,
        bench: &str,
        clients: u64,
        connections: usize,
        show: Show,
    ) -> Result<(), Error> {
        match show.format {
            OutputFormat::Table => show.shown(&self.people(bench, clients, connections)),
            OutputFormat::Json => {
                show.line(&format!("{:#}", self.json(bench, clients, connections)))
            }
            OutputFormat::Jsonl => show.line(&self.json(bench, clients, connections).to_string()),
        }
    }

    fn people(&self, bench: &str, clients: u64, connections: usize) -> Shown {
        let errors: u64 = self.errors.values().sum();
        let kinds: Vec<_> =
            self.errors.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let kinds =
            if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
        let latencies = &self.measured.latencies;
        let percentiles = PERCENTILES.map(|(percentile, name)| {
            let name = if name == "p999" { "p99.9" } else { name };
            format!("{name} {}", micros(latencies.value_at_percentile(percentile)))
        });
        let elapsed = span_text(self.measured.elapsed);
        let mut lines = vec![
            format!("bench {bench}: {clients} clients over {connections} connections"),
            format!("operations     {} in {elapsed}, {:.0}/s", self.operations, self.rate()),
            format!("errors         {errors}{kinds}"),
            format!("latency        {}", percentiles.join("  ")),
            format!("longest pause  {}", millis(self.measured.longest_pause)),
        ];
        if !self.checks.is_empty() {
            let checks: Vec<_> =
                self.checks.iter().map(|check| format!("{} {}", check.count, check.what)).collect();
            lines.push(format!("checked        {}", checks.join(", ")));
        }
        Shown::Lines(lines)
    }

    fn json(&self, bench: &str, clients: u64, connections: usize) -> Value {
        let latencies = &self.measured.latencies;
        let mut micros: Map<String, Value> = PERCENTILES
            .iter()
            .map(|(percentile, name)| {
                ((*name).to_owned(), latencies.value_at_percentile(*percentile).into())
            })
            .collect();
        micros.insert("min".to_owned(), latencies.min().into());
        micros.insert("mean".to_owned(), latencies.mean().round().into());
        let checks: Map<String, Value> =
            self.checks.iter().map(|check| (check.name.to_owned(), check.count.into())).collect();
        json!({
            "bench": bench,
            "clients": clients,
            "connections": connections,
            "seconds": self.measured.elapsed.as_secs_f64(),
            "operations": self.operations,
            "operationsPerSecond": self.rate().round(),
            "errors": self.errors.values().sum::<u64>(),
            "errorsByReason": self.errors,
            "latencyMicros": micros,
            "longestPauseMillis": u64::try_from(self.measured.longest_pause.as_millis()).ok(),
            "checks": checks,
        })
    }

    #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "a rate for people")]
    fn rate(&self) -> f64 {
        self.operations as f64 / self.measured.elapsed.as_secs_f64().max(f64::EPSILON)
    }
}

/// Microseconds to three digits or so: `850us`, `1.25ms`, `37ms`, `1.2s`.
pub(super) fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..10_000 => format!("{}.{:02}ms", micros / 1_000, micros % 1_000 / 10),
        10_000..1_000_000 => format!("{}ms", micros / 1_000),
        _ => span_text(Duration::from_micros(micros)),
    }
}

fn millis(span: Duration) -> String {
    micros(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_short() {
        assert_eq!(
            [micros(850), micros(1_250), micros(37_400), micros(1_230_000)],
            ["850us", "1.25ms", "37ms", "1.2s"]
        );
    }
}
