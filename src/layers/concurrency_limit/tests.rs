//! The layers in virtual time: places, the queue and its end, streams, what is dropped, and that the
//! limit follows the latency.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use super::*;
use crate::{
    layers::{DeadlineLayer, Outcome, code_in},
    resilience::{
        concurrency_limit::{
            Aimd, Algorithm, CLASSES, Config, Ended, Gradient2, Stats, ValidConfig, Vegas,
        },
        deadline,
    },
    types::Duration,
};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn valid(config: Config) -> ValidConfig {
    config.validate().expect("it works")
}

/// A backend whose calls begin at once and end when the test says so.
#[derive(Clone)]
struct Backend {
    ends: Arc<Semaphore>,
    begun: Arc<Mutex<Vec<String>>>,
    in_flight: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Backend {
    fn new() -> Self {
        let (begun, in_flight, most) = Default::default();
        Self { ends: Arc::new(Semaphore::new(0)), begun, in_flight, most }
    }

    /// Ends so many calls and lets everything happen that follows.
    async fn end(&self, calls: usize) {
        self.ends.add_permits(calls);
        settle().await;
    }

    fn begun(&self) -> Vec<String> {
        self.begun.lock().expect("nobody panics with it").clone()
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path().to_owned();
        self.begun.lock().expect("nobody panics with it").push(path);
        let now = self.in_flight.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        self.ends.acquire().await.expect("it is never closed").forget();
        self.in_flight.fetch_sub(1, SeqCst);
        Ok(Status::ok("").into_http())
    }

    /// This backend as a service behind a layer.
    fn behind<L, S>(&self, layer: L) -> S
    where
        L: FnOnce(Inner) -> S,
    {
        let backend = self.clone();
        let answer: Answer = Arc::new(move |request| Box::pin(backend.clone().answer(request)));
        layer(service(answer))
    }
}

type Answer = Arc<
    dyn Fn(Request<Body>) -> crate::layers::BoxFuture<Result<Response<Body>, Infallible>>
        + Send
        + Sync,
>;
type Inner = tower::util::BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

fn service(answer: Answer) -> Inner {
    Inner::new(service_fn(move |request| answer(request)))
}

/// Lets every task run as far as it can without time passing.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

/// Begins a call at a path and lets it come as far as it does.
async fn start<S>(service: &S, path: &str) -> JoinHandle<Response<Body>>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let request = Request::post(path).body(Body::empty()).expect("a path");
    let service = service.clone();
    let call = tokio::spawn(async move { service.oneshot(request).await.expect("infallible") });
    settle().await;
    call
}

async fn code(call: JoinHandle<Response<Body>>) -> Code {
    let response = call.await.expect("it does not panic");
    code_in(response.headers()).expect("it has no body")
}

#[tokio::test(start_paused = true)]
async fn never_more_calls_are_under_way_than_the_limit_and_the_rest_wait_in_order() {
    let backend = Backend::new();
    let layer = ConcurrencyLimitLayer::new(valid(Config::fixed(2)));
    let service = backend.behind(|inner| layer.layer(inner));
    let mut calls = Vec::new();
    for path in ["/1", "/2", "/3", "/4", "/5"] {
        calls.push(start(&service, path).await);
    }
    let Stats { limit, in_flight, queued, .. } = layer.handle().stats();
    assert_eq!((limit, in_flight, queued), (2, 2, 3));
    backend.end(5).await;
    for call in calls {
        assert_eq!(code(call).await, Code::Ok);
    }
    assert_eq!(backend.begun(), ["/1", "/2", "/3", "/4", "/5"]);
    assert_eq!(backend.most.load(SeqCst), 2);
    let Stats { in_flight, queued, admitted, .. } = layer.handle().stats();
    assert_eq!((in_flight, queued, admitted), (0, 0, 5));
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_no_longer_than_it_may_and_is_refused_with_details() {
    let backend = Backend::new();
    let config = Config { queue_wait_max: ms(250), ..Config::fixed(1) };
    let layer = ConcurrencyLimitLayer::new(valid(config));
    let service = backend.behind(|inner| layer.layer(inner));
    let _first = start(&service, "/1").await;
    let began = Instant::now();
    let response = start(&service, "/2").await.await.expect("it does not panic");
    assert_eq!(began.elapsed(), ms(250));
    let status = Status::from_header_map(response.headers()).expect("it has one");
    assert_eq!(status.code(), Code::ResourceExhausted);
    let info = status.get_details_error_info().expect("it says why");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("LIMIT_REACHED", "quorate.layers"));
    assert_eq!(info.metadata["limit"], "1");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
    assert!(status.message().contains("waited too long"), "{}", status.message());
    assert_eq!(layer.handle().stats().expired, 1);
    assert_eq!(backend.begun(), ["/1"], "it never began");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_at_once() {
    let backend = Backend::new();
    let layer = ConcurrencyLimitLayer::new(valid(Config { queue_max: 1, ..Config::fixed(1) }));
    let service = backend.behind(|inner| layer.layer(inner));
    let (first, second) = (start(&service, "/1").await, start(&service, "/2").await);
    let began = Instant::now();
    assert_eq!(code(start(&service, "/3").await).await, Code::ResourceExhausted);
    assert_eq!(began.elapsed(), Duration::ZERO);
    backend.end(2).await;
    assert_eq!((code(first).await, code(second).await), (Code::Ok, Code::Ok));
    assert_eq!(layer.handle().stats().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn an_important_call_takes_a_place_in_the_queue_of_one_that_is_not() {
    let backend = Backend::new();
    let layer = ConcurrencyLimitLayer::new(valid(Config { queue_max: 1, ..Config::fixed(1) }))
        .by_class(|request| if request.uri().path() == "/session" { 0 } else { 1 });
    let service = backend.behind(|inner| layer.layer(inner));
    let first = start(&service, "/1").await;
    let list = start(&service, "/list").await;
    let session = start(&service, "/session").await;
    assert_eq!(code(list).await, Code::ResourceExhausted, "it gave up its place");
    backend.end(2).await;
    assert_eq!((code(first).await, code(session).await), (Code::Ok, Code::Ok));
    assert_eq!(layer.handle().stats().displaced, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_leaves_the_queue_or_its_place() {
    let backend = Backend::new();
    let layer = ConcurrencyLimitLayer::new(valid(Config::fixed(1)));
    let service = backend.behind(|inner| layer.layer(inner));
    let first = start(&service, "/1").await;
    let second = start(&service, "/2").await;
    let third = start(&service, "/3").await;
    second.abort();
    settle().await;
    assert_eq!(layer.handle().stats().queued, 1, "the second left the queue");
    first.abort();
    settle().await;
    assert_eq!(backend.begun(), ["/1", "/3"], "the first left its place to the third");
    backend.end(1).await;
    assert_eq!(code(third).await, Code::Ok);
    assert_eq!(layer.handle().stats().in_flight, 0);
}

type Frames = mpsc::UnboundedSender<Result<Frame<Bytes>, Status>>;

/// A service that answers each call with a stream that the test feeds.
fn streams() -> (Inner, Arc<Mutex<Vec<Frames>>>) {
    let feeds: Arc<Mutex<Vec<Frames>>> = Arc::default();
    let kept = Arc::clone(&feeds);
    let answer: Answer = Arc::new(move |_| {
        let (feed, frames) = mpsc::unbounded_channel();
        kept.lock().expect("nobody panics with it").push(feed);
        let body = Body::new(StreamBody::new(UnboundedReceiverStream::new(frames)));
        Box::pin(async { Ok(Response::new(body)) })
    });
    (service(answer), feeds)
}

#[tokio::test(start_paused = true)]
async fn a_stream_holds_its_place_until_it_ends_or_is_dropped() {
    let (inner, feeds) = streams();
    let layer = ConcurrencyLimitLayer::new(valid(Config { queue_max: 0, ..Config::fixed(1) }));
    let service = layer.layer(inner);
    let stream = start(&service, "/1").await.await.expect("it does not panic");
    assert_eq!(layer.handle().stats().in_flight, 1, "its headers came, not its end");
    assert_eq!(code(start(&service, "/2").await).await, Code::ResourceExhausted);
    let feed = feeds.lock().expect("nobody panics with it").pop().expect("it began");
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    feed.send(Ok(Frame::trailers(trailers))).expect("somebody reads");
    drop(feed);
    stream.into_body().collect().await.expect("it ends well");
    assert_eq!(layer.handle().stats().in_flight, 0, "its trailers came");

    let stream = start(&service, "/3").await.await.expect("it does not panic");
    assert_eq!(layer.handle().stats().in_flight, 1);
    drop(stream);
    assert_eq!(layer.handle().stats().in_flight, 0, "it was dropped");
}

/// A service with room for so many calls at once, each of which takes 10 ms; others queue there.
fn server(room: Arc<Semaphore>) -> Inner {
    service(Arc::new(move |_| {
        let room = Arc::clone(&room);
        Box::pin(async move {
            let _place = room.acquire_owned().await.expect("it is never closed");
            sleep_until(Instant::now() + ms(10)).await;
            Ok(Status::ok("").into_http())
        })
    }))
}

/// A queue in which nobody is refused.
fn patient() -> Config {
    Config { queue_max: 1_000, queue_wait_max: Duration::from_secs(10), ..Config::default() }
}

/// Keeps `clients` calls going for a while.
async fn load<S>(service: &S, clients: usize, span: Duration)
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let end = Instant::now() + span;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let service = service.clone();
        tasks.spawn(async move {
            while Instant::now() < end {
                let answer = service.clone().oneshot(Request::new(Body::empty())).await;
                if code_in(answer.expect("infallible").headers()) != Some(Code::Ok) {
                    sleep_until(Instant::now() + ms(5)).await;
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("it does not panic");
    }
}

#[tokio::test(start_paused = true)]
async fn an_adaptive_limit_finds_what_the_server_bears_and_follows_it() {
    for algorithm in [
        Algorithm::Aimd(Aimd { latency_max: ms(25), ..Aimd::default() }),
        Algorithm::Vegas(Vegas::default()),
    ] {
        let room = Arc::new(Semaphore::new(40));
        let layer = ConcurrencyLimitLayer::new(valid(Config { algorithm, ..patient() }));
        let service = layer.layer(server(Arc::clone(&room)));
        load(&service, 150, Duration::from_secs(15)).await;
        let many = layer.handle().stats().limit;
        assert!((30..=130).contains(&many), "{algorithm:?}: {many} for 40 places");
        // Most of the server's room is gone.
        room.acquire_many(32).await.expect("it is never closed").forget();
        load(&service, 150, Duration::from_secs(15)).await;
        let few = layer.handle().stats().limit;
        assert!(few * 2 < many, "{algorithm:?}: {few} after {many}");
    }
}

#[tokio::test(start_paused = true)]
async fn gradient2_backs_off_when_the_latency_jumps() {
    let room = Arc::new(Semaphore::new(200));
    let algorithm = Algorithm::Gradient2(Gradient2::default());
    let layer = ConcurrencyLimitLayer::new(valid(Config { algorithm, ..patient() }));
    let service = layer.layer(server(Arc::clone(&room)));
    load(&service, 150, Duration::from_secs(10)).await;
    let many = layer.handle().stats().limit;
    room.acquire_many(190).await.expect("it is never closed").forget();
    load(&service, 150, Duration::from_secs(4)).await;
    let few = layer.handle().stats().limit;
    assert!(few * 2 < many, "{few} after {many}");
}

#[tokio::test(start_paused = true)]
async fn the_queues_delay_is_told() {
    let backend = Backend::new();
    let told: Arc<Mutex<Vec<(u8, Duration)>>> = Arc::default();
    let kept = Arc::clone(&told);
    let layer = ConcurrencyLimitLayer::telling(valid(Config::fixed(1)), move |class, delay| {
        kept.lock().expect("nobody panics with it").push((class, delay));
    });
    let service = backend.behind(|inner| layer.layer(inner));
    let first = start(&service, "/1").await;
    let second = start(&service, "/2").await;
    sleep_until(Instant::now() + ms(40)).await;
    backend.end(2).await;
    assert_eq!((code(first).await, code(second).await), (Code::Ok, Code::Ok));
    assert_eq!(*told.lock().expect("nobody panics with it"), [(0, Duration::ZERO), (0, ms(40))]);
}

#[test]
fn only_answers_and_overload_count_as_samples() {
    let of = |outcome| sample_of(outcome, ms(3));
    for code in [Code::Ok, Code::NotFound, Code::Aborted, Code::InvalidArgument] {
        assert_eq!(of(Outcome::Status(code)), Ended::Answered(ms(3)), "{code:?}");
    }
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::DeadlineExceeded] {
        assert_eq!(of(Outcome::Status(code)), Ended::Dropped, "{code:?}");
    }
    for outcome in [Outcome::Broken, Outcome::Cancelled, Outcome::Status(Code::Internal)] {
        assert_eq!(of(outcome), Ended::Ignored, "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_keeps_a_busy_key_from_the_others() {
    let backend = Backend::new();
    let layer = BulkheadLayer::new(valid(Config::fixed(1)), |request| request.uri().path().into());
    let service = backend.behind(|inner| layer.layer(inner));
    let mut calls = Vec::new();
    for path in ["/busy", "/busy", "/busy", "/calm"] {
        calls.push(start(&service, path).await);
    }
    assert_eq!(backend.begun(), ["/busy", "/calm"]);
    let handle = layer.handle();
    assert_eq!(handle.stats("/busy").map(|stats| (stats.in_flight, stats.queued)), Some((1, 2)));
    assert_eq!(handle.stats("/calm").map(|stats| (stats.in_flight, stats.queued)), Some((1, 0)));
    assert_eq!(handle.stats("/none"), None);
    backend.end(4).await;
    for call in calls {
        assert_eq!(code(call).await, Code::Ok);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bulkhead_forgets_idle_keys_and_further_ones_share_a_limit() {
    let backend = Backend::new();
    let config = valid(Config { queue_max: 0, ..Config::fixed(1) });
    let layer = BulkheadLayer::with_keys_max(config, 2, |request| request.uri().path().into());
    let service = backend.behind(|inner| layer.layer(inner));
    let mut calls = Vec::new();
    for path in ["/a", "/b", "/c"] {
        calls.push(start(&service, path).await);
    }
    assert_eq!(backend.begun(), ["/a", "/b", "/c"], "the rest has a limit too");
    assert_eq!(code(start(&service, "/d").await).await, Code::ResourceExhausted, "of one");
    assert_eq!(layer.handle().keys(), ["/a", "/b"]);
    backend.end(3).await;
    for call in calls {
        assert_eq!(code(call).await, Code::Ok);
    }
    sleep_until(Instant::now() + ms(200)).await;
    let last = start(&service, "/d").await;
    assert_eq!(layer.handle().keys(), ["/d"], "the others had nothing under way");
    backend.end(1).await;
    assert_eq!(code(last).await, Code::Ok);
}

#[tokio::test(start_paused = true)]
async fn the_less_important_leave_room_for_the_others() {
    let backend = Backend::new();
    let mut shares = [25; CLASSES];
    shares[0] = 100;
    let config = Config { queue_max: 0, shares, ..Config::fixed(4) };
    let layer = ConcurrencyLimitLayer::new(valid(config))
        .by_class(|request| if request.uri().path() == "/session" { 0 } else { 7 });
    let service = backend.behind(|inner| layer.layer(inner));
    let list = start(&service, "/list").await;
    assert_eq!(code(start(&service, "/list").await).await, Code::ResourceExhausted);
    let session = start(&service, "/session").await;
    assert_eq!(layer.handle().stats().in_flight, 2);
    backend.end(2).await;
    assert_eq!((code(list).await, code(session).await), (Code::Ok, Code::Ok));
}

#[tokio::test(start_paused = true)]
async fn calls_that_their_deadline_ends_count_as_overload() {
    let config = Config {
        algorithm: Algorithm::Aimd(Aimd::default()),
        initial: 20,
        window: Duration::ZERO,
        window_samples: 1,
        ..Config::default()
    };
    let layer = ConcurrencyLimitLayer::new(valid(config));
    let silent = service_fn(async |_: Request<Body>| {
        std::future::pending::<Result<Response<Body>, Infallible>>().await
    });
    let late = deadline::Config { default: Some(ms(20)), ..deadline::Config::default() };
    let stack = DeadlineLayer::new(late.validate().expect("it works")).layer(layer.layer(silent));
    for _ in 0..5 {
        let answer = stack.clone().oneshot(Request::new(Body::empty())).await;
        let Ok(answer) = answer;
        assert_eq!(code_in(answer.headers()), Some(Code::DeadlineExceeded));
    }
    assert!(layer.handle().stats().limit < 20, "{:?}", layer.handle().stats());
}
