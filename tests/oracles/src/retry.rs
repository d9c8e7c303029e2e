//! The retry budget beside tower's (Finagle's, in virtual time), the steps of retries beside backon,
//! and those of connections beside tower-resilience-retry.

use backon::{BackoffBuilder as _, ExponentialBuilder};
use quorate::{
    resilience::{
        backoff, retry,
        retry_budget::{Config, RetryBudget, Share},
    },
    types::{Duration, Instant, Rng},
};
use tower::retry::budget::{Budget as _, TpsBudget};
use tower_resilience_retry::{ExponentialBackoff, IntervalFunction as _};

use crate::{chance, millis, pick, traces};

const WINDOW: Duration = Duration::from_secs(10);

fn budget(ratio: f64, per_second_min: u32) -> RetryBudget {
    let share = Share { ratio, per_second_min, window: WINDOW };
    RetryBudget::new(Config::Share(share).validate().expect("it works"))
}

/// A runtime whose time stands until it is moved.
fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("it starts")
}

#[test]
fn the_budget_is_towers_within_its_window() {
    let (mut given, mut denied) = (0, 0);
    traces(1_000, |_, rng| {
        let (ratio, per_second_min) =
            ([0.1, 0.2, 0.25, 0.5, 1.0][rng.below(5) as usize], rng.below(3) as u32);
        paused().block_on(async {
            let ours = budget(ratio, per_second_min);
            let theirs = TpsBudget::new(WINDOW, per_second_min, ratio as f32);
            let retrying = pick(rng, 5, 60);
            // Nothing is forgotten before the window is over; after it they differ.
            for second in 0..9_u64 {
                let now = Instant::ZERO.after(Duration::from_secs(second));
                for step in 0..rng.below(60) {
                    if chance(rng, retrying) {
                        let answer = ours.withdraw(now);
                        assert_eq!(answer, theirs.withdraw(), "second {second}, step {step}");
                        *(if answer { &mut given } else { &mut denied }) += 1;
                    } else {
                        ours.called(now);
                        theirs.deposit();
                    }
                }
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        });
    });
    assert!(given > 10_000 && denied > 10_000, "{given} given, {denied} denied");
}

#[test]
fn towers_budget_remembers_for_a_tenth_longer_than_its_window() {
    let retries_after = |seconds: u64| {
        paused().block_on(async {
            let ours = budget(1.0, 0);
            let theirs = TpsBudget::new(WINDOW, 0, 1.0);
            ours.called(Instant::ZERO);
            theirs.deposit();
            // Once a second, as a client that is in use looks at it.
            for _ in 0..seconds {
                tokio::time::advance(Duration::from_secs(1)).await;
                let _ = format!("{theirs:?}");
                theirs.deposit();
                assert!(theirs.withdraw());
            }
            (ours.withdraw(Instant::ZERO.after(Duration::from_secs(seconds))), theirs.withdraw())
        })
    };
    assert_eq!(retries_after(9), (true, true));
    assert_eq!(retries_after(10), (false, true), "its window is of eleven parts of a second");
    assert_eq!(retries_after(11), (false, false));
}

#[test]
fn the_steps_of_retries_are_backons() {
    traces(3_000, |_, rng| {
        let base = millis(pick(rng, 1, 1_000));
        let max = base + millis(pick(rng, 0, 60_000));
        let factor = pick(rng, 10, 40) as f64 / 10.0;
        let config = retry::Config { base, factor, max, ..retry::Config::default() };
        let ours = config.validate().expect("it works");
        let theirs = ExponentialBuilder::new()
            .with_min_delay(base)
            .with_max_delay(max)
            .with_factor(factor as f32)
            .without_max_times()
            .build();
        for (attempt, delay) in (1..=20).zip(theirs) {
            let (left, right) = (ours.step(attempt).as_secs_f64(), delay.as_secs_f64());
            // Theirs multiplies step by step in 24 bits.
            assert!((left - right).abs() <= right * 1e-4, "{left} and {right} at {attempt}");
        }
    });
}

#[test]
fn backon_adds_its_jitter_to_the_step_and_ours_draws_below_it() {
    let config = retry::Config { base: millis(100), ..retry::Config::default() };
    let ours = config.validate().expect("it works");
    let mut rng = Rng::new(1);
    let (mut ours_least, mut theirs_least) = (Duration::MAX, Duration::MAX);
    for seed in 0..1_000 {
        let pause = ours.pause(1, &mut rng);
        assert!(pause < millis(100), "full jitter: evenly below the step");
        ours_least = ours_least.min(pause);
        let theirs = ExponentialBuilder::new().with_min_delay(millis(100));
        let delay = theirs.with_jitter().with_jitter_seed(seed).build().next().expect("one");
        assert!(delay >= millis(100) && delay <= millis(200));
        theirs_least = theirs_least.min(delay);
    }
    assert!(ours_least < millis(5), "a tenth of the load in the first tenth of the step");
    assert!(theirs_least >= millis(100), "nothing comes before the step");
}

#[test]
fn the_pauses_of_connections_are_tower_resiliences() {
    traces(3_000, |_, rng| {
        let base = millis(pick(rng, 1, 5_000));
        let max = base + millis(pick(rng, 0, 200_000));
        let factor = pick(rng, 10, 40) as f64 / 10.0;
        let config = backoff::Config { base, factor, jitter: 0.0, max };
        let mut ours = backoff::Backoff::new(config.validate().expect("it works"));
        let theirs =
            ExponentialBackoff::new(base).multiplier(factor).expect("it works").max_interval(max);
        for attempt in 0..25 {
            let pause = ours.failed(Instant::ZERO, rng).since(Instant::ZERO);
            let difference = pause.abs_diff(theirs.next_interval(attempt));
            assert!(difference <= Duration::from_micros(1), "{difference:?} at {attempt}");
        }
    });
}
