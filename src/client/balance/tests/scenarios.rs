//! What every policy holds to while backends die, slow down, fail, drain and return, in virtual
//! time. One body of tests runs over all policies; what one of them does otherwise is said in its
//! row. Counts of calls and virtual latencies are judged, never real time.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use http::Extensions;
use tokio::{task::JoinSet, time::Instant};
use tonic::Code;

use super::{
    MS,
    fleet::{Fleet, Says},
};
use crate::{
    client::balance::{
        Balance, Builder, EndpointView, HashKey, LeastRequests, Maglev, PeakEwma, PickFirst,
        Policy, Random, RingHash, RoundRobin, SlowStart, View, WaitForReady, Weighted, ZoneAware,
        policy::{Candidates, Connects, Picker},
        snapshot::mix,
    },
    resilience::outlier,
    types::Duration,
};

/// Callers that call one call after the other.
const CALLERS: u32 = 64;

/// Three backends share alike.
const FAIR: f64 = 1.0 / 3.0;

/// By how much chance and a beginning may miss a share.
const SLACK: f64 = 0.03;

/// A policy, and what it does with three backends and [`CALLERS`] callers.
struct Row {
    policy: fn() -> Any,
    /// The share of the calls, at most and at least, of the first backend when it takes ten times
    /// as long as the others.
    slow: (f64, f64),
    /// At most its share when it fails ten times as fast as the others answer, and is not ejected.
    failing: f64,
    /// Whether it shares calls among all.
    shares: bool,
}

const fn row(policy: fn() -> Any, slow: (f64, f64), failing: f64) -> Row {
    Row { policy, slow, failing, shares: true }
}

fn rows() -> Vec<Row> {
    vec![
        // It stays with the first as long as that has a connection and is not ejected.
        Row { shares: false, ..row(|| any(PickFirst), (1.0, 1.0), 1.0) },
        row(|| any(RoundRobin::new()), (FAIR - SLACK, FAIR + SLACK), FAIR + SLACK),
        row(|| any(LeastRequests), (0.01, 0.07), 0.02),
        row(|| any(PeakEwma), (0.0, 0.01), 0.02),
        row(|| any(Random), (FAIR - SLACK, FAIR + SLACK), FAIR + SLACK),
        row(|| any(Weighted::new()), (FAIR - SLACK, FAIR + SLACK), FAIR + SLACK),
        row(|| any(ZoneAware::new("z", LeastRequests)), (0.01, 0.07), 0.02),
        // By key, but the bound on what each has in flight passes on what a slow one cannot take.
        row(|| any(RingHash::new()), (0.01, 0.1), FAIR + 0.1),
        row(|| any(Maglev::new()), (0.01, 0.1), FAIR + SLACK),
    ]
}

/// Any policy.
#[derive(Debug)]
struct Any(Box<dyn Policy>);

fn any(policy: impl Policy) -> Any {
    Any(Box::new(policy))
}

impl Policy for Any {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn connects(&self) -> Connects {
        self.0.connects()
    }

    fn warms_up(&self) -> bool {
        self.0.warms_up()
    }

    fn picker(&self, candidates: &Candidates<'_>) -> Box<dyn Picker> {
        self.0.picker(candidates)
    }
}

impl Row {
    fn name(&self) -> &'static str {
        (self.policy)().name()
    }

    fn builder(&self, fleet: &Fleet) -> Builder {
        Balance::builder().policy((self.policy)()).connect(fleet.clone()).seed(1)
    }

    /// Three backends that answer in 10 ms, and a balancer over them that is connected.
    async fn up(&self, change: impl FnOnce(Builder) -> Builder) -> (Fleet, Balance) {
        let fleet = Fleet::of(3);
        fleet.each(|nature| nature.answers_in = 10 * MS);
        let balance = change(self.builder(&fleet)).resolve(fleet.list());
        self.connected(&fleet, &balance).await;
        (fleet, balance)
    }

    /// A policy that stays where it went leaves only when that is gone too.
    async fn leave_only_the_first(&self, fleet: &Fleet, balance: &Balance) {
        [1, 2].into_iter().for_each(|at| fleet.kill(at));
        fleet.until_view(balance, |view| view.endpoints[0].state == "READY").await;
    }

    async fn connected(&self, fleet: &Fleet, balance: &Balance) {
        let wanted = if self.shares { fleet.endpoints().len() } else { 1 };
        let ready = |state: &&str| **state == *"READY";
        fleet
            .until_view(balance, |view| {
                let states = view.endpoints.iter().map(|endpoint| endpoint.state.as_str());
                states.filter(ready).count() >= wanted
            })
            .await;
    }
}

fn never_ejects(builder: Builder) -> Builder {
    builder.outlier(outlier::Config::off().validate().expect("it is off"))
}

/// How calls went.
#[derive(Debug, Default)]
struct Went {
    /// Of the calls that were answered, in order.
    latencies: Vec<Duration>,
    failed: u32,
    /// What each backend took of them.
    taken: Vec<u32>,
}

impl Went {
    fn share(&self, at: usize) -> f64 {
        f64::from(self.taken[at]) / f64::from(self.taken.iter().sum::<u32>())
    }

    fn p99(&self) -> Duration {
        self.latencies[self.latencies.len() * 99 / 100]
    }
}

/// So many calls, [`CALLERS`] at once and each with a key of its own.
async fn load(fleet: &Fleet, balance: &Balance, calls: u32) -> Went {
    let before = fleet.taken();
    let begun = Arc::new(AtomicU32::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (fleet, balance, begun) = (fleet.clone(), balance.clone(), Arc::clone(&begun));
        callers.spawn(async move {
            let mut went = Went::default();
            loop {
                let number = begun.fetch_add(1, Ordering::Relaxed);
                if number >= calls {
                    return went;
                }
                let from = Instant::now();
                match fleet.call_with(&balance, |hints| key(hints, number)).await {
                    Ok(()) => went.latencies.push(from.elapsed()),
                    Err(_) => went.failed += 1,
                }
            }
        });
    }
    let mut all = Went::default();
    for went in callers.join_all().await {
        all.latencies.extend(went.latencies);
        all.failed += went.failed;
    }
    all.latencies.sort_unstable();
    all.taken = fleet.taken().iter().zip(before).map(|(now, then)| now - then).collect();
    all
}

fn key(hints: &mut Extensions, number: u32) {
    hints.insert(HashKey(mix(number.into())));
}

/// Kills a backend once the fleet took so many calls; returns how many it had in flight.
async fn kill_after(fleet: &Fleet, at: usize, taken: u32) -> u32 {
    fleet.until_taken(taken).await;
    let in_flight = fleet.in_flight(at);
    fleet.kill(at);
    in_flight
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_a_kill_fails_only_what_was_in_flight_there() {
    for row in rows() {
        let (fleet, balance) = row.up(|builder| builder).await;
        let (went, in_flight) =
            tokio::join!(load(&fleet, &balance, 3_000), kill_after(&fleet, 0, 1_000));
        let name = row.name();
        assert!(in_flight > 0, "{name}: a kill that nobody notices proves nothing");
        assert_eq!(went.failed, in_flight, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_one_that_comes_back_gets_its_share_again() {
    for row in rows() {
        let (fleet, balance) = row.up(|builder| builder).await;
        tokio::join!(load(&fleet, &balance, 3_000), kill_after(&fleet, 0, 1_000));
        fleet.revive(0);
        if row.shares {
            fleet.until_view(&balance, |view| view.endpoints[0].state == "READY").await;
            fleet.until_view(&balance, |view| !view.endpoints[0].ejected).await;
        } else {
            row.leave_only_the_first(&fleet, &balance).await;
        }
        let went = load(&fleet, &balance, 6_000).await;
        let name = row.name();
        assert!(went.share(0) > FAIR - 0.1, "{name}: {:?}", went.taken);
        assert_eq!(went.failed, 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_a_slow_one_gets_the_share_that_is_said_of_it() {
    for row in rows() {
        let (fleet, balance) = row.up(|builder| builder).await;
        let healthy = load(&fleet, &balance, 6_400).await;
        fleet.change(0, |nature| nature.answers_in = 100 * MS);
        let slow = load(&fleet, &balance, 12_800).await;
        let (name, share) = (row.name(), slow.share(0));
        let (least, most) = row.slow;
        assert!((least..=most).contains(&share), "{name}: {share}, {:?}", slow.taken);
        assert_eq!(slow.failed, 0, "{name}");
        if name == "peak_ewma" {
            assert!(slow.p99() <= 2 * healthy.p99(), "{:?} of {:?}", slow.p99(), healthy.p99());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_failing_fast_attracts_nothing_even_without_ejection() {
    for row in rows() {
        let (fleet, balance) = row.up(never_ejects).await;
        load(&fleet, &balance, 1_000).await;
        fleet.change(0, |nature| (nature.code, nature.answers_in) = (Code::Unavailable, MS));
        let went = load(&fleet, &balance, 12_800).await;
        let (name, share) = (row.name(), went.share(0));
        assert!(share <= row.failing, "{name}: {share}, {:?}", went.taken);
        assert!(!balance.view().endpoints[0].ejected, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_one_that_fails_is_ejected_before_it_costs_more_than_a_few_calls() {
    for row in rows() {
        let (fleet, balance) = row.up(|builder| builder).await;
        load(&fleet, &balance, 1_000).await;
        fleet.change(0, |nature| (nature.code, nature.answers_in) = (Code::Unavailable, MS));
        let went = load(&fleet, &balance, 6_400).await;
        let name = row.name();
        // Five in a row, what was under way by then, and what those callers began at once.
        assert!(went.failed <= 5 + 2 * CALLERS, "{name}: {}", went.failed);
        if row.slow.0 > 0.0 {
            assert!(balance.view().endpoints[0].ejected, "{name}: {:?}", went.taken);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_an_ejected_one_returns() {
    for row in rows() {
        let (fleet, balance) = row.up(|builder| builder).await;
        let name = row.name();
        fleet.change(0, |nature| nature.code = Code::Internal);
        load(&fleet, &balance, 640).await;
        fleet.until_view(&balance, |view| view.endpoints[0].ejected).await;
        let taken = fleet.taken()[0];
        let out = load(&fleet, &balance, 640).await;
        assert_eq!((out.failed, fleet.taken()[0]), (0, taken), "{name}: it is out");
        fleet.change(0, |nature| nature.code = Code::Ok);
        fleet.until_view(&balance, |view| !view.endpoints[0].ejected).await;
        if !row.shares {
            row.leave_only_the_first(&fleet, &balance).await;
        }
        let back = load(&fleet, &balance, 6_400).await;
        assert!(back.share(0) > FAIR - 0.1, "{name}: {:?}", back.taken);
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_a_drained_one_finishes_its_calls_and_gets_no_more() {
    for row in rows() {
        let (fleet, balance) = row.up(|builder| builder).await;
        let name = row.name();
        let drain = async {
            fleet.until_taken(1_000).await;
            fleet.tell(|endpoints| endpoints[0] = endpoints[0].clone().draining(true));
            fleet.until_view(&balance, |view| view.endpoints[0].draining).await;
            fleet.taken()[0]
        };
        let (went, had) = tokio::join!(load(&fleet, &balance, 3_000), drain);
        assert_eq!(went.failed, 0, "{name}: what it had was finished");
        let later = load(&fleet, &balance, 1_000).await;
        assert_eq!((fleet.taken()[0], later.failed), (had, 0), "{name}: nothing new");
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_a_call_fails_fast_or_waits_as_it_says() {
    for row in rows() {
        let fleet = Fleet::of(3);
        fleet.each(|nature| nature.refuses = true);
        let balance = row.builder(&fleet).resolve(fleet.list());
        let name = row.name();
        let refused = fleet.call(&balance).await.expect_err("nobody is there");
        assert_eq!(refused.code(), Code::Unavailable, "{name}: {refused}");
        let waiting = fleet.start_with(&balance, |hints| _ = hints.insert(WaitForReady(true)));
        fleet.change(2, |nature| nature.refuses = false);
        waiting.await.expect("no panic").unwrap_or_else(|status| panic!("{name}: {status}"));
        assert_eq!(fleet.served(), [0, 0, 1], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_balancer_may_wait_unless_a_call_says_otherwise() {
    let fleet = Fleet::of(1);
    fleet.each(|nature| nature.refuses = true);
    let balance =
        Balance::builder().connect(fleet.clone()).wait_for_ready(true).resolve(fleet.list());
    let fails = |hints: &mut Extensions| _ = hints.insert(WaitForReady(false));
    fleet.call_with(&balance, fails).await.expect_err("it does not wait");
    let waiting = fleet.start(&balance);
    fleet.revive(0);
    waiting.await.expect("no panic").expect("it waited");
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_one_that_says_that_it_does_not_serve_is_not_called() {
    for row in rows() {
        let fleet = Fleet::of(3);
        fleet.change(0, |nature| nature.health = Says::NotServing);
        fleet.change(1, |nature| nature.health = Says::Serving);
        // The third has no such API: it counts as healthy.
        let balance = row.builder(&fleet).health_check("").resolve(fleet.list());
        let name = row.name();
        let sick = |view: &View| view.endpoints.first().is_some_and(|first| !first.healthy);
        fleet.until_view(&balance, sick).await;
        row.connected(&fleet, &balance).await;
        let went = load(&fleet, &balance, 1_000).await;
        assert_eq!((went.taken[0], went.failed), (0, 0), "{name}");
        assert!(went.taken[1] > 0 && (went.taken[2] > 0) == row.shares, "{name}: {went:?}");
        fleet.change(0, |nature| nature.health = Says::Serving);
        fleet.change(1, |nature| nature.health = Says::NotServing);
        if row.shares {
            fleet.until_view(&balance, |v| v.endpoints[0].healthy && !v.endpoints[1].healthy).await;
        } else {
            fleet.until_view(&balance, |view| !view.endpoints[1].healthy).await;
        }
        let went = load(&fleet, &balance, 1_000).await;
        assert!(went.taken[0] > 0 || !row.shares, "{name}: {went:?}");
        assert_eq!((went.taken[1], went.failed), (0, 0), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_too_few_healthy_ones_are_not_left_alone_with_the_load() {
    for row in rows().into_iter().filter(|row| row.shares) {
        let sick = |threshold: f64| {
            let fleet = Fleet::of(3);
            fleet.each(|nature| nature.health = Says::NotServing);
            fleet.change(2, |nature| nature.health = Says::Serving);
            let builder = row.builder(&fleet).health_check("").panic_threshold(threshold);
            let balance = builder.resolve(fleet.list());
            (fleet, balance)
        };
        let name = row.name();
        let (fleet, balance) = sick(0.5);
        fleet.until_view(&balance, |view| view.panics).await;
        let went = load(&fleet, &balance, 1_000).await;
        assert!(went.taken.iter().all(|taken| *taken > 100), "{name}: {:?}", went.taken);
        let (fleet, balance) = sick(0.0);
        row.connected(&fleet, &balance).await;
        let went = load(&fleet, &balance, 1_000).await;
        assert_eq!(went.taken, [0, 0, 1_000], "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_any_policy_one_that_came_up_is_spared_at_first() {
    let window = Duration::from_secs(100);
    for row in rows().into_iter().filter(|row| (row.policy)().warms_up()) {
        let name = row.name();
        let fleet = Fleet::of(3);
        fleet.each(|nature| nature.answers_in = 10 * MS);
        fleet.change(0, |nature| nature.refuses = true);
        let builder = row.builder(&fleet).slow_start(SlowStart::over(window));
        let balance = builder.resolve(fleet.list());
        let up = |at: usize| {
            let (fleet, balance) = (fleet.clone(), balance.clone());
            async move {
                let ready = |view: &EndpointView| view.state == "READY";
                fleet.until_view(&balance, |view| view.endpoints.get(at).is_some_and(ready)).await;
                Instant::now()
            }
        };
        up(1).await;
        tokio::time::sleep_until(Instant::now() + window).await;
        fleet.revive(0);
        let from = up(0).await;
        for (percent, expected) in [(0_u32, 0.1), (50, 0.5), (100, 1.0)] {
            tokio::time::sleep_until(from + window * percent / 100).await;
            let share = load(&fleet, &balance, 6_400).await.share(0);
            // Those that look at the load choose it more often, for it has less to do.
            let more = if row.slow.1 < 0.1 { 0.14 } else { 0.03 };
            // The part of a full share; or, where those that are passed over have their turn sooner,
            // of what the two that are warm get each.
            let range = expected * FAIR - 0.03..expected / (2.0 + expected) + more;
            assert!(range.contains(&share), "{name} at {percent} %: {share}, not {range:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_resolver_is_away_what_it_told_last_stays() {
    for row in rows() {
        let (fleet, balance) = row.up(|builder| builder).await;
        let name = row.name();
        fleet.lose_resolver();
        fleet.until_view(&balance, |view| view.resolver_error.is_some()).await;
        assert_eq!(load(&fleet, &balance, 640).await.failed, 0, "{name}");
        // Also when connections are lost meanwhile.
        fleet.kill(0);
        fleet.revive(0);
        assert_eq!(load(&fleet, &balance, 640).await.failed, 0, "{name}");
        assert_eq!(balance.view().endpoints.len(), 3, "{name}");
        fleet.tell(|endpoints| drop(endpoints.remove(2)));
        fleet.until_view(&balance, |view| view.endpoints.len() == 2).await;
        assert_eq!(balance.view().resolver_error, None, "{name}: it is back");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_leave_their_zone_when_it_is_gone_and_come_back_with_it() {
    let fleet = Fleet::of(4);
    fleet.each(|nature| nature.answers_in = 10 * MS);
    fleet.tell(|endpoints| {
        for endpoint in &mut endpoints[2..] {
            *endpoint = endpoint.clone().in_zone("far");
        }
    });
    let policy = ZoneAware::new("z", LeastRequests);
    let balance = Balance::builder().policy(policy).connect(fleet.clone()).resolve(fleet.list());
    let ready = |view: &View, count: usize| {
        view.endpoints.iter().filter(|endpoint| endpoint.state == "READY").count() == count
    };
    fleet.until_view(&balance, |view| ready(view, 4)).await;
    let home = load(&fleet, &balance, 1_000).await;
    assert_eq!(home.taken[2..], [0, 0]);
    // What a lost half of it cannot take, at a factor of 1.4, spills over.
    fleet.kill(0);
    fleet.until_view(&balance, |view| ready(view, 3)).await;
    let half = load(&fleet, &balance, 10_000).await;
    let spilt = half.share(2) + half.share(3);
    assert!((0.25..0.35).contains(&spilt) && half.failed == 0, "{half:?}");
    fleet.kill(1);
    fleet.until_view(&balance, |view| ready(view, 2)).await;
    let away = load(&fleet, &balance, 1_000).await;
    assert_eq!((away.failed, away.taken[2] + away.taken[3]), (0, 1_000));
    [0, 1].into_iter().for_each(|at| fleet.revive(at));
    fleet.until_view(&balance, |view| ready(view, 4)).await;
    let back = load(&fleet, &balance, 1_000).await;
    assert_eq!((back.failed, &back.taken[2..]), (0, &[0, 0][..]));
}
