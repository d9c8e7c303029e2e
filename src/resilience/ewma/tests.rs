//! The estimates against the same formulas in `f64` over the whole history.

use proptest::prelude::*;

use super::*;

fn at_ms(ms: u64) -> Instant {
    Instant::ZERO.after(Duration::from_millis(ms))
}

fn config(decay_ms: u64) -> ValidConfig {
    Config { decay: Duration::from_millis(decay_ms), ..Config::default() }.validate().unwrap()
}

fn near(left: Duration, right: Duration) -> bool {
    left.abs_diff(right) < Duration::from_micros(10) + right / 500
}

#[test]
fn nothing_seen_costs_the_seed_and_decays_to_the_floor() {
    let cost = PeakEwma::new(ValidConfig::default(), at_ms(5));
    assert!(near(cost.cost(at_ms(5)), Duration::from_millis(30)));
    let after_decay = Duration::from_millis(30).div_f64(std::f64::consts::E);
    assert!(near(cost.cost(at_ms(10_005)), after_decay));
    assert_eq!(cost.cost(at_ms(500_000)), Duration::from_micros(100));
}

#[test]
fn the_first_round_trip_replaces_the_guess() {
    let cost = PeakEwma::new(ValidConfig::default(), Instant::ZERO);
    cost.observe(Duration::from_millis(2), Instant::ZERO);
    assert_eq!(cost.cost(Instant::ZERO), Duration::from_millis(2));
}

#[test]
fn a_peak_is_taken_at_once_and_let_go_by_time() {
    let cost = PeakEwma::new(config(1_000), Instant::ZERO);
    cost.observe(Duration::from_millis(2), at_ms(1));
    cost.observe(Duration::from_millis(100), at_ms(2));
    assert_eq!(cost.cost(at_ms(2)), Duration::from_millis(100));
    // At the same time a low one weighs nothing.
    cost.observe(Duration::from_millis(2), at_ms(2));
    assert_eq!(cost.cost(at_ms(2)), Duration::from_millis(100));
    // One decay time later it weighs 1 - 1/e.
    cost.observe(Duration::from_millis(2), at_ms(1_002));
    let expected =
        Duration::from_millis(2) + Duration::from_millis(98).div_f64(std::f64::consts::E);
    assert!(near(cost.cost(at_ms(1_002)), expected), "{:?}", cost.cost(at_ms(1_002)));
}

#[test]
fn a_late_report_counts_as_now_and_does_not_turn_time_back() {
    let cost = PeakEwma::new(config(1_000), Instant::ZERO);
    cost.observe(Duration::from_millis(10), at_ms(5_000));
    cost.observe(Duration::from_millis(50), at_ms(4_000));
    assert_eq!(cost.cost(at_ms(5_000)), Duration::from_millis(50));
    assert_eq!(cost.cost(at_ms(3_000)), Duration::from_millis(50));
    assert!(cost.cost(at_ms(6_000)) < Duration::from_millis(19));
}

#[test]
fn the_stamp_wraps_without_a_trace() {
    let wrap_ns = 1_u64 << (32 + TICK_BITS);
    let before = Instant::from_nanos(wrap_ns - 500_000_000);
    let cost = PeakEwma::new(config(1_000), before);
    cost.observe(Duration::from_millis(100), before);
    let left = cost.cost(before.after(Duration::from_secs(1)));
    assert!(near(left, Duration::from_millis(100).div_f64(std::f64::consts::E)), "{left:?}");
}

#[test]
fn a_success_rate_follows_what_happens_and_forgets() {
    let rate = SuccessRate::new(config(1_000), Instant::ZERO);
    assert_eq!(rate.rate(at_ms(70)), 1.0);
    for _ in 0..999 {
        rate.record(false, at_ms(100));
    }
    assert!((rate.rate(at_ms(100)) - 1.0 / 33.0).abs() < 1e-4, "32 calls count");
    for ms in 0..5_000 {
        rate.record(true, at_ms(100 + ms));
    }
    assert!(rate.rate(at_ms(5_100)) > 0.99, "{}", rate.rate(at_ms(5_100)));

    let rests = SuccessRate::new(config(1_000), Instant::ZERO);
    rests.record(false, Instant::ZERO);
    assert_eq!(rests.rate(Instant::ZERO), 0.5);
    assert!(rests.rate(at_ms(10_000)) > 0.999, "what rests is tried again");
}

#[test]
fn what_begins_to_fail_shows_it_soon_however_long_it_succeeded() {
    let rate = SuccessRate::new(config(10_000), Instant::ZERO);
    (0..100_000).for_each(|_| rate.record(true, Instant::ZERO));
    (0..32).for_each(|_| rate.record(false, Instant::ZERO));
    assert!(rate.rate(Instant::ZERO) < 0.4, "{}", rate.rate(Instant::ZERO));
    rate.forget(at_ms(1));
    assert_eq!(rate.rate(at_ms(1)), 1.0);
}

#[test]
fn what_begins_anew_is_a_guess_until_something_is_seen() {
    let cost = PeakEwma::new(config(1_000), Instant::ZERO);
    let guess = cost.cost(Instant::ZERO);
    assert!(cost.is_guess());
    cost.observe(Duration::from_secs(5), at_ms(1));
    assert!(!cost.is_guess());
    cost.forget(at_ms(2));
    assert!(cost.is_guess());
    assert_eq!(cost.cost(at_ms(2)), guess);
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let default = Config::default();
    for (config, wrong) in [
        (Config { decay: Duration::from_millis(9), ..default }, "decay"),
        (Config { decay: Duration::from_secs(3_601), ..default }, "decay"),
        (Config { floor: Duration::ZERO, ..default }, "floor"),
    ] {
        let refused = config.validate().expect_err(wrong).to_string();
        assert!(refused.starts_with(wrong), "{refused}");
    }
}

/// Milliseconds to the next call, its round trip in microseconds, and whether it succeeds.
fn calls() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    prop::collection::vec((0_u64..2_000, 1_u64..1_000_000, any::<bool>()), 1..100)
}

fn ticks(now: Instant) -> f64 {
    f64::from(tick(now))
}

proptest! {
    #[test]
    fn a_cost_is_what_finagles_formula_gives(calls in calls(), decay_ms in 10_u64..60_000) {
        let estimate = PeakEwma::new(config(decay_ms), Instant::ZERO);
        let decay = decay_ms as f64 * 1e6 / f64::from(1 << TICK_BITS);
        let (mut now, mut last, mut expected) = (0, 0.0, 0.0_f64);
        for (pause, rtt_us, _) in calls {
            now += pause;
            let rtt = rtt_us as f64 * 1e3;
            let weight = (-(ticks(at_ms(now)) - last) / decay).exp();
            last = ticks(at_ms(now));
            expected = if rtt > expected { rtt } else { expected * weight + rtt * (1.0 - weight) };
            estimate.observe(Duration::from_micros(rtt_us), at_ms(now));

            let cost = estimate.cost(at_ms(now)).as_nanos() as f64;
            let expected_floored = expected.max(100_000.0);
            prop_assert!((cost - expected_floored).abs() < expected_floored * 1e-3, "{cost} {expected}");
            prop_assert!(cost >= rtt * 0.999, "never below what was just seen");
            let later = estimate.cost(at_ms(now + decay_ms)).as_nanos() as f64;
            prop_assert!(later <= cost);
        }
    }

    #[test]
    fn a_rate_is_that_of_the_decayed_history(calls in calls(), decay_ms in 10_u64..60_000) {
        let rate = SuccessRate::new(config(decay_ms), Instant::ZERO);
        let decay = decay_ms as f64 * 1e6 / f64::from(1 << TICK_BITS);
        let mut now = 0;
        let mut history = Vec::new();
        for (pause, _, success) in calls {
            now += pause;
            rate.record(success, at_ms(now));
            history.push((ticks(at_ms(now)), success));
            let weigh = |wanted| -> f64 {
                let since = |(after, (at, success)): (i32, &(f64, bool))| {
                    let called = f64::from(CALL_WEIGHT).powi(after);
                    let weight = called * (-(ticks(at_ms(now)) - at) / decay).exp();
                    if *success == wanted { weight } else { 0.0 }
                };
                (0..).zip(history.iter().rev()).map(since).sum()
            };
            let good = weigh(true) + 1.0;
            let expected = good / (good + weigh(false));
            let seen = rate.rate(at_ms(now));
            prop_assert!((seen - expected).abs() < 1e-3, "{seen} is not {expected}");
            prop_assert!(seen > 0.0 && seen <= 1.0);
        }
    }
}
