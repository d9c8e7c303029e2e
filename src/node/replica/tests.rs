//! How calls fare: passed on, lost, answered late, parked, taken back.

#[macro_use]
#[path = "../../../tests/scenarios/script.rs"]
mod script;
mod scenarios;
mod story;
mod world;

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;

use self::world::{World, acquire, n, put};
use crate::{
    machine::{View, refusal},
    node::{
        calls::{CallKind, Reply},
        replica::{Event, Installed},
        space::Shortage,
    },
    pb::{
        command::v1::{Reason, Refusal, command, outcome},
        kv::v1::{DeleteRangeRequest, HeldLock, PutRequest, RangeRequest},
        lock::v1::ReleaseRequest,
        raft::v1::{
            ForwardResponse,
            forward_response::{Answer, answer},
        },
    },
    raft::Membership,
    types::{Duration, NodeId},
};

/// Why a call was refused.
fn refused(world: &World, node: NodeId, sequence: u64) -> &Refusal {
    match &world.nodes[&node].replies[&sequence] {
        Reply::Refused(refusal) => refusal,
        other => panic!("not a refusal: {other:?}"),
    }
}

#[test]
fn a_follower_passes_a_write_on_and_answers_it_from_its_own_apply() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let sequence = world.propose(follower, put("a", "1"));
    assert!(matches!(world.outcome(follower, sequence), outcome::Result::Put(_)));
    assert_eq!(world.value(follower, "a"), Some("1".into()));
    assert!(!world.nodes[&leader].outcomes.contains_key(&sequence));
}

#[test]
fn the_cluster_is_founded_once_and_every_disk_registers() {
    let mut world = World::new();
    world.until("all are registered", |world| {
        world.nodes.values().all(|node| {
            let view = View::new(node.machine.store().snapshot());
            view.members().is_ok_and(|members| members.len() == 3)
        })
    });
    let ids: BTreeSet<_> = world
        .nodes
        .values()
        .map(|node| {
            let view = View::new(node.machine.store().snapshot());
            view.cluster_id().expect("the store works")
        })
        .collect();
    assert_eq!(ids.len(), 1);
}

#[test]
fn a_write_lost_with_its_leader_is_proposed_anew_and_applied_once() {
    let mut world = World::new();
    let [leader, follower, other] = [1, 2, 3].map(n);
    world.wait_until_led_by(leader);
    // The leader takes the write and reaches nobody any more.
    let sequence = world.propose(follower, put("a", "1"));
    world.pass();
    world.cut.extend([(leader, follower), (leader, other)]);
    world.pass();
    let last = |id| world.nodes[&id].replica.status().last;
    assert_eq!(last(leader), last(follower).next(), "it stands in the leader's log only");
    assert!(matches!(world.outcome(follower, sequence), outcome::Result::Put(_)));
    world.cut.clear();
    world.until("the old leader has it too", |world| world.value(leader, "a").is_some());
    let view = View::new(world.nodes[&leader].machine.store().snapshot());
    let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    let range = view.range(&request).expect("the store works").expect("a plain range");
    assert_eq!(range.kvs[0].version, 1);
}

#[test]
fn without_a_quorum_calls_are_refused_after_a_while_and_never_carried_out() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    for node in [leader, other] {
        world.nodes.get_mut(&node).expect("three nodes").up = false;
    }
    world.until("the follower lost its leader", |world| {
        world.nodes[&follower].replica.status().leader.is_none()
    });
    let sequence = world.propose(follower, put("a", "1"));
    world.until("it is refused", |world| world.nodes[&follower].replies.contains_key(&sequence));
    assert_eq!(refused(&world, follower, sequence).reason(), Reason::NoQuorum);
    for node in [leader, other] {
        world.nodes.get_mut(&node).expect("three nodes").up = true;
    }
    world.pass_for(Duration::from_secs(5));
    assert_eq!(world.value(follower, "a"), None);
}

#[test]
fn a_node_that_does_not_reach_its_leader_names_it() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    world.deaf.insert((follower, leader));
    let sequence = world.propose(follower, put("a", "1"));
    world.until("it is refused", |world| world.nodes[&follower].replies.contains_key(&sequence));
    assert_eq!(refused(&world, follower, sequence).reason(), Reason::NotLeader);
    assert_eq!(
        refused(&world, follower, sequence).metadata["leader_id"],
        leader.value().to_string()
    );
}

#[test]
fn rule_18_requests_that_a_snapshot_overtakes_get_an_answer() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    let sequence = world.propose(follower, put("a", "1"));
    world.pass();
    world.pass();
    world.cut.extend([(follower, leader), (follower, other)]);
    world.until("the others have it", |world| world.value(other, "a").is_some());
    // The follower is given the others' state; what came of its call went by unseen.
    let head = world.nodes[&other].machine.head().clone();
    let installed = Event::Installed(Installed {
        from: leader,
        term: head.term,
        index: head.index,
        last_term: head.term,
        time: head.time,
        membership: Membership::of((1..=3).map(n)),
        sessions: Vec::new(),
        founded: true,
        registered: true,
        next_timer: None,
    });
    world.nodes.get_mut(&follower).expect("three nodes").inbox.push_back(installed);
    world.until("it is answered", |world| world.nodes[&follower].replies.contains_key(&sequence));
    assert_eq!(refused(&world, follower, sequence).reason(), Reason::OutcomeUnknown);
}

#[test]
fn a_read_index_covers_what_was_acknowledged_before() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let write = world.propose(leader, put("a", "1"));
    world.outcome(leader, write);
    let acknowledged = world.nodes[&leader].machine.head().index;
    let read = world.call(follower, CallKind::Read);
    world.until("the read is answered", |world| world.nodes[&follower].replies.contains_key(&read));
    let Reply::ReadIndex(index) = world.nodes[&follower].replies[&read] else {
        panic!("not a read index");
    };
    assert!(index >= acknowledged);
}

#[test]
fn rule_29_a_deposed_leader_prolongs_no_session() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    let session = world.session(leader);
    world.cut.extend([(leader, follower), (leader, other)]);
    let renewal = world.call(leader, CallKind::Renew { session });
    world.pass_for(Duration::from_secs(8));
    let renewed = world.nodes[&leader].replies.get(&renewal);
    assert!(!matches!(renewed, Some(Reply::Renewed(_))), "{renewed:?}");
    let view = View::new(world.nodes[&follower].machine.store().snapshot());
    assert_eq!(view.session(session).expect("the store works"), None, "it expired");
}

#[test]
fn a_renewed_session_lives_and_one_that_is_not_renewed_ends() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let session = world.session(follower);
    let lives = |world: &World| {
        let view = View::new(world.nodes[&follower].machine.store().snapshot());
        view.session(session).expect("the store works").is_some()
    };
    for _ in 0..5 {
        world.pass_for(Duration::from_secs(1));
        let renewal = world.call(follower, CallKind::Renew { session });
        world.until("it is renewed", |world| {
            matches!(world.nodes[&follower].replies.get(&renewal), Some(Reply::Renewed(_)))
        });
    }
    assert!(lives(&world));
    world.pass_for(Duration::from_secs(3));
    assert!(!lives(&world));
}

#[test]
fn a_parked_waiter_survives_its_leader_and_is_granted_by_the_next() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [holder, waiter] = world.others(leader);
    let first = world.granted(holder);
    let second = world.propose(waiter, acquire("l"));
    world.pass_for(Duration::from_secs(1));
    world.nodes.get_mut(&leader).expect("three nodes").up = false;
    world.cut.clear();
    world.until("another leads", |world| world.leader().is_some_and(|id| id != leader));
    // Longer than the session of a waiter that nobody renews; the holder's own runs out.
    world.pass_for(Duration::from_secs(20));
    let outcome::Result::Acquire(second) = world.outcome(waiter, second) else {
        panic!("not granted");
    };
    assert!(second.fencing_token > first);
}

#[test]
fn l6_a_holder_that_overslept_its_ttl_writes_nothing() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [sleeper, other] = world.others(leader);
    let stale = world.granted(sleeper);
    // Nobody renews it, so the next in line gets it, while its holder still believes in it.
    let token = world.granted(other);
    let mut write = |on, fencing_token, value: &'static str| {
        let lock = HeldLock { name: "l".into(), fencing_token };
        let put = PutRequest {
            key: "guarded".into(),
            value: value.into(),
            require_lock: Some(lock),
            ..PutRequest::default()
        };
        let sequence = world.propose(on, command::Op::Put(put));
        world.outcome(on, sequence)
    };
    assert!(matches!(write(other, token, "new"), outcome::Result::Put(_)));
    let outcome::Result::Refusal(refusal) = write(sleeper, stale, "old") else {
        panic!("a stale write was accepted");
    };
    assert_eq!(refusal.reason(), Reason::WrongFencingToken);
    assert_eq!(world.value(other, "guarded"), Some("new".into()));
}

#[test]
fn l9_after_healing_a_free_lock_is_granted_within_its_ttl_and_an_election() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [waiter, _] = world.others(leader);
    let first = world.propose(leader, acquire("l"));
    world.outcome(leader, first);
    let second = world.propose(waiter, acquire("l"));
    world.pass_for(Duration::from_secs(1));
    // Holder and leader die at once; the next leader gives the holder its whole TTL again.
    world.nodes.get_mut(&leader).expect("three nodes").up = false;
    let died = world.now;
    world.outcome(waiter, second);
    let (ttl, election) = (Duration::from_secs(5), Duration::from_secs(2));
    assert!(world.now.since(died) <= ttl + election, "{:?}", world.now.since(died));
}

#[test]
fn a_late_refusal_of_an_earlier_attempt_does_not_repeat_a_call() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, other] = world.others(leader);
    let write = world.propose(follower, put("a", "1"));
    world.pass();
    world.pass();
    // The leader has it and for a moment reaches nobody; a refusal of some earlier term arrives.
    world.cut.extend([(leader, follower), (leader, other)]);
    let refusal = refusal(Reason::NotLeader, "").encode_to_vec().into();
    let result = Some(answer::Result::Refusal(refusal));
    let answers = vec![Answer { sequence: write, result, expected_term: 0 }];
    let response = ForwardResponse { answers };
    world.tell(follower, Event::Answered { from: leader, response });
    world.pass_for(Duration::from_millis(100));
    world.cut.clear();
    world.outcome(follower, write);
    world.pass_for(Duration::from_secs(1));
    let view = View::new(world.nodes[&leader].machine.store().snapshot());
    let request = RangeRequest { key: "a".into(), ..RangeRequest::default() };
    let range = view.range(&request).expect("the store works").expect("a plain range");
    assert_eq!(range.kvs[0].version, 1, "written once");
}

#[test]
fn a_write_lost_on_its_way_to_a_leader_that_stays_ends_as_unknown() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let write = world.propose(follower, put("a", "1"));
    world.swallow = true;
    world.pass();
    world.swallow = false;
    world.tell(follower, Event::ForwardBroken { leader });
    world.until("it is answered", |world| world.nodes[&follower].replies.contains_key(&write));
    assert_eq!(refused(&world, follower, write).reason(), Reason::OutcomeUnknown);
}

#[test]
fn a_grant_that_nobody_took_is_given_back() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [holder, _] = world.others(leader);
    world.granted(holder);
    let sequence = world.sequence;
    // The outcome was settled, and the caller went away before it looked.
    world.tell(holder, Event::Abandoned { sequence, lock: Some("l".into()) });
    let soon = world.now.after(Duration::from_secs(1));
    world.until("it is free", |world| world.lock(leader).holder.is_none());
    assert!(world.now < soon, "not by its TTL");
}

#[test]
fn much_that_waited_for_a_leader_travels_in_pieces() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let value = Bytes::from(vec![b'x'; 400 << 10]);
    let writes: Vec<u64> = (0..6)
        .map(|n| {
            let put = PutRequest {
                key: format!("big-{n}").into(),
                value: value.clone(),
                ..PutRequest::default()
            };
            world.propose(follower, command::Op::Put(put))
        })
        .collect();
    for write in writes {
        assert!(matches!(world.outcome(follower, write), outcome::Result::Put(_)));
    }
}

#[test]
fn a_transfer_asked_of_a_follower_moves_leadership_once() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [follower, _] = world.others(leader);
    let term = world.nodes[&leader].replica.status().term;
    let transfer = world.call(follower, CallKind::Transfer { target: None });
    world.until("it is answered", |world| world.nodes[&follower].replies.contains_key(&transfer));
    world.pass_for(Duration::from_secs(3));
    let Reply::Transferred(now) = world.nodes[&follower].replies[&transfer] else {
        panic!("not transferred");
    };
    assert_ne!(now, leader);
    assert_eq!(world.leader(), Some(now));
    assert_eq!(world.nodes[&now].replica.status().term, term.next());
}

#[test]
fn an_abandoned_waiter_leaves_the_line() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [holder, waiter] = world.others(leader);
    let first = world.granted(holder);
    let second = world.propose(waiter, acquire("l"));
    let waiting = |world: &World| {
        let view = View::new(world.nodes[&leader].machine.store().snapshot());
        view.lock("l").expect("the store works").lock.map_or(0, |lock| lock.waiter_count)
    };
    world.until("it waits", |world| waiting(world) == 1);
    let gone = Event::Abandoned { sequence: second, lock: Some("l".into()) };
    world.nodes.get_mut(&waiter).expect("three nodes").inbox.push_back(gone);
    world.until("it is gone", |world| waiting(world) == 0);
    let release =
        ReleaseRequest { name: "l".into(), fencing_token: first, ..ReleaseRequest::default() };
    let release = world.propose(holder, command::Op::Release(release));
    assert!(matches!(world.outcome(holder, release), outcome::Result::Release(_)));
}

#[test]
fn while_any_node_is_short_of_room_nothing_that_grows_is_proposed() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [short, other] = world.others(leader);
    let written = world.propose(short, put("a", "1"));
    assert!(matches!(world.outcome(short, written), outcome::Result::Put(_)));
    let session = world.session(other);
    let shortage = Shortage { node: short, free: 5, reusable: 2, needed: 9 };
    world.tell(short, Event::Space(Some(shortage)));
    world.pass_for(Duration::from_millis(50));
    for on in [leader, short, other] {
        let index = world.nodes[&leader].replica.status().last;
        let sequence = world.propose(on, put("b", "1"));
        world.until("it is refused", |world| world.nodes[&on].replies.contains_key(&sequence));
        let reply = world.nodes[&on].replies[&sequence].clone();
        let Reply::Refused(refusal) = reply else { panic!("{reply:?}") };
        assert_eq!(refusal.reason(), Reason::NoSpace);
        assert_eq!(
            (&*refusal.metadata["node_id"], &*refusal.metadata["free_bytes"]),
            (&*short.to_string(), "5")
        );
        assert_eq!(world.nodes[&leader].replica.status().last, index, "it took no room in the log");
        let range = DeleteRangeRequest { key: "a".into(), ..Default::default() };
        let deleted = world.propose(on, command::Op::DeleteRange(range));
        assert!(matches!(world.outcome(on, deleted), outcome::Result::DeleteRange(_)));
        world.tell(short, Event::Space(Some(shortage)));
    }
    let renewal = world.call(other, CallKind::Renew { session });
    world.until("it is renewed", |world| {
        matches!(world.nodes[&other].replies.get(&renewal), Some(Reply::Renewed(_)))
    });
    world.tell(short, Event::Space(None));
    world.pass_for(Duration::from_millis(50));
    let written = world.propose(other, put("b", "2"));
    assert!(matches!(world.outcome(other, written), outcome::Result::Put(_)));
}

#[test]
fn a_node_that_falls_silent_holds_up_nobody_and_a_new_leader_is_told() {
    let mut world = World::new();
    let leader = world.wait_for_leader();
    let [short, other] = world.others(leader);
    let shortage = Shortage { node: short, free: 5, reusable: 2, needed: 9 };
    let refused = |world: &mut World, on| {
        let sequence = world.propose(on, put("b", "1"));
        world.until("it is answered", |world| {
            let node = &world.nodes[&on];
            node.replies.contains_key(&sequence) || node.outcomes.contains_key(&sequence)
        });
        world.nodes[&on].replies.contains_key(&sequence)
    };
    world.nodes.get_mut(&leader).expect("three").up = false;
    world.until("another leads", |world| world.leader().is_some_and(|id| id != leader));
    let next = world.leader().expect("it leads");
    let last = if next == short { other } else { short };
    world.tell(last, Event::Space(Some(Shortage { node: last, ..shortage })));
    world.pass_for(Duration::from_millis(50));
    assert!(refused(&mut world, next));
    world.nodes.get_mut(&leader).expect("three").up = true;
    world.nodes.get_mut(&last).expect("three").up = false;
    world.pass_for(Duration::from_secs(6));
    assert!(!refused(&mut world, next), "its word has run out");
}
