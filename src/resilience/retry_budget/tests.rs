//! Both budgets, by hand and against models that keep every event.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Duration::from_millis(millis))
}

fn tokens(max: u32, ratio: f64) -> RetryBudget {
    RetryBudget::new(Config::Tokens(Tokens { max, ratio }).validate().expect("it works"))
}

fn share(ratio: f64, per_second_min: u32) -> RetryBudget {
    let share = Share { ratio, per_second_min, ..Share::default() };
    RetryBudget::new(Config::Share(share).validate().expect("it works"))
}

fn withdrawals(budget: &RetryBudget, now: Instant) -> usize {
    (0..100_000).take_while(|_| budget.withdraw(now)).count()
}

#[test]
fn tokens_run_out_after_half_of_them_failed_and_come_back_by_successes() {
    let budget = tokens(10, 0.1);
    assert_eq!(budget.left(at(0)), 5);
    for failure in 0..5 {
        assert!(budget.withdraw(at(0)), "after {failure} failures");
        budget.failed();
    }
    assert!(!budget.withdraw(at(0)), "half is left: nothing is sent again");
    budget.succeeded();
    assert!(budget.withdraw(at(0)), "5.1 is more than half");
    budget.failed();
    for _ in 0..9 {
        assert!(!budget.withdraw(at(0)));
        budget.succeeded();
    }
    assert!(!budget.withdraw(at(0)), "5.0");
    budget.succeeded();
    assert!(budget.withdraw(at(0)));
    for _ in 0..1_000 {
        budget.succeeded();
    }
    assert_eq!(budget.left(at(0)), 5, "not more than the maximum");
    for _ in 0..1_000 {
        budget.failed();
    }
    for _ in 0..50 {
        assert!(!budget.withdraw(at(0)));
        budget.succeeded();
    }
    assert!(!budget.withdraw(at(0)), "it fell to zero and no lower");
    budget.succeeded();
    assert!(budget.withdraw(at(0)));
}

#[test]
fn tokens_know_no_time_and_no_retries() {
    let budget = tokens(10, 0.1);
    assert_eq!(withdrawals(&budget, at(0)), 100_000, "only failures count");
    budget.called(at(0));
    assert!(budget.withdraw(at(1 << 30)));
}

#[test]
fn calls_pay_for_their_share_of_retries() {
    let budget = share(0.2, 0);
    assert!(!budget.withdraw(at(0)));
    for _ in 0..100 {
        budget.called(at(0));
    }
    budget.failed();
    budget.succeeded();
    assert_eq!((budget.left(at(0)), withdrawals(&budget, at(0))), (20, 20));
    assert_eq!(budget.left(at(0)), 0);
}

#[test]
fn a_least_number_a_second_is_there_whatever_the_load_is() {
    let budget = share(0.0, 10);
    assert_eq!(withdrawals(&budget, at(0)), 100, "a window's worth at once");
    assert_eq!(withdrawals(&budget, at(9_999)), 0);
    assert_eq!(withdrawals(&budget, at(10_000)), 100, "the window has passed");
}

#[test]
fn what_was_paid_in_is_forgotten_after_the_window() {
    let budget = share(1.0, 0);
    for _ in 0..10 {
        budget.called(at(0));
    }
    assert_eq!(budget.left(at(9_999)), 10);
    assert_eq!(budget.left(at(10_000)), 0);
    budget.called(at(10_000));
    assert_eq!(withdrawals(&budget, at(10_000)), 1);
    // A window that nobody looked at for long is empty.
    budget.called(at(20_000));
    assert_eq!(withdrawals(&budget, at(1 << 40)), 0);
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let budgets = [
        (Config::Tokens(Tokens { max: 0, ratio: 0.1 }), "max"),
        (Config::Tokens(Tokens { max: 1_001, ratio: 0.1 }), "max"),
        (Config::Tokens(Tokens { max: 10, ratio: 0.0 }), "ratio"),
        (Config::Tokens(Tokens { max: 10, ratio: f64::NAN }), "ratio"),
        (Config::Share(Share { ratio: -0.1, ..Share::default() }), "ratio"),
        (Config::Share(Share { per_second_min: 1_000_001, ..Share::default() }), "per_second_min"),
        (Config::Share(Share { window: Duration::ZERO, ..Share::default() }), "window"),
    ];
    for (config, wrong) in budgets {
        let refused = config.validate().expect_err(wrong).to_string();
        assert!(refused.starts_with(wrong), "{refused}");
    }
}

#[test]
fn a_word_keeps_its_part_of_time_and_its_balance() {
    for part in [1, 7, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, 1 << 33] {
        for balance in [0, 1, -1, 5_000, -5_000, BALANCE_MAX, -BALANCE_MAX] {
            let word = pack(part, balance);
            assert_eq!((part_of(word, part), balance_of(word)), (part, balance));
            assert_eq!(part_of(word, part + 9), part);
            assert_eq!(part_of(word, part.saturating_sub(1)), part, "a clock a little behind");
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Called,
    Withdraw,
}

proptest! {
    #[test]
    fn a_window_agrees_with_a_list_of_all_events(
        percent in 0_u32..300,
        per_second_min in 0_u32..3,
        events in proptest::collection::vec(
            (0_u64..800, prop_oneof![Just(Event::Called), Just(Event::Withdraw)]),
            1..300,
        ),
    ) {
        let budget = share(f64::from(percent) / 100.0, per_second_min);
        let Kind::Share(window) = &budget.0 else { unreachable!("it is one") };
        let (deposit, withdrawal, reserve) = (window.deposit, window.withdrawal, window.reserve);
        let (mut held, mut now) = (VecDeque::<(u64, i64)>::new(), 0);
        for (pause, event) in events {
            now += pause;
            let part = now / 1_000;
            while held.front().is_some_and(|(of, _)| of + 10 <= part) {
                held.pop_front();
            }
            let balance = held.iter().map(|(_, amount)| amount).sum::<i64>() + reserve;
            prop_assert_eq!(
                budget.left(at(now)), u64::try_from(balance / withdrawal).unwrap_or(0));
            match event {
                Event::Called => {
                    budget.called(at(now));
                    held.push_back((part, deposit));
                }
                Event::Withdraw => {
                    let allowed = budget.withdraw(at(now));
                    prop_assert_eq!(allowed, balance >= withdrawal);
                    if allowed {
                        held.push_back((part, -withdrawal));
                    }
                }
            }
        }
    }

    #[test]
    fn retries_never_exceed_their_share_of_the_calls(
        percent in 1_u32..200,
        steps in proptest::collection::vec((any::<bool>(), 0_u64..50), 1..500),
    ) {
        let budget = share(f64::from(percent) / 100.0, 0);
        let (mut calls, mut retries, mut now) = (0_u32, 0_u32, 0);
        for (is_call, pause) in steps {
            now += pause;
            if is_call {
                calls += 1;
                budget.called(at(now));
            } else {
                retries += u32::from(budget.withdraw(at(now)));
            }
        }
        // Within one window; a retry's price is rounded to a thousandth.
        if now < 10_000 {
            prop_assert!(f64::from(retries) <= f64::from(calls * percent) / 100.0 * 1.01 + 1e-9);
        }
    }

    #[test]
    fn tokens_stay_between_zero_and_their_maximum(
        max in 1_u32..100,
        ratio in 0.001_f64..1.0,
        ends in proptest::collection::vec(any::<bool>(), 0..500),
    ) {
        let budget = tokens(max, ratio);
        let Kind::Tokens(bucket) = &budget.0 else { unreachable!("it is one") };
        for ok in ends {
            if ok { budget.succeeded() } else { budget.failed() }
            let tokens = bucket.tokens.load(Relaxed);
            prop_assert!(tokens <= max * SCALE);
            prop_assert_eq!(budget.withdraw(at(0)), tokens * 2 > max * SCALE);
            prop_assert_eq!(budget.left(at(0)) > 0, budget.withdraw(at(0)));
        }
    }
}
