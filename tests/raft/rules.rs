//! One test, or a few, for each rule of the core that was learnt from a bug that shipped somewhere:
//! elections, votes, terms and memberships. `rules_serving.rs` has the rest. The names carry the
//! rules' numbers; rule 6 is tested beside `quorum.rs`.

use quorate::{
    raft::{
        AppendResult, Config, Entry, HardState, Input, LogStart, Membership, Message, Payload,
        Restored, RoleKind, TransferOutcome,
    },
    types::LogTime,
};

use crate::{
    disk::{Snapshot, entry},
    network::{Network, i, ms, n, t},
    speech::{append, granted, heartbeat, pre_granted, pre_refused, pre_vote, vote},
};

/// Voters 1 to 3 and outgoing ones 3 to 5.
fn joint() -> Membership {
    Membership { outgoing: Membership::of([3, 4, 5].map(n)).voters, ..voters(3) }
}

fn voters(size: u64) -> Membership {
    Membership::of((1..=size).map(n))
}

fn change(index: u64, term: u64, membership: Membership) -> Entry {
    Entry {
        index: i(index),
        term: t(term),
        time: LogTime::ZERO,
        payload: Payload::Membership(membership),
    }
}

fn memberships(network: &Network, id: u64) -> usize {
    let entries = network.raft(id).entries();
    entries.filter(|entry| matches!(entry.payload, Payload::Membership(_))).count()
}

/// The last vote response that a member sent.
fn vote_response(network: &mut Network, id: u64) -> quorate::raft::VoteResponse {
    network.persist(id);
    let responses = network.sent(id).into_iter().filter_map(|(_, message)| match message {
        Message::VoteResponse(response) => Some(response),
        _ => None,
    });
    responses.last().expect("it answers")
}

#[test]
fn rule_01_no_membership_is_proposed_before_an_entry_of_the_leaders_term_is_committed() {
    let restored = Restored { membership: joint(), ..Restored::default() };
    let mut network = Network::of(5, &restored, |_| {});
    network.disk_stands.extend([2, 3, 4, 5].map(n));
    network.time_out(1);
    network.settle();
    // Their votes reach the disk, and nothing else does.
    for id in 2..=5 {
        network.persist_one(id);
    }
    network.settle();
    assert_eq!(network.role(1), RoleKind::Leader);
    network.step(1, Input::Applied { index: i(0) });
    assert_eq!(memberships(&network, 1), 0, "its first entry is not committed");
    network.disk_stands.clear();
    network.settle();
    assert_eq!(memberships(&network, 1), 1);
    assert_eq!(network.raft(1).status().membership, voters(3));
}

#[test]
fn rule_02_no_campaign_with_a_committed_membership_that_is_not_applied() {
    // The disk says that entry 2 was committed; the state had come to entry 1.
    let hard = HardState { term: t(1), vote: None, commit: i(2) };
    let entries = vec![entry(1, 1), change(2, 1, voters(3)), entry(3, 1)];
    let membership = Membership::of([n(1)]);
    let restored = Restored { hard, entries, applied: i(1), membership, ..Restored::default() };
    let mut network = Network::of(3, &restored, |_| {});
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::Follower, "alone it would win, and must not");
    while network.apply_one(1) {}
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::PreCandidate);
    assert_eq!(network.raft(1).status().membership, voters(3));
}

#[test]
fn rule_02_no_campaign_before_a_restart_has_applied_what_was_committed() {
    let hard = HardState { term: t(1), vote: None, commit: i(2) };
    let entries = vec![entry(1, 1), entry(2, 1), entry(3, 1)];
    let restored = Restored { hard, entries, membership: voters(3), ..Restored::default() };
    let mut network = Network::of(3, &restored, |_| {});
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::Follower);
    while network.apply_one(1) {}
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::PreCandidate);
}

#[test]
fn rule_02_no_campaign_while_a_membership_learnt_later_is_not_applied() {
    let restored = Restored { membership: Membership::of([n(1)]), ..Restored::default() };
    let mut network = Network::of(3, &restored, |_| {});
    let entries = vec![entry(1, 1), change(2, 1, voters(3))];
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), entries, 2)));
    network.persist(1);
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::Follower);
    while network.apply_one(1) {}
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::PreCandidate);
}

#[test]
fn rule_03_a_snapshot_replaces_the_membership_and_what_was_pending() {
    let mut network = Network::new(3);
    // A change is in the log and committed, but not applied when the snapshot overtakes it.
    let entries = vec![entry(1, 1), change(2, 1, voters(5))];
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), entries, 2)));
    network.persist(1);
    let start = LogStart { index: i(9), term: t(1), time: LogTime::ZERO };
    let membership = Membership::of([1, 2].map(n));
    let snapshot = Snapshot { start, membership: membership.clone(), state: Vec::new() };
    network.receive_snapshot(n(2), n(1), t(1), snapshot);
    assert_eq!(network.raft(1).status().membership, membership);
    network.persist(1);
    while network.apply_one(1) {}
    assert_eq!(network.raft(1).status().membership, membership);
    assert_eq!(network.raft(1).status().applied, i(9));
    network.inject(2, 1, Message::AppendRequest(append(1, (9, 1), vec![entry(10, 1)], 10)));
    network.persist(1);
    while network.apply_one(1) {}
    assert_eq!(network.raft(1).status().applied, i(10));
}

#[test]
fn rule_03_a_stale_snapshot_changes_nothing() {
    let mut network = Network::new(3);
    let entries = (1..=3).map(|index| entry(index, 1)).collect();
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), entries, 3)));
    network.persist(1);
    while network.apply_one(1) {}
    let before = network.raft(1).status();
    let start = LogStart { index: i(2), term: t(1), time: LogTime::ZERO };
    let snapshot = Snapshot { start, membership: voters(5), state: Vec::new() };
    network.receive_snapshot(n(2), n(1), t(1), snapshot);
    assert_eq!(network.raft(1).status(), before);
    assert!(network.node(1).pieces.is_empty());
}

#[test]
fn rule_03_a_snapshot_without_a_membership_leaves_the_founding_one_in_force() {
    let mut network = Network::new(3);
    let start = LogStart { index: i(9), term: t(1), time: LogTime::ZERO };
    let snapshot = Snapshot { start, membership: Membership::default(), state: Vec::new() };
    network.receive_snapshot(n(2), n(1), t(1), snapshot);
    assert_eq!(network.raft(1).status().membership, voters(3));
}

#[test]
fn rule_03_a_snapshot_of_a_former_leader_is_taken_all_the_same() {
    let mut network = Network::new(3);
    network.inject(3, 1, heartbeat(4, 0));
    let start = LogStart { index: i(9), term: t(1), time: LogTime::ZERO };
    let snapshot = Snapshot { start, membership: voters(3), state: Vec::new() };
    network.receive_snapshot(n(2), n(1), t(1), snapshot);
    let status = network.raft(1).status();
    assert_eq!(
        (status.commit, status.leader),
        (i(9), Some(n(3))),
        "and its sender is not followed"
    );
}

#[test]
fn rule_04_a_vote_request_is_evidence_that_one_is_a_voter() {
    // Member 3 was promoted, but has not heard of it.
    let membership = Membership { learners: [n(3)].into(), ..voters(2) };
    let restored = Restored { membership, ..Restored::default() };
    let mut network = Network::of(3, &restored, |_| {});
    network.inject(1, 3, Message::VoteRequest(vote(1, 0, 0)));
    assert!(vote_response(&mut network, 3).granted);
    network.time_out(3);
    assert_eq!(network.role(3), RoleKind::Follower, "but it does not campaign");
}

#[test]
fn rule_04_a_stranger_is_refused_and_changes_nothing() {
    let mut network = Network::new(3);
    let before = (network.raft(1).status(), network.raft(1).hard_state());
    for request in [vote(9, 99, 9), pre_vote(9, 99, 9)] {
        network.inject(7, 1, Message::VoteRequest(request));
    }
    assert_eq!((network.raft(1).status(), network.raft(1).hard_state()), before);
    let mut stranger = Config::new(n(7));
    stranger.seed = 7;
    let restored = Restored { membership: voters(3), ..Restored::default() };
    let members = (1..=3).map(|id| (Config::new(n(id)), restored.clone()));
    let mut network = Network::restored(members.chain([(stranger, restored.clone())]));
    network.inject(7, 1, Message::VoteRequest(vote(9, 99, 9)));
    let response = vote_response(&mut network, 1);
    let said = (response.granted, response.reason, response.term);
    assert_eq!(said, (false, "not a member", t(0)));
}

#[test]
fn rule_05_any_leader_finishes_a_joint_membership() {
    let restored = Restored { membership: joint(), ..Restored::default() };
    let mut network = Network::of(5, &restored, |_| {});
    network.elect(2);
    network.run(ms(200));
    for id in 1..=3 {
        assert_eq!(network.raft(id).status().membership, voters(3), "member {id}");
    }
}

#[test]
fn rule_05_a_joint_membership_needs_both_majorities() {
    let restored = Restored { membership: joint(), ..Restored::default() };
    let mut network = Network::of(5, &restored, |_| {});
    network.isolate(4);
    network.isolate(5);
    network.run(ms(3_000));
    assert_eq!(network.leader(), None, "1, 2 and 3 are a majority of the new voters only");
    network.heal();
    network.await_leader();
}

#[test]
fn rule_05_a_leader_that_no_longer_votes_hands_over() {
    let restored = Restored { membership: joint(), ..Restored::default() };
    let mut network = Network::of(5, &restored, |_| {});
    network.elect(5);
    network.run(ms(100));
    let leader = network.leader().expect("it handed over, nobody waited for a silence");
    assert!((1..=3).contains(&leader), "{leader}");
    assert_eq!(network.role(5), RoleKind::Follower);
}

#[test]
fn rule_07_pre_vote_rejections_carry_the_term() {
    let mut network = Network::with_logs(&[&[1], &[1], &[1]]);
    network.inject(3, 2, heartbeat(4, 0));
    network.time_out(1);
    network.deliver_to(2);
    network.deliver_to(1);
    assert_eq!((network.role(1), network.term(1)), (RoleKind::Follower, t(4)), "it is adopted");
    assert!(network.raft(1).next_deadline() > network.now, "and it can ask again in term 5");
}

#[test]
fn rule_07_pre_vote_grants_echo_the_requested_term() {
    let mut network = Network::with_logs(&[&[1], &[1], &[1]]);
    network.inject(2, 1, Message::VoteRequest(pre_vote(9, 1, 1)));
    let response = vote_response(&mut network, 1);
    assert_eq!((response.granted, response.term), (true, t(9)));
    assert_eq!(network.raft(1).hard_state().term, t(1), "nothing is recorded");
    assert_eq!(network.raft(1).hard_state().vote, None);
}

#[test]
fn rule_07_a_long_log_in_an_old_term_and_a_short_log_in_a_new_one_elect_somebody() {
    let logs: [&[u64]; 3] = [&[1, 1, 1], &[1], &[1]];
    let mut network = Network::with_logs(&logs);
    network.inject(3, 2, heartbeat(7, 0));
    network.checks.forged = false;
    network.crash(3);
    let leader = network.await_leader();
    assert_eq!(leader, 1, "only its log is up to date");
    assert!(network.term(1) > t(7));
}

#[test]
fn rule_07_a_grant_counts_for_the_term_that_it_names_only() {
    let mut network = Network::with_logs(&[&[3], &[3], &[3]]);
    network.time_out(1);
    network.inject(2, 1, pre_granted(3));
    assert_eq!(network.role(1), RoleKind::PreCandidate);
    network.inject(2, 1, pre_granted(4));
    assert_eq!(network.role(1), RoleKind::Candidate);
    network.persist(1);
    network.inject(2, 1, granted(3));
    network.inject(2, 1, pre_granted(4));
    assert_eq!(network.role(1), RoleKind::Candidate);
    network.inject(2, 1, granted(4));
    assert_eq!(network.role(1), RoleKind::Leader);
}

#[test]
fn rule_08_a_leader_without_a_quorum_steps_down() {
    let mut network = Network::new(3);
    network.elect(1);
    network.isolate(1);
    network.run(ms(550));
    assert_eq!(network.role(1), RoleKind::Leader, "not before an election timeout");
    network.run(ms(150));
    assert_ne!(network.role(1), RoleKind::Leader);
}

#[test]
fn rule_08_a_member_with_a_later_term_comes_back_in() {
    let mut network = Network::new(3);
    network.elect(1);
    // It was told to campaign while nobody heard it.
    network.isolate(3);
    network.transfer(1, Some(3));
    network.checks.forged = true;
    network.step(3, Input::Message { from: n(1), message: crate::speech::timeout_now(1) });
    assert_eq!(network.term(3), t(2));
    network.checks.forged = false;
    network.run(ms(1_000));
    network.heal();
    let leader = network.await_leader();
    network.propose(leader, "a");
    network.run(ms(200));
    (1..=3).for_each(|id| assert_eq!(network.applied(id), ["a"], "member {id}"));
}

#[test]
fn rule_08_a_member_that_hears_its_leader_refuses_others() {
    let mut network = Network::new(3);
    network.elect(1);
    for request in [pre_vote(9, 99, 9), vote(9, 99, 9)] {
        network.inject(3, 2, Message::VoteRequest(request));
        let response = vote_response(&mut network, 2);
        let said = (response.granted, response.reason, response.term);
        assert_eq!(said, (false, "a leader is alive", t(1)));
    }
    let asked = quorate::raft::VoteRequest { transfer: true, ..vote(9, 99, 9) };
    network.inject(3, 2, Message::VoteRequest(asked));
    assert!(vote_response(&mut network, 2).granted, "unless the leader asked for it");
}

#[test]
fn rule_09_a_transfer_is_given_up_when_its_target_may_no_longer_lead() {
    let hard = HardState { term: t(1), ..HardState::default() };
    let left = Membership { learners: [n(3)].into(), ..voters(2) };
    let entries = vec![change(1, 1, left)];
    let restored = Restored { hard, entries, membership: voters(3), ..Restored::default() };
    let mut network = Network::of(3, &restored, |_| {});
    network.isolate(3);
    network.time_out(1);
    network.deliver_to(2);
    network.deliver_to(1);
    network.persist(1);
    network.deliver_to(2);
    network.persist(2);
    network.deliver_to(1);
    let ticket = network.transfer(1, Some(3));
    assert_eq!(network.transfer_outcome(1, ticket), None);
    network.settle();
    assert_eq!(network.transfer_outcome(1, ticket), Some(&TransferOutcome::NotAVoter));
    assert_eq!(network.role(1), RoleKind::Leader, "and goes on to lead");
}

#[test]
fn rule_13_no_vote_leaves_before_it_is_durable() {
    let mut network = Network::new(3);
    network.inject(2, 1, Message::VoteRequest(vote(1, 0, 0)));
    assert!(network.sent(1).is_empty());
    // The request comes again before the disk is done: still nothing leaves.
    network.inject(2, 1, Message::VoteRequest(vote(1, 0, 0)));
    assert!(network.sent(1).is_empty());
    network.persist(1);
    assert_eq!(network.sent(1).len(), 2);
    // Once it is durable, a repeated answer leaves at once.
    network.inject(2, 1, Message::VoteRequest(vote(1, 0, 0)));
    assert_eq!(network.sent(1).len(), 1);
}

#[test]
fn rule_13_no_request_for_a_vote_leaves_before_ones_own_is_durable() {
    let mut network = Network::new(3);
    network.time_out(1);
    network.sent(1);
    network.inject(2, 1, pre_granted(1));
    assert_eq!(network.role(1), RoleKind::Candidate);
    assert!(network.sent(1).is_empty());
    network.inject(2, 1, granted(1));
    network.inject(3, 1, granted(1));
    assert_eq!(network.role(1), RoleKind::Candidate, "its own vote is not durable");
    network.persist_one(1);
    assert_eq!(network.role(1), RoleKind::Leader);
}

#[test]
fn rule_13_no_append_is_acknowledged_before_it_is_durable() {
    let mut network = Network::new(3);
    let entries = vec![entry(1, 1), entry(2, 1)];
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), entries.clone(), 0)));
    // A repetition adds nothing, and must not be acknowledged earlier either.
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), entries, 0)));
    assert!(network.sent(1).is_empty());
    network.persist(1);
    assert_eq!(network.sent(1).len(), 2);
}

#[test]
fn rule_13_a_snapshot_is_not_acknowledged_before_the_log_has_recorded_it() {
    let mut network = Network::new(3);
    network.inject(2, 1, heartbeat(1, 0));
    network.persist(1);
    network.sent(1);
    let start = LogStart { index: i(9), term: t(1), time: LogTime::ZERO };
    let snapshot = Snapshot { start, membership: voters(3), state: Vec::new() };
    network.receive_snapshot(n(2), n(1), t(1), snapshot);
    network.inject(2, 1, Message::AppendRequest(append(1, (9, 1), vec![], 9)));
    assert!(network.sent(1).is_empty(), "a crash would bring the old log back");
    assert_eq!(network.node(1).writes[0].reset_to, Some(start));
    network.persist(1);
    assert_eq!(network.sent(1).len(), 1);
}

#[test]
fn rule_13_a_heartbeat_commits_nothing_that_its_leader_did_not_see_matched() {
    let mut network = Network::with_logs(&[&[1, 1], &[], &[]]);
    network.inject(2, 1, heartbeat(2, 2));
    assert_eq!(network.commit(1), i(0), "these entries may not be the leader's");
    network.inject(2, 1, Message::AppendRequest(append(2, (1, 1), vec![], 0)));
    network.inject(2, 1, heartbeat(2, 2));
    assert_eq!(network.commit(1), i(1));
}

#[test]
fn rule_16_an_acknowledged_entry_implies_a_durable_term() {
    // The entries are durable from an earlier term; the term of the leader that they match is not.
    let mut network = Network::with_logs(&[&[1, 1], &[], &[]]);
    network.inject(2, 1, Message::AppendRequest(append(3, (2, 1), vec![], 0)));
    assert!(network.sent(1).is_empty(), "a crash could forget term 3 and follow term 2");
    network.persist(1);
    assert_eq!(network.node(1).disk.hard.term, t(3));
    assert_eq!(network.sent(1).len(), 1);
}

#[test]
fn rule_16_a_write_carries_term_vote_and_entries_together() {
    let mut network = Network::new(3);
    let request = append(4, (0, 0), vec![entry(1, 2)], 1);
    network.inject(2, 1, Message::AppendRequest(request));
    let writes = &network.node(1).writes;
    assert_eq!(writes.len(), 1);
    let hard = HardState { term: t(4), vote: None, commit: i(1) };
    assert_eq!((writes[0].hard, writes[0].entries.len()), (hard, 1));
}

#[test]
fn rule_17_nothing_is_truncated_below_the_commit_index() {
    let mut network = Network::new(3);
    let entries = (1..=3).map(|index| entry(index, 1)).collect();
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), entries, 2)));
    network.persist(1);
    network.sent(1);
    // An old append that conflicts where everything is committed, as a broken peer would send it.
    let entries = vec![entry(1, 2), entry(2, 2), entry(3, 2)];
    network.inject(2, 1, Message::AppendRequest(append(2, (0, 0), entries, 0)));
    assert_eq!(network.terms(1), [1, 1, 2], "only entry 3 gives way");
}

#[test]
fn rule_17_the_vote_resets_only_with_the_term() {
    let mut network = Network::new(3);
    network.elect(1);
    network.isolate(1);
    network.run(ms(700));
    assert_ne!(network.role(1), RoleKind::Leader, "it stepped down in its own term");
    let hard = network.raft(1).hard_state();
    assert_eq!((hard.term, hard.vote), (t(1), Some(n(1))));
    network.inject(2, 1, pre_refused(2));
    let hard = network.raft(1).hard_state();
    assert_eq!((hard.term, hard.vote), (t(2), None));
}

#[test]
fn rule_17_a_malformed_append_changes_nothing() {
    let mut network = Network::new(3);
    let broken = [
        append(1, (0, 0), vec![entry(2, 1)], 0),
        append(1, (0, 0), vec![entry(1, 2)], 0),
        append(2, (0, 0), vec![entry(1, 2), entry(2, 1)], 0),
    ];
    for request in broken {
        network.inject(2, 1, Message::AppendRequest(request));
        assert!(network.terms(1).is_empty());
    }
    network.inject(2, 1, Message::AppendRequest(append(2, (0, 0), vec![entry(1, 2)], 0)));
    network.persist(1);
    let answers = network.sent(1);
    let (_, Message::AppendResponse(response)) = &answers[answers.len() - 1] else {
        panic!("an append response, not {answers:?}")
    };
    assert_eq!(response.result, AppendResult::Matched { match_index: i(1) });
}

#[test]
fn rule_28_an_early_vote_is_given_only_by_a_peer_that_lost_the_leader_too() {
    let early = quorate::raft::VoteRequest { leader_lost: true, ..pre_vote(2, 1, 1) };
    let mut network = Network::new(3);
    network.elect(1);
    network.inject(3, 2, Message::VoteRequest(early.clone()));
    assert!(!vote_response(&mut network, 2).granted, "it still has its connection");
    network.step(2, Input::Disconnected { peer: n(1) });
    network.inject(3, 2, Message::VoteRequest(early.clone()));
    assert!(vote_response(&mut network, 2).granted);
    network.step(2, Input::Connected { peer: n(1) });
    network.inject(3, 2, Message::VoteRequest(early));
    assert!(!vote_response(&mut network, 2).granted, "the connection stands again");
}

#[test]
fn rule_28_a_broken_connection_elects_a_leader_within_two_heartbeats() {
    let mut network = Network::new(3);
    network.elect(1);
    network.run(ms(130));
    network.crash(1);
    network.run(ms(100));
    assert!(network.leader().is_some_and(|leader| leader != 1));
}

#[test]
fn rule_28_where_lease_reads_are_allowed_a_broken_connection_shortens_nothing() {
    let restored = Restored { membership: voters(3), ..Restored::default() };
    let mut network = Network::of(3, &restored, |config| config.early_vote = false);
    network.elect(1);
    network.run(ms(100));
    network.crash(1);
    network.run(ms(200));
    assert_eq!(network.leader(), None);
    network.await_leader();
}

#[test]
fn rule_28_where_lease_reads_are_allowed_a_restarted_voter_waits_out_an_election_timeout() {
    let hard = HardState { term: t(3), ..HardState::default() };
    let restored = Restored { hard, membership: voters(3), ..Restored::default() };
    let mut network = Network::of(3, &restored, |config| config.early_vote = false);
    network.inject(2, 1, Message::VoteRequest(vote(4, 0, 0)));
    let response = vote_response(&mut network, 1);
    assert_eq!((response.granted, response.reason), (false, "just restarted"));
    network.now = network.now.after(ms(600));
    network.inject(2, 1, Message::VoteRequest(vote(4, 0, 0)));
    assert!(vote_response(&mut network, 1).granted);
}
