//! What becomes of messages under rules, without a network.

use super::*;

const PEER: NodeId = NodeId::new(2);
const APPEND: Line = Line::to(PEER, Kind::Append);
const FORWARD: Line = Line::to(PEER, Kind::Forward);

fn rule() -> Rule {
    Rule {
        peer: PEER,
        way: Way::To,
        kinds: BTreeSet::new(),
        drop: Share::default(),
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        duplicate: Share::default(),
        reorder: Share::default(),
        cut: false,
        seed: 7,
    }
}

fn half() -> Share {
    Share::of(0.5).expect("a share")
}

fn all() -> Share {
    Share::of(1.0).expect("a share")
}

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Duration::from_millis(millis))
}

fn with(rules: impl IntoIterator<Item = Rule>) -> LinkFaults {
    let mut faults = LinkFaults::default();
    for rule in rules {
        assert_eq!(rule.check(), Ok(()));
        faults.add(at(0), rule, Duration::from_secs(1)).expect("there is room");
    }
    faults
}

#[test]
fn without_a_rule_everything_passes() {
    let mut faults = with([]);
    assert_eq!(faults.judge(at(1), APPEND), Fate::Passes);
    assert!(faults.counts().is_empty());
}

#[test]
fn a_rule_concerns_its_peer_its_way_and_its_kinds() {
    let kinds = BTreeSet::from([Kind::Append]);
    let mut faults = with([Rule { drop: all(), kinds, ..rule() }]);
    assert_eq!(faults.judge(at(1), APPEND), Fate::Lost);
    let others = [
        Line::to(PEER, Kind::Heartbeat),
        Line::from(PEER, Kind::Append),
        Line::to(NodeId::new(3), Kind::Append),
    ];
    for line in others {
        assert_eq!(faults.judge(at(1), line), Fate::Passes, "{line:?}");
    }
    assert_eq!(faults.counts()[&APPEND].dropped, 1);
    assert_eq!(faults.counts().len(), 1);
}

#[test]
fn a_rule_ends_with_its_lease_and_its_counts_stay() {
    let mut faults = with([Rule { drop: all(), ..rule() }]);
    assert_eq!(faults.judge(at(999), APPEND), Fate::Lost);
    assert_eq!(faults.rules(at(999))[0].2, Duration::from_millis(1));
    assert_eq!(faults.judge(at(1_000), APPEND), Fate::Passes);
    assert!(faults.rules(at(1_000)).is_empty());
    assert_eq!(faults.counts()[&APPEND].dropped, 1);
}

#[test]
fn a_share_of_messages_is_lost_the_same_ones_for_one_seed() {
    let fates = |seed| {
        let mut faults = with([Rule { drop: half(), seed, ..rule() }]);
        (0..1_000).map(|_| faults.judge(at(1), APPEND) == Fate::Lost).collect::<Vec<_>>()
    };
    let lost = fates(1).into_iter().filter(|lost| *lost).count();
    assert!((400..600).contains(&lost), "{lost} of 1000");
    assert_eq!(fates(1), fates(1));
    assert_ne!(fates(1), fates(2));
}

#[test]
fn late_messages_keep_their_order() {
    let (delay, jitter) = (Duration::from_millis(10), Duration::from_millis(40));
    let mut faults = with([Rule { delay, jitter, ..rule() }]);
    let mut last = at(0);
    for now in 1..200 {
        let Fate::Held { copies, in_order: true } = faults.judge(at(now), FORWARD) else {
            panic!("it was not held");
        };
        assert_eq!(copies.len(), 1);
        assert!(copies[0] >= at(now).after(delay) && copies[0] >= last, "{copies:?}");
        assert!(copies[0] <= at(now).after(delay + jitter));
        last = copies[0];
    }
    assert_eq!(faults.counts()[&FORWARD].delayed, 199);
}

#[test]
fn what_follows_late_messages_waits_for_them_though_the_rule_is_gone() {
    let mut faults = with([Rule { delay: Duration::from_secs(2), ..rule() }]);
    assert_eq!(
        faults.judge(at(999), FORWARD),
        Fate::Held { copies: vec![at(2_999)], in_order: true }
    );
    assert_eq!(
        faults.judge(at(1_500), FORWARD),
        Fate::Held { copies: vec![at(2_999)], in_order: true }
    );
    assert_eq!(faults.judge(at(3_000), FORWARD), Fate::Passes);
}

#[test]
fn only_messages_of_raft_come_twice_and_out_of_order() {
    let mut faults = with([Rule { duplicate: all(), reorder: half(), ..rule() }]);
    let (mut twice, mut overtaken) = (0, 0);
    for now in 1..100 {
        assert_eq!(faults.judge(at(now), FORWARD), Fate::Passes);
        let Fate::Held { copies, in_order } = faults.judge(at(now), APPEND) else {
            panic!("it was not held");
        };
        twice += usize::from(copies.len() == 2);
        overtaken += usize::from(!in_order);
        assert!(copies.iter().all(|due| *due <= at(now).after(SPREAD)), "{copies:?}");
    }
    assert_eq!(twice, 99);
    assert!((20..80).contains(&overtaken), "{overtaken} of 99");
    let counts = faults.counts()[&APPEND];
    assert_eq!((counts.duplicated, counts.reordered), (99, overtaken as u64));
    assert!(!faults.counts().contains_key(&FORWARD));
}

#[test]
fn a_cut_lets_nothing_through_and_is_seen_as_one() {
    let mut faults = with([Rule { cut: true, ..rule() }]);
    assert!(faults.is_cut(at(1), PEER, Way::To));
    assert!(!faults.is_cut(at(1), PEER, Way::From));
    assert_eq!(faults.judge(at(1), FORWARD), Fate::Lost);
    assert_eq!((faults.counts()[&FORWARD].cut, faults.counts()[&FORWARD].dropped), (1, 0));
    faults.count_cut(PEER, Way::To);
    assert_eq!(faults.counts()[&Line::to(PEER, Kind::Control)].cut, 1);
    assert!(!faults.is_cut(at(1_000), PEER, Way::To), "its lease is over");
}

#[test]
fn rules_are_cleared_by_number_or_all_at_once() {
    let mut faults = with([1, 2, 3].map(|seed| Rule { drop: all(), seed, ..rule() }));
    assert_eq!(faults.clear(at(1), &[2, 9]), 1);
    let left: Vec<_> = faults.rules(at(1)).into_iter().map(|(number, ..)| number).collect();
    assert_eq!(left, [1, 3]);
    assert_eq!(faults.clear(at(1), &[]), 2);
    assert_eq!(faults.judge(at(1), APPEND), Fate::Passes);
}

#[test]
fn there_is_room_for_so_many_rules_and_no_more() {
    let mut faults = LinkFaults::default();
    for _ in 0..RULES_MAX {
        assert!(faults.add(at(0), Rule { drop: all(), ..rule() }, LEASE_MAX).is_some());
    }
    assert_eq!(faults.add(at(0), Rule { drop: all(), ..rule() }, LEASE_MAX), None);
    let later = at(0).after(LEASE_MAX);
    assert!(faults.add(later, Rule { drop: all(), ..rule() }, LEASE_MAX).is_some());
}

#[test]
fn a_rule_that_does_nothing_or_two_things_at_once_is_refused() {
    let kinds = |kind| BTreeSet::from([kind]);
    let wrong = [
        rule(),
        Rule { cut: true, drop: half(), ..rule() },
        Rule { cut: true, kinds: kinds(Kind::Append), ..rule() },
        Rule { delay: DELAY_MAX + Duration::from_nanos(1), ..rule() },
        Rule { duplicate: half(), kinds: kinds(Kind::Forward), ..rule() },
        Rule { reorder: half(), kinds: kinds(Kind::Snapshot), ..rule() },
    ];
    for rule in wrong {
        assert!(rule.check().is_err(), "{rule:?}");
    }
    for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert_eq!(Share::of(share), None, "{share}");
    }
}
