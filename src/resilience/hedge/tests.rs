//! Each transition of a race, and what holds whatever happens.

use proptest::prelude::*;

use super::*;

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn at(count: u64) -> Instant {
    Instant::ZERO.after(millis(count))
}

fn race(copies_max: u32) -> Race {
    let config = Config { copies_max, delay: Delay::Fixed(millis(10)) };
    Hedge::new(config.validate().expect("it works")).start(at(100))
}

#[test]
fn copies_go_out_a_delay_apart_up_to_the_maximum() {
    let mut race = race(3);
    assert_eq!(race.next_at(), Some(at(110)));
    race.sent(at(110));
    assert_eq!((race.next_at(), race.copies()), (Some(at(120)), 2));
    race.sent(at(121));
    assert_eq!((race.next_at(), race.copies()), (None, 3));
}

#[test]
fn one_copy_is_no_race() {
    assert_eq!(race(1).next_at(), None);
}

#[test]
fn while_others_are_open_a_failure_decides_nothing() {
    let mut race = race(3);
    race.sent(at(110));
    race.failed(at(112), Asked::Nothing);
    assert!(!race.is_over());
    assert_eq!(race.next_at(), Some(at(120)), "nor does it make the next one sooner");
    race.failed(at(113), Asked::Nothing);
    assert!(race.is_over());
    assert_eq!(race.next_at(), None);
}

#[test]
fn a_first_copy_that_fails_early_is_not_hedged() {
    let mut race = race(3);
    race.failed(at(105), Asked::After(millis(1)));
    assert!(race.is_over());
    assert_eq!(race.next_at(), None);
}

#[test]
fn push_back_delays_or_stops_the_next() {
    let mut later = race(3);
    later.sent(at(110));
    later.failed(at(112), Asked::After(millis(50)));
    assert_eq!(later.next_at(), Some(at(162)));
    let mut sooner = race(3);
    sooner.sent(at(110));
    sooner.failed(at(112), Asked::After(millis(1)));
    assert_eq!(sooner.next_at(), Some(at(120)), "the delay stays");
    let mut never = race(3);
    never.sent(at(110));
    never.failed(at(112), Asked::Never);
    assert_eq!(never.next_at(), None);
    assert!(!never.is_over(), "the other one is open");
}

#[test]
fn an_empty_budget_stops_the_next() {
    let mut race = race(3);
    race.stop();
    assert_eq!(race.next_at(), None);
    assert!(!race.is_over());
}

#[test]
fn the_delay_follows_what_was_seen_within_its_bounds() {
    let percentile = Percentile { share: 0.9, min: millis(5), max: millis(80) };
    let config = Config { copies_max: 2, delay: Delay::Percentile(percentile) };
    let hedge = Hedge::new(config.validate().expect("it works"));
    assert_eq!(hedge.delay(), millis(80));
    (0..64).for_each(|_| hedge.took(millis(1)));
    assert_eq!(hedge.delay(), millis(5));
    (0..2_000).for_each(|_| hedge.took(millis(20)));
    assert!(hedge.delay() >= millis(20) && hedge.delay() <= millis(23));
    (0..4_000).for_each(|_| hedge.took(millis(500)));
    assert_eq!(hedge.delay(), millis(80));
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let with = |percentile| Config { copies_max: 2, delay: Delay::Percentile(percentile) };
    let default = Percentile::default();
    for (config, wrong) in [
        (Config { copies_max: 0, ..Config::default() }, "copies_max"),
        (Config { copies_max: 6, ..Config::default() }, "copies_max"),
        (Config { copies_max: 2, delay: Delay::Fixed(Duration::MAX) }, "delay"),
        (with(Percentile { share: 0.4, ..default }), "share"),
        (with(Percentile { share: f64::NAN, ..default }), "share"),
        (with(Percentile { max: Duration::ZERO, ..default }), "max"),
    ] {
        let refused = config.validate().expect_err(wrong).to_string();
        assert!(refused.starts_with(wrong), "{refused}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Due,
    Dry,
    Failed(Asked),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Due),
        1 => Just(Event::Dry),
        3 => Just(Event::Failed(Asked::Nothing)),
        1 => (0_u64..50).prop_map(|span| Event::Failed(Asked::After(millis(span)))),
        1 => Just(Event::Failed(Asked::Never)),
    ]
}

proptest! {
    #[test]
    fn copies_are_bounded_and_none_follows_a_stop(
        copies_max in 1_u32..=5,
        delay in 0_u64..20,
        events in proptest::collection::vec((event(), 0_u64..30), 0..30),
    ) {
        let config = Config { copies_max, delay: Delay::Fixed(millis(delay)) };
        let mut race = Hedge::new(config.validate().expect("it works")).start(at(0));
        let (mut now, mut open, mut stopped, mut not_before) = (0, 1_u32, false, 0);
        for (event, pause) in events {
            now += pause;
            match event {
                Event::Due => {
                    if let Some(next) = race.next_at() {
                        prop_assert!(!stopped && next >= at(not_before));
                        now = now.max(next.since(at(0)).as_millis() as u64);
                        race.sent(at(now));
                        open += 1;
                        not_before = now + delay;
                    }
                }
                Event::Dry => {
                    race.stop();
                    stopped = true;
                }
                Event::Failed(asked) if open > 0 => {
                    race.failed(at(now), asked);
                    open -= 1;
                    stopped |= asked == Asked::Never || open == 0;
                    if let Asked::After(span) = asked {
                        not_before = not_before.max(now + span.as_millis() as u64);
                    }
                }
                Event::Failed(_) => {}
            }
            prop_assert!(race.copies() <= copies_max);
            prop_assert_eq!(race.is_over(), open == 0);
            prop_assert!(!stopped || race.next_at().is_none());
            prop_assert!(race.copies() < copies_max || race.next_at().is_none());
        }
    }
}
