//! Deadlines against services that are silent, slow, or never stop talking.

use std::{
    convert::Infallible,
    future::{Future, pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, advance, sleep_until},
};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Status, body::Body, service::Routes, transport::Server};
use tonic_types::StatusExt as _;
use tower::{Layer as _, Service, ServiceExt as _, service_fn, util::BoxCloneService};

use super::*;
use crate::{
    layers::{REFUSAL_DOMAIN, code_in},
    resilience::deadline::{Config, ValidConfig},
    types::Duration,
};

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn config(default: u64) -> ValidConfig {
    let config = Config { default: Some(millis(default)), ..Config::default() };
    config.validate().expect("it works")
}

fn request(timeout: &str) -> Request<Body> {
    let mut request = Request::new(Body::empty());
    if !timeout.is_empty() {
        request.headers_mut().insert("grpc-timeout", timeout.parse().expect("ASCII"));
    }
    request
}

type Answer = Result<Response<Body>, Infallible>;

type Noting = BoxCloneService<Request<Body>, Response<Body>, Infallible>;
type Seen = Arc<Mutex<Vec<Request<()>>>>;

/// A service, and what it was sent.
fn noting<F>(answer: impl Fn() -> F + Clone + Send + 'static) -> (Noting, Seen)
where
    F: Future<Output = Answer> + Send + 'static,
{
    let seen = Seen::default();
    let sees = Arc::clone(&seen);
    let service = service_fn(move |request: Request<Body>| {
        sees.lock().expect("nobody panics with it").push(request.map(drop));
        answer()
    });
    (BoxCloneService::new(service), seen)
}

async fn call<S>(service: &mut S, request: Request<Body>) -> Response<Body>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let Ok(service) = service.ready().await;
    let Ok(response) = service.call(request).await;
    response
}

fn message(frames: usize) -> impl tokio_stream::Stream<Item = Result<Frame<Bytes>, Status>> {
    tokio_stream::iter(vec![(); frames]).map(|()| Ok(Frame::data(Bytes::from_static(b"data"))))
}

async fn fine() -> Answer {
    Ok(Status::ok("").into_http())
}

/// What was read of a body, and the status in its trailers.
async fn read(response: Response<Body>) -> (usize, Option<Code>) {
    let mut body = response.into_body();
    let (mut data, mut code) = (0, None);
    while let Some(frame) = body.frame().await {
        let frame = frame.expect("it ends with a status");
        match frame.trailers_ref() {
            Some(trailers) => code = code_in(trailers),
            None => data += 1,
        }
    }
    (data, code)
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_costs_no_more_than_the_deadline_and_is_told_of_it() {
    let layer = DeadlineLayer::new(config(100));
    let (silent, seen) = noting(pending);
    let mut client = layer.layer(silent);
    let began = Instant::now();
    let answer = call(&mut client, request("")).await;
    assert_eq!(code_in(answer.headers()), Some(Code::DeadlineExceeded));
    assert_eq!(began.elapsed(), millis(100));
    let answer = call(&mut client, request("30m")).await;
    assert_eq!(code_in(answer.headers()), Some(Code::DeadlineExceeded));
    assert_eq!(began.elapsed(), millis(130));
    let status = Status::from_header_map(answer.headers()).expect("it has one");
    let info = status.get_details_error_info().expect("it says who");
    assert_eq!((&*info.reason, &*info.domain), ("DEADLINE_EXCEEDED", REFUSAL_DOMAIN));
    let seen = seen.lock().expect("no panic");
    let told: Vec<_> = seen.iter().map(|request| timeout_in(request.headers())).collect();
    assert_eq!(told, [Some(millis(100)), Some(millis(30))]);
    assert_eq!(layer.stats(), Stats { calls: 2, expired: 2, ..Stats::default() });
}

#[tokio::test(start_paused = true)]
async fn a_late_call_is_dropped_inside() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let dropped = Arc::new(AtomicBool::new(false));
    let drops = Arc::clone(&dropped);
    let service = service_fn(move |_: Request<Body>| {
        let held = Dropped(Arc::clone(&drops));
        async move {
            let answer: Answer = pending().await;
            drop(held);
            answer
        }
    });
    let _answer = call(&mut DeadlineLayer::new(config(10)).layer(service), request("")).await;
    assert!(dropped.load(SeqCst), "it goes on working for nobody");
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_a_status_at_its_deadline() {
    for frames in [0, 3] {
        let hanging = move || async move {
            let frames = message(frames).chain(tokio_stream::pending());
            Ok(Response::new(Body::new(StreamBody::new(frames))))
        };
        let (client, server) =
            (DeadlineLayer::new(config(50)), ServerDeadlineLayer::new(config(50)));
        let answer = call(&mut client.layer(noting(hanging).0), request("")).await;
        assert_eq!(read(answer).await, (frames, Some(Code::DeadlineExceeded)));
        let answer = call(&mut server.layer(noting(hanging).0), request("")).await;
        assert_eq!(read(answer).await, (frames, Some(Code::DeadlineExceeded)));
        assert_eq!((client.stats().expired_streams, server.stats().expired_streams), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_more_to_say_ends_too() {
    let endless = || async {
        let frames = tokio_stream::iter(std::iter::repeat_with(|| {
            Ok::<_, Status>(Frame::data(Bytes::from_static(b"data")))
        }));
        Ok(Response::new(Body::new(StreamBody::new(frames))))
    };
    let mut client = DeadlineLayer::new(config(50)).layer(noting(endless).0);
    let mut body = call(&mut client, request("")).await.into_body();
    for _ in 0..100 {
        assert!(body.frame().await.expect("more").expect("data").is_data());
    }
    advance(millis(60)).await;
    let last = body.frame().await.expect("a status").expect("trailers");
    assert_eq!(last.trailers_ref().and_then(code_in), Some(Code::DeadlineExceeded));
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_ends_in_time_is_not_touched() {
    let whole = || async {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a number"));
        let frames = message(2).chain(tokio_stream::once(Ok(Frame::trailers(trailers))));
        Ok(Response::new(Body::new(StreamBody::new(frames))))
    };
    let (client, server) = (DeadlineLayer::new(config(50)), ServerDeadlineLayer::new(config(50)));
    let mut stack = client.layer(server.layer(noting(whole).0));
    let answer = call(&mut stack, request("")).await;
    assert_eq!(read(answer).await, (2, Some(Code::Ok)));
    let answer = call(&mut client.layer(noting(fine).0), request("")).await;
    assert_eq!(code_in(answer.headers()), Some(Code::Ok));
    assert_eq!(client.stats(), Stats { calls: 2, ..Stats::default() });
    // One without a deadline has none.
    let (open, seen) = noting(fine);
    let layer = DeadlineLayer::new(ValidConfig::default());
    call(&mut layer.layer(open), request("")).await;
    assert_eq!(timeout_in(seen.lock().expect("no panic")[0].headers()), None);
    assert_eq!(layer.stats(), Stats::default());
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_calls_inherits_its_deadline_minus_the_margin() {
    let (backend, seen) = noting(fine);
    let client = DeadlineLayer::new(config(60_000)).layer(backend);
    let handler = service_fn(move |served: Request<Body>| {
        let mut client = client.clone();
        let due = *served.extensions().get::<Due>().expect("the handler is told");
        assert_eq!(Due::current(), Some(due));
        async move {
            sleep_until(Instant::now() + millis(36)).await;
            call(&mut client, request("")).await;
            // A task of its own carries it where it is told to.
            let spawned = async move { call(&mut client, request("")).await };
            tokio::spawn(due.scope(spawned)).await.expect("it ran");
            fine().await
        }
    });
    let mut server = ServerDeadlineLayer::new(ValidConfig::default()).layer(handler);
    call(&mut server, request("100m")).await;
    let seen = seen.lock().expect("no panic");
    let told: Vec<_> = seen.iter().map(|request| timeout_in(request.headers())).collect();
    // Of 100 ms the answer's margin, the time it took, and the margin of the call.
    assert_eq!(told, [Some(millis(100 - 4 - 36 - 4)); 2]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_handler_inherits_too() {
    let due_in_stream = Arc::new(Mutex::new(None));
    let notes = Arc::clone(&due_in_stream);
    let handler = service_fn(move |_: Request<Body>| {
        let notes = Arc::clone(&notes);
        let frames = message(1).map(move |frame| {
            *notes.lock().expect("no panic") = Due::current();
            frame
        });
        ready(Answer::Ok(Response::new(Body::new(StreamBody::new(frames)))))
    });
    let mut server = ServerDeadlineLayer::new(ValidConfig::default()).layer(handler);
    let answer = call(&mut server, request("100m")).await;
    assert_eq!(due_in_stream.lock().expect("no panic").take(), None);
    let _ = read(answer).await;
    let seen = due_in_stream.lock().expect("no panic").expect("it is told");
    assert_eq!(seen.left(), millis(96));
}

#[tokio::test(start_paused = true)]
async fn what_is_late_already_is_neither_sent_nor_served() {
    let (service, seen) = noting(fine);
    let (client, server) =
        (DeadlineLayer::new(config(50)), ServerDeadlineLayer::new(ValidConfig::default()));
    let mut late = request("");
    late.extensions_mut().insert(Due::at(Instant::now()));
    let answer = call(&mut client.layer(service.clone()), late).await;
    assert_eq!(code_in(answer.headers()), Some(Code::DeadlineExceeded));
    let mut server_side = server.layer(service);
    let answer = call(&mut server_side, request("0m")).await;
    assert_eq!(code_in(answer.headers()), Some(Code::DeadlineExceeded));
    // A server that comes to it late.
    let Ok(ready) = server_side.ready().await;
    let waiting = ready.call(request("10m"));
    advance(millis(10)).await;
    let Ok(answer) = waiting.await;
    assert_eq!(code_in(answer.headers()), Some(Code::DeadlineExceeded));
    assert_eq!((client.stats().refused, server.stats().refused), (1, 2));
    assert!(seen.lock().expect("no panic").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_malformed_timeout_counts_as_none() {
    let layer = ServerDeadlineLayer::new(ValidConfig::default());
    let answer = call(&mut layer.layer(noting(fine).0), request("5 minutes")).await;
    assert_eq!(code_in(answer.headers()), Some(Code::Ok));
    assert_eq!(layer.stats().calls, 0);
}

/// The code that a real server answers a call with, asked over plain HTTP/2: tonic's own client
/// would bring its own timeout along.
async fn code_of(requests: &h2::client::SendRequest<Bytes>, timeout: String) -> Option<Code> {
    let request = Request::post("http://test/some.v1.Service/Method")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", timeout);
    let mut requests = requests.clone().ready().await.expect("it is connected");
    let request = request.body(()).expect("it is well formed");
    let (response, _) = requests.send_request(request, true).expect("it can be sent");
    code_in(response.await.expect("an answer").headers())
}

#[tokio::test]
async fn inside_of_tonic_a_late_answer_is_never_cancelled() {
    let router = axum::Router::new().fallback(async || pending::<String>().await);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    let layer = ServerDeadlineLayer::new(ValidConfig::default());
    let server = Server::builder().layer(layer.clone()).add_routes(Routes::from(router));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let stream = TcpStream::connect(address).await.expect("it listens");
    let (requests, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
    tokio::spawn(connection);
    let mut calls = tokio::task::JoinSet::new();
    for round in 0..100 {
        let (requests, timeout) = (requests.clone(), format!("{}m", 5 + round % 40));
        calls.spawn(async move { code_of(&requests, timeout).await });
    }
    for code in calls.join_all().await {
        assert_eq!(code, Some(Code::DeadlineExceeded));
    }
    assert_eq!(layer.stats().expired + layer.stats().refused, 100);
}

#[tokio::test(start_paused = true)]
async fn a_transport_that_keeps_the_deadline_too_has_no_other_word_for_it() {
    let layer = DeadlineLayer::new(config(20));
    let transport = service_fn(async |_: Request<Body>| {
        sleep_until(Instant::now() + millis(20)).await;
        Err::<Response<Body>, Status>(Status::cancelled("Timeout expired"))
    });
    let answer = layer.layer(transport).oneshot(request("")).await.expect("an answer");
    assert_eq!(code_in(answer.headers()), Some(Code::DeadlineExceeded));
    assert_eq!(layer.stats().expired, 1);
}
