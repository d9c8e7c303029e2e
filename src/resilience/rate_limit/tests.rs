//! What passes and when, what a reservation does, and that no order of calls gets more than the
//! rate and the burst.

use proptest::prelude::*;

use super::*;
use crate::{
    resilience::ConfigError,
    types::{Duration, Instant},
};

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(Duration::from_millis(millis))
}

/// One call in 10 ms.
fn limiter(burst: u32) -> RateLimiter {
    let config = Config { rate: 100, period: Duration::from_secs(1), burst };
    RateLimiter::new(config.validate().unwrap())
}

#[test]
fn a_burst_passes_at_once_and_then_calls_pass_at_the_rate() {
    let limiter = limiter(3);
    let now = at(1_000);
    assert_eq!(limiter.available(now), 3);
    for left in [2, 1, 0] {
        assert_eq!(limiter.try_take(1, now), Ok(()));
        assert_eq!(limiter.available(now), left);
    }
    assert_eq!(limiter.try_take(1, now), Err(at(1_010)));
    assert_eq!(limiter.try_take(1, at(1_009)), Err(at(1_010)), "a refusal costs nothing");
    assert_eq!(limiter.try_take(1, at(1_010)), Ok(()));
    assert_eq!(limiter.try_take(1, at(1_010)), Err(at(1_020)));
}

#[test]
fn a_rest_fills_up_the_burst_and_no_more() {
    let limiter = limiter(3);
    assert_eq!(limiter.try_take(3, at(0)), Ok(()));
    assert_eq!((limiter.available(at(29)), limiter.available(at(30))), (2, 3));
    assert!(!limiter.is_idle(at(29)) && limiter.is_idle(at(30)));
    assert_eq!(limiter.available(at(1_000_000)), 3);
    assert_eq!(limiter.try_take(3, at(1_000_000)), Ok(()));
    assert_eq!(limiter.try_take(1, at(1_000_000)), Err(at(1_000_010)));
}

#[test]
fn several_calls_pass_together_or_not_at_all() {
    let limiter = limiter(5);
    assert_eq!(limiter.try_take(3, at(0)), Ok(()));
    assert_eq!(limiter.try_take(4, at(0)), Err(at(20)));
    assert_eq!(limiter.try_take(2, at(0)), Ok(()), "the four took nothing");
    assert_eq!(limiter.try_take(6, at(1_000_000)), Err(Instant::FAR), "more than the burst");
    assert_eq!(limiter.try_take(0, at(0)), Ok(()));
}

#[test]
fn reservations_are_in_order_and_within_the_bound() {
    let limiter = limiter(1);
    let wait = Duration::from_millis(25);
    let times: Vec<_> = (0..3).map(|_| limiter.reserve(1, at(0), wait).unwrap().at()).collect();
    assert_eq!(times, [at(0), at(10), at(20)]);
    assert_eq!(limiter.reserve(1, at(0), wait), Err(at(30)));
    assert_eq!(limiter.reserve(1, at(5), wait).unwrap().at(), at(30));
}

#[test]
fn a_reservation_given_back_makes_room_where_it_was_the_last() {
    let limiter = limiter(1);
    let wait = Duration::from_secs(1);
    let [first, second, third] = [(); 3].map(|()| limiter.reserve(1, at(0), wait).unwrap());
    assert!(!limiter.cancel(second), "the third has its time by it");
    assert!(limiter.cancel(third));
    assert_eq!(limiter.reserve(1, at(0), wait).unwrap().at(), at(20));
    assert_eq!(first.at(), at(0));
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let default = Config::default();
    for (config, wrong) in [
        (Config { rate: 0, ..default }, "rate"),
        (Config { burst: 0, ..default }, "burst"),
        (Config { period: Duration::ZERO, ..default }, "period"),
        (Config { period: Duration::from_secs(86_401), ..default }, "period"),
        (Config { rate: 1_010_000, ..default }, "rate"),
    ] {
        let refused: ConfigError = config.validate().expect_err(wrong);
        assert!(refused.to_string().starts_with(wrong), "{refused}");
    }
    let year = Config { rate: 1, period: Duration::from_secs(86_400), burst: 366 };
    assert!(Config { burst: 367, ..year }.validate().is_err());
    let limiter = RateLimiter::new(year.validate().unwrap());
    let late = Instant::from_nanos(u64::MAX - 1);
    for now in [at(0), late] {
        assert_eq!(limiter.try_take(366, now), Ok(()), "nothing overflows");
    }
    assert!(limiter.try_take(1, at(0)).is_err());
}

proptest! {
    #[test]
    fn no_time_sees_more_than_its_rate_and_the_burst(
        rate in 1_u32..2_000,
        burst in 1_u32..20,
        calls in prop::collection::vec((0_u64..20_000_000, 1_u32..4, 0_u64..40, any::<bool>()), 1..150),
    ) {
        let period = Duration::from_secs(1);
        let limiter = RateLimiter::new(Config { rate, period, burst }.validate().unwrap());
        let (mut now, mut sent) = (Instant::ZERO, Vec::new());
        for (later, n, wait_ms, keeps) in calls {
            now = now.after(Duration::from_nanos(later));
            let wait_max = Duration::from_millis(wait_ms);
            let available = limiter.available(now);
            match limiter.reserve(n, now, wait_max) {
                Ok(reservation) => {
                    prop_assert!(reservation.at() <= now.after(wait_max));
                    prop_assert_eq!(reservation.at() <= now, available >= n);
                    if keeps {
                        sent.push((reservation.at().max(now), n));
                    } else {
                        limiter.cancel(reservation);
                    }
                }
                Err(again) => {
                    prop_assert!(again > now.after(wait_max));
                    if again != Instant::FAR {
                        prop_assert!(limiter.available(again) >= n, "it passes when it was told");
                    }
                }
            }
        }
        sent.sort();
        for (from, (start, _)) in sent.iter().enumerate() {
            let mut passed = 0_u64;
            for (end, n) in &sent[from..] {
                passed += u64::from(*n);
                let nanos = u128::from(u64::try_from(end.since(*start).as_nanos()).unwrap());
                // rate * t + burst, in whole numbers.
                let most = u128::from(rate) * nanos + u128::from(burst) * 1_000_000_000;
                prop_assert!(u128::from(passed) * 1_000_000_000 <= most, "{passed} in {nanos} ns");
            }
        }
    }
}
