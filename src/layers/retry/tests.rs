//! Retries against a service that plays a script.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use proptest::prelude::*;
use tokio::time::Instant as TokioInstant;
use tokio_stream::StreamExt as _;
use tonic::{Status, body::Body};
use tower::{ServiceExt as _, service_fn, util::BoxCloneService};

use super::*;
use crate::{
    layers::{DeadlineLayer, NotSent, Repeatable, timeout_in},
    machine::refusal,
    pb::command::v1::Reason,
    resilience::{
        deadline,
        retry::Config,
        retry_budget::{self, Share, Tokens},
    },
    types::Duration,
    wire::status::from_refusal,
};

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// How the service treats the next attempt.
#[derive(Clone, Debug)]
enum Turn {
    Answer(Status),
    Fail(Status),
    /// An answer that begins and then fails.
    Begin(Status),
    Hang,
}

fn unavailable() -> Turn {
    Turn::Answer(Status::unavailable("a proxy"))
}

/// Certainly not done; asks for 100 ms.
fn not_leader() -> Turn {
    Turn::Answer(from_refusal(refusal(Reason::NotLeader, "elsewhere")))
}

fn pushed_back(millis: &'static str) -> Turn {
    let mut status = Status::unavailable("busy");
    status.metadata_mut().insert("grpc-retry-pushback-ms", millis.parse().expect("ASCII"));
    Turn::Answer(status)
}

type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;
type Scripted = BoxCloneService<Request<Body>, Response<Body>, Status>;

/// A service that plays its script, then answers, and what it was sent.
fn scripted(turns: impl IntoIterator<Item = Turn>) -> (Scripted, Seen) {
    let seen = Seen::default();
    let (sees, turns) = (Arc::clone(&seen), Mutex::new(turns.into_iter().collect::<VecDeque<_>>()));
    let turns = Arc::new(turns);
    let service = service_fn(move |request: Request<Body>| {
        let turn = turns.lock().expect("no panic").pop_front();
        let sees = Arc::clone(&sees);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            sees.lock().expect("no panic").push((parts.headers, body));
            match turn.unwrap_or(Turn::Answer(Status::ok(""))) {
                Turn::Answer(status) => Ok(status.into_http()),
                Turn::Fail(status) => Err(status),
                Turn::Begin(status) => {
                    let mut trailers = HeaderMap::new();
                    status.add_header(&mut trailers)?;
                    let frames =
                        [Frame::data(Bytes::from_static(b"data")), Frame::trailers(trailers)];
                    let frames = tokio_stream::iter(frames.map(Ok::<_, Status>));
                    Ok(Response::new(Body::new(StreamBody::new(frames))))
                }
                Turn::Hang => std::future::pending().await,
            }
        }
    });
    (BoxCloneService::new(service), seen)
}

fn layer() -> RetryLayer {
    RetryLayer::new(ValidConfig::default()).trusts_details(true)
}

fn tokens(max: u32) -> Arc<RetryBudget> {
    let config = retry_budget::Config::Tokens(Tokens { max, ratio: 0.1 });
    Arc::new(RetryBudget::new(config.validate().expect("it works")))
}

fn request(repeatable: bool) -> Request<Body> {
    let mut request = Request::new(Body::new(Full::new(Bytes::from_static(b"message"))));
    *request.uri_mut() = "/quorate.kv.v1.KvService/Range".parse().expect("a path");
    if repeatable {
        request.extensions_mut().insert(Repeatable(true));
    }
    request
}

async fn call(
    layer: &RetryLayer,
    service: &Scripted,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    layer.layer(service.clone()).ready().await?.call(request).await
}

async fn code(layer: &RetryLayer, service: &Scripted, request: Request<Body>) -> Option<Code> {
    let answered = call(layer, service, request).await.expect("it is answered");
    code_in(answered.headers())
}

fn attempts(seen: &Seen) -> usize {
    seen.lock().expect("no panic").len()
}

#[tokio::test(start_paused = true)]
async fn a_repeatable_call_is_sent_again_whole_until_it_succeeds() {
    let (service, seen) = scripted([unavailable(), Turn::Fail(Status::unavailable("reset"))]);
    let layer = layer();
    let answered = call(&layer, &service, request(true)).await.expect("the third is answered");
    assert_eq!(code_in(answered.headers()), Some(Code::Ok));
    assert_eq!(answered.extensions().get(), Some(&Attempts(3)));
    let seen = seen.lock().expect("no panic");
    assert!(seen.iter().all(|(_, body)| body == "message"), "{seen:?}");
    let before: Vec<_> = seen.iter().map(|(headers, _)| headers.get(PREVIOUS_ATTEMPTS)).collect();
    assert_eq!(before, [None, Some(&HeaderValue::from(1)), Some(&HeaderValue::from(2))]);
    let expected = Stats { calls: 1, retries: 2, recovered: 1, ..Stats::default() };
    assert_eq!(layer.stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_done_is_not_sent_again_unless_that_does_no_harm() {
    for turn in [unavailable(), Turn::Begin(Status::unavailable("")), not_leader()] {
        let (service, seen) = scripted([turn.clone()]);
        let layer = layer();
        call(&layer, &service, request(false)).await.expect("it is answered");
        let certain = matches!(&turn, Turn::Answer(status) if !status.details().is_empty());
        assert_eq!(attempts(&seen), if certain { 2 } else { 1 }, "{turn:?}");
    }
    let (service, seen) = scripted([Turn::Fail(NotSent::status("nowhere".into(), None))]);
    assert_eq!(code(&layer(), &service, request(false)).await, Some(Code::Ok));
    assert_eq!(attempts(&seen), 2, "it never left");
    let (service, seen) = scripted([Turn::Fail(Status::unavailable("reset"))]);
    let layer = layer();
    assert!(call(&layer, &service, request(false)).await.is_err());
    assert_eq!((attempts(&seen), layer.stats().given_up.not_repeatable), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn the_path_says_what_is_repeatable_and_the_request_has_the_last_word() {
    let layer = layer().repeatable(|path| path.ends_with("/Range"));
    let (service, seen) = scripted([unavailable()]);
    assert_eq!(code(&layer, &service, request(false)).await, Some(Code::Ok));
    assert_eq!(attempts(&seen), 2);
    let (service, seen) = scripted([unavailable()]);
    let mut once = request(false);
    once.extensions_mut().insert(Repeatable(false));
    assert_eq!(code(&layer, &service, once).await, Some(Code::Unavailable));
    assert_eq!(attempts(&seen), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_for_good_is_not_sent_again() {
    for status in [Status::not_found(""), Status::internal(""), Status::deadline_exceeded("")] {
        let (service, seen) = scripted([Turn::Answer(status.clone())]);
        assert_eq!(code(&layer(), &service, request(true)).await, Some(status.code()));
        assert_eq!(attempts(&seen), 1, "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_has_begun_is_given_as_it_is() {
    let (service, seen) = scripted([Turn::Begin(Status::unavailable("then it broke"))]);
    let budget = tokens(10);
    let layer = layer().budget(Arc::clone(&budget));
    let answered = call(&layer, &service, request(true)).await.expect("it begins");
    assert_eq!(budget.left(Instant::ZERO), 5);
    let body = answered.into_body().collect().await.expect("it has a status");
    assert_eq!(body.trailers().and_then(code_in), Some(Code::Unavailable));
    assert_eq!((attempts(&seen), budget.left(Instant::ZERO)), (1, 4), "its end is counted");
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded_and_the_last_failure_is_told() {
    let (service, seen) = scripted((0..9).map(|_| not_leader()));
    let layer = layer();
    assert_eq!(code(&layer, &service, request(true)).await, Some(Code::Unavailable));
    assert_eq!((attempts(&seen), layer.stats().given_up.attempts), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn the_server_says_when() {
    let (service, seen) = scripted([pushed_back("700"), not_leader()]);
    let began = TokioInstant::now();
    assert_eq!(code(&layer(), &service, request(true)).await, Some(Code::Ok));
    let waited = began.elapsed();
    assert!(waited >= millis(800) && waited <= millis(905), "{waited:?}");
    assert_eq!(attempts(&seen), 3);
    let (service, seen) = scripted([pushed_back("700")]);
    assert_eq!(code(&layer(), &service, request(false)).await, Some(Code::Unavailable));
    assert_eq!(attempts(&seen), 1, "when is not whether");
    let (service, seen) = scripted([pushed_back("-1")]);
    let layer = layer();
    assert_eq!(code(&layer, &service, request(true)).await, Some(Code::Unavailable));
    assert_eq!((attempts(&seen), layer.stats().given_up.pushed_back), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn no_attempt_outlives_the_deadline_and_each_is_told_what_is_left() {
    let (service, seen) = scripted([pushed_back("300"), pushed_back("300"), pushed_back("300")]);
    let layer = layer();
    let mut timed = request(true);
    timed.headers_mut().insert("grpc-timeout", "800m".parse().expect("ASCII"));
    let began = TokioInstant::now();
    assert_eq!(code(&layer, &service, timed).await, Some(Code::Unavailable));
    assert!(began.elapsed() < millis(800), "it does not wait in vain");
    assert_eq!((attempts(&seen), layer.stats().given_up.deadline), (3, 1));
    let seen = seen.lock().expect("no panic");
    let left: Vec<_> = seen.iter().filter_map(|(headers, _)| timeout_in(headers)).collect();
    assert!(left[0] == millis(800) && left[1] <= millis(500) && left[2] <= millis(200), "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn inside_of_a_deadline_layer_all_attempts_share_its_time() {
    let config = deadline::Config { default: Some(millis(250)), ..deadline::Config::default() };
    let (service, seen) = scripted([not_leader(), Turn::Hang]);
    let layer = layer();
    let mut stack =
        DeadlineLayer::new(config.validate().expect("it works")).layer(layer.layer(service));
    let began = TokioInstant::now();
    let answered = stack.ready().await.expect("it is").call(request(true)).await;
    let answered = answered.expect("it is answered");
    assert_eq!(code_in(answered.headers()), Some(Code::DeadlineExceeded));
    assert_eq!((began.elapsed(), attempts(&seen)), (millis(250), 2));
}

#[tokio::test(start_paused = true)]
async fn a_budget_ends_a_storm_of_retries() {
    let (service, seen) = scripted((0..10_000).map(|_| unavailable()));
    let share = Share { ratio: 0.2, per_second_min: 0, ..Share::default() };
    let config = retry_budget::Config::Share(share).validate().expect("it works");
    let layer = layer().budget(Arc::new(RetryBudget::new(config)));
    for _ in 0..100 {
        assert_eq!(code(&layer, &service, request(true)).await, Some(Code::Unavailable));
    }
    let stats = layer.stats();
    assert!(stats.retries <= 20 && stats.given_up.budget >= 80, "{stats:?}");
    assert_eq!(attempts(&seen) as u64, 100 + stats.retries);
    // Without one, each call is sent as often as allowed.
    let (service, seen) = scripted((0..400).map(|_| unavailable()));
    let unbounded = self::layer().budget(None);
    for _ in 0..100 {
        code(&unbounded, &service, request(true)).await;
    }
    assert_eq!(attempts(&seen), 400);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_counted_once_where_layers_share_a_budget() {
    let budget = tokens(100);
    let left = || budget.left(Instant::ZERO);
    assert_eq!(left(), 50);
    let (inner, outer) = (layer().budget(Arc::clone(&budget)), layer().budget(Arc::clone(&budget)));
    let (service, seen) = scripted((0..16).map(|_| unavailable()));
    let mut stack = outer.layer(inner.layer(service));
    let answered = stack.ready().await.expect("it is").call(request(true)).await;
    assert_eq!(code_in(answered.expect("it is answered").headers()), Some(Code::Unavailable));
    assert_eq!((attempts(&seen), left()), (16, 50 - 16));
}

#[tokio::test(start_paused = true)]
async fn streams_and_large_bodies_are_sent_once_and_whole() {
    let layer = layer().body_bytes_max(10);
    let (service, seen) = scripted([unavailable(), unavailable()]);
    let mut large = request(true);
    *large.body_mut() = Body::new(Full::new(Bytes::from_static(b"a large message")));
    assert_eq!(code(&layer, &service, large).await, Some(Code::Unavailable));
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let frames = tokio_stream::wrappers::ReceiverStream::new(receiver).map(Ok::<_, Status>);
    let mut stream = request(true);
    *stream.body_mut() = Body::new(StreamBody::new(frames));
    let sending = tokio::spawn(async move {
        for text in ["one ", "two"] {
            let frame = Frame::data(Bytes::from_static(text.as_bytes()));
            sender.send(frame).await.expect("it is read");
        }
    });
    assert_eq!(code(&layer, &service, stream).await, Some(Code::Unavailable));
    sending.await.expect("all was read");
    let seen = seen.lock().expect("no panic");
    let bodies: Vec<_> = seen.iter().map(|(_, body)| &**body).collect();
    assert_eq!(bodies, [b"a large message" as &[u8], b"one two"]);
    assert_eq!(layer.stats().sent_once, 2);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_call_ends_its_pause() {
    let (service, seen) = scripted([pushed_back("5000")]);
    let layer = layer();
    let calling = call(&layer, &service, request(true));
    assert!(tokio::time::timeout(millis(1_000), calling).await.is_err());
    tokio::time::advance(millis(10_000)).await;
    assert_eq!(attempts(&seen), 1);
}

#[test]
fn many_at_once_take_no_more_out_of_a_budget_than_there_is() {
    let share = Share { ratio: 0.0, per_second_min: 50, ..Share::default() };
    let config = retry_budget::Config::Share(share).validate().expect("it works");
    let budget = RetryBudget::new(config);
    let withdrawals = || (0..1_000).filter(|_| budget.withdraw(Instant::ZERO)).count();
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(withdrawals)).collect();
        threads.into_iter().map(|thread| thread.join().expect("it ran")).sum()
    });
    assert!(taken <= 500, "{taken}");
    assert_eq!(taken + withdrawals(), 500, "what nobody took is still there");
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        Just(unavailable()),
        Just(not_leader()),
        Just(pushed_back("20")),
        Just(pushed_back("-1")),
        Just(Turn::Answer(Status::not_found(""))),
        Just(Turn::Begin(Status::unavailable(""))),
        Just(Turn::Fail(Status::unavailable("reset"))),
        Just(Turn::Fail(NotSent::status("nowhere".into(), None))),
        Just(Turn::Answer(Status::ok(""))),
    ]
}

/// Whether a turn leaves it open that the call was carried out.
fn leaves_open(turn: &Turn) -> bool {
    match turn {
        Turn::Answer(status) => status.details().is_empty(),
        Turn::Fail(status) => !NotSent::is_in(status),
        Turn::Begin(_) | Turn::Hang => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_call_that_is_not_repeatable_is_never_carried_out_twice(
        turns in proptest::collection::vec(turn(), 0..6),
        attempts_max in 1_u32..6,
        repeatable: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("it starts");
        let config = Config { attempts_max, ..Config::default() };
        let layer = RetryLayer::new(config.validate().expect("it works")).trusts_details(true);
        let (service, seen) = scripted(turns.clone());
        let answered = runtime.block_on(call(&layer, &service, request(repeatable)));
        let made = attempts(&seen);
        prop_assert!(made >= 1 && made <= attempts_max as usize);
        let open = turns.iter().take(made - 1).filter(|turn| leaves_open(turn)).count();
        prop_assert!(repeatable || open == 0, "{open} earlier ones may have been carried out");
        if open > 0 && turns.get(made - 1).is_some_and(|last| !leaves_open(last)) {
            // The last one was certainly refused, an earlier one may have been carried out.
            let doubtful = match &answered {
                Ok(answer) => Status::from_header_map(answer.headers())
                    .is_some_and(|status| status.details().is_empty()),
                Err(error) => !NotSent::is_in(&**error),
            };
            prop_assert!(doubtful, "the call was told to be certainly not done");
        }
        let seen = seen.lock().expect("no panic");
        prop_assert!(seen.iter().all(|(_, body)| body == "message"));
        let stats = layer.stats();
        prop_assert_eq!(stats.retries as usize, made - 1);
        if let Ok(answered) = answered {
            prop_assert_eq!(answered.extensions().get(), Some(&Attempts(made as u32)));
        }
    }
}
