//! The metrics of a node's listeners: connections that are open, and those that were turned away.
//!
//! Labels are the listener's name and one word for the reason, both from our own code.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::observe::Metrics;

/// The listeners that speak gRPC.
const LISTENERS: [&str; 2] = ["client", "peer"];

/// Why strangers are turned away; others have a row once they happen.
const REASONS: [&str; 4] = ["plaintext", "no_certificate", "unknown_ca", "expired"];

#[derive(Default)]
pub(super) struct Connections {
    open: Family<ListenerLabel, Gauge>,
    refused: Family<ListenerLabel, Counter>,
    tls_failures: Family<FailureLabel, Counter>,
    tls_reloads: Family<ReloadLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ListenerLabel {
    listener: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabel {
    listener: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabel {
    listener: &'static str,
    result: &'static str,
}

impl Connections {
    /// Registers them, with the rows that an alert may wait for at zero.
    pub(super) fn register(&self, registry: &mut Registry) {
        for listener in LISTENERS {
            drop(self.open.get_or_create(&ListenerLabel { listener }));
            drop(self.refused.get_or_create(&ListenerLabel { listener }));
            for reason in REASONS {
                drop(self.tls_failures.get_or_create(&FailureLabel { listener, reason }));
            }
            for result in ["ok", "failed"] {
                drop(self.tls_reloads.get_or_create(&ReloadLabel { listener, result }));
            }
        }
        registry.register("connections_open", "Connections that are open", self.open.clone());
        registry.register(
            "connections_refused",
            "Connections that were closed at once because too many were open",
            self.refused.clone(),
        );
        registry.register(
            "tls_handshake_failures",
            "Connections that were turned away before their first request",
            self.tls_failures.clone(),
        );
        registry.register(
            "tls_reloads",
            "How often certificates were read again, and whether they fitted",
            self.tls_reloads.clone(),
        );
    }
}

impl Metrics {
    /// Counts a connection in; pair it with [`Metrics::connection_closed`]. `listener` is one of
    /// our own words, here and below.
    pub fn connection_opened(&self, listener: &'static str) {
        self.connections().open.get_or_create(&ListenerLabel { listener }).inc();
    }

    /// Counts a connection out.
    pub fn connection_closed(&self, listener: &'static str) {
        self.connections().open.get_or_create(&ListenerLabel { listener }).dec();
    }

    /// Counts a connection that was closed at once because too many were open.
    pub fn record_connection_refused(&self, listener: &'static str) {
        self.connections().refused.get_or_create(&ListenerLabel { listener }).inc();
    }

    /// Counts a connection that was turned away before its first request; `reason` is one of our
    /// own words.
    pub fn record_tls_failure(&self, listener: &'static str, reason: &'static str) {
        self.connections().tls_failures.get_or_create(&FailureLabel { listener, reason }).inc();
    }

    /// Counts that certificates were read again, and whether they fitted.
    pub fn record_tls_reload(&self, listener: &'static str, fitted: bool) {
        let result = if fitted { "ok" } else { "failed" };
        self.connections().tls_reloads.get_or_create(&ReloadLabel { listener, result }).inc();
    }
}
