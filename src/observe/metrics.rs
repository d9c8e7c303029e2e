//! The metrics of one node and the functions that move them.
//!
//! Names are `quorate_<area>_<thing>_<unit>`; counters alone end in `_total`. Labels have few
//! values: the methods of our own services, gRPC codes, roles. Nothing a user writes becomes a
//! label. docs/metrics.md tells each of them; what is exported and what is told there is the same.

use std::{fmt, sync::Arc};

use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry, Unit},
};

use crate::{
    observe::{
        connections::Connections,
        histogram::{COUNTS, Histogram, SIZES, TIMES},
        methods::{Durations, Ended, MethodMetrics, Methods, OpenNow},
        overload::Overload,
        process::Process,
        readers::{Reader, ReaderKind, Readers},
        snapshots::Snapshots,
        stages::{ReadStage, Stage, Staged, WalBatch, WalBatches},
    },
    raft::{CampaignReason, Campaigned, RoleKind},
    types::{Duration, Instant, LogIndex, Position, Revision, Term},
};

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of one node. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

/// What is counted for each request or batch takes no lock.
struct Inner {
    registry: Registry,
    /// What has the same name in every process.
    process: Registry,
    writes: Staged<6>,
    reads: Staged<3>,
    proposals: Counter,
    applied: Counter,
    fsync: Histogram,
    fsync_entries: Histogram,
    fsync_bytes: Histogram,
    apply_entries: Histogram,
    turn_events: Histogram,
    wal_batches: WalBatches,
    queues: [Gauge; Queue::ALL.len()],
    role: Family<RoleLabel, Gauge>,
    term: Gauge,
    commit_index: Gauge,
    applied_index: Gauge,
    leader_changes: Counter,
    pre_votes: Family<ReasonLabel, Counter>,
    elections: Family<ReasonLabel, Counter>,
    methods: Methods,
    open_calls: Gauge,
    lock_waiters: Gauge,
    readers: Readers,
    reader_count: Family<KindLabel, Gauge>,
    reader_lag: Family<KindLabel, Gauge>,
    fell_behind: Counter,
    forwards: Counter,
    reads_passed_on: Counter,
    reads_for_others: Counter,
    snapshots: Snapshots,
    /// Free, needed, short.
    disk: [Gauge; 3],
    connections: Connections,
    overload: Overload,
}

/// Where work waits inside a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Events that the driver took in its latest turn.
    Driver,
    /// Calls that wait for a leader, or for its answer.
    Calls,
    /// Batches that were handed to the log's writer and are not synced.
    Wal,
    /// Entries that were proposed here and are not committed.
    Replicate,
    /// Entries that are committed and not applied.
    Apply,
}

impl Queue {
    const ALL: [Self; 5] = [Self::Driver, Self::Calls, Self::Wal, Self::Replicate, Self::Apply];

    const fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Calls => "calls",
            Self::Wal => "wal",
            Self::Replicate => "replicate",
            Self::Apply => "apply",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabel {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

const ROLES: [RoleKind; 4] =
    [RoleKind::Follower, RoleKind::PreCandidate, RoleKind::Candidate, RoleKind::Leader];

const REASONS: [CampaignReason; 3] =
    [CampaignReason::Timeout, CampaignReason::ConnectionLost, CampaignReason::Transfer];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own with every metric at zero.
    #[must_use]
    pub fn new() -> Self {
        let queues = Family::<QueueLabel, Gauge>::default();
        let queue = |queue: Queue| queues.get_or_create_owned(&QueueLabel { queue: queue.name() });
        let mut inner = Inner {
            registry: Registry::with_prefix("quorate"),
            process: Registry::default(),
            writes: Staged::writes(),
            reads: Staged::reads(),
            proposals: Counter::default(),
            applied: Counter::default(),
            fsync: Histogram::new(&TIMES),
            fsync_entries: Histogram::new(&COUNTS),
            fsync_bytes: Histogram::new(&SIZES),
            apply_entries: Histogram::new(&COUNTS),
            turn_events: Histogram::new(&COUNTS),
            wal_batches: WalBatches::default(),
            queues: Queue::ALL.map(queue),
            role: Family::default(),
            term: Gauge::default(),
            commit_index: Gauge::default(),
            applied_index: Gauge::default(),
            leader_changes: Counter::default(),
            pre_votes: Family::default(),
            elections: Family::default(),
            methods: Methods::default(),
            open_calls: Gauge::default(),
            lock_waiters: Gauge::default(),
            readers: Readers::default(),
            reader_count: Family::default(),
            reader_lag: Family::default(),
            fell_behind: Counter::default(),
            forwards: Counter::default(),
            reads_passed_on: Counter::default(),
            reads_for_others: Counter::default(),
            snapshots: Snapshots::default(),
            disk: Default::default(),
            connections: Connections::default(),
            overload: Overload::default(),
        };
        for reason in REASONS.map(reason_label) {
            drop(inner.elections.get_or_create(&reason));
            if reason != reason_label(CampaignReason::Transfer) {
                drop(inner.pre_votes.get_or_create(&reason));
            }
        }
        inner.register_stages();
        inner.register_raft();
        inner.register("queue_depth", "What waits in a queue of this node", &queues);
        inner.register_disk();
        inner.register_requests();
        inner.register_streams();
        inner.process.register_collector(Box::new(Process));
        inner.snapshots.register(&mut inner.registry);
        inner.connections.register(&mut inner.registry);
        inner.overload.register(&mut inner.registry);
        let metrics = Self { inner: Arc::new(inner) };
        metrics.set_role(RoleKind::Follower);
        metrics.measure_readers(Revision::ZERO, Position::ZERO);
        metrics
    }

    pub(super) fn connections(&self) -> &Connections {
        &self.inner.connections
    }

    pub(super) fn overload(&self) -> &Overload {
        &self.inner.overload
    }

    /// Counts commands that this node proposed as the leader.
    pub fn record_proposals(&self, commands: usize) {
        self.inner.proposals.inc_by(commands as u64);
    }

    /// Counts a run of entries that this node applied, and from their commit on.
    pub fn record_applied(&self, entries: usize, since_commit: Duration) {
        self.inner.applied.inc_by(entries as u64);
        self.inner.apply_entries.observe(entries as u64, 1);
        self.observe_stage(Stage::Apply, since_commit, entries);
    }

    /// Counts how long `writes` writes took for a stage.
    pub fn observe_stage(&self, stage: Stage, span: Duration, writes: usize) {
        self.inner.writes.of(stage).observe_time(span, writes as u64);
    }

    /// Counts how long a linearizable read took for a stage.
    pub fn observe_read_stage(&self, stage: ReadStage, span: Duration) {
        self.inner.reads.of_read(stage).observe_time(span, 1);
    }

    /// Records one write and fsync of the log.
    pub fn observe_wal_batch(&self, batch: WalBatch) {
        let inner = &*self.inner;
        inner.fsync.observe_time(batch.fsync, 1);
        inner.fsync_entries.observe(batch.entries as u64, 1);
        inner.fsync_bytes.observe(batch.bytes, 1);
        if batch.entries > 0 {
            self.observe_stage(Stage::Append, batch.append, batch.entries);
            self.observe_stage(Stage::Fsync, batch.fsync, batch.entries);
        }
        inner.wal_batches.push(batch);
    }

    /// The batch of the log that held what was handed to its writer at this time of the node's
    /// clock, while it is among the latest ones.
    #[must_use]
    pub fn wal_batch_at(&self, handed: Instant) -> Option<WalBatch> {
        self.inner.wal_batches.at(handed)
    }

    /// Records how many events the driver took in a turn.
    pub fn observe_turn(&self, events: usize) {
        self.inner.turn_events.observe(events as u64, 1);
        self.set_queue(Queue::Driver, events as u64);
    }

    /// Sets how much waits in a queue.
    pub fn set_queue(&self, queue: Queue, depth: u64) {
        self.inner.queues[queue as usize].set(clamp(depth));
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
        self.set_queue(Queue::Apply, commit.value().saturating_sub(applied.value()));
    }

    /// Sets how many bytes are free in the file system of the data directory, how many must be, and
    /// whether that is too little.
    pub fn set_disk_space(&self, free: u64, needed: u64, short: bool) {
        let values = [clamp(free), clamp(needed), i64::from(short)];
        for (gauge, value) in self.inner.disk.iter().zip(values) {
            gauge.set(value);
        }
    }

    /// Counts that this node saw another leader than before.
    pub fn record_leader_change(&self) {
        self.inner.leader_changes.inc();
    }

    /// Counts that this node asked for votes, or whether it would get them.
    pub fn record_campaign(&self, campaign: Campaigned) {
        let family = if campaign.pre_vote { &self.inner.pre_votes } else { &self.inner.elections };
        family.get_or_create(&reason_label(campaign.reason)).inc();
    }

    /// The counters of a method of ours. `service` is its full name; both must come from our own
    /// protos, because each pair is a row for ever. Looked up once, not for each request.
    #[must_use]
    pub fn method(&self, service: &str, method: &str) -> MethodMetrics {
        self.inner.methods.of(service, method)
    }

    /// Sets how many calls of this node wait for an answer, and for a lock.
    pub fn set_calls(&self, open: usize, waiting_for_locks: usize) {
        self.inner.open_calls.set(clamp(open as u64));
        self.inner.lock_waiters.set(clamp(waiting_for_locks as u64));
    }

    /// A stream's reader starts at a place.
    #[must_use]
    pub fn reader(&self, kind: ReaderKind, place: u64) -> Reader {
        self.inner.readers.open(kind, place)
    }

    /// Compares the open streams' places with the newest revision and the last position.
    pub fn measure_readers(&self, revision: Revision, position: Position) {
        for kind in ReaderKind::ALL {
            let head = match kind {
                ReaderKind::Changes => revision.value(),
                ReaderKind::Events => position.value(),
            };
            let (count, lag) = self.inner.readers.measure(kind, head);
            let label = KindLabel { kind: kind.name() };
            self.inner.reader_count.get_or_create(&label).set(clamp(count));
            self.inner.reader_lag.get_or_create(&label).set(clamp(lag));
        }
    }

    /// Counts a reader that fell behind and went back to history.
    pub fn record_fell_behind(&self) {
        self.inner.fell_behind.inc();
    }

    /// Counts requests that this node passed on to the leader.
    pub fn record_forwards(&self, requests: usize) {
        self.inner.forwards.inc_by(requests as u64);
    }

    /// Counts a read that another node answered for this one.
    pub fn record_read_passed_on(&self) {
        self.inner.reads_passed_on.inc();
    }

    /// Counts a read that this node answered for another one.
    pub fn record_read_for_another(&self) {
        self.inner.reads_for_others.inc();
    }

    /// Counts a snapshot that a member installed from here.
    pub fn record_snapshot_sent(&self) {
        self.inner.snapshots.sent.inc();
    }

    /// Counts a snapshot that was installed here.
    pub fn record_snapshot_installed(&self) {
        self.inner.snapshots.installed.inc();
    }

    /// Counts a chunk of a snapshot that this node sent, again sent ones included.
    pub fn record_snapshot_chunk_sent(&self, bytes: usize) {
        self.inner.snapshots.out.record(bytes);
    }

    /// Counts a chunk of a snapshot that arrived here and was kept.
    pub fn record_snapshot_chunk_received(&self, bytes: usize) {
        self.inner.snapshots.received.record(bytes);
    }

    /// Counts a snapshot that this node went on sending where a broken stream had ended.
    pub fn record_snapshot_resumed(&self) {
        self.inner.snapshots.resumed.inc();
    }

    /// Everything as OpenMetrics text, of the type [`CONTENT_TYPE`].
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        for registry in [&self.inner.registry, &self.inner.process] {
            encode_registry(&mut text, registry).expect("writing to a string does not fail");
        }
        encode_eof(&mut text).expect("writing to a string does not fail");
        text
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Inner {
    fn register(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) {
        self.registry.register(name, help, metric.clone());
    }

    fn register_seconds(&mut self, name: &str, help: &str, metric: &(impl Metric + Clone)) {
        self.registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    }

    fn register_stages(&mut self) {
        let (writes, reads, fsync) = (self.writes.clone(), self.reads.clone(), self.fsync.clone());
        self.register_seconds("write_stage", "Where the time of writes went", &writes);
        self.register_seconds("read_stage", "Where the time of linearizable reads went", &reads);
        self.register_seconds("wal_fsync", "How long a write and fsync of the log took", &fsync);
        let sizes = [
            (
                "wal_fsync_batch_entries",
                "How many entries one fsync made durable",
                self.fsync_entries.clone(),
            ),
            (
                "wal_fsync_batch_bytes",
                "How many bytes one fsync made durable",
                self.fsync_bytes.clone(),
            ),
            (
                "apply_batch_entries",
                "How many entries were applied at once",
                self.apply_entries.clone(),
            ),
            (
                "driver_turn_events",
                "How many events the driver took at once",
                self.turn_events.clone(),
            ),
        ];
        for (name, help, metric) in sizes {
            self.register(name, help, &metric);
        }
    }

    fn register_raft(&mut self) {
        let counters = [
            (
                "raft_proposals",
                "Commands that this node proposed as the leader",
                self.proposals.clone(),
            ),
            ("raft_applied_entries", "Log entries that this node applied", self.applied.clone()),
            (
                "raft_leader_changes",
                "How often this node saw another leader than before",
                self.leader_changes.clone(),
            ),
            (
                "raft_forwards",
                "Requests that this node passed on to the leader",
                self.forwards.clone(),
            ),
            (
                "reads_passed_on",
                "Reads that another node answered for this one",
                self.reads_passed_on.clone(),
            ),
            (
                "reads_for_others",
                "Reads that this node answered for other nodes",
                self.reads_for_others.clone(),
            ),
        ];
        for (name, help, metric) in counters {
            self.register(name, help, &metric);
        }
        let gauges = [
            ("raft_term", "This node's term", self.term.clone()),
            (
                "raft_commit_index",
                "The index up to which this node knows the log to be committed",
                self.commit_index.clone(),
            ),
            (
                "raft_applied_index",
                "The index up to which this node applied the log",
                self.applied_index.clone(),
            ),
        ];
        for (name, help, metric) in gauges {
            self.register(name, help, &metric);
        }
        let (role, pre_votes, elections) =
            (self.role.clone(), self.pre_votes.clone(), self.elections.clone());
        self.register("raft_role", "1 at the role that this node has in its group", &role);
        self.register(
            "raft_pre_votes",
            "How often this node asked whether it could win an election, and why",
            &pre_votes,
        );
        self.register(
            "raft_elections",
            "How often this node stood for election, and why",
            &elections,
        );
    }

    fn register_disk(&mut self) {
        let names = [
            ("disk_free_bytes", "What is free in the file system of the data directory"),
            ("disk_min_free_bytes", "What must be free there; 0 watches nothing"),
            ("disk_short", "Whether too little is free there: 1 refuses what grows"),
        ];
        for ((name, help), gauge) in names.into_iter().zip(self.disk.clone()) {
            self.registry.register(name, help, gauge);
        }
    }

    fn register_requests(&mut self) {
        let methods = self.methods.clone();
        self.registry.register(
            "grpc_requests",
            "Requests that ended, by their gRPC code",
            Ended(methods.clone()),
        );
        self.registry.register_with_unit(
            "grpc_request_duration",
            "How long requests took, streams until they ended",
            Unit::Seconds,
            Durations(methods.clone()),
        );
        self.registry.register(
            "grpc_open_requests",
            "Requests under way, streams among them",
            OpenNow(methods),
        );
        let (open, waiters) = (self.open_calls.clone(), self.lock_waiters.clone());
        self.register("calls_open", "Calls of this node that wait for an answer", &open);
        self.register("lock_waiters", "Calls of this node that wait for a lock", &waiters);
    }

    fn register_streams(&mut self) {
        let (count, lag) = (self.reader_count.clone(), self.reader_lag.clone());
        self.register("stream_readers", "Open watches and subscriptions", &count);
        self.register(
            "stream_lag_max",
            "How many revisions or positions the last reader is behind",
            &lag,
        );
        let fell_behind = self.fell_behind.clone();
        self.register(
            "stream_fell_behind",
            "Slow readers that were sent back to history",
            &fell_behind,
        );
    }
}

const fn role_name(role: RoleKind) -> &'static str {
    match role {
        RoleKind::Follower => "follower",
        RoleKind::PreCandidate => "pre_candidate",
        RoleKind::Candidate => "candidate",
        RoleKind::Leader => "leader",
    }
}

const fn reason_label(reason: CampaignReason) -> ReasonLabel {
    let reason = match reason {
        CampaignReason::Timeout => "timeout",
        CampaignReason::ConnectionLost => "connection_lost",
        CampaignReason::Transfer => "transfer",
    };
    ReasonLabel { reason }
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
