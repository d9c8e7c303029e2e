//! Each rule of each algorithm, the queue's order, and the invariants under any sequence of events.

use proptest::prelude::*;

use super::*;
use crate::{
    resilience::ConfigError,
    types::{Duration, Instant, Rng},
};

const NOW: Instant = Instant::ZERO;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn at(millis: u64) -> Instant {
    Instant::ZERO.after(ms(millis))
}

/// A limit that judges each sample on its own.
fn limit(algorithm: Algorithm) -> Limit {
    let config =
        Config { algorithm, window: Duration::ZERO, initial: 100, min: 10, ..Config::default() };
    Limit::new(config.validate().expect("it works"), Rng::new(7))
}

fn aimd() -> Limit {
    limit(Algorithm::Aimd(Aimd { latency_max: ms(100), ..Aimd::default() }))
}

fn vegas(probe: u32) -> Limit {
    limit(Algorithm::Vegas(Vegas { probe, ..Vegas::default() }))
}

fn gradient() -> Limit {
    limit(Algorithm::Gradient2(Gradient2::default()))
}

impl Limit {
    fn answered(&mut self, in_flight: usize, latency: Duration) -> usize {
        self.record(Sample { in_flight, ended: Ended::Answered(latency) }, NOW);
        self.limit()
    }

    fn dropped(&mut self, in_flight: usize) -> usize {
        self.record(Sample { in_flight, ended: Ended::Dropped }, NOW);
        self.limit()
    }
}

#[test]
fn a_fixed_limit_stays() {
    let config = Config { window: Duration::ZERO, ..Config::fixed(7) };
    let mut limit = Limit::new(config.validate().unwrap(), Rng::new(7));
    assert_eq!(limit.answered(7, ms(1)), 7);
    assert_eq!(limit.dropped(7), 7);
    assert_eq!(limit.baseline(), None);
}

#[test]
fn aimd_grows_by_one_and_backs_off_by_a_share() {
    let mut limit = aimd();
    assert_eq!(limit.answered(50, ms(1)), 101, "half of it was used");
    assert_eq!(limit.answered(101, ms(100)), 102, "as late as may be");
    assert_eq!(limit.answered(102, ms(101)), 91, "too late");
    assert_eq!(limit.dropped(91), 81);
    for _ in 0..100 {
        limit.dropped(81);
    }
    assert_eq!(limit.limit(), 10, "the least");
}

#[test]
fn no_algorithm_raises_a_limit_that_is_not_used() {
    for mut limit in [aimd(), vegas(30), gradient()] {
        for _ in 0..500 {
            limit.answered(49, ms(1));
        }
        assert_eq!(limit.limit(), 100, "{limit:?}");
    }
}

#[test]
fn every_algorithm_raises_a_limit_that_is_used_while_latency_stays() {
    for mut limit in [aimd(), vegas(30), gradient()] {
        for _ in 0..2_000 {
            limit.answered(limit.limit(), ms(1));
        }
        assert_eq!(limit.limit(), 1_000, "the greatest: {limit:?}");
    }
}

#[test]
fn every_adaptive_algorithm_backs_off_on_a_drop() {
    for mut limit in [aimd(), vegas(30), gradient()] {
        limit.answered(100, ms(1));
        let before = limit.limit();
        assert!(limit.dropped(before) < before, "{limit:?}");
    }
}

#[test]
fn vegas_steers_by_the_calls_that_seem_to_queue() {
    let mut limit = vegas(1_000_000);
    assert_eq!(limit.answered(100, ms(10)), 100, "the least latency so far");
    assert_eq!(limit.baseline(), Some(ms(10)));
    // log10(100) is 2, so alpha is 6 and beta 12.
    assert_eq!(limit.answered(100, ms(10)), 112, "none queues: by beta");
    let mut limit = vegas(1_000_000);
    limit.answered(100, ms(10));
    // 100 * (1 - 10 / 10.4) is 3.8, so 4 queue.
    assert_eq!(limit.answered(100, Duration::from_micros(10_400)), 102, "below alpha: by a step");
    let mut limit = vegas(1_000_000);
    limit.answered(100, ms(10));
    assert_eq!(limit.answered(100, ms(11)), 100, "10 queue: between the two it stays");
    assert_eq!(limit.answered(100, ms(12)), 98, "17 queue: above beta");
}

#[test]
fn vegas_learns_a_latency_that_has_grown_by_probing() {
    let mut limit = vegas(1);
    limit.answered(100, ms(10));
    let mut samples = 0;
    while limit.baseline() != Some(ms(20)) {
        limit.answered(limit.limit(), ms(20));
        samples += 1;
        assert!(samples <= 100, "a probe comes after 50 to 100 samples");
    }
    assert!(samples >= 10, "it came after {samples}");
}

#[test]
fn gradient_shrinks_in_proportion_at_most_to_a_half_and_recovers() {
    let mut limit = gradient();
    for _ in 0..20 {
        limit.answered(10, ms(10));
    }
    assert_eq!(limit.limit(), 100, "it only learnt the latency");
    assert_eq!(limit.baseline(), Some(ms(10)));
    assert_eq!(limit.answered(100, ms(14)), 100, "within the tolerance, and four may queue");
    let before = limit.limit();
    // Ten times as slow: a half, smoothed by 0.2, and 4 to queue.
    let after = limit.answered(before, ms(100));
    assert!((90..=91).contains(&after), "{after}");
    for _ in 0..200 {
        limit.answered(limit.limit(), ms(100));
    }
    let baseline = limit.baseline().expect("it saw many");
    assert!(baseline > ms(40), "the long average followed: {baseline:?}");
    let low = limit.limit();
    assert!(low < 60, "{low}");
    for _ in 0..200 {
        limit.answered(limit.limit(), ms(10));
    }
    assert!(limit.limit() > 2 * low, "{} after {low}", limit.limit());
    let baseline = limit.baseline().expect("it saw many");
    assert!(baseline < ms(25), "the long average came down: {baseline:?}");
}

#[test]
fn a_call_that_says_nothing_changes_nothing() {
    for mut limit in [aimd(), vegas(30), gradient()] {
        let sample = Sample { in_flight: 100, ended: Ended::Ignored };
        assert_eq!((limit.record(sample, NOW), limit.limit()), (None, 100));
    }
}

#[test]
fn a_window_is_judged_once_when_it_is_old_and_full_enough() {
    let algorithm = Algorithm::Aimd(Aimd { latency_max: ms(50), ..Aimd::default() });
    let config = Config { algorithm, initial: 20, ..Config::default() };
    let mut limit = Limit::new(config.validate().unwrap(), Rng::new(7));
    let sample = |latency| Sample { in_flight: 20, ended: Ended::Answered(ms(latency)) };
    for _ in 0..30 {
        assert_eq!(limit.record(sample(1), at(0)), None, "not old enough");
    }
    assert_eq!(limit.record(sample(1), at(100)), Some(21), "31 samples count as one");
    for sent in 0..9 {
        assert_eq!(limit.record(sample(1), at(1_000 + 200 * sent)), None, "not full enough");
    }
    assert_eq!(limit.record(sample(900), at(3_000)), Some(18), "the mean is above 50 ms");
    let dropped = Sample { in_flight: 20, ended: Ended::Dropped };
    for _ in 0..9 {
        assert_eq!(limit.record(sample(1), at(4_000)), None);
    }
    assert_eq!(limit.record(dropped, at(4_100)), Some(16), "one drop in a window is a drop");
}

fn limiter(config: Config) -> Limiter<&'static str> {
    Limiter::new(config.validate().expect("it works"), Rng::new(7))
}

fn admitted(admission: Admission<&'static str>) -> Permit {
    let Admission::Admitted(permit) = admission else { panic!("{admission:?}") };
    permit
}

fn queued(admission: Admission<&'static str>) -> (Ticket, Instant) {
    let Admission::Queued { ticket, until, displaced: None } = admission else {
        panic!("{admission:?}")
    };
    (ticket, until)
}

/// Ends calls until the queue is empty and tells who went, in order.
fn drain(limiter: &mut Limiter<&'static str>, mut permits: Vec<Permit>) -> Vec<&'static str> {
    let mut order = Vec::new();
    while let Some(permit) = permits.pop() {
        limiter.finish(permit, Ended::Ignored, NOW);
        while let Some(next) = limiter.next(NOW) {
            let Next::Admitted { waiter, permit, .. } = next else { panic!("{next:?}") };
            order.push(waiter);
            permits.push(permit);
        }
    }
    order
}

#[test]
fn the_important_go_first_and_within_a_class_who_came_first() {
    let mut limiter = limiter(Config::fixed(1));
    let permit = admitted(limiter.arrive(0, NOW, || ""));
    for (class, name) in [(2, "list 1"), (1, "key 1"), (2, "list 2"), (0, "session"), (1, "key 2")]
    {
        queued(limiter.arrive(class, NOW, || name));
    }
    assert_eq!(limiter.stats().queued, 5);
    let order = drain(&mut limiter, vec![permit]);
    assert_eq!(order, ["session", "key 1", "key 2", "list 1", "list 2"]);
    assert!(limiter.is_idle());
    assert_eq!(limiter.stats().admitted, 6);
}

#[test]
fn nobody_overtakes_one_who_waits_in_its_class() {
    let mut limiter = limiter(Config::fixed(1));
    let permit = admitted(limiter.arrive(1, NOW, || ""));
    queued(limiter.arrive(1, NOW, || "waits"));
    limiter.finish(permit, Ended::Ignored, NOW);
    // The place is free, but `next` was not asked yet.
    queued(limiter.arrive(1, NOW, || "comes later"));
    let permit = admitted(limiter.arrive(0, NOW, || "is more important"));
    assert_eq!(drain(&mut limiter, vec![permit]), ["waits", "comes later"]);
}

#[test]
fn a_full_queue_refuses_but_gives_the_important_a_place() {
    let mut limiter = limiter(Config { queue_max: 2, ..Config::fixed(1) });
    let permit = admitted(limiter.arrive(1, NOW, || ""));
    queued(limiter.arrive(1, NOW, || "first"));
    queued(limiter.arrive(1, NOW, || "second"));
    assert!(matches!(limiter.arrive(1, NOW, || "third"), Admission::Refused));
    let admission = limiter.arrive(0, NOW, || "important");
    assert!(matches!(admission, Admission::Queued { displaced: Some("second"), .. }));
    let Stats { refused, displaced, queued, .. } = limiter.stats();
    assert_eq!((refused, displaced, queued), (1, 1, 2));
    assert_eq!(drain(&mut limiter, vec![permit]), ["important", "first"]);
}

#[test]
fn without_a_queue_all_beyond_the_limit_are_refused() {
    for config in [
        Config { queue_max: 0, ..Config::fixed(1) },
        Config { queue_wait_max: Duration::ZERO, ..Config::fixed(1) },
    ] {
        let mut limiter = limiter(config);
        let permit = admitted(limiter.arrive(0, NOW, || ""));
        assert!(matches!(limiter.arrive(0, NOW, || ""), Admission::Refused));
        limiter.finish(permit, Ended::Ignored, NOW);
        let permit = admitted(limiter.arrive(0, NOW, || ""));
        limiter.finish(permit, Ended::Ignored, NOW);
    }
}

#[test]
fn who_waited_too_long_is_not_admitted() {
    let mut limiter = limiter(Config { queue_wait_max: ms(10), ..Config::fixed(1) });
    let permit = admitted(limiter.arrive(0, at(0), || ""));
    let (ticket, until) = queued(limiter.arrive(0, at(0), || "first"));
    assert_eq!(until, at(10));
    queued(limiter.arrive(0, at(1), || "second"));
    queued(limiter.arrive(0, at(5), || "third"));
    assert_eq!(limiter.leave(ticket, true), Some("first"), "its timer ran out");
    assert_eq!(limiter.leave(ticket, true), None, "it has left");
    limiter.finish(permit, Ended::Ignored, at(11));
    assert!(matches!(limiter.next(at(11)), Some(Next::Expired("second"))));
    let Some(Next::Admitted { waiter: "third", permit, since, .. }) = limiter.next(at(11)) else {
        panic!("the third may still begin")
    };
    assert_eq!(since, at(5));
    limiter.finish(permit, Ended::Ignored, at(12));
    assert_eq!(limiter.stats().expired, 2);
}

#[test]
fn the_less_important_fill_only_their_share() {
    let shares = [100, 50, 10, 10, 10, 10, 10, 10];
    let mut limiter = limiter(Config { shares, ..Config::fixed(10) });
    let list = admitted(limiter.arrive(2, NOW, || ""));
    queued(limiter.arrive(2, NOW, || "list"));
    let mut permits: Vec<_> = (0..4).map(|_| admitted(limiter.arrive(1, NOW, || ""))).collect();
    queued(limiter.arrive(1, NOW, || "key"));
    permits.extend((0..5).map(|_| admitted(limiter.arrive(0, NOW, || ""))));
    queued(limiter.arrive(0, NOW, || "session"));
    assert_eq!(limiter.stats().in_flight, 10);
    permits.push(list);
    assert_eq!(drain(&mut limiter, permits), ["session", "key", "list"]);
}

#[test]
fn figures_that_cannot_work_are_refused() {
    let default = Config::default();
    let aimd = |backoff, latency_max| Algorithm::Aimd(Aimd { backoff, latency_max });
    let vegas = |vegas| Algorithm::Vegas(vegas);
    let gradient = |gradient| Algorithm::Gradient2(gradient);
    let (v, g) = (Vegas::default(), Gradient2::default());
    for (config, wrong) in [
        (Config { min: 0, ..default }, "min"),
        (Config { min: 5, max: 4, ..default }, "max"),
        (Config { max: 1_000_001, ..default }, "max"),
        (Config { window: Duration::from_secs(61), ..default }, "window"),
        (Config { window_samples: 0, ..default }, "window_samples"),
        (Config { shares: [100, 90, 91, 1, 1, 1, 1, 1], ..default }, "shares"),
        (Config { shares: [0; CLASSES], ..default }, "shares"),
        (Config { algorithm: aimd(1.0, ms(1)), ..default }, "backoff"),
        (Config { algorithm: aimd(0.9, Duration::ZERO), ..default }, "latency_max"),
        (Config { algorithm: vegas(Vegas { alpha: 6.0, ..v }), ..default }, "alpha"),
        (Config { algorithm: vegas(Vegas { beta: f64::NAN, ..v }), ..default }, "alpha"),
        (Config { algorithm: vegas(Vegas { smoothing: 0.0, ..v }), ..default }, "smoothing"),
        (Config { algorithm: vegas(Vegas { probe: 0, ..v }), ..default }, "probe"),
        (Config { algorithm: gradient(Gradient2 { tolerance: 0.9, ..g }), ..default }, "tolerance"),
        (Config { algorithm: gradient(Gradient2 { queue: 0, ..g }), ..default }, "queue"),
        (
            Config { algorithm: gradient(Gradient2 { long_window: 9, ..g }), ..default },
            "long_window",
        ),
    ] {
        let refused: ConfigError = config.validate().expect_err(wrong);
        assert!(refused.to_string().starts_with(wrong), "{refused}");
    }
    let drawn = Config { initial: 5_000, ..default }.validate().unwrap();
    assert_eq!(drawn.figures().initial, 1_000, "the start is drawn into the bounds");
}

fn algorithms() -> impl Strategy<Value = Algorithm> {
    prop_oneof![
        Just(Algorithm::Fixed),
        Just(Algorithm::Aimd(Aimd { latency_max: ms(20), ..Aimd::default() })),
        Just(Algorithm::Vegas(Vegas::default())),
        Just(Algorithm::Gradient2(Gradient2::default())),
    ]
}

/// What happens to a limiter.
#[derive(Clone, Copy, Debug)]
enum Event {
    Arrives { class: u8 },
    Ends { which: usize, ended: Ended },
    Leaves { which: usize },
    TimePasses { millis: u64 },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let ended = prop_oneof![
        4 => (0_u64..50_000_000).prop_map(|n| Ended::Answered(Duration::from_nanos(n))),
        1 => Just(Ended::Dropped),
        1 => Just(Ended::Ignored),
    ];
    let event = prop_oneof![
        5 => (0_u8..10).prop_map(|class| Event::Arrives { class }),
        4 => (0_usize..100, ended).prop_map(|(which, ended)| Event::Ends { which, ended }),
        1 => (0_usize..100).prop_map(|which| Event::Leaves { which }),
        1 => (0_u64..40).prop_map(|millis| Event::TimePasses { millis }),
    ];
    proptest::collection::vec(event, 0..400)
}

/// The model beside the limiter: who waits, in order of arrival.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    arrivals: u64,
    permits: Vec<Permit>,
    waiting: Vec<(Ticket, u8, u64)>,
}

impl Model {
    /// Asks for all who leave the queue and checks that each is the right one.
    fn pump(&mut self, limiter: &mut Limiter<(u8, u64)>) -> Result<(), TestCaseError> {
        let now = at(self.now);
        while let Some(next) = limiter.next(now) {
            let (Next::Expired((class, arrival)) | Next::Admitted { waiter: (class, arrival), .. }) =
                next;
            let first = self.waiting.iter().map(|(_, class, arrival)| (*class, *arrival)).min();
            prop_assert_eq!(first, Some((class, arrival)), "first come, first served by class");
            self.waiting.retain(|(_, _, other)| *other != arrival);
            if let Next::Admitted { permit, since, .. } = next {
                prop_assert!(now.since(since) < ms(30), "it waited too long");
                let Stats { in_flight, limit, .. } = limiter.stats();
                prop_assert!(in_flight <= limit, "{} of {}", in_flight, limit);
                self.permits.push(permit);
            }
        }
        Ok(())
    }

    fn apply(
        &mut self,
        limiter: &mut Limiter<(u8, u64)>,
        event: Event,
    ) -> Result<(), TestCaseError> {
        let now = at(self.now);
        match event {
            Event::Arrives { class } => {
                self.arrivals += 1;
                let arrival = self.arrivals;
                match limiter.arrive(class, now, || (class, arrival)) {
                    Admission::Admitted(permit) => {
                        let Stats { in_flight, limit, .. } = limiter.stats();
                        prop_assert!(in_flight <= limit, "{} of {}", in_flight, limit);
                        self.permits.push(permit);
                    }
                    Admission::Queued { ticket, displaced, .. } => {
                        if let Some((from, out)) = displaced {
                            prop_assert!(from > class);
                            self.waiting.retain(|(_, _, other)| *other != out);
                        }
                        self.waiting.push((ticket, class, arrival));
                    }
                    Admission::Refused => {
                        prop_assert_eq!(self.waiting.len(), 5);
                        prop_assert!(self.waiting.iter().all(|(_, other, _)| *other <= class));
                    }
                }
            }
            Event::Ends { which, ended } if !self.permits.is_empty() => {
                let permit = self.permits.swap_remove(which % self.permits.len());
                limiter.finish(permit, ended, now);
            }
            Event::Leaves { which } if !self.waiting.is_empty() => {
                let (ticket, ..) = self.waiting.remove(which % self.waiting.len());
                prop_assert!(limiter.leave(ticket, false).is_some());
            }
            Event::TimePasses { millis } => self.now += millis,
            Event::Ends { .. } | Event::Leaves { .. } => {}
        }
        self.pump(limiter)
    }
}

proptest! {
    #[test]
    fn the_limit_the_queue_and_the_order_hold_whatever_happens(
        algorithm in algorithms(),
        windowed: bool,
        shared: bool,
        seed: u64,
        events in events(),
    ) {
        let config = Config {
            algorithm,
            initial: 8,
            min: 3,
            max: 12,
            window: if windowed { ms(20) } else { Duration::ZERO },
            window_samples: 3,
            queue_max: 5,
            queue_wait_max: ms(30),
            shares: if shared { [100, 80, 60, 40, 20, 20, 10, 1] } else { [100; CLASSES] },
        };
        let mut limiter = Limiter::new(config.validate().unwrap(), Rng::new(seed));
        let mut model = Model::default();
        for event in events {
            let before = limiter.stats().in_flight;
            model.apply(&mut limiter, event)?;
            let stats = limiter.stats();
            prop_assert!((3..=12).contains(&stats.limit), "a limit of {}", stats.limit);
            prop_assert!(stats.queued <= 5, "{} wait", stats.queued);
            // A limit that shrinks leaves those alone that are in flight.
            prop_assert!(stats.in_flight <= stats.limit.max(before));
            prop_assert_eq!(stats.in_flight, model.permits.len());
            prop_assert_eq!(stats.queued, model.waiting.len());
        }
    }

    #[test]
    fn every_limit_stays_within_its_bounds(
        algorithm in algorithms(),
        min in 1_usize..50,
        span in 0_usize..500,
        samples in proptest::collection::vec((0_usize..1_000, 0_u64..u64::MAX, 0_u8..4), 0..300),
    ) {
        let config = Config {
            algorithm,
            min,
            max: min + span,
            window: Duration::ZERO,
            ..Config::default()
        };
        let mut limit = Limit::new(config.validate().unwrap(), Rng::new(1));
        for (in_flight, nanos, kind) in samples {
            let ended = match kind {
                0 => Ended::Dropped,
                1 => Ended::Answered(Duration::from_nanos(nanos)),
                _ => Ended::Answered(Duration::from_nanos(nanos % 10_000_000)),
            };
            let changed = limit.record(Sample { in_flight, ended }, NOW);
            prop_assert!((min..=min + span).contains(&limit.limit()));
            prop_assert!(changed.is_none_or(|changed| changed == limit.limit()));
            prop_assert!((0..=9).all(|class| (1..=limit.limit()).contains(&limit.allowance(class))));
        }
    }
}
