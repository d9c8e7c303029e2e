//! Copies against a service that plays a script.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use proptest::prelude::*;
use tokio::time::Instant as TokioInstant;
use tonic::{Code, Status, body::Body};
use tower::{ServiceExt as _, service_fn, util::BoxCloneService};

use super::*;
use crate::{
    layers::{Repeatable, RetryLayer, code_in, timeout_in},
    resilience::{
        hedge::{Config, Delay, Percentile},
        retry,
        retry_budget::{self, Share, Tokens},
    },
    types::Duration,
};

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// An attempt that takes this long and is answered so.
#[derive(Clone, Debug)]
struct Turn(u64, Status);

type Scripted = BoxCloneService<Request<Body>, Response<Body>, Status>;

/// What a service saw.
#[derive(Debug, Default)]
struct Seen {
    headers: Vec<HeaderMap>,
    /// How many were dropped before they were answered.
    dropped: usize,
}

struct Open(Arc<Mutex<Seen>>, bool);

impl Open {
    const fn answered(&mut self) {
        self.1 = true;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.1 {
            self.0.lock().expect("no panic").dropped += 1;
        }
    }
}

/// A service that plays its script, and then answers at once.
fn scripted(turns: impl IntoIterator<Item = Turn>) -> (Scripted, Arc<Mutex<Seen>>) {
    let seen = Arc::<Mutex<Seen>>::default();
    let turns = Arc::new(Mutex::new(turns.into_iter().collect::<VecDeque<_>>()));
    let sees = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Body>| {
        let turn = turns.lock().expect("no panic").pop_front();
        let Turn(takes, status) = turn.unwrap_or(Turn(0, Status::ok("")));
        sees.lock().expect("no panic").headers.push(request.headers().clone());
        let mut open = Open(Arc::clone(&sees), false);
        async move {
            tokio::time::sleep_until(TokioInstant::now() + millis(takes)).await;
            open.answered();
            Ok(status.into_http())
        }
    });
    (BoxCloneService::new(service), seen)
}

fn fixed(copies_max: u32) -> HedgeLayer {
    let config = Config { copies_max, delay: Delay::Fixed(millis(100)) };
    HedgeLayer::new(config.validate().expect("it works"))
}

fn request(repeatable: bool) -> Request<Body> {
    let mut request = Request::new(Body::new(Full::new(Bytes::from_static(b"message"))));
    if repeatable {
        request.extensions_mut().insert(Repeatable(true));
    }
    request
}

async fn call(layer: &HedgeLayer, service: &Scripted, request: Request<Body>) -> Response<Body> {
    let mut stack = layer.layer(service.clone());
    stack.ready().await.expect("it is").call(request).await.expect("it is answered")
}

fn ok() -> Status {
    Status::ok("")
}

fn attempts(seen: &Mutex<Seen>) -> usize {
    seen.lock().expect("no panic").headers.len()
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_sent_again_and_the_first_answer_counts() {
    let (service, seen) = scripted([Turn(5_000, ok()), Turn(20, ok())]);
    let layer = fixed(2);
    let began = TokioInstant::now();
    let answer = call(&layer, &service, request(true)).await;
    assert_eq!((code_in(answer.headers()), began.elapsed()), (Some(Code::Ok), millis(120)));
    assert_eq!(answer.extensions().get(), Some(&Copy(2)));
    let seen = seen.lock().expect("no panic");
    assert_eq!((seen.headers.len(), seen.dropped), (2, 1), "the loser is cancelled");
    let before = |copy: usize| seen.headers[copy].get(PREVIOUS_ATTEMPTS);
    assert_eq!((before(0), before(1)), (None, Some(&HeaderValue::from(1))));
    let expected =
        Stats { calls: 1, hedged: 1, copies: 1, won: 1, dropped: 1, denied: 0, delay: millis(100) };
    assert_eq!(layer.stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn the_first_copy_may_still_win() {
    let (service, seen) = scripted([Turn(150, ok()), Turn(5_000, ok())]);
    let answer = call(&fixed(2), &service, request(true)).await;
    assert_eq!(answer.extensions().get(), Some(&Copy(1)));
    assert_eq!(seen.lock().expect("no panic").dropped, 1);
}

#[tokio::test(start_paused = true)]
async fn a_fast_call_and_one_that_is_not_repeatable_are_sent_once() {
    let (service, seen) = scripted([Turn(99, ok()), Turn(5_000, ok())]);
    let layer = fixed(2);
    call(&layer, &service, request(true)).await;
    call(&layer, &service, request(false)).await;
    assert_eq!((attempts(&seen), layer.stats().calls, layer.stats().copies), (2, 2, 0));
    let layer = layer.repeatable(|path| path == "/");
    let (service, seen) = scripted([Turn(5_000, ok())]);
    call(&layer, &service, request(false)).await;
    assert_eq!(attempts(&seen), 2, "its path says so");
}

#[tokio::test(start_paused = true)]
async fn copies_are_bounded() {
    let (service, seen) = scripted(vec![Turn(10_000, ok()); 9]);
    let began = TokioInstant::now();
    call(&fixed(3), &service, request(true)).await;
    assert_eq!((attempts(&seen), began.elapsed()), (3, millis(10_000)));
    assert_eq!(seen.lock().expect("no panic").dropped, 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_copy_leaves_the_call_to_the_others() {
    let failed = Status::unavailable("a proxy");
    let (service, seen) = scripted([Turn(300, ok()), Turn(10, failed.clone())]);
    let answer = call(&fixed(2), &service, request(true)).await;
    assert_eq!(code_in(answer.headers()), Some(Code::Ok));
    assert_eq!(answer.extensions().get(), Some(&Copy(1)));
    assert_eq!(attempts(&seen), 2);
    let (service, _) = scripted([Turn(300, failed.clone()), Turn(10, failed.clone())]);
    let answer = call(&fixed(2), &service, request(true)).await;
    assert_eq!(code_in(answer.headers()), Some(Code::Unavailable), "all have failed");
    // One that fails early is a matter for retries.
    let (service, seen) = scripted([Turn(10, failed)]);
    let answer = call(&fixed(2), &service, request(true)).await;
    assert_eq!((code_in(answer.headers()), attempts(&seen)), (Some(Code::Unavailable), 1));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_is_an_answer() {
    let (service, seen) = scripted([Turn(5_000, ok()), Turn(10, Status::not_found(""))]);
    let answer = call(&fixed(3), &service, request(true)).await;
    assert_eq!((code_in(answer.headers()), attempts(&seen)), (Some(Code::NotFound), 2));
}

#[tokio::test(start_paused = true)]
async fn push_back_ends_the_hedging() {
    let mut status = Status::unavailable("busy");
    status.metadata_mut().insert("grpc-retry-pushback-ms", "-1".parse().expect("ASCII"));
    let (service, seen) = scripted([Turn(1_000, ok()), Turn(10, status)]);
    let answer = call(&fixed(5), &service, request(true)).await;
    assert_eq!((code_in(answer.headers()), attempts(&seen)), (Some(Code::Ok), 2));
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_ends_the_hedging() {
    let share = Share { ratio: 0.1, per_second_min: 0, ..Share::default() };
    let config = retry_budget::Config::Share(share).validate().expect("it works");
    let layer = fixed(2).budget(Arc::new(RetryBudget::new(config)));
    let (service, seen) = scripted(vec![Turn(110, ok()); 1_000]);
    for _ in 0..50 {
        call(&layer, &service, request(true)).await;
    }
    let stats = layer.stats();
    assert!(stats.copies <= 5 && stats.denied >= 45, "{stats:?}");
    assert_eq!(attempts(&seen) as u64, 50 + stats.copies);
}

#[tokio::test(start_paused = true)]
async fn copies_and_retries_share_a_budget() {
    let tokens = Tokens { max: 100, ratio: 0.1 };
    let config = retry_budget::Config::Tokens(tokens).validate().expect("it works");
    let budget = Arc::new(RetryBudget::new(config));
    let failed = Status::unavailable("a proxy");
    let (service, seen) = scripted([
        Turn(300, failed.clone()),
        Turn(10, failed.clone()),
        Turn(0, failed),
        Turn(0, ok()),
    ]);
    let hedge = fixed(2).budget(Arc::clone(&budget));
    let retry = RetryLayer::new(retry::ValidConfig::default()).budget(Arc::clone(&budget));
    let mut stack = retry.layer(hedge.layer(service));
    let answer = stack.ready().await.expect("it is").call(request(true)).await;
    assert_eq!(code_in(answer.expect("it is answered").headers()), Some(Code::Ok));
    assert_eq!(attempts(&seen), 4);
    assert_eq!(budget.left(Instant::ZERO), 50 - 3 + 1, "three failures, and a tenth back");
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_told_what_is_left_of_the_deadline() {
    let (service, seen) = scripted([Turn(5_000, ok())]);
    let mut timed = request(true);
    timed.headers_mut().insert("grpc-timeout", "800m".parse().expect("ASCII"));
    call(&fixed(2), &service, timed).await;
    let seen = seen.lock().expect("no panic");
    assert_eq!(timeout_in(&seen.headers[1]), Some(millis(700)));
}

#[tokio::test(start_paused = true)]
async fn only_the_slowest_calls_are_sent_twice() {
    let percentile = Percentile { share: 0.9, ..Percentile::default() };
    let config = Config { copies_max: 2, delay: Delay::Percentile(percentile) };
    let layer = HedgeLayer::new(config.validate().expect("it works"));
    let turns = (0..200).map(|call| Turn(if call % 50 == 49 { 900 } else { 10 }, ok()));
    let (service, _) = scripted(turns);
    for _ in 0..200 {
        call(&layer, &service, request(true)).await;
    }
    let stats = layer.stats();
    assert!(stats.delay > millis(10) && stats.delay < millis(13), "{stats:?}");
    assert!(stats.hedged >= 3 && stats.hedged <= 5, "{stats:?}");
    assert_eq!(stats.hedged, stats.won);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_drops_all_its_copies() {
    let (service, seen) = scripted(vec![Turn(10_000, ok()); 2]);
    let layer = fixed(2);
    let calling = call(&layer, &service, request(true));
    assert!(tokio::time::timeout(millis(500), calling).await.is_err());
    assert_eq!(seen.lock().expect("no panic").dropped, 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_call_is_answered_once_and_leaves_nothing_open(
        turns in proptest::collection::vec((0_u64..400, any::<bool>()), 0..6),
        copies_max in 1_u32..=4,
        repeatable: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("it starts");
        let layer = fixed(copies_max);
        let turn = |(takes, fine): (u64, bool)| {
            Turn(takes, if fine { ok() } else { Status::unavailable("a proxy") })
        };
        let (service, seen) = scripted(turns.into_iter().map(turn));
        runtime.block_on(async {
            call(&layer, &service, request(repeatable)).await;
        });
        let (seen, stats) = (seen.lock().expect("no panic"), layer.stats());
        let copies = seen.headers.len();
        prop_assert!(copies >= 1 && copies <= copies_max as usize);
        prop_assert!(repeatable || copies == 1);
        prop_assert_eq!(stats.copies as usize, copies - 1);
        prop_assert_eq!(stats.dropped as usize, seen.dropped);
        prop_assert!(seen.dropped < copies, "one gave the answer");
    }
}
