//! The adaptive concurrency limits beside tower-acc's, sample by sample.
//!
//! Both take the latency, the calls in flight and whether the call was dropped. Ours can judge a
//! window of samples as one; here it judges each, as tower-acc does.

use quorate::{
    resilience::concurrency_limit::{
        Aimd, Algorithm, Config, Ended, Gradient2, Limit, Sample, Vegas,
    },
    types::{Duration, Instant, Rng},
};
use tower_acc::Algorithm as _;

use crate::{chance, millis, pick, traces};

const MAX: usize = 500;

/// One of ours, between 1 and 500.
fn ours(algorithm: Algorithm, initial: usize) -> Limit {
    let config = Config {
        algorithm,
        initial,
        min: 1,
        max: MAX,
        window: Duration::ZERO,
        window_samples: 1,
        ..Config::default()
    };
    Limit::new(config.validate().expect("it works"), Rng::new(1))
}

fn record(limit: &mut Limit, in_flight: usize, ended: Ended) {
    limit.record(Sample { in_flight, ended }, Instant::ZERO);
}

/// A latency of a service that slows down with its load, and sometimes by itself.
fn latency(rng: &mut Rng, in_flight: usize, capacity: u64) -> Duration {
    let queued = (in_flight as u64).saturating_sub(capacity);
    let noise = rng.below(3_000);
    millis(10) + Duration::from_micros(queued * 500 + noise)
}

#[test]
fn aimd_takes_the_steps_of_tower_acc() {
    let mut drops = 0;
    traces(1_000, |_, rng| {
        let backoff = pick(rng, 50, 95) as f64 / 100.0;
        let initial = pick(rng, 1, 100) as usize;
        let latency_max = millis(100);
        let mut limit = ours(Algorithm::Aimd(Aimd { backoff, latency_max }), initial);
        for step in 0..300 {
            // Theirs keeps the fraction that a decrease leaves, as ours does not: so each step
            // begins from the same whole number.
            let before = limit.limit();
            let mut theirs = tower_acc::Aimd::builder()
                .initial_limit(before)
                .min_limit(1)
                .max_limit(MAX)
                .backoff_ratio(backoff)
                .timeout(latency_max)
                .build();
            let in_flight = pick(rng, 1, before as u64 + 2) as usize;
            let rtt = millis(pick(rng, 1, 110));
            if chance(rng, 10) {
                drops += 1;
                record(&mut limit, in_flight, Ended::Dropped);
                theirs.update(rtt, in_flight, true, false);
            } else {
                record(&mut limit, in_flight, Ended::Answered(rtt));
                theirs.update(rtt, in_flight, false, false);
            }
            assert_eq!(limit.limit(), theirs.max_concurrency(), "from {before} at step {step}");
        }
    });
    assert!(drops > 10_000);
}

#[test]
fn a_decrease_of_aimd_leaves_tower_acc_a_fraction() {
    let mut limit = ours(Algorithm::Aimd(Aimd::default()), 19);
    let mut theirs =
        tower_acc::Aimd::builder().initial_limit(19).min_limit(1).max_limit(MAX).build();
    for _ in 0..2 {
        record(&mut limit, 19, Ended::Dropped);
        theirs.update(millis(1), 19, true, false);
    }
    assert_eq!(limit.limit(), 15, "19, 17, 15: a whole number each time, as Netflix's");
    assert_eq!(theirs.max_concurrency(), 15, "15.39");
    record(&mut limit, 19, Ended::Dropped);
    theirs.update(millis(1), 19, true, false);
    assert_eq!((limit.limit(), theirs.max_concurrency()), (13, 13), "13.5 and 13.851");
    for _ in 0..2 {
        record(&mut limit, 19, Ended::Dropped);
        theirs.update(millis(1), 19, true, false);
    }
    assert_eq!((limit.limit(), theirs.max_concurrency()), (9, 11), "they drift apart");
}

#[test]
fn vegas_is_tower_accs() {
    let mut most = 0;
    traces(1_000, |_, rng| {
        let initial = pick(rng, 1, 100) as usize;
        // When the least latency is measured anew is chance with both: here never.
        let vegas = Vegas { probe: u32::MAX, ..Vegas::default() };
        let mut limit = ours(Algorithm::Vegas(vegas), initial);
        let mut theirs = tower_acc::Vegas::builder()
            .initial_limit(initial)
            .max_limit(MAX)
            .probe_multiplier(usize::MAX >> 32)
            .build();
        let capacity = pick(rng, 5, 200);
        for step in 0..500 {
            let in_flight = pick(rng, 1, limit.limit() as u64 + 2) as usize;
            let loaded = in_flight * 2 >= limit.limit();
            if step > 0 && loaded && chance(rng, 3) {
                record(&mut limit, in_flight, Ended::Dropped);
                // Theirs looks at the latency of a dropped call: one above the least.
                theirs.update(Duration::from_secs(1), in_flight, true, false);
            } else {
                let rtt = latency(rng, in_flight, capacity);
                record(&mut limit, in_flight, Ended::Answered(rtt));
                theirs.update(rtt, in_flight, false, false);
            }
            assert_eq!(limit.limit(), theirs.max_concurrency(), "step {step}");
            most = most.max(limit.limit());
        }
    });
    assert!(most > 100, "it hardly moved: {most}");
}

#[test]
fn vegas_of_tower_acc_overlooks_drops_while_little_is_in_flight() {
    let mut limit = ours(Algorithm::Vegas(Vegas::default()), 100);
    let mut theirs = tower_acc::Vegas::builder().initial_limit(100).max_limit(MAX).build();
    record(&mut limit, 100, Ended::Answered(millis(10)));
    theirs.update(millis(10), 100, false, false);
    record(&mut limit, 10, Ended::Dropped);
    theirs.update(millis(20), 10, true, false);
    assert_eq!(limit.limit(), 98, "a drop says that ten were too many");
    assert_eq!(theirs.max_concurrency(), 100);
}

#[test]
fn gradient2_is_tower_accs() {
    let (mut equal, mut steps) = (0_u64, 0_u64);
    traces(1_000, |_, rng| {
        let initial = pick(rng, 20, 100) as usize;
        let mut limit = ours(Algorithm::Gradient2(Gradient2::default()), initial);
        let mut theirs = tower_acc::Gradient2::builder()
            .initial_limit(initial)
            .min_limit(1)
            .max_limit(MAX)
            .queue_size(|_| 4)
            .build();
        let mut capacity = pick(rng, 5, 200);
        for step in 0..500 {
            if chance(rng, 1) {
                capacity = pick(rng, 5, 200);
            }
            // Not near half of the limit: there its last bits decide whether a sample counts.
            let half = limit.limit() as u64 / 2;
            let idle = half > 4 && chance(rng, 30);
            let (least, most) = if idle { (1, half - 2) } else { (half + 2, 2 * half + 3) };
            let in_flight = pick(rng, least, most) as usize;
            let rtt = latency(rng, in_flight, capacity);
            record(&mut limit, in_flight, Ended::Answered(rtt));
            theirs.update(rtt, in_flight, false, false);
            let (left, right) = (limit.limit(), theirs.max_concurrency());
            // The mean is written in another way, so the last bits differ and at times the floor.
            assert!(left.abs_diff(right) <= 1, "{left} and {right} at step {step}");
            steps += 1;
            equal += u64::from(left == right);
        }
    });
    assert!(equal * 1_000 >= steps * 999, "{equal} of {steps} are equal");
}

#[test]
fn gradient2_of_tower_acc_overlooks_drops() {
    let mut limit = ours(Algorithm::Gradient2(Gradient2::default()), 100);
    let mut theirs = tower_acc::Gradient2::builder()
        .initial_limit(100)
        .min_limit(1)
        .max_limit(MAX)
        .queue_size(|_| 4)
        .build();
    for _ in 0..20 {
        record(&mut limit, 200, Ended::Dropped);
        theirs.update(millis(10), 200, true, false);
    }
    assert!(limit.limit() < 50, "a drop counts as the steepest gradient: {}", limit.limit());
    assert!(theirs.max_concurrency() > 100, "only latency counts");
}
