//! What a scrape shows of what was counted.

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
    let set: Vec<_> =
        text.lines().filter(|l| l.starts_with("quorate_raft_role") && l.ends_with(" 1")).collect();
    assert_eq!(set, ["quorate_raft_role{role=\"leader\"} 1"]);
}

#[test]
fn an_fsync_is_counted_in_seconds() {
    let metrics = Metrics::new();
    let fsync = Duration::from_millis(500);
    metrics.observe_wal_batch(WalBatch { fsync, entries: 7, ..WalBatch::default() });
    let text = metrics.encode();
    assert_eq!(line(&text, "quorate_wal_fsync_seconds_sum"), "quorate_wal_fsync_seconds_sum 0.5");
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
fn a_write_counts_once_in_each_stage_of_its_batch() {
    let metrics = Metrics::new();
    metrics.observe_wal_batch(WalBatch { entries: 3, ..WalBatch::default() });
    metrics.observe_wal_batch(WalBatch::default());
    metrics.record_applied(2, Duration::from_millis(1));
    let text = metrics.encode();
    let count = |stage: &str| {
        let start = format!("quorate_write_stage_seconds_count{{stage=\"{stage}\"}} ");
        line(&text, &start)[start.len()..].to_owned()
    };
    assert_eq!((count("append"), count("fsync")), ("3".into(), "3".into()));
    assert_eq!((count("apply"), count("answer")), ("2".into(), "0".into()));
    assert_eq!(line(&text, "quorate_wal_fsync_seconds_count"), "quorate_wal_fsync_seconds_count 2");
}

#[test]
fn an_election_is_counted_with_its_reason() {
    let metrics = Metrics::new();
    let reason = CampaignReason::ConnectionLost;
    metrics.record_campaign(Campaigned { pre_vote: true, reason });
    metrics.record_campaign(Campaigned { pre_vote: false, reason });
    let text = metrics.encode();
    assert!(text.contains("quorate_raft_pre_votes_total{reason=\"connection_lost\"} 1"));
    assert!(text.contains("quorate_raft_elections_total{reason=\"connection_lost\"} 1"));
    assert!(text.contains("quorate_raft_elections_total{reason=\"timeout\"} 0"));
}

#[test]
fn a_request_is_counted_by_its_code() {
    let metrics = Metrics::new();
    let put = metrics.method("quorate.kv.v1.KvService", "Put");
    assert!(!metrics.encode().contains("method=\"Put\""), "what never happened has no row");
    put.opened();
    metrics.method("quorate.kv.v1.KvService", "Put").closed(10, Duration::from_millis(1));
    let text = metrics.encode();
    assert!(line(&text, "quorate_grpc_requests_total{").contains("code=\"ABORTED\"} 1"));
    assert!(line(&text, "quorate_grpc_open_requests{").ends_with(" 0"));
}
