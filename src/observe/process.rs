//! What the system says of this process, by the names that every Prometheus exporter uses.
//!
//! Read when somebody asks. Where the system keeps no `/proc`, nothing is told.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

/// Reads the system at each scrape.
#[derive(Debug)]
pub(crate) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), core::fmt::Error> {
        let Ok(status) = fs::read_to_string("/proc/self/status") else { return Ok(()) };
        let files = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
        let told = [
            (
                "process_resident_memory_bytes",
                "Memory of this process in RAM",
                line(&status, "VmRSS:").map(|kib| kib * 1_024),
            ),
            (
                "process_resident_memory_max_bytes",
                "The most memory that this process had in RAM",
                line(&status, "VmHWM:").map(|kib| kib * 1_024),
            ),
            ("process_threads", "Threads of this process", line(&status, "Threads:")),
            (
                "process_open_fds",
                "Open files and sockets of this process",
                files.and_then(|files| i64::try_from(files).ok()),
            ),
        ];
        for (name, help, value) in told {
            if let Some(value) = value {
                let row = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(row)?;
            }
        }
        Ok(())
    }
}

/// The number behind a name.
fn line(status: &str, name: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_where_they_stand() {
        let status = "Name:\tquorate\nVmHWM:\t   30000 kB\nVmRSS:\t   20480 kB\nThreads:\t9\n";
        assert_eq!(line(status, "VmRSS:"), Some(20_480));
        assert_eq!(line(status, "Threads:"), Some(9));
        assert_eq!(line(status, "VmSwap:"), None);
    }
}
