//! One test for each testable sentence of the Raft paper's figure 2 and §5 (Ongaro and Ousterhout,
//! "In search of an understandable consensus algorithm", extended version). Where this core is
//! stricter than the paper (a pre-vote before an election), the test says so.

use quorate::raft::{AppendResponse, AppendResult, Input, Message, ProposeOutcome, RoleKind};

use crate::{
    disk::entry,
    network::{Network, i, ms, n, t},
    speech::{append, granted, heartbeat, matched, pre_granted, refused, timeout_now, vote},
};

/// A follower with these entries, whose disk and peers do only what the test says.
fn follower(terms: &[u64]) -> Network {
    let mut network = Network::with_logs(&[terms, &[], &[]]);
    network.packets.clear();
    network
}

/// Member 1 as the elected leader of three or five with these entries; the others are silent and
/// have everything but its first entry yet to come.
fn leader(size: u64, terms: &[u64]) -> Network {
    let mut logs = vec![terms];
    logs.resize(usize::try_from(size).expect("small"), &[]);
    let mut network = Network::with_logs(&logs);
    network.time_out(1);
    let term = network.term(1).value() + 1;
    (2..=size).for_each(|id| network.inject(id, 1, pre_granted(term)));
    network.persist(1);
    (2..=size).for_each(|id| network.inject(id, 1, granted(term)));
    assert_eq!(network.role(1), RoleKind::Leader);
    network.packets.clear();
    network
}

/// The answers that member 1 gave, with what it held back released by its disk.
fn answers(network: &mut Network) -> Vec<Message> {
    network.persist(1);
    network.sent(1).into_iter().map(|(_, message)| message).collect()
}

fn vote_answer(network: &mut Network, from: u64, request: quorate::raft::VoteRequest) -> bool {
    network.inject(from, 1, Message::VoteRequest(request));
    match answers(network).pop() {
        Some(Message::VoteResponse(response)) => response.granted,
        other => panic!("a vote response, not {other:?}"),
    }
}

fn append_answer(network: &mut Network, request: quorate::raft::AppendRequest) -> AppendResult {
    network.inject(2, 1, Message::AppendRequest(request));
    match answers(network).pop() {
        Some(Message::AppendResponse(response)) => response.result,
        other => panic!("an append response, not {other:?}"),
    }
}

// Figure 2, state.

#[test]
fn persistent_state_is_updated_on_stable_storage_before_responding() {
    let mut network = follower(&[]);
    network.inject(2, 1, Message::VoteRequest(vote(1, 0, 0)));
    assert!(network.sent(1).is_empty(), "no vote before it is on disk");
    network.persist(1);
    assert_eq!(network.node(1).disk.hard.vote, Some(n(2)));
    assert_eq!(network.sent(1).len(), 1);

    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), vec![entry(1, 1)], 0)));
    assert!(network.sent(1).is_empty(), "no acknowledgement before the entry is on disk");
    network.persist(1);
    assert_eq!(network.node(1).disk.entries.len(), 1);
    assert_eq!(network.sent(1).len(), 1);
}

#[test]
fn next_index_starts_after_the_leaders_last_entry_and_match_index_at_zero() {
    let mut network = Network::with_logs(&[&[1, 1], &[], &[]]);
    network.time_out(1);
    network.inject(2, 1, pre_granted(2));
    network.persist(1);
    network.sent(1);
    network.inject(2, 1, granted(2));
    let mut appends = network.sent(1).into_iter().filter_map(|(_, message)| match message {
        Message::AppendRequest(request) => Some(request),
        _ => None,
    });
    let probe = appends.next().expect("it is sent at once");
    assert_eq!((probe.prev_index, probe.prev_term), (i(2), t(1)));
    assert_eq!(network.raft(1).peers()[0].matched, i(0));
}

// Figure 2, AppendEntries, receiver.

#[test]
fn append_1_reply_false_if_term_is_old() {
    let mut network = follower(&[1, 2]);
    let result = append_answer(&mut network, append(1, (2, 2), vec![entry(3, 1)], 0));
    assert_eq!(result, AppendResult::Stale);
    assert_eq!(network.terms(1), [1, 2]);
}

#[test]
fn append_2_reply_false_if_the_log_has_no_such_entry_at_prev_index() {
    let mut network = follower(&[1, 1]);
    let result = append_answer(&mut network, append(2, (3, 2), vec![entry(4, 2)], 0));
    assert!(matches!(result, AppendResult::Conflict { rejected, index, term }
        if (rejected, index, term) == (i(3), i(3), t(0))));
    let result = append_answer(&mut network, append(2, (2, 2), vec![entry(3, 2)], 0));
    assert!(matches!(result, AppendResult::Conflict { rejected, index, term }
        if (rejected, index, term) == (i(2), i(1), t(1))));
    assert_eq!(network.terms(1), [1, 1]);
}

#[test]
fn append_3_delete_a_conflicting_entry_and_all_that_follow_it() {
    let mut network = follower(&[1, 2, 2, 2]);
    let result = append_answer(&mut network, append(3, (1, 1), vec![entry(2, 3)], 0));
    assert_eq!(result, AppendResult::Matched { match_index: i(2) });
    assert_eq!(network.terms(1), [1, 3]);
    assert_eq!(network.node(1).disk.entries.len(), 2, "also on disk");
}

#[test]
fn append_3_an_entry_that_does_not_conflict_deletes_nothing() {
    // An append that was delayed must not cut off what came after it.
    let mut network = follower(&[]);
    let entries: Vec<_> = (1..=3).map(|index| entry(index, 1)).collect();
    append_answer(&mut network, append(1, (0, 0), entries.clone(), 0));
    let result = append_answer(&mut network, append(1, (0, 0), entries[..1].to_vec(), 0));
    assert_eq!(result, AppendResult::Matched { match_index: i(1) });
    assert_eq!(network.terms(1), [1, 1, 1]);
}

#[test]
fn append_4_append_what_is_not_in_the_log_yet() {
    let mut network = follower(&[1, 1]);
    let entries = vec![entry(2, 1), entry(3, 1), entry(4, 2)];
    let result = append_answer(&mut network, append(2, (1, 1), entries, 0));
    assert_eq!(result, AppendResult::Matched { match_index: i(4) });
    assert_eq!(network.terms(1), [1, 1, 1, 2]);
}

#[test]
fn append_5_commit_through_the_leaders_commit_but_not_past_the_last_new_entry() {
    let mut network = follower(&[1, 1, 1, 1]);
    append_answer(&mut network, append(2, (1, 1), vec![], 3));
    assert_eq!(network.commit(1), i(1), "entries 2 to 4 may not be the leader's");
    append_answer(&mut network, append(2, (1, 1), vec![entry(2, 1), entry(3, 1)], 2));
    assert_eq!(network.commit(1), i(2));
}

// Figure 2, RequestVote, receiver.

#[test]
fn vote_1_reply_false_if_term_is_old() {
    let mut network = follower(&[2]);
    assert!(!vote_answer(&mut network, 2, vote(1, 9, 1)));
    assert_eq!(network.term(1), t(2));
}

#[test]
fn vote_2_grant_once_a_term_and_again_to_the_same_candidate() {
    let mut network = follower(&[]);
    assert!(vote_answer(&mut network, 2, vote(1, 0, 0)));
    assert!(!vote_answer(&mut network, 3, vote(1, 0, 0)), "first come, first served");
    assert!(vote_answer(&mut network, 2, vote(1, 0, 0)), "an answer may have been lost");
    assert!(vote_answer(&mut network, 3, vote(2, 0, 0)), "a new term, a new vote");
}

#[test]
fn vote_2_grant_only_if_the_candidates_log_is_at_least_as_up_to_date() {
    // §5.4.1: the later last term wins; with equal last terms the longer log.
    let cases = [
        ((3, 2), true),
        ((4, 2), true),
        ((2, 2), false),
        ((9, 1), false),
        ((1, 3), true),
        ((3, 3), true),
    ];
    for ((index, term), expected) in cases {
        let mut network = follower(&[1, 2, 2]);
        let given = vote_answer(&mut network, 2, vote(4, index, term));
        assert_eq!(given, expected, "a log that ends at {index} in term {term}");
    }
}

// Figure 2, rules for all servers.

#[test]
fn all_servers_apply_what_is_committed_in_order() {
    let mut network = Network::new(3);
    network.elect(1);
    for text in ["a", "b", "c"] {
        network.propose(1, text);
    }
    network.run(ms(100));
    (1..=3).for_each(|id| assert_eq!(network.applied(id), ["a", "b", "c"]));
}

#[test]
fn all_servers_take_over_a_later_term_and_follow() {
    let mut network = leader(3, &[]);
    network.inject(2, 1, refused(5));
    assert_eq!((network.role(1), network.term(1)), (RoleKind::Follower, t(5)));
    network.inject(2, 1, heartbeat(6, 0));
    assert_eq!(network.term(1), t(6));
    network.inject(3, 1, Message::AppendRequest(append(7, (0, 0), vec![], 0)));
    assert_eq!(network.term(1), t(7));
}

// Figure 2, rules for followers.

#[test]
fn followers_start_an_election_after_silence() {
    let mut network = follower(&[]);
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::PreCandidate, "this core asks first (thesis §9.6)");
    network.inject(2, 1, pre_granted(1));
    assert_eq!((network.role(1), network.term(1)), (RoleKind::Candidate, t(1)));
}

#[test]
fn followers_stay_followers_while_they_hear_a_leader_or_grant_a_vote() {
    let mut network = follower(&[]);
    network.inject(2, 1, heartbeat(1, 0));
    for _ in 0..20 {
        network.now = network.now.after(ms(200));
        network.inject(2, 1, heartbeat(1, 0));
        assert_eq!(network.role(1), RoleKind::Follower);
    }
    let before = network.raft(1).next_deadline();
    network.now = network.now.after(ms(299));
    assert!(!vote_answer(&mut network, 3, vote(2, 0, 0)), "the leader is alive");
    assert_eq!(network.raft(1).next_deadline(), before, "a refusal does not prolong the silence");

    let mut network = follower(&[]);
    let before = network.raft(1).next_deadline();
    network.now = network.now.after(ms(299));
    assert!(vote_answer(&mut network, 3, vote(1, 0, 0)));
    assert!(network.raft(1).next_deadline() > before, "a granted vote does");
}

// Figure 2, rules for candidates.

#[test]
fn candidates_increment_the_term_vote_for_themselves_and_ask_everyone() {
    let mut network = follower(&[1]);
    network.time_out(1);
    network.sent(1);
    network.inject(2, 1, pre_granted(2));
    network.persist(1);
    let hard = network.node(1).disk.hard;
    assert_eq!((hard.term, hard.vote), (t(2), Some(n(1))));
    let asked: Vec<(u64, Message)> = network.sent(1);
    let expected = Message::VoteRequest(vote(2, 1, 1));
    assert_eq!(asked, [(2, expected.clone()), (3, expected)]);
}

#[test]
fn candidates_with_a_majority_of_votes_lead() {
    let mut network = Network::new(5);
    network.time_out(1);
    (2..=3).for_each(|id| network.inject(id, 1, pre_granted(1)));
    network.persist(1);
    network.inject(2, 1, granted(1));
    assert_eq!(network.role(1), RoleKind::Candidate, "two of five");
    network.inject(2, 1, granted(1));
    assert_eq!(network.role(1), RoleKind::Candidate, "the same vote twice is one");
    network.inject(3, 1, granted(1));
    assert_eq!(network.role(1), RoleKind::Leader, "three of five");
}

#[test]
fn candidates_follow_a_leader_of_their_term_and_refuse_one_of_an_earlier() {
    let candidate = || {
        let mut network = follower(&[1]);
        network.time_out(1);
        network.inject(2, 1, pre_granted(2));
        assert_eq!(network.role(1), RoleKind::Candidate);
        network.persist(1);
        network.sent(1);
        network
    };
    let mut network = candidate();
    network.inject(3, 1, Message::AppendRequest(append(2, (1, 1), vec![], 0)));
    assert_eq!(network.role(1), RoleKind::Follower);
    assert_eq!(network.raft(1).status().leader, Some(n(3)));

    let mut network = candidate();
    assert_eq!(append_answer(&mut network, append(1, (1, 1), vec![], 0)), AppendResult::Stale);
    assert_eq!(network.role(1), RoleKind::Candidate);
}

#[test]
fn candidates_start_a_new_election_after_an_election_timeout() {
    let mut network = follower(&[]);
    network.time_out(1);
    network.inject(2, 1, pre_granted(1));
    network.persist(1);
    network.sent(1);
    network.time_out(1);
    network.inject(2, 1, pre_granted(2));
    network.persist(1);
    assert_eq!((network.role(1), network.term(1)), (RoleKind::Candidate, t(2)));
    assert!(network.sent(1).contains(&(3, Message::VoteRequest(vote(2, 0, 0)))));
}

// Figure 2, rules for leaders.

#[test]
fn leaders_send_heartbeats_upon_election_and_while_idle() {
    let heartbeats = |network: &mut Network| {
        let sent = network.sent(1);
        sent.iter().filter(|(_, message)| matches!(message, Message::Heartbeat(_))).count()
    };
    let mut network = follower(&[]);
    network.time_out(1);
    network.inject(2, 1, pre_granted(1));
    network.persist(1);
    network.inject(2, 1, granted(1));
    assert_eq!(heartbeats(&mut network), 2, "at once, to both");
    for _ in 0..3 {
        network.now = network.raft(1).next_deadline();
        network.step(1, Input::Tick);
        assert_eq!(heartbeats(&mut network), 2);
    }
}

#[test]
fn leaders_append_commands_and_send_entries_from_next_index_on() {
    let mut network = leader(3, &[1]);
    let ticket = network.propose(1, "a");
    let accepted = ProposeOutcome::Accepted { index: i(3), term: t(2) };
    assert_eq!(network.proposal(1, ticket), Some(&accepted));
    network.inject(2, 1, matched(2, 1));
    let sent = network.sent(1).into_iter().filter(|(to, _)| *to == 2);
    let entries = sent.filter_map(|(_, message)| match message {
        Message::AppendRequest(request) => Some(request),
        _ => None,
    });
    let request = entries.last().expect("an append");
    assert_eq!(request.prev_index, i(1));
    let indexes: Vec<_> = request.entries.iter().map(|entry| entry.index).collect();
    assert_eq!(indexes, [i(2), i(3)]);
}

#[test]
fn leaders_update_next_and_match_index_on_success() {
    let mut network = leader(3, &[1]);
    network.inject(2, 1, matched(2, 2));
    let peer = network.raft(1).peers()[0];
    assert_eq!((peer.matched, peer.next, peer.state), (i(2), i(3), "replicate"));
}

#[test]
fn leaders_decrement_next_index_and_retry_on_a_conflict() {
    // Figure 7: the leader of term 8 and the six logs that it may meet.
    let leader = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[u64]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for other in followers {
        let mut network = Network::with_logs(&[&leader, other, &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6]]);
        network.isolate(2);
        network.elect(1);
        network.heal();
        network.run(ms(500));
        assert_eq!(network.terms(2), network.terms(1), "{other:?}");
        assert_eq!(network.commit(2), network.commit(1));
    }
}

#[test]
fn leaders_go_back_one_exchange_for_each_conflicting_term() {
    // The follower's run of term 2 covers what the leader has of term 1: all of it is skipped.
    let mut network = leader(3, &[1, 1, 1, 1, 1]);
    let result = AppendResult::Conflict { rejected: i(5), index: i(2), term: t(2) };
    let response = AppendResponse { term: t(2), round: 0, result };
    network.inject(2, 1, Message::AppendResponse(response));
    let probes = network.sent(1).into_iter().filter_map(|(_, message)| match message {
        Message::AppendRequest(request) => Some(request.prev_index),
        _ => None,
    });
    assert_eq!(probes.collect::<Vec<_>>(), [i(1)]);
}

#[test]
fn leaders_commit_what_a_majority_has() {
    let mut network = leader(5, &[]);
    network.propose(1, "a");
    network.persist(1);
    network.inject(2, 1, matched(1, 2));
    assert_eq!(network.commit(1), i(0), "two of five");
    network.inject(3, 1, matched(1, 1));
    assert_eq!(network.commit(1), i(1), "three have entry 1, two have entry 2");
    network.inject(4, 1, matched(1, 2));
    assert_eq!(network.commit(1), i(2));
}

// §5.

#[test]
fn section_5_2_a_split_vote_elects_nobody_and_time_elects_somebody() {
    let mut network = Network::new(4);
    // All campaign in the same term, each with its own vote.
    network.now = network.now.after(ms(600));
    (1..=4).for_each(|id| network.step(id, Input::Tick));
    for id in 1..=4 {
        (1..=4).filter(|&other| other != id).for_each(|other| {
            network.inject(other, id, pre_granted(1));
        });
        network.persist(id);
    }
    assert!((1..=4).all(|id| network.role(id) == RoleKind::Candidate));
    network.settle();
    assert_eq!(network.leader(), None);
    let leader = network.await_leader();
    assert!(network.term(leader) > t(1));
}

#[test]
fn section_5_2_election_timeouts_are_spread() {
    let network = Network::new(5);
    let mut deadlines: Vec<_> = (1..=5).map(|id| network.raft(id).next_deadline()).collect();
    deadlines.sort();
    deadlines.dedup();
    assert_eq!(deadlines.len(), 5);
    let spans = deadlines.iter().map(|deadline| deadline.since(network.now));
    assert!(spans.clone().all(|span| span >= ms(300) && span < ms(600)), "{deadlines:?}");
}

#[test]
fn section_5_3_a_leader_never_changes_its_own_log() {
    let mut network = leader(3, &[1, 1]);
    let before = network.terms(1);
    let request = append(network.term(1).value(), (1, 1), vec![entry(2, 1)], 2);
    network.inject(2, 1, Message::AppendRequest(request));
    assert_eq!((network.role(1), network.terms(1)), (RoleKind::Leader, before));
}

#[test]
fn section_5_3_a_leader_retries_until_every_follower_has_everything() {
    let mut network = Network::new(3);
    network.elect(1);
    network.isolate(3);
    network.propose(1, "a");
    network.run(ms(3_000));
    assert_eq!(network.applied(2), ["a"], "a slow member holds nobody up");
    network.heal();
    network.run(ms(500));
    assert_eq!(network.applied(3), ["a"]);
}

#[test]
fn section_5_4_2_entries_of_earlier_terms_are_not_committed_by_counting() {
    let mut network = leader(5, &[1, 2]);
    network.persist(1);
    for id in 2..=5 {
        network.inject(id, 1, matched(3, 2));
    }
    assert_eq!(network.commit(1), i(0), "all have entry 2, and it could still be overwritten");
    network.inject(2, 1, matched(3, 3));
    network.inject(3, 1, matched(3, 3));
    assert_eq!(network.commit(1), i(3), "entry 3 is of the leader's term and takes it along");
}

#[test]
fn section_5_5_requests_are_idempotent_and_a_crashed_follower_is_asked_again() {
    let mut network = follower(&[]);
    let request = append(1, (0, 0), vec![entry(1, 1), entry(2, 1)], 1);
    let first = append_answer(&mut network, request.clone());
    assert_eq!(append_answer(&mut network, request), first);
    assert_eq!(network.terms(1), [1, 1]);

    let mut network = Network::new(3);
    network.elect(1);
    network.crash_silently(2);
    network.propose(1, "a");
    network.run(ms(1_000));
    network.restart(2);
    network.run(ms(500));
    assert_eq!(network.applied(2), ["a"]);
}

#[test]
fn section_8_a_new_leader_commits_an_entry_of_its_own_at_once() {
    let mut network = Network::with_logs(&[&[1, 1], &[1, 1], &[1, 1]]);
    network.elect(1);
    assert_eq!((network.terms(1), network.commit(1)), (vec![1, 1, 2], i(3)));
}

#[test]
fn thesis_3_10_a_target_that_is_told_campaigns_without_waiting() {
    let mut network = follower(&[]);
    network.inject(2, 1, heartbeat(1, 0));
    network.inject(2, 1, timeout_now(1));
    assert_eq!((network.role(1), network.term(1)), (RoleKind::Candidate, t(2)));
    network.inject(3, 1, timeout_now(1));
    assert_eq!(network.term(1), t(2), "an old word, or a stranger's, changes nothing");
}
