//! Tests the tester: bugs that are planted one at a time, each found by the ordinary sweep within
//! so many seeds from seed 0 on. Without any, the same seeds break no rule.
//!
//! `cargo test --lib planted -- --nocapture` prints the table of docs/testing.md.

use crate::{
    sim::{Broken, plan::draw, run},
    types::{Planted, Planting},
};

/// No bug may take more seeds.
const SWEEP: u64 = 80;
/// So many of them are run without a bug by the short sweep of every test run.
const SHORT_SWEEP: u64 = 30;

/// The first of these seeds that breaks a rule, in the order of the sweep.
fn sweep(mut seeds: core::ops::Range<u64>) -> Option<(u64, Broken)> {
    seeds.find_map(|seed| run(&draw(seed), false).broken.map(|broken| (seed, broken)))
}

/// A planted bug is found within so many seeds, by one of these rules, as the table says.
fn finds(bug: Planted, seeds: u64, rules: &[&str]) {
    let planting = Planting::of(bug);
    let found = sweep(0..seeds);
    drop(planting);
    let Some((seed, broken)) = found else {
        panic!("{bug:?} was not found within {seeds} seeds");
    };
    println!("| `{bug:?}` | `{}` | {seed} | {seeds} |", broken.rule);
    assert!(rules.contains(&broken.rule.as_str()), "{bug:?} broke {broken} at seed {seed}");
    let table = include_str!("../../../docs/testing.md");
    let row = table.lines().find(|line| line.starts_with(&format!("| `{bug:?}` |")));
    let row = row.unwrap_or_else(|| panic!("docs/testing.md has no row for {bug:?}"));
    assert!(row.ends_with(&format!("| {seeds} |")), "docs/testing.md: {row}");
}

macro_rules! planted {
    ($($name:ident: $bug:ident within $seeds:literal by $rules:expr;)*) => {
        $(
            #[test]
            fn $name() {
                const { assert!($seeds <= SWEEP) };
                finds(Planted::$bug, $seeds, &$rules);
            }
        )*
    };
}

planted! {
    a_vote_that_is_not_written: VoteNotPersisted within 12 by ["durable-is-kept"];
    a_vote_that_leaves_before_it_is_durable: VoteSentBeforeDurable within 12 by ["votes-are-durable"];
    a_vote_that_is_forgotten_in_its_term: VoteForgottenInTerm within 12 by ["panic, what is durable was written", "hard-state-grows"];
    a_log_that_says_durable_without_a_sync: AcknowledgedBeforeSync within 12 by ["disk-opens", "durable-is-kept"];
    an_append_that_is_acknowledged_early: AppendAcknowledgedEarly within 12 by ["committed-is-durable"];
    a_leader_that_counts_its_own_append_early: OwnAppendCountedEarly within 12 by ["committed-is-durable"];
    an_old_term_that_is_committed_by_count: OldTermCommittedByCount within 12 by ["commit-own-term"];
    a_heartbeat_that_commits_blindly: HeartbeatCommitsBlindly within 12 by ["committed-never-changes", "committed-is-durable"];
    a_read_without_a_quorum: ReadWithoutQuorum within 12 by ["renewal-by-leader", "read-index-is-current"];
    a_read_that_joins_an_earlier_round: ReadJoinsEarlierRound within 12 by ["read-index-is-current"];
    a_read_before_the_first_commit: ReadBeforeFirstCommit within 30 by ["read-index-is-current"];
    a_proposal_that_is_dropped_in_a_transfer: ProposalDroppedInTransfer within 30 by ["every-call-ends"];
    an_append_that_always_truncates: AppendTruncatesAlways within 30 by ["panic, what is accepted is in the log", "panic, only what is in the log is committed"];
    a_token_that_restarts_at_a_snapshot: TokenRestartsAtSnapshot within 12 by ["state-machine-safety"];
    requests_that_are_lost_at_a_snapshot: RequestsLostAtSnapshot within 12 by ["state-machine-safety"];
    a_retry_that_is_applied_twice: RetryAppliedTwice within 30 by ["event-acknowledged", "event-once", "refused-seen", "linearizable"];
    an_expiry_without_epoch: ExpiryWithoutEpoch within 12 by ["session-lives", "session-lost", "session-ended"];
    a_waiter_that_is_woken_twice: WaiterWokenTwice within 12 by ["one-outcome"];
    a_wrong_token_that_releases: WrongTokenReleases within 12 by ["lock-token-phantom", "lock-release", "lock-exclusive", "lock-holder", "linearizable"];
    a_watch_that_skips_a_revision: WatchSkipsRevision within 30 by ["watch-gap"];
    a_recycled_segment_that_is_read_as_new: RecycledSegmentReadAsNew within 12 by ["disk-opens", "durable-is-kept"];
    a_renewal_without_a_quorum: RenewalWithoutQuorum within 12 by ["renewal-by-leader", "session-lives", "session-lost", "session-ended"];
    a_snapshot_that_keeps_the_old_suffix: SnapshotKeepsSuffix within 80 by ["panic, terms never go back along the log", "log-matching", "committed-never-changes"];
}

#[test]
fn the_same_seeds_hold_where_nothing_is_planted() {
    let found = sweep(SHORT_SWEEP..SWEEP);
    assert!(found.is_none(), "{found:?}");
}
