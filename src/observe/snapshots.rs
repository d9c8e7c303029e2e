//! What is counted of snapshots between nodes: transfers, and their chunks and bytes in both
//! directions. It never times anything.

use prometheus_client::{
    metrics::counter::Counter,
    registry::{Registry, Unit},
};

/// The counters of snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Installed by other nodes from this one.
    pub(super) sent: Counter,
    /// Installed here.
    pub(super) installed: Counter,
    /// Gone on with after a stream broke.
    pub(super) resumed: Counter,
    /// What this node sent.
    pub(super) out: Traffic,
    /// What this node received.
    pub(super) received: Traffic,
}

/// Chunks in one direction.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    chunks: Counter,
    bytes: Counter,
}

impl Traffic {
    pub(super) fn record(&self, bytes: usize) {
        self.chunks.inc();
        self.bytes.inc_by(bytes as u64);
    }

    fn register(&self, registry: &mut Registry, name: &str, what: &str) {
        let help = format!("Chunks of snapshots {what}");
        registry.register(format!("{name}_chunks"), help, self.chunks.clone());
        let help = format!("Bytes of the chunks of snapshots {what}");
        registry.register_with_unit(name, help, Unit::Bytes, self.bytes.clone());
    }
}

impl Snapshots {
    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("snapshot_sent", "Snapshots that other nodes installed from this one", &self.sent),
            ("snapshot_installed", "Snapshots that this node installed", &self.installed),
            (
                "snapshot_resumed",
                "Snapshots that this node went on sending after their stream broke",
                &self.resumed,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        self.out.register(registry, "snapshot_sent", "that this node sent");
        self.received.register(registry, "snapshot_received", "that arrived here and were kept");
    }
}
