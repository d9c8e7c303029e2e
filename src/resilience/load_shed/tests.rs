//! Each transition, the law of the steps, the order of the classes, and the invariants.

use proptest::prelude::*;

use super::*;
use crate::{
    resilience::concurrency_limit::CLASSES,
    types::{Duration, Instant},
};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(ms(millis))
}

fn shedder(config: Config) -> Shedder {
    Shedder::new(config.validate().expect("it works"), Instant::ZERO)
}

/// Tells it a delay each millisecond of a span.
fn feed(shedder: &mut Shedder, delay: Duration, span: core::ops::Range<u64>) -> Vec<Change> {
    span.filter_map(|millis| shedder.observe(0, delay, at(millis))).collect()
}

/// How many of 100 calls of a class are shed at a time.
fn shed_of_100(shedder: &mut Shedder, class: u8, millis: u64) -> usize {
    (0..100).filter(|_| !shedder.admit(class, at(millis))).count()
}

#[test]
fn a_queue_that_empties_once_in_an_interval_only_took_a_burst() {
    let mut shedder = shedder(Config::default());
    for millis in 0..10_000 {
        let delay = if millis % 90 == 0 { ms(1) } else { ms(500) };
        assert_eq!(shedder.observe(0, delay, at(millis)), None);
    }
    assert_eq!((shedder.state(), shedder.pressure()), (State::Calm, 0));
}

#[test]
fn a_queue_that_stands_for_an_interval_begins_to_shed() {
    let mut shedder = shedder(Config::default());
    feed(&mut shedder, ms(6), 0..100);
    assert_eq!((shedder.state(), shedder.pressure()), (State::Calm, 0));
    let change = shedder.observe(0, ms(6), at(100));
    assert_eq!(change, Some(Change::Sheds { class: 3 }));
    assert_eq!((shedder.state(), shedder.pressure()), (State::Rising, 1));
    assert_eq!(shed_of_100(&mut shedder, 3, 100), 10, "a tenth of the least important");
    assert_eq!(shed_of_100(&mut shedder, 2, 100), 0);
}

#[test]
fn steps_come_ever_faster_while_the_queue_stands() {
    let mut shedder = shedder(Config::default());
    let mut steps = Vec::new();
    for millis in 0..1_000 {
        let before = shedder.pressure();
        shedder.observe(0, ms(50), at(millis));
        if shedder.pressure() > before {
            steps.push(millis);
        }
    }
    // 100, then 100 / sqrt(n) later, at the millisecond that follows.
    assert_eq!(steps[..6], [100, 200, 271, 329, 379, 424]);
}

#[test]
fn the_least_important_class_is_shed_wholly_before_the_next_one_in_part() {
    let mut shedder = shedder(Config::default());
    let mut changes = Vec::new();
    for millis in 0..3_000 {
        changes.extend(shedder.observe(0, ms(50), at(millis)));
        let pressure = shedder.pressure();
        let mut shares = [0; 4];
        for (class, share) in (0_u8..).zip(&mut shares) {
            *share = shed_of_100(&mut shedder.clone(), class, millis);
        }
        let expected = [3, 2, 1, 0]
            .map(|below: u32| pressure.saturating_sub(below * STEPS).min(STEPS) as usize * 10);
        assert_eq!(shares, expected, "at a pressure of {pressure}");
    }
    assert_eq!(changes, [3, 2, 1, 0].map(|class| Change::Sheds { class }));
    assert_eq!(shedder.pressure(), 4 * STEPS, "there is nothing more to shed");
}

#[test]
fn classes_that_are_never_shed_are_not() {
    let mut shedder = shedder(Config { never_shed: 2, ..Config::default() });
    feed(&mut shedder, ms(500), 0..10_000);
    assert_eq!(shedder.pressure(), 2 * STEPS);
    for (class, shed) in [(0, 0), (1, 0), (2, 100), (3, 100), (200, 100)] {
        assert_eq!(shed_of_100(&mut shedder, class, 10_000), shed, "class {class}");
    }
    assert_eq!(shedder.stats().shed[..4], [0, 0, 100, 200]);
    assert_eq!(shedder.stats().admitted[..4], [100, 100, 0, 0]);
}

#[test]
fn the_pressure_holds_between_half_the_target_and_the_target() {
    let mut shedder = shedder(Config::default());
    feed(&mut shedder, ms(50), 0..500);
    let pressure = shedder.pressure();
    assert!(pressure > 3, "{pressure}");
    feed(&mut shedder, ms(4), 500..5_000);
    assert_eq!((shedder.state(), shedder.pressure()), (State::Holding, pressure));
}

#[test]
fn the_pressure_falls_by_a_step_an_interval_below_half_the_target() {
    let mut shedder = shedder(Config::default());
    feed(&mut shedder, ms(50), 0..500);
    let pressure = shedder.pressure();
    let mut millis = 500;
    // The interval that holds the last high delay may still bring a step.
    while shedder.pressure() >= pressure {
        shedder.observe(0, ms(1), at(millis));
        millis += 1;
        assert!(millis < 800, "it never fell");
    }
    let falling = shedder.pressure();
    assert_eq!(shedder.state(), State::Holding);
    feed(&mut shedder, ms(1), millis..millis + 301);
    assert_eq!(shedder.pressure(), falling - 3);
    let changes = feed(&mut shedder, ms(1), millis + 301..10_000);
    assert_eq!((shedder.state(), shedder.pressure()), (State::Calm, 0));
    assert_eq!(changes.last(), Some(&Change::Calm));
}

#[test]
fn what_stands_again_soon_is_pressed_at_the_pace_that_helped() {
    let steps_within_200_ms = |calm_for: u64| {
        let mut shedder = shedder(Config { classes: 8, ..Config::default() });
        feed(&mut shedder, ms(50), 0..1_000);
        let again = 1_000 + calm_for;
        feed(&mut shedder, ms(4), 1_000..again);
        // Up to two intervals show that it stands; what follows shows the pace.
        feed(&mut shedder, ms(50), again..again + 200);
        let before = shedder.pressure();
        feed(&mut shedder, ms(50), again + 200..again + 400);
        shedder.pressure() - before
    };
    let (soon, late) = (steps_within_200_ms(300), steps_within_200_ms(3_000));
    assert!(soon >= 2 * late, "{soon} steps soon after, {late} long after");
}

#[test]
fn who_overtakes_the_queue_tells_nothing_of_it() {
    let mut shedder = shedder(Config::default());
    for millis in 0..1_000 {
        shedder.observe(2, ms(30), at(millis));
        shedder.observe(0, ms(0), at(millis));
    }
    assert_eq!(shedder.state(), State::Rising, "class 2 waits");
    for millis in 1_000..2_000 {
        shedder.observe(2, ms(0), at(millis));
        shedder.observe(0, ms(30), at(millis));
    }
    assert_eq!(shedder.state(), State::Holding);
}

#[test]
fn without_anyone_the_pressure_falls_too() {
    let mut shedder = shedder(Config::default());
    feed(&mut shedder, ms(50), 0..2_000);
    assert!(!shedder.admit(3, at(2_000)));
    assert!(shedder.admit(3, at(60_000)), "a minute went by without a call");
    assert_eq!(shedder.state(), State::Calm);
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let default = Config::default();
    for (config, wrong) in [
        (Config { target: Duration::ZERO, ..default }, "target"),
        (Config { target: Duration::from_secs(11), ..default }, "target"),
        (Config { interval: ms(4), ..default }, "interval"),
        (Config { interval: Duration::from_secs(61), ..default }, "interval"),
        (Config { classes: 0, ..default }, "classes"),
        (Config { classes: 9, ..default }, "classes"),
        (Config { never_shed: 5, ..default }, "never_shed"),
    ] {
        let refused = config.validate().expect_err(wrong).to_string();
        assert!(refused.starts_with(wrong), "{refused}");
    }
}

proptest! {
    #[test]
    fn a_more_important_class_is_never_shed_more_than_a_less_important_one(
        classes in 1_u8..=8,
        never_shed in 0_u8..=8,
        events in proptest::collection::vec((0_u64..80, 0_u64..30, 0_u8..10), 0..400),
    ) {
        let never_shed = never_shed.min(classes);
        let config = Config { classes, never_shed, ..Config::default() };
        let mut shedder = shedder(config);
        let (mut now, mut good, mut asked) = (0, 0, [0_u64; CLASSES]);
        for (pause, delay, class) in events {
            now += pause;
            let before = shedder.pressure();
            let change = shedder.observe(0, ms(delay), at(now));
            prop_assert!(shedder.pressure() <= before + 1, "one step at a time");
            prop_assert!(shedder.pressure() <= u32::from(classes - never_shed) * STEPS);
            prop_assert_eq!(shedder.state() == State::Calm, shedder.pressure() == 0);
            if before == 0 && shedder.pressure() > 0 {
                prop_assert!(now - good >= 100, "a good delay was seen in the interval");
            }
            if delay <= 5 {
                good = now;
            }
            if let Some(Change::Sheds { class }) = change {
                prop_assert!(class >= never_shed && class < classes);
            }
            let shares: Vec<_> = (0..classes)
                .map(|class| shed_of_100(&mut shedder.clone(), class, now))
                .collect();
            prop_assert!(shares.is_sorted(), "{:?}", shares);
            shedder.admit(class, at(now));
            asked[usize::from(class.min(classes - 1))] += 1;
        }
        let Stats { admitted, shed } = shedder.stats();
        for class in 0..CLASSES {
            prop_assert_eq!(admitted[class] + shed[class], asked[class]);
        }
        prop_assert!(shed[..usize::from(never_shed)].iter().all(|count| *count == 0));
    }
}
