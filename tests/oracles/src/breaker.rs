//! The circuit breaker beside failsafe (failures in a row, growing times, in virtual time), recloser
//! (the count window) and tower-resilience (the half-open state, slots and cancelled probes).

use failsafe::{StateMachine, backoff as failsafe_backoff, clock, failure_policy};
use quorate::{
    resilience::{
        backoff,
        circuit_breaker::{Breaker, Config, State, Verdict, Window},
    },
    types::{Duration, Instant, Rng},
};
use recloser::{Error, Recloser};
use tower::{Service, ServiceExt, service_fn};
use tower_resilience_circuitbreaker::{CircuitBreakerLayer, CircuitState};

use crate::{chance, millis, pick, traces};

/// Nothing opens it.
fn quiet() -> Config {
    Config { consecutive_failures: None, failure_rate: None, ..Config::default() }
}

fn open_for(base: Duration, factor: f64, max: Duration) -> backoff::Config {
    backoff::Config { base, factor, max, jitter: 0.0 }
}

fn breaker(config: Config) -> Breaker {
    Breaker::new(config.validate().expect("it works"), Rng::new(1))
}

fn verdict(success: bool) -> Verdict {
    if success { Verdict::Success } else { Verdict::Failure }
}

/// Calls, if it may; whether it could.
fn call(breaker: &Breaker, success: bool, now: Instant) -> bool {
    let admitted = breaker.try_acquire(now);
    admitted.map(|permit| breaker.record(permit, verdict(success), now)).is_ok()
}

const SECOND: Duration = Duration::from_secs(1);

type Failsafe =
    StateMachine<failure_policy::ConsecutiveFailures<failsafe_backoff::Exponential>, ()>;

/// Both with so many failures in a row, open for 1 s, doubled up to 20 s.
fn with_failsafe(failures: u32) -> (Breaker, Failsafe) {
    let ours = breaker(Config {
        consecutive_failures: Some(failures),
        open: open_for(SECOND, 2.0, SECOND * 20),
        ..quiet()
    });
    let times = failsafe_backoff::exponential(SECOND, SECOND * 20);
    (ours, StateMachine::new(failure_policy::consecutive_failures(failures, times), ()))
}

fn call_failsafe(failsafe: &Failsafe, success: bool) -> bool {
    let admitted = failsafe.is_call_permitted();
    match (admitted, success) {
        (false, _) => {}
        (true, true) => failsafe.on_success(),
        (true, false) => failsafe.on_error(),
    }
    admitted
}

#[test]
fn failures_in_a_row_and_growing_times_are_failsafes() {
    let mut opened = 0;
    traces(2_000, |_, rng| {
        let (ours, failsafe) = with_failsafe(pick(rng, 1, 5) as u32);
        let failing = pick(rng, 10, 90);
        clock::freeze(|time| {
            let mut now = Instant::ZERO;
            for step in 0..300 {
                if chance(rng, 40) {
                    // A nanosecond more, so that no call comes at the very end of the open state:
                    // there they differ.
                    let later = millis(pick(rng, 0, 4_000)) + Duration::from_nanos(1);
                    now = now.after(later);
                    time.advance(later);
                }
                let success = !chance(rng, failing);
                let admitted = call(&ours, success, now);
                assert_eq!(admitted, call_failsafe(&failsafe, success), "step {step}");
            }
        });
        opened += ours.stats().opened;
    });
    assert!(opened > 10_000, "the traces opened only {opened}");
}

#[test]
fn failsafe_refuses_the_call_at_the_very_end_of_the_open_state() {
    let (ours, failsafe) = with_failsafe(1);
    clock::freeze(|time| {
        assert!(call(&ours, false, Instant::ZERO) && call_failsafe(&failsafe, false));
        time.advance(SECOND);
        let end = Instant::ZERO.after(SECOND);
        assert!(!failsafe.is_call_permitted(), "it is open up to and with the end");
        assert!(ours.try_acquire(end).is_ok(), "ours up to the end: that is what it told");
    });
}

#[test]
fn failsafe_does_not_limit_probes() {
    let (ours, failsafe) = with_failsafe(1);
    clock::freeze(|time| {
        assert!(call(&ours, false, Instant::ZERO) && call_failsafe(&failsafe, false));
        time.advance(SECOND * 2);
        let now = Instant::ZERO.after(SECOND * 2);
        let probe = ours.try_acquire(now).expect("the first one");
        assert!((0..100).all(|_| failsafe.is_call_permitted()), "the whole load comes at once");
        assert!((0..100).all(|_| ours.try_acquire(now).is_err()));
        ours.record(probe, Verdict::Success, now);
    });
}

#[test]
fn failsafe_counts_results_from_before_it_opened() {
    let (ours, failsafe) = with_failsafe(1);
    clock::freeze(|time| {
        let now = Instant::ZERO;
        let [first, late] = [(); 2].map(|()| ours.try_acquire(now).expect("it is closed"));
        assert!(failsafe.is_call_permitted() && failsafe.is_call_permitted());
        ours.record(first, Verdict::Failure, now);
        failsafe.on_error();
        time.advance(SECOND * 2);
        let now = Instant::ZERO.after(SECOND * 2);
        let probe = ours.try_acquire(now).expect("a probe");
        assert!(failsafe.is_call_permitted());
        // The second of the two calls, sent before all this, ends well.
        ours.record(late, Verdict::Success, now);
        failsafe.on_success();
        assert_eq!(format!("{failsafe:?}"), "StateMachine { state: \"closed\" }");
        assert_eq!(ours.state(), State::HalfOpen, "ours waits for the probe");
        ours.record(probe, Verdict::Failure, now);
        assert!(matches!(ours.state(), State::Open { .. }));
    });
}

/// Both with the last `calls`, and never half-open.
fn with_recloser(calls: u32, percent: u32) -> (Breaker, Recloser) {
    let hour = Duration::from_secs(3_600);
    let ours = breaker(Config {
        failure_rate: Some(percent),
        window: Window::Calls(calls),
        minimum_calls: calls,
        open: open_for(hour, 1.0, hour),
        ..quiet()
    });
    let recloser = Recloser::custom()
        .error_rate(percent as f32 / 100.0)
        .closed_len(calls as usize)
        .open_wait(hour)
        .build();
    (ours, recloser)
}

fn call_recloser(recloser: &Recloser, success: bool) -> bool {
    let result = recloser.call(|| if success { Ok(()) } else { Err(()) });
    !matches!(result, Err(Error::Rejected))
}

#[test]
fn the_share_among_the_last_calls_is_reclosers() {
    let mut opened = 0;
    traces(3_000, |_, rng| {
        let (calls, percent) = (pick(rng, 1, 60) as u32, pick(rng, 1, 100) as u32);
        let (ours, recloser) = with_recloser(calls, percent);
        // Recloser looks at the share only from the call after the one that fills its window.
        for _ in 0..calls {
            assert!(call(&ours, true, Instant::ZERO) && call_recloser(&recloser, true));
        }
        let failing = pick(rng, 1, u64::from(percent) + 10);
        for step in 0..400 {
            let success = !chance(rng, failing);
            let admitted = call(&ours, success, Instant::ZERO);
            assert_eq!(admitted, call_recloser(&recloser, success), "call {step}");
            if !admitted {
                opened += 1;
                break;
            }
        }
    });
    assert!(opened > 1_000 && opened < 3_000, "{opened} of 3000 opened");
}

#[test]
fn recloser_looks_at_its_window_one_call_after_it_is_full() {
    let (ours, recloser) = with_recloser(10, 100);
    for _ in 0..10 {
        assert!(call(&ours, false, Instant::ZERO) && call_recloser(&recloser, false));
    }
    assert!(!call(&ours, false, Instant::ZERO), "ten calls are a window of ten");
    assert!(call_recloser(&recloser, false), "recloser lets an eleventh through");
    assert!(!call_recloser(&recloser, false));
}

/// What a trace does to a breaker and to tower-resilience's.
#[derive(Clone, Copy, Debug)]
enum Step {
    Call { success: bool },
    Cancel,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    failures: usize,
    probes: usize,
    /// Whether an open one is half-open at the next call, or never: its clock is the system's.
    recovers: bool,
}

/// Runs a trace on both and compares admission and state after each step.
async fn beside_tower_resilience(shape: Shape, steps: &[Step]) {
    let hour = Duration::from_secs(3_600);
    let ours = breaker(Config {
        consecutive_failures: Some(shape.failures as u32),
        probes: shape.probes as u32,
        probe_successes: shape.probes as u32,
        probe_timeout: hour,
        open: if shape.recovers {
            open_for(Duration::from_nanos(1), 1.0, Duration::from_nanos(1))
        } else {
            open_for(hour, 1.0, hour)
        },
        ..quiet()
    });
    let layer = CircuitBreakerLayer::builder()
        .consecutive_failures(shape.failures)
        .permitted_calls_in_half_open(shape.probes)
        .wait_duration_in_open(if shape.recovers { Duration::ZERO } else { hour })
        .build()
        .expect("it works");
    let mut theirs = layer.layer_fn(service_fn(|step: Step| async move {
        match step {
            Step::Call { success } => {
                if success {
                    Ok(())
                } else {
                    Err(())
                }
            }
            Step::Cancel => std::future::pending().await,
        }
    }));
    for (number, step) in steps.iter().enumerate() {
        let now = Instant::ZERO.after(millis(number as u64));
        let permit = ours.try_acquire(now);
        let admitted = permit.is_ok();
        let theirs_ready = theirs.ready().await.expect("it is always ready");
        let mut future = theirs_ready.call(*step);
        let refused = "circuit is open";
        match step {
            Step::Call { success } => {
                let _ = permit.map(|permit| ours.record(permit, verdict(*success), now));
                let answer = future.await;
                let open = matches!(
                    answer,
                    Err(tower_resilience_circuitbreaker::CircuitBreakerError::OpenCircuit)
                );
                assert_eq!(admitted, !open, "{refused} at step {number}");
            }
            Step::Cancel => {
                // Polled once, so that it has its place, and dropped.
                tokio::select! {
                    biased;
                    _ = &mut future => assert!(!admitted, "{refused} at step {number}"),
                    () = std::future::ready(()) => assert!(admitted, "step {number}"),
                }
                drop(future);
                let _ = permit.map(|permit| ours.record(permit, Verdict::Neutral, now));
            }
        }
        let same = matches!(
            (ours.state(), theirs.state_sync()),
            (State::Closed, CircuitState::Closed)
                | (State::Open { .. }, CircuitState::Open)
                | (State::HalfOpen, CircuitState::HalfOpen)
        );
        assert!(same, "{:?} and {:?} after step {number}", ours.state(), theirs.state_sync());
    }
}

fn current() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("it starts")
}

#[test]
fn states_and_probes_are_those_of_tower_resilience() {
    let runtime = current();
    traces(1_000, |seed, rng| {
        let shape = Shape {
            failures: pick(rng, 1, 4) as usize,
            probes: pick(rng, 1, 4) as usize,
            recovers: seed % 4 != 0,
        };
        let (failing, cancelled) = (pick(rng, 10, 90), pick(rng, 0, 40));
        let steps: Vec<_> = (0..200)
            .map(|_| {
                if chance(rng, cancelled) {
                    Step::Cancel
                } else {
                    Step::Call { success: !chance(rng, failing) }
                }
            })
            .collect();
        runtime.block_on(beside_tower_resilience(shape, &steps));
    });
}

#[test]
fn the_window_of_tower_resilience_does_not_slide() {
    current().block_on(async {
        let ours = breaker(Config {
            failure_rate: Some(50),
            window: Window::Calls(10),
            minimum_calls: 10,
            ..quiet()
        });
        let layer = CircuitBreakerLayer::builder()
            .failure_rate_threshold(0.5)
            .sliding_window_size(10)
            .minimum_number_of_calls(10)
            .build()
            .expect("it works");
        let mut theirs = layer.layer_fn(service_fn(|success: bool| async move {
            if success { Ok(()) } else { Err(()) }
        }));
        let all_went_well = 100;
        for _ in 0..all_went_well {
            assert!(call(&ours, true, Instant::ZERO));
            assert!(theirs.ready().await.expect("it is ready").call(true).await.is_ok());
        }
        let (mut opened, mut theirs_opened) = (None, None);
        for failure in 1..=2 * all_went_well {
            if call(&ours, false, Instant::ZERO) && matches!(ours.state(), State::Open { .. }) {
                opened = Some(failure);
            }
            let _ = theirs.ready().await.expect("it is ready").call(false).await;
            if theirs_opened.is_none() && theirs.state_sync() == CircuitState::Open {
                theirs_opened = Some(failure);
            }
        }
        assert_eq!(opened, Some(5), "half of the last ten");
        assert_eq!(theirs_opened, Some(all_went_well), "half of all since it was made");
    });
}

#[test]
fn tower_resilience_counts_results_from_before_it_opened() {
    current().block_on(async {
        let ours = breaker(Config {
            consecutive_failures: Some(1),
            open: open_for(Duration::from_nanos(1), 1.0, Duration::from_nanos(1)),
            ..quiet()
        });
        let layer = CircuitBreakerLayer::builder()
            .consecutive_failures(1)
            .permitted_calls_in_half_open(1)
            .wait_duration_in_open(Duration::ZERO)
            .build()
            .expect("it works");
        type Ends = tokio::sync::oneshot::Receiver<Result<(), ()>>;
        let mut theirs =
            layer.layer_fn(service_fn(|ends: Ends| async { ends.await.expect("it ends") }));
        let now = |step| Instant::ZERO.after(millis(step));
        let mut start = async || {
            let (end, ends) = tokio::sync::oneshot::channel();
            let call = theirs.ready().await.expect("it is ready").call(ends);
            let call = tokio::spawn(call);
            tokio::task::yield_now().await;
            (end, call, theirs.state_sync())
        };
        let early = ours.try_acquire(now(0)).expect("it is closed");
        let (early_end, early_call, _) = start().await;
        let fails = ours.try_acquire(now(0)).expect("it is closed");
        let (fails_end, fails_call, _) = start().await;
        ours.record(fails, Verdict::Failure, now(1));
        fails_end.send(Err(())).expect("it waits");
        assert!(fails_call.await.expect("it runs").is_err());
        let probe = ours.try_acquire(now(2)).expect("a probe");
        let (_probe_end, _probe_call, state) = start().await;
        assert_eq!((ours.state(), state), (State::HalfOpen, CircuitState::HalfOpen));

        ours.record(early, Verdict::Success, now(3));
        early_end.send(Ok(())).expect("it waits");
        assert!(early_call.await.expect("it runs").is_ok());
        let (_end, _call, state) = start().await;
        assert_eq!(state, CircuitState::Closed, "closed by a call of before, the probe is out");
        assert_eq!(ours.state(), State::HalfOpen);
        ours.record(probe, Verdict::Success, now(4));
        assert_eq!(ours.state(), State::Closed);
    });
}
