//! The metrics of one node and the functions that move them.
//!
//! Names are `quorate_<area>_<thing>_<unit>`; counters alone end in `_total`. Labels have few
//! values: the methods of our own services, gRPC codes, roles. Nothing a user writes becomes a label.

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{
    raft::RoleKind,
    types::{Duration, LogIndex, Term},
};

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one node. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    proposals: Counter,
    applied: Counter,
    fsync: Histogram,
    fsync_batch: Histogram,
    role: Family<RoleLabel, Gauge>,
    term: Gauge,
    commit_index: Gauge,
    applied_index: Gauge,
    leader_changes: Counter,
    requests: Family<RequestLabel, Counter>,
    request_duration: Family<MethodLabel, Histogram, fn() -> Histogram>,
    streams: Family<MethodLabel, Gauge>,
    fell_behind: Counter,
    forwards: Counter,
    snapshots_sent: Counter,
    snapshots_installed: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    service: Arc<str>,
    method: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabel {
    service: Arc<str>,
    method: Arc<str>,
    code: &'static str,
}

const ROLES: [RoleKind; 4] =
    [RoleKind::Follower, RoleKind::PreCandidate, RoleKind::Candidate, RoleKind::Leader];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own with every metric at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut inner = Inner {
            registry: Registry::with_prefix("quorate"),
            proposals: Counter::default(),
            applied: Counter::default(),
            fsync: latency(),
            fsync_batch: Histogram::new(exponential_buckets(1.0, 2.0, 12)),
            role: Family::default(),
            term: Gauge::default(),
            commit_index: Gauge::default(),
            applied_index: Gauge::default(),
            leader_changes: Counter::default(),
            requests: Family::default(),
            request_duration: Family::new_with_constructor(latency),
            streams: Family::default(),
            fell_behind: Counter::default(),
            forwards: Counter::default(),
            snapshots_sent: Counter::default(),
            snapshots_installed: Counter::default(),
        };
        inner.register_raft();
        inner.register_requests();
        let metrics = Self { inner: Arc::new(inner) };
        metrics.set_role(RoleKind::Follower);
        metrics
    }

    /// Counts commands that this node proposed as the leader.
    pub fn record_proposals(&self, commands: usize) {
        self.inner.proposals.inc_by(commands as u64);
    }

    /// Counts entries that this node applied.
    pub fn record_applied(&self, entries: usize) {
        self.inner.applied.inc_by(entries as u64);
    }

    /// Records one write and fsync of the log: how long it took and how many entries it held.
    pub fn observe_fsync(&self, duration: Duration, entries: usize) {
        self.inner.fsync.observe(duration.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^52 entries")]
        self.inner.fsync_batch.observe(entries as f64);
    }

    /// Sets what this node does in its group.
    pub fn set_role(&self, role: RoleKind) {
        for each in ROLES {
            let label = RoleLabel { role: role_name(each) };
            self.inner.role.get_or_create(&label).set(i64::from(each == role));
        }
    }

    /// Sets this node's term.
    pub fn set_term(&self, term: Term) {
        self.inner.term.set(clamp(term.value()));
    }

    /// Sets how far the log is committed and applied here.
    pub fn set_progress(&self, commit: LogIndex, applied: LogIndex) {
        self.inner.commit_index.set(clamp(commit.value()));
        self.inner.applied_index.set(clamp(applied.value()));
    }

    /// Counts that this node saw another leader than before.
    pub fn record_leader_change(&self) {
        self.inner.leader_changes.inc();
    }

    /// Records a request that ended: how long it took and its gRPC code, such as `OK`. `service`
    /// is the full name, such as `quorate.lock.v1.LockService`; both must come from our own protos,
    /// because each pair is a row for ever.
    pub fn observe_request(
        &self,
        service: &Arc<str>,
        method: &Arc<str>,
        code: &'static str,
        duration: Duration,
    ) {
        let (service, method) = (Arc::clone(service), Arc::clone(method));
        let label = MethodLabel { service: service.clone(), method: method.clone() };
        self.inner.request_duration.get_or_create(&label).observe(duration.as_secs_f64());
        self.inner.requests.get_or_create(&RequestLabel { service, method, code }).inc();
    }

    /// Counts an open request in; pair it with [`Metrics::request_closed`].
    pub fn request_opened(&self, service: &Arc<str>, method: &Arc<str>) {
        let label = MethodLabel { service: Arc::clone(service), method: Arc::clone(method) };
        self.inner.streams.get_or_create(&label).inc();
    }

    /// Counts an open request out.
    pub fn request_closed(&self, service: &Arc<str>, method: &Arc<str>) {
        let label = MethodLabel { service: Arc::clone(service), method: Arc::clone(method) };
        self.inner.streams.get_or_create(&label).dec();
    }

    /// Counts a reader that fell behind and went back to history.
    pub fn record_fell_behind(&self) {
        self.inner.fell_behind.inc();
    }

    /// Counts requests that this node passed on to the leader.
    pub fn record_forwards(&self, requests: usize) {
        self.inner.forwards.inc_by(requests as u64);
    }

    /// Counts a snapshot that a member installed from here.
    pub fn record_snapshot_sent(&self) {
        self.inner.snapshots_sent.inc();
    }

    /// Counts a snapshot that was installed here.
    pub fn record_snapshot_installed(&self) {
        self.inner.snapshots_installed.inc();
    }

    /// Everything as OpenMetrics text, of the type [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.inner.registry).expect("writing to a string does not fail");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Inner {
    fn register_raft(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "raft_proposals",
            "Commands that this node proposed as the leader",
            self.proposals.clone(),
        );
        registry.register(
            "raft_applied_entries",
            "Log entries that this node applied",
            self.applied.clone(),
        );
        registry.register_with_unit(
            "wal_fsync",
            "How long a write and fsync of the log took",
            Unit::Seconds,
            self.fsync.clone(),
        );
        registry.register(
            "wal_fsync_batch_entries",
            "How many entries one fsync made durable",
            self.fsync_batch.clone(),
        );
        registry.register(
            "raft_role",
            "1 at the role that this node has in its group",
            self.role.clone(),
        );
        registry.register("raft_term", "This node's term", self.term.clone());
        registry.register(
            "raft_commit_index",
            "The index up to which this node knows the log to be committed",
            self.commit_index.clone(),
        );
        registry.register(
            "raft_applied_index",
            "The index up to which this node applied the log",
            self.applied_index.clone(),
        );
        registry.register(
            "raft_leader_changes",
            "How often this node saw another leader than before",
            self.leader_changes.clone(),
        );
        registry.register(
            "raft_forwards",
            "Requests that this node passed on to the leader",
            self.forwards.clone(),
        );
        registry.register(
            "snapshot_sent",
            "Snapshots that other nodes installed from this one",
            self.snapshots_sent.clone(),
        );
        registry.register(
            "snapshot_installed",
            "Snapshots that this node installed",
            self.snapshots_installed.clone(),
        );
    }

    fn register_requests(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "grpc_requests",
            "Requests that ended, by their gRPC code",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "grpc_request_duration",
            "How long requests took, streams until they ended",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        registry.register(
            "grpc_open_requests",
            "Requests under way, streams among them",
            self.streams.clone(),
        );
        registry.register(
            "stream_fell_behind",
            "Slow readers that were sent back to history",
            self.fell_behind.clone(),
        );
    }
}

/// From 100 microseconds to 13 seconds.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.0, 18))
}

const fn role_name(role: RoleKind) -> &'static str {
    match role {
        RoleKind::Follower => "follower",
        RoleKind::PreCandidate => "pre_candidate",
        RoleKind::Candidate => "candidate",
        RoleKind::Leader => "leader",
    }
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(text: &'a str, start: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| {
            panic!("no line starts with {start:?} in\n{text}");
        })
    }

    #[test]
    fn counters_end_in_total_and_nothing_else_does() {
        let metrics = Metrics::new();
        metrics.record_proposals(3);
        metrics.record_fell_behind();
        let text = metrics.encode();
        assert_eq!(line(&text, "quorate_raft_proposals_total"), "quorate_raft_proposals_total 3");
        assert_eq!(
            line(&text, "quorate_stream_fell_behind_total"),
            "quorate_stream_fell_behind_total 1"
        );
        for kind in text.lines().filter(|line| line.starts_with("# TYPE")) {
            assert!(!kind.contains("_total "), "the suffix was written twice: {kind}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn exactly_one_role_is_set() {
        let metrics = Metrics::new();
        metrics.set_role(RoleKind::Leader);
        let text = metrics.encode();
        let set: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with("quorate_raft_role") && l.ends_with(" 1"))
            .collect();
        assert_eq!(set, ["quorate_raft_role{role=\"leader\"} 1"]);
    }

    #[test]
    fn an_fsync_is_counted_in_seconds() {
        let metrics = Metrics::new();
        metrics.observe_fsync(Duration::from_millis(500), 7);
        let text = metrics.encode();
        assert_eq!(
            line(&text, "quorate_wal_fsync_seconds_sum"),
            "quorate_wal_fsync_seconds_sum 0.5"
        );
        assert_eq!(
            line(&text, "quorate_wal_fsync_batch_entries_sum"),
            "quorate_wal_fsync_batch_entries_sum 7.0"
        );
    }

    #[test]
    fn two_nodes_in_one_process_count_apart() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.record_leader_change();
        assert!(one.encode().contains("quorate_raft_leader_changes_total 1"));
        assert!(other.encode().contains("quorate_raft_leader_changes_total 0"));
    }

    #[test]
    fn a_request_is_counted_by_its_code() {
        let metrics = Metrics::new();
        let (service, method) = (Arc::from("quorate.kv.v1.KvService"), Arc::from("Put"));
        metrics.request_opened(&service, &method);
        metrics.observe_request(&service, &method, "ABORTED", Duration::from_millis(1));
        metrics.request_closed(&service, &method);
        let text = metrics.encode();
        assert!(line(&text, "quorate_grpc_requests_total{").contains("code=\"ABORTED\"} 1"));
        assert!(line(&text, "quorate_grpc_open_requests{").ends_with(" 0"));
    }
}
