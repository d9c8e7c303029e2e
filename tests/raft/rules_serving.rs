//! The rules of the core that are about serving: reads, acknowledgements, disks that stand, and
//! ways out of every pause. See `rules.rs`.

use quorate::{
    raft::{
        Config, HardMark, HardState, Input, LogMark, Membership, Message, ProposeOutcome,
        ReadOutcome, Restored, RoleKind, TransferOutcome,
    },
    types::LogTime,
};

use crate::{
    disk::entry,
    network::{Network, i, ms, n, t},
    speech::{append, heartbeat, heartbeat_response, matched, vote},
};

#[test]
fn rule_11_a_read_before_the_first_commit_of_the_term_is_queued() {
    let mut network = Network::with_logs(&[&[1, 1], &[1, 1], &[1, 1]]);
    network.disk_stands.insert(n(2));
    network.disk_stands.insert(n(3));
    network.time_out(1);
    network.settle();
    for id in 2..=3 {
        network.persist_one(id);
    }
    network.settle();
    assert_eq!(network.role(1), RoleKind::Leader);
    let ticket = network.read(1);
    network.run(ms(300));
    assert_eq!(network.read_outcome(1, ticket), None, "heartbeats are answered, and it waits");
    network.disk_stands.clear();
    network.settle();
    let covers_the_first_entry = ReadOutcome::Ready { index: i(3) };
    assert_eq!(network.read_outcome(1, ticket), Some(&covers_the_first_entry));
}

#[test]
fn rule_12_a_read_joins_only_a_round_that_was_sent_after_it_arrived() {
    let mut network = Network::new(3);
    network.elect(1);
    let first = network.read(1);
    let sent = network.sent(1);
    let round = sent.iter().find_map(|(_, message)| match message {
        Message::Heartbeat(heartbeat) => Some(heartbeat.round),
        _ => None,
    });
    let round = round.expect("a round begins at once, not at the next heartbeat");
    let second = network.read(1);
    assert!(network.sent(1).is_empty(), "the second waits for the round under way");
    network.inject(2, 1, heartbeat_response(1, round));
    assert!(network.read_outcome(1, first).is_some());
    assert_eq!(network.read_outcome(1, second), None, "that round was sent before it arrived");
    network.inject(3, 1, heartbeat_response(1, round));
    assert_eq!(network.read_outcome(1, second), None);
    network.inject(3, 1, heartbeat_response(1, round + 1));
    assert!(network.read_outcome(1, second).is_some());
}

#[test]
fn rule_12_answers_bind_to_term_and_round() {
    let mut network = Network::new(3);
    network.elect(1);
    network.isolate(1);
    let ticket = network.read(1);
    // An answer of another term, and one to a round that was never begun and is taken for no more
    // than the last one that was.
    network.inject(2, 1, heartbeat_response(0, u64::MAX));
    assert_eq!(network.read_outcome(1, ticket), None);
    network.run(ms(2_000));
    let not_leader = ReadOutcome::NotLeader { leader: None };
    assert_eq!(network.read_outcome(1, ticket), Some(&not_leader), "one outcome, always");
}

#[test]
fn rule_12_rounds_are_never_used_twice_across_terms() {
    let mut network = Network::new(3);
    let mut seen = std::collections::BTreeSet::new();
    for term in 1..=3 {
        network.elect(1);
        assert_eq!(network.term(1), t(term * 2 - 1));
        network.read(1);
        let rounds = network.sent(1).into_iter().filter_map(|(to, message)| match message {
            Message::Heartbeat(heartbeat) if to == 2 => Some(heartbeat.round),
            _ => None,
        });
        for round in rounds {
            assert!(seen.insert(round), "round {round} again in term {term}");
        }
        network.elect(2);
    }
}

#[test]
fn rule_12_a_paused_leader_serves_no_stale_read() {
    let mut network = Network::new(3);
    network.elect(1);
    // It is stopped: nothing reaches it, and the others go on.
    network.isolate(1);
    let stopped = network.now;
    for _ in 0..40 {
        network.now = network.now.after(ms(50));
        (2..=3).for_each(|id| network.step(id, Input::Tick));
        network.settle();
    }
    let leader = (2..=3).find(|&id| network.role(id) == RoleKind::Leader).expect("one leads");
    network.propose(leader, "new");
    network.settle();
    assert_eq!(network.raft(1).status().role, RoleKind::Leader, "it woke and knows nothing");
    let now = std::mem::replace(&mut network.now, stopped);
    let ticket = network.read(1);
    network.now = now;
    network.heal();
    network.run(ms(300));
    assert!(matches!(network.read_outcome(1, ticket), Some(ReadOutcome::NotLeader { .. })));
}

#[test]
fn rule_14_a_leader_alone_commits_only_what_its_disk_reports() {
    let mut network = Network::new(1);
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::Candidate, "its own vote is a vote like any other");
    network.persist(1);
    assert_eq!(network.role(1), RoleKind::Leader);
    network.settle();
    let before = network.commit(1);
    network.propose(1, "a");
    assert_eq!(network.commit(1), before);
    network.persist(1);
    assert_eq!(network.commit(1), before.next());
    let ticket = network.read(1);
    let at_once = ReadOutcome::Ready { index: before.next() };
    assert_eq!(network.read_outcome(1, ticket), Some(&at_once));
}

#[test]
fn rule_14_followers_commit_without_the_leaders_disk() {
    let mut network = Network::new(3);
    network.elect(1);
    network.disk_stands.insert(n(1));
    network.propose(1, "a");
    network.settle();
    assert_eq!(network.commit(1), i(2), "two of three have it on disk");
    assert_eq!(network.applied(2), ["a"]);
    assert!(network.applied(1).is_empty(), "the leader applies only what it has on disk");
    network.disk_stands.clear();
    network.settle();
    assert_eq!(network.applied(1), ["a"]);
}

#[test]
fn rule_15_a_late_completion_of_a_truncated_entry_counts_for_nothing() {
    let mut network = Network::new(3);
    let old: Vec<_> = (1..=3).map(|index| entry(index, 1)).collect();
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), old, 0)));
    // Before that is durable, another leader replaces entries 2 and 3.
    let new = vec![entry(2, 2), entry(3, 2)];
    network.inject(3, 1, Message::AppendRequest(append(2, (1, 1), new, 3)));
    network.sent(1);
    // The disk finishes the first write only.
    let hard = HardMark { term: t(1), vote: None };
    let log = LogMark { leader_term: t(1), index: i(3) };
    network.step(1, Input::Persisted { hard, log });
    assert!(network.sent(1).is_empty(), "nothing of term 2 is acknowledged");
    assert!(network.node(1).pieces.is_empty(), "and nothing of it is applied");
    network.persist(1);
    let to_the_second = network.sent(1).into_iter().filter(|(to, _)| *to == 3);
    assert_eq!(to_the_second.collect::<Vec<_>>(), [(3, matched(2, 3))]);
    assert_eq!(network.node(1).pieces.len(), 1);
}

#[test]
fn rule_15_entries_of_an_earlier_leader_are_covered_by_the_next_ones_mark() {
    let mut network = Network::new(3);
    let entries: Vec<_> = (1..=2).map(|index| entry(index, 1)).collect();
    network.inject(2, 1, Message::AppendRequest(append(1, (0, 0), entries.clone(), 0)));
    // The next leader's log has the same entries; they are still on their way to the disk, and so
    // is its term.
    network.inject(3, 1, heartbeat(2, 0));
    network.inject(3, 1, Message::AppendRequest(append(2, (0, 0), entries, 0)));
    network.sent(1);
    assert_eq!(network.node(1).writes.len(), 3, "the mark passes through the disk's queue");
    network.persist(1);
    assert!(network.sent(1).contains(&(3, matched(2, 2))));
}

#[test]
fn rule_19_an_accepted_proposal_may_commit_after_its_leader_is_gone() {
    let mut network = Network::new(3);
    network.elect(1);
    let ticket = network.propose(1, "ghost");
    network.deliver_to(2);
    network.persist(2);
    let accepted = ProposeOutcome::Accepted { index: i(2), term: t(1) };
    assert_eq!(network.proposal(1, ticket), Some(&accepted), "accepted says nothing of the end");
    network.crash(1);
    network.await_leader();
    assert_eq!(network.applied(2), ["ghost"]);
}

#[test]
fn rule_19_a_proposal_to_another_leader_than_expected_is_certainly_not_made() {
    let mut network = Network::new(3);
    network.elect(1);
    let tickets = [network.ask(1), network.ask(1)];
    let commands = tickets.map(|ticket| (ticket, "a".into())).to_vec();
    let expected_term = Some(t(7));
    network.step(1, Input::Propose { time: LogTime::ZERO, expected_term, commands });
    let refused = ProposeOutcome::NotLeader { leader: Some(n(1)) };
    assert!(tickets.iter().all(|&ticket| network.proposal(1, ticket) == Some(&refused)));
    let ticket = network.propose(2, "b");
    assert_eq!(network.proposal(2, ticket), Some(&refused), "it names who leads");
    assert_eq!(network.terms(1), [1]);
}

#[test]
fn rule_21_a_leader_whose_disk_stands_falls_silent_and_hands_over() {
    let mut network = Network::new(3);
    network.elect(1);
    network.disk_stands.insert(n(1));
    network.propose(1, "a");
    network.settle();
    network.step(1, Input::DiskStalled(true));
    network.run(ms(30));
    let leader = network.leader().expect("the best of the others was told");
    assert_ne!(leader, 1, "nobody waited for a silence");
    // It holds its vote back: its disk stands. The others do without.
    network.run(ms(200));
    assert_eq!(network.role(1), RoleKind::Follower);
    network.propose(leader, "b");
    network.run(ms(200));
    assert_eq!(network.applied(leader), ["a", "b"]);
}

#[test]
fn rule_21_without_anyone_to_hand_over_to_it_steps_down_and_does_not_campaign() {
    let mut network = Network::new(3);
    network.elect(1);
    network.isolate(1);
    network.run(ms(590));
    network.step(1, Input::DiskStalled(true));
    let heartbeats = network.sent(1).len();
    network.run(ms(700));
    assert_eq!(network.role(1), RoleKind::Follower, "{heartbeats} messages before");
    network.run(ms(2_000));
    assert_eq!(network.role(1), RoleKind::Follower);
    network.step(1, Input::DiskStalled(false));
    network.run(ms(700));
    assert_eq!(network.role(1), RoleKind::PreCandidate);

    let mut alone = Network::new(1);
    alone.elect(1);
    alone.step(1, Input::DiskStalled(true));
    assert_eq!(alone.role(1), RoleKind::Follower);
    alone.run(ms(2_000));
    assert_eq!(alone.role(1), RoleKind::Follower);
    alone.step(1, Input::DiskStalled(false));
    alone.await_leader();
}

#[test]
fn rule_22_a_lost_probe_is_sent_again() {
    let mut network = Network::new(3);
    network.elect(1);
    network.crash_silently(3);
    network.restart(3);
    network.packets.clear();
    assert_eq!(network.raft(1).peers()[1].state, "probe");
    network.run(ms(200));
    assert_eq!(network.raft(1).peers()[1].state, "replicate");
}

#[test]
fn rule_22_lost_appends_and_lost_answers_are_made_up_for() {
    for lose_the_answer in [false, true] {
        let mut network = Network::new(2);
        network.elect(1);
        network.propose(1, "a");
        if lose_the_answer {
            network.deliver_to(2);
            network.persist(2);
        }
        network.packets.clear();
        network.settle();
        assert_eq!(network.commit(1), i(1));
        network.run(ms(300));
        assert_eq!(network.commit(1), i(2), "the answer was lost: {lose_the_answer}");
    }
}

#[test]
fn rule_22_a_full_window_opens_again_after_a_loss() {
    let restored = Restored { membership: Membership::of([1, 2].map(n)), ..Restored::default() };
    let mut network = Network::of(2, &restored, |config| config.inflight_messages_max = 3);
    network.elect(1);
    for _ in 0..10 {
        network.propose(1, "a");
    }
    assert_eq!(network.sent(1).len(), 3, "the window is full, and all of it is lost");
    network.run(ms(500));
    assert_eq!(network.applied(2).len(), 10);
}

#[test]
fn rule_22_a_snapshot_without_an_end_is_sent_again() {
    let mut network = network_in_need_of_a_snapshot();
    let leader = network.leader().expect("it is elected");
    // It is handed over, and then nothing is ever heard of it.
    for _ in 0..5 {
        network.now = network.now.after(ms(50));
        (1..=3).for_each(|id| network.step(id, Input::Tick));
        while network.deliver_one() {}
    }
    assert_eq!(network.node(leader).snapshots.len(), 1, "once");
    let before = network.now;
    while network.node(leader).snapshots.len() < 2 {
        network.now = network.now.after(ms(50));
        (1..=3).for_each(|id| network.step(id, Input::Tick));
        while network.deliver_one() {}
        assert!(network.now.since(before) < ms(700_000));
    }
    network.run(ms(200));
    assert_eq!(network.applied(3), network.applied(leader));
}

#[test]
fn rule_22_a_failed_snapshot_is_tried_again_after_a_while() {
    let mut network = network_in_need_of_a_snapshot();
    let leader = network.leader().expect("it is elected");
    while network.node(leader).snapshots.is_empty() {
        network.now = network.now.after(ms(10));
        (1..=3).for_each(|id| network.step(id, Input::Tick));
        while network.deliver_one() {}
    }
    network.take_snapshots(leader);
    network.step(leader, Input::SnapshotSent { peer: n(3), installed: None });
    assert!(network.node(leader).snapshots.is_empty(), "not at once");
    network.run(ms(1_000));
    assert_eq!(network.applied(3), network.applied(leader));
}

#[test]
fn rule_22_a_transfer_that_nobody_takes_up_ends() {
    let mut network = Network::new(3);
    network.elect(1);
    network.isolate(3);
    let ticket = network.transfer(1, Some(3));
    network.run(ms(300));
    assert_eq!(network.transfer_outcome(1, ticket), None);
    let during = network.propose(1, "during");
    let transferring = ProposeOutcome::Transferring { target: n(3) };
    assert_eq!(network.proposal(1, during), Some(&transferring));
    network.run(ms(400));
    assert_eq!(network.transfer_outcome(1, ticket), Some(&TransferOutcome::TimedOut));
    let after = network.propose(1, "after");
    assert!(matches!(network.proposal(1, after), Some(ProposeOutcome::Accepted { .. })));
}

/// Member 3 is behind what the leader's log still holds.
fn network_in_need_of_a_snapshot() -> Network {
    let mut network = Network::new(3);
    network.elect(1);
    network.isolate(3);
    for _ in 0..5 {
        network.propose(1, "a");
    }
    network.settle();
    network.step(1, Input::Purge { through: i(5) });
    network.heal();
    network
}

#[test]
fn every_transfer_has_one_typed_outcome() {
    let outcome = |target: Option<u64>, id: u64| {
        let mut network = Network::new(3);
        network.elect(1);
        let ticket = network.transfer(id, target);
        network.settle();
        network.transfer_outcome(id, ticket).cloned()
    };
    assert_eq!(outcome(Some(2), 1), Some(TransferOutcome::Done { leader: n(2) }));
    assert_eq!(outcome(None, 1), Some(TransferOutcome::Done { leader: n(2) }));
    assert_eq!(outcome(Some(1), 1), Some(TransferOutcome::Done { leader: n(1) }));
    assert_eq!(outcome(Some(9), 1), Some(TransferOutcome::NotAVoter));
    assert_eq!(outcome(Some(3), 2), Some(TransferOutcome::NotLeader { leader: Some(n(1)) }));

    let mut alone = Network::new(1);
    alone.elect(1);
    let ticket = alone.transfer(1, None);
    assert_eq!(alone.transfer_outcome(1, ticket), Some(&TransferOutcome::NotAVoter));
}

#[test]
fn rule_30_log_time_never_goes_back_whatever_the_leaders_clocks_say() {
    let mut network = Network::new(3);
    network.elect(1);
    let propose = |network: &mut Network, id: u64, millis: u64| {
        let ticket = network.ask(id);
        let time = LogTime::from_millis(millis);
        let commands = vec![(ticket, "a".into())];
        network.step(id, Input::Propose { time, expected_term: None, commands });
        network.settle();
    };
    propose(&mut network, 1, 5_000);
    propose(&mut network, 1, 3_000);
    network.elect(2);
    propose(&mut network, 2, 4_000);
    propose(&mut network, 2, 6_000);
    let times = network.raft(2).entries().map(|entry| entry.time.as_millis());
    assert_eq!(times.collect::<Vec<_>>(), [0, 5_000, 5_000, 5_000, 5_000, 6_000]);
}

#[test]
fn limits_hold_for_windows_messages_pieces_and_what_is_uncommitted() {
    let restored = Restored { membership: Membership::of([1, 2].map(n)), ..Restored::default() };
    let small = |config: &mut Config| {
        config.append_bytes_max = 100;
        config.inflight_bytes_max = 150;
        config.apply_bytes_max = 100;
        config.uncommitted_bytes_max = 400;
    };
    let mut network = Network::of(2, &restored, small);
    network.elect(1);
    let command = "x".repeat(18);
    let tickets: Vec<_> = (0..10).map(|_| network.propose(1, &command)).collect();
    let outcomes = tickets.iter().map(|&ticket| network.proposal(1, ticket).cloned().unwrap());
    let refused = outcomes.filter(|outcome| *outcome == ProposeOutcome::Overloaded).count();
    assert_eq!(refused, 2, "an entry counts 50 bytes; eight are 400");
    let sent: Vec<_> = network.packets.iter().map(|packet| packet.message.clone()).collect();
    assert_eq!(sent.len(), 3, "the window takes 150 bytes");
    network.disk_stands.insert(n(1));
    network.disk_stands.insert(n(2));
    for _ in 0..8 {
        while network.deliver_one() {}
        network.persist(1);
        network.persist(2);
    }
    let most = network.raft(1).entries().count();
    assert_eq!(most, 9, "what was accepted is there");
    network.step(1, Input::Tick);
    let pieces = &network.node(1).pieces;
    assert_eq!(pieces.len(), 4, "no more pieces at a time");
    network.disk_stands.clear();
    network.settle();
    assert_eq!(network.applied(2).len(), 8);
    let ticket = network.propose(1, &"y".repeat(1_000));
    let alone = network.proposal(1, ticket);
    assert!(matches!(alone, Some(ProposeOutcome::Accepted { .. })), "one too large goes alone");
}

#[test]
fn a_commit_reaches_the_followers_without_waiting_for_a_heartbeat() {
    let mut network = Network::new(3);
    network.elect(1);
    network.propose(1, "a");
    network.settle();
    (1..=3).for_each(|id| assert_eq!(network.applied(id), ["a"], "no time went by"));
}

#[test]
fn a_restart_applies_what_was_committed_before_and_keeps_the_vote() {
    let hard = HardState { term: t(2), vote: Some(n(3)), commit: i(9) };
    let entries = vec![entry(1, 1), entry(2, 2), entry(3, 2)];
    let membership = Membership::of((1..=3).map(n));
    let restored = Restored { hard, entries, applied: i(1), membership, ..Restored::default() };
    let network = Network::of(3, &restored, |_| {});
    let status = network.raft(1).status();
    assert_eq!(status.commit, i(3), "no more than the log holds");
    assert_eq!((status.applied, status.last), (i(1), i(3)));
    assert_eq!(network.raft(1).hard_state().vote, Some(n(3)));
}

#[test]
fn in_the_last_term_nobody_campaigns() {
    let mut network = Network::new(3);
    network.inject(2, 1, Message::VoteRequest(vote(u64::MAX, 0, 0)));
    assert_eq!(network.term(1), t(u64::MAX));
    network.time_out(1);
    assert_eq!(network.role(1), RoleKind::Follower, "no term follows, and it has voted");
}

#[test]
fn an_answer_beyond_the_leaders_log_is_not_believed() {
    let mut network = Network::new(3);
    network.elect(1);
    network.inject(2, 1, matched(1, 99));
    assert_eq!(network.commit(1), i(1));
    assert_eq!(network.raft(1).peers()[0].matched, i(1));
}
