//! Each transition of the table, what is counted and what is not, and the invariants under any
//! order of calls, results and times.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::{
    resilience::{ConfigError, backoff},
    types::{Duration, Instant, Rng},
};

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Duration::from_millis(millis))
}

/// Nothing opens it; open for 100 ms, doubled up to 350 ms, not spread.
fn quiet() -> Config {
    Config {
        consecutive_failures: None,
        failure_rate: None,
        open: backoff::Config {
            base: Duration::from_millis(100),
            factor: 2.0,
            jitter: 0.0,
            max: Duration::from_millis(350),
        },
        ..Config::default()
    }
}

fn in_a_row(failures: u32) -> Config {
    Config { consecutive_failures: Some(failures), ..quiet() }
}

type Told = Arc<Mutex<Vec<Transition>>>;

fn watched(config: Config) -> (Breaker, Told) {
    let breaker = Breaker::new(config.validate().unwrap(), Rng::new(1));
    let told = Told::default();
    let tell = Arc::clone(&told);
    breaker.observe(move |transition| tell.lock().unwrap().push(*transition));
    (breaker, told)
}

fn call(breaker: &Breaker, verdict: Verdict, now: Instant) {
    call_lasting(breaker, verdict, now, Duration::ZERO);
}

fn call_lasting(breaker: &Breaker, verdict: Verdict, now: Instant, span: Duration) {
    let permit = breaker.try_acquire(now).expect("it lets the call through");
    breaker.record(permit, verdict, now.after(span));
}

fn told(told: &Told) -> Vec<(&'static str, &'static str, Reason)> {
    let told = std::mem::take(&mut *told.lock().unwrap());
    told.iter().map(|change| (change.from.name(), change.to.name(), change.reason)).collect()
}

#[test]
fn failures_in_a_row_open_it_and_a_success_between_does_not() {
    let (breaker, heard) = watched(in_a_row(3));
    for verdict in [Verdict::Failure, Verdict::Failure, Verdict::Success, Verdict::Failure] {
        call(&breaker, verdict, at(1));
    }
    call(&breaker, Verdict::Neutral, at(1));
    call(&breaker, Verdict::Failure, at(1));
    assert_eq!((breaker.state(), breaker.run()), (State::Closed, 2), "neutral breaks no row");
    call(&breaker, Verdict::Failure, at(2));
    assert_eq!(breaker.state(), State::Open { until: at(102) });
    assert_eq!(told(&heard), [("closed", "open", Reason::FailuresInARow(3))]);
    let refused = Refused { why: Why::Open, until: Some(at(102)) };
    assert_eq!(breaker.try_acquire(at(101)).unwrap_err(), refused);
    let Stats { permitted, refused, successes, failures, neutral, opened, .. } = breaker.stats();
    assert_eq!((permitted, refused, successes, failures, neutral, opened), (7, 1, 1, 5, 1, 1));
}

#[test]
fn a_share_of_failures_among_the_last_calls_opens_it() {
    let (breaker, heard) = watched(Config {
        failure_rate: Some(50),
        window: Window::Calls(4),
        minimum_calls: 4,
        ..quiet()
    });
    for verdict in [Verdict::Failure, Verdict::Failure, Verdict::Neutral, Verdict::Success] {
        call(&breaker, verdict, at(0));
    }
    assert_eq!(breaker.state(), State::Closed, "three calls say too little");
    call(&breaker, Verdict::Success, at(0));
    let tally = Tally { calls: 4, failures: 2, slow: 0 };
    assert_eq!(told(&heard), [("closed", "open", Reason::FailureRate(tally))]);
    assert_eq!(breaker.window(at(0)), Tally::default(), "the next epoch counts from nothing");
}

#[test]
fn old_calls_of_a_window_of_calls_do_not_count() {
    let (breaker, _) = watched(Config {
        failure_rate: Some(60),
        window: Window::Calls(5),
        minimum_calls: 5,
        ..quiet()
    });
    for _ in 0..10 {
        for verdict in [Verdict::Failure, Verdict::Failure, Verdict::Success, Verdict::Success] {
            call(&breaker, verdict, at(0));
        }
        call(&breaker, Verdict::Success, at(0));
    }
    assert_eq!(breaker.state(), State::Closed, "any five calls have two failures");
    call(&breaker, Verdict::Failure, at(0));
    call(&breaker, Verdict::Failure, at(0));
    assert_eq!(breaker.state(), State::Closed);
    call(&breaker, Verdict::Failure, at(0));
    assert!(matches!(breaker.state(), State::Open { .. }), "three of the last five");
}

#[test]
fn a_share_of_failures_in_the_time_just_past_opens_it() {
    let (breaker, heard) = watched(Config {
        failure_rate: Some(50),
        window: Window::Time { span: Duration::from_millis(100), buckets: 10 },
        minimum_calls: 4,
        ..quiet()
    });
    for _ in 0..3 {
        call(&breaker, Verdict::Failure, at(5));
    }
    call(&breaker, Verdict::Failure, at(100));
    assert_eq!(breaker.state(), State::Closed, "the three are past");
    for now in [101, 102] {
        call(&breaker, Verdict::Success, at(now));
    }
    call(&breaker, Verdict::Failure, at(199));
    let tally = Tally { calls: 4, failures: 2, slow: 0 };
    assert_eq!(told(&heard), [("closed", "open", Reason::FailureRate(tally))]);
}

#[test]
fn a_share_of_slow_calls_opens_it_and_a_slow_probe_does_not_close_it() {
    let threshold = Duration::from_millis(30);
    let (breaker, heard) = watched(Config {
        slow_rate: Some(SlowRate { threshold, percent: 75 }),
        minimum_calls: 4,
        ..quiet()
    });
    call_lasting(&breaker, Verdict::Success, at(0), Duration::from_millis(29));
    for verdict in [Verdict::Success, Verdict::Failure, Verdict::Success] {
        call_lasting(&breaker, verdict, at(0), threshold);
    }
    let tally = Tally { calls: 4, failures: 1, slow: 3 };
    assert_eq!(told(&heard), [("closed", "open", Reason::SlowRate(tally))]);
    assert_eq!(breaker.stats().slow, 3);
    call_lasting(&breaker, Verdict::Success, at(200), threshold);
    let expected =
        [("open", "half-open", Reason::TimeOver), ("half-open", "open", Reason::ProbeFailed)];
    assert_eq!(told(&heard), expected);
}

#[test]
fn it_is_open_longer_each_time_up_to_the_maximum_and_a_closing_forgets_that() {
    let (breaker, _) = watched(in_a_row(1));
    let mut now = at(0);
    for millis in [100, 200, 350, 350] {
        call(&breaker, Verdict::Failure, now);
        let until = now.after(Duration::from_millis(millis));
        assert_eq!(breaker.state(), State::Open { until });
        now = until;
    }
    call(&breaker, Verdict::Success, now);
    assert_eq!(breaker.state(), State::Closed);
    call(&breaker, Verdict::Failure, now);
    assert_eq!(breaker.last_transition().unwrap().open_for(), Some(Duration::from_millis(100)));
}

#[test]
fn chance_spreads_the_time_that_it_is_open() {
    let spans: Vec<_> = (0..100)
        .map(|seed| {
            let config = in_a_row(1);
            let open = backoff::Config { jitter: 0.5, ..config.open };
            let config = Config { open, ..config }.validate().unwrap();
            let breaker = Breaker::new(config, Rng::new(seed));
            call(&breaker, Verdict::Failure, at(0));
            breaker.last_transition().unwrap().open_for().unwrap().as_millis()
        })
        .collect();
    assert!(spans.iter().all(|span| (50..=150).contains(span)), "{spans:?}");
    assert!(spans.iter().min() < Some(&65) && spans.iter().max() > Some(&135), "{spans:?}");
}

#[test]
fn probes_are_limited_and_enough_successes_close_it() {
    let (breaker, heard) = watched(Config { probes: 2, probe_successes: 3, ..in_a_row(1) });
    call(&breaker, Verdict::Failure, at(0));
    let first = breaker.try_acquire(at(100)).unwrap();
    let second = breaker.try_acquire(at(101)).unwrap();
    let refused = Refused { why: Why::ProbesOut, until: Some(at(10_100)) };
    assert_eq!(breaker.try_acquire(at(102)).unwrap_err(), refused);
    breaker.record(first, Verdict::Success, at(103));
    call(&breaker, Verdict::Success, at(104));
    assert_eq!((breaker.state(), breaker.probes()), (State::HalfOpen, 1));
    breaker.record(second, Verdict::Success, at(105));
    assert_eq!(breaker.state(), State::Closed);
    let expected = [
        ("closed", "open", Reason::FailuresInARow(1)),
        ("open", "half-open", Reason::TimeOver),
        ("half-open", "closed", Reason::ProbesSucceeded(3)),
    ];
    assert_eq!(told(&heard), expected);
}

#[test]
fn a_probe_that_was_cancelled_gives_its_place_back() {
    let (breaker, _) = watched(in_a_row(1));
    call(&breaker, Verdict::Failure, at(0));
    call(&breaker, Verdict::Neutral, at(100));
    assert_eq!((breaker.state(), breaker.probes()), (State::HalfOpen, 0));
    call(&breaker, Verdict::Success, at(101));
    assert_eq!(breaker.state(), State::Closed);
}

#[test]
fn a_probe_that_hangs_gives_its_place_to_another_and_still_counts() {
    let (breaker, _) = watched(in_a_row(1));
    call(&breaker, Verdict::Failure, at(0));
    let hangs = breaker.try_acquire(at(100)).unwrap();
    assert!(breaker.try_acquire(at(10_099)).is_err());
    let other = breaker.try_acquire(at(10_100)).expect("ten seconds are over");
    breaker.record(hangs, Verdict::Failure, at(10_101));
    assert!(matches!(breaker.state(), State::Open { .. }));
    breaker.record(other, Verdict::Success, at(10_102));
    assert!(matches!(breaker.state(), State::Open { .. }), "it belongs to an earlier epoch");
    assert_eq!(breaker.stats().stale, 1);
}

#[test]
fn results_of_an_earlier_epoch_are_ignored() {
    let (breaker, _) = watched(Config { probe_successes: 2, ..in_a_row(1) });
    let early: Vec<_> = (0..4).map(|_| breaker.try_acquire(at(0)).unwrap()).collect();
    call(&breaker, Verdict::Failure, at(1));
    let mut early = early.into_iter();
    breaker.record(early.next().unwrap(), Verdict::Success, at(2));
    assert!(matches!(breaker.state(), State::Open { .. }));
    let probe = breaker.try_acquire(at(101)).unwrap();
    breaker.record(early.next().unwrap(), Verdict::Failure, at(102));
    assert_eq!(breaker.state(), State::HalfOpen, "it was sent before it opened");
    breaker.record(probe, Verdict::Success, at(103));
    call(&breaker, Verdict::Success, at(104));
    assert_eq!(breaker.state(), State::Closed);
    breaker.record(early.next().unwrap(), Verdict::Failure, at(105));
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(breaker.stats().stale, 2, "a success that nothing would count is not looked at");
}

#[test]
fn forced_states_stay_until_they_are_taken_back() {
    let (breaker, heard) = watched(in_a_row(2));
    breaker.force_open(at(1));
    breaker.force_open(at(2));
    let refused = Refused { why: Why::ForcedOpen, until: None };
    assert_eq!(breaker.try_acquire(at(1_000_000)).unwrap_err(), refused);
    breaker.force_close(at(3));
    for _ in 0..10 {
        call(&breaker, Verdict::Failure, at(4));
    }
    assert_eq!(breaker.state(), State::ForcedClosed);
    breaker.reset(at(5));
    call(&breaker, Verdict::Failure, at(6));
    breaker.reset(at(7));
    call(&breaker, Verdict::Failure, at(8));
    assert_eq!(breaker.state(), State::Closed, "a reset forgets the failures");
    let expected = [
        ("closed", "forced open", Reason::Forced),
        ("forced open", "forced closed", Reason::Forced),
        ("forced closed", "closed", Reason::Reset),
    ];
    assert_eq!(told(&heard), expected, "what changes nothing is not told");
    call(&breaker, Verdict::Failure, at(9));
    breaker.reset(at(10));
    assert_eq!(breaker.state(), State::Closed, "from open too");
}

#[test]
fn an_idle_one_remembers_nothing_against_the_other_side() {
    let span = Duration::from_millis(100);
    let window = Window::Time { span, buckets: 10 };
    let (breaker, _) = watched(Config { failure_rate: Some(100), window, ..quiet() });
    call(&breaker, Verdict::Success, at(0));
    assert!(breaker.is_idle(at(0)));
    call(&breaker, Verdict::Failure, at(0));
    assert!(!breaker.is_idle(at(0)));
    call(&breaker, Verdict::Success, at(1));
    assert!(breaker.is_idle(at(100)), "the failure is past");
    breaker.force_open(at(100));
    assert!(!breaker.is_idle(at(100)));
}

#[test]
fn an_observer_may_ask_the_breaker() {
    let breaker = Arc::new(Breaker::new(in_a_row(1).validate().unwrap(), Rng::new(1)));
    let (asked, states) = (Arc::downgrade(&breaker), Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&states);
    breaker.observe(move |change| {
        let breaker = asked.upgrade().expect("it calls");
        breaker.observe(|_| {});
        seen.lock().unwrap().push((breaker.state(), change.to));
    });
    call(&breaker, Verdict::Failure, at(0));
    let open = State::Open { until: at(100) };
    assert_eq!(*states.lock().unwrap(), [(open, open)]);
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let slow =
        |percent, millis| Some(SlowRate { percent, threshold: Duration::from_millis(millis) });
    let default = Config::default();
    for (config, wrong) in [
        (Config { consecutive_failures: Some(0), ..default }, "consecutive_failures"),
        (Config { failure_rate: Some(0), ..default }, "failure_rate"),
        (Config { failure_rate: Some(101), ..default }, "failure_rate"),
        (Config { slow_rate: slow(0, 1), ..default }, "slow_rate.percent"),
        (Config { slow_rate: slow(101, 1), ..default }, "slow_rate.percent"),
        (Config { slow_rate: slow(1, 0), ..default }, "slow_rate.threshold"),
        (Config { minimum_calls: 0, ..default }, "minimum_calls"),
        (Config { window: Window::Calls(0), ..default }, "window.calls"),
        (Config { window: Window::Calls(19), ..default }, "minimum_calls"),
        (Config { probes: 0, ..default }, "probes"),
        (Config { probe_successes: 0, ..default }, "probe_successes"),
        (Config { probe_timeout: Duration::ZERO, ..default }, "probe_timeout"),
        (Config { open: backoff::Config { factor: 0.5, ..default.open }, ..default }, "factor"),
    ] {
        let refused: ConfigError = config.validate().expect_err(wrong);
        assert!(refused.to_string().starts_with(wrong), "{refused}");
    }
    for (span, buckets, wrong) in [(0, 1, "window.span"), (9, 0, "window.buckets")] {
        let window = Window::Time { span: Duration::from_secs(span), buckets };
        let refused = Config { window, ..default }.validate().expect_err(wrong);
        assert!(refused.to_string().starts_with(wrong), "{refused}");
    }
    let unused = Config { failure_rate: None, window: Window::Calls(1), ..default };
    assert!(unused.validate().is_ok(), "nothing looks at the window");
}

/// What may happen to a breaker.
#[derive(Clone, Debug)]
enum Step {
    Call,
    End(usize, Verdict),
    Wait(u64),
    ForceOpen,
    ForceClose,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![
        3 => Just(Verdict::Success),
        4 => Just(Verdict::Failure),
        1 => Just(Verdict::Neutral),
    ];
    let step = prop_oneof![
        30 => Just(Step::Call),
        30 => (any::<usize>(), verdict).prop_map(|(which, verdict)| Step::End(which, verdict)),
        20 => (0_u64..60).prop_map(Step::Wait),
        1 => Just(Step::ForceOpen),
        1 => Just(Step::ForceClose),
        3 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #[test]
    fn it_keeps_its_promises_whatever_happens(
        steps in steps(),
        probes in 1_u32..4,
        probe_successes in 1_u32..4,
        row in prop::option::of(1_u32..5),
        rate in prop::option::of(1_u32..=100),
        seed: u64,
    ) {
        let config = Config {
            probes,
            probe_successes,
            consecutive_failures: row,
            failure_rate: rate,
            window: Window::Calls(6),
            minimum_calls: 3,
            probe_timeout: Duration::from_millis(80),
            ..quiet()
        };
        let (breaker, heard) = watched(config);
        let mut rng = Rng::new(seed);
        // The calls under way, with their start and the epoch that they belong to.
        let (mut calls, mut now) = (Vec::new(), 0_u64);
        let epoch = || breaker.last_transition().map_or(0, |last| last.epoch);
        for step in steps {
            match step {
                Step::Wait(millis) => now += millis,
                Step::ForceOpen => breaker.force_open(at(now)),
                Step::ForceClose => breaker.force_close(at(now)),
                Step::Reset => breaker.reset(at(now)),
                Step::End(which, verdict) if !calls.is_empty() => {
                    let (permit, _, of) = calls.swap_remove(which % calls.len());
                    let before = (breaker.state(), epoch(), breaker.window(at(now)));
                    breaker.record(permit, verdict, at(now));
                    if of != before.1 {
                        let after = (breaker.state(), epoch(), breaker.window(at(now)));
                        prop_assert_eq!(before, after, "an earlier epoch's result counts nothing");
                    }
                }
                Step::End(..) => {}
                Step::Call => match (breaker.state(), breaker.try_acquire(at(now))) {
                    (State::Closed | State::ForcedClosed, admitted) => {
                        calls.push((admitted.expect("all pass"), now, epoch()));
                    }
                    (State::ForcedOpen, admitted) => prop_assert!(admitted.is_err()),
                    (State::Open { until }, admitted) => {
                        prop_assert_eq!(admitted.is_ok(), at(now) >= until);
                        calls.extend(admitted.ok().map(|permit| (permit, now, epoch())));
                    }
                    (State::HalfOpen, Err(refused)) => {
                        let until = refused.until.expect("a place will be free");
                        prop_assert!(until > at(now) && until <= at(now + 80));
                    }
                    (State::HalfOpen, Ok(permit)) => calls.push((permit, now, epoch())),
                },
            }
            if breaker.state() == State::HalfOpen {
                let held = calls.iter().filter(|call| call.2 == epoch() && now < call.1 + 80);
                prop_assert!(held.count() <= probes as usize, "too many probes");
            }
            if rng.below(10) == 0 {
                let stats = breaker.stats();
                let ended = stats.successes + stats.failures + stats.neutral;
                prop_assert_eq!(stats.permitted, ended + calls.len() as u64);
            }
        }
        let heard = heard.lock().unwrap();
        for pair in heard.windows(2) {
            prop_assert!(pair[0].to == pair[1].from && pair[0].epoch < pair[1].epoch);
        }
        for change in heard.iter() {
            let expected = matches!(
                (change.from.name(), change.to.name(), change.reason),
                ("closed", "open", Reason::FailuresInARow(_) | Reason::FailureRate(_))
                    | ("open", "half-open", Reason::TimeOver)
                    | ("half-open", "closed", Reason::ProbesSucceeded(_))
                    | ("half-open", "open", Reason::ProbeFailed)
                    | (_, "forced open" | "forced closed", Reason::Forced)
                    | (_, "closed", Reason::Reset)
            );
            prop_assert!(expected, "{change:?} is not in the table");
        }
    }
}
