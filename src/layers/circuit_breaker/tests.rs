//! The layer over answers as gRPC gives them: statuses in headers and trailers, streams, broken
//! connections and callers that give up, in virtual time; and once between a real client and server.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tonic::{
    Code, Status,
    body::Body,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;
use tower::{Layer as _, Service as _, ServiceExt as _, util::BoxCloneService};

use super::*;
use crate::{
    layers::{
        BoxError, DeadlineLayer, Outcome, rate_limit::RateLimitLayer, refusal::REFUSAL_DOMAIN,
    },
    resilience::{
        backoff,
        circuit_breaker::{Config, State, Verdict},
        deadline, rate_limit,
    },
};

/// What the service behind the layer answers with.
#[derive(Clone, Copy)]
enum Answer {
    Headers(Code),
    Trailers(Code),
    Broken,
    Never,
    EndlessBody,
}

type Client = BoxCloneService<Request<Body>, Response<Body>, BoxError>;

fn config() -> Config {
    let open = backoff::Config {
        base: Duration::from_secs(1),
        factor: 2.0,
        jitter: 0.0,
        max: Duration::from_secs(60),
    };
    Config { consecutive_failures: Some(2), failure_rate: None, open, ..Config::default() }
}

fn layer() -> CircuitBreakerLayer {
    CircuitBreakerLayer::new(config().validate().unwrap())
}

/// A client of a service that answers as the value says at the time.
fn client(layer: &CircuitBreakerLayer) -> (Client, Arc<Mutex<Answer>>) {
    let says = Arc::new(Mutex::new(Answer::Headers(Code::Unavailable)));
    let answer = Arc::clone(&says);
    let service = tower::service_fn(move |_: Request<Body>| {
        let answer = *answer.lock().unwrap();
        async move {
            match answer {
                Answer::Headers(code) => Ok(Status::new(code, "").into_http::<Body>()),
                Answer::Trailers(code) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", (code as i32).into());
                    let frames = [Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailers)];
                    let frames = frames.map(Ok::<_, Status>);
                    Ok(Response::new(Body::new(StreamBody::new(tokio_stream::iter(frames)))))
                }
                Answer::Broken => Err(BoxError::from("reset")),
                Answer::Never => std::future::pending().await,
                Answer::EndlessBody => {
                    let body = StreamBody::new(tokio_stream::pending::<Result<_, Status>>());
                    Ok(Response::new(Body::new(body)))
                }
            }
        }
    });
    (BoxCloneService::new(layer.layer(service)), says)
}

fn to(path: &str) -> Request<Body> {
    Request::builder().uri(path).body(Body::empty()).unwrap()
}

/// Calls and reads to the end, which must come.
async fn call(client: &mut Client, path: &str) -> Result<Option<Status>, BoxError> {
    let answer = async {
        let response = client.ready().await?.call(to(path)).await?;
        let headers = response.headers().clone();
        let trailers = response.into_body().collect().await?.trailers().cloned();
        Ok(Status::from_header_map(&headers)
            .or_else(|| trailers.as_ref().and_then(Status::from_header_map)))
    };
    tokio::time::timeout(Duration::from_secs(3_600), answer).await.expect("it ends")
}

async fn open(client: &mut Client, path: &str) {
    for _ in 0..2 {
        assert_eq!(call(client, path).await.unwrap().unwrap().code(), Code::Unavailable);
    }
}

#[tokio::test(start_paused = true)]
async fn failures_in_headers_trailers_and_transport_open_it() {
    for failure in
        [Answer::Headers(Code::Unavailable), Answer::Trailers(Code::Internal), Answer::Broken]
    {
        let layer = layer();
        let (mut client, says) = client(&layer);
        *says.lock().unwrap() = Answer::Trailers(Code::Ok);
        call(&mut client, "/a").await.unwrap();
        *says.lock().unwrap() = Answer::Headers(Code::NotFound);
        call(&mut client, "/a").await.unwrap();
        assert_eq!(layer.handle().stats().successes, 2, "the service works");
        *says.lock().unwrap() = failure;
        for _ in 0..2 {
            assert_eq!(layer.handle().state(), State::Closed);
            let _ = call(&mut client, "/a").await;
        }
        assert!(matches!(layer.handle().state(), State::Open { .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_who_why_and_when_and_is_not_sent() {
    let layer = layer();
    let (mut client, says) = client(&layer);
    open(&mut client, "/a").await;
    *says.lock().unwrap() = Answer::Never;
    tokio::time::advance(Duration::from_millis(400)).await;
    let refused = call(&mut client, "/a").await.unwrap().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    assert_eq!(
        refused.message(),
        "the circuit breaker of this service is open because 2 calls in a row failed: \
         try again in 600ms, or elsewhere"
    );
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (CIRCUIT_OPEN, REFUSAL_DOMAIN));
    assert_eq!(info.metadata["state"], "open");
    let retry = refused.get_details_retry_info().unwrap().retry_delay;
    assert_eq!(retry, Some(Duration::from_millis(600)));
    layer.handle().force_open();
    let refused = call(&mut client, "/a").await.unwrap().unwrap();
    assert!(refused.get_details_retry_info().is_none() && refused.message().contains("by hand"));
}

#[tokio::test(start_paused = true)]
async fn after_its_time_one_probe_closes_it_or_opens_it_for_longer() {
    let layer = layer();
    let (mut client, says) = client(&layer);
    open(&mut client, "/a").await;
    tokio::time::advance(Duration::from_secs(1)).await;
    let _ = call(&mut client, "/a").await;
    assert!(matches!(layer.handle().state(), State::Open { .. }), "the probe failed");
    *says.lock().unwrap() = Answer::Trailers(Code::Ok);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(call(&mut client, "/a").await.unwrap().unwrap().code(), Code::Unavailable);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(call(&mut client, "/a").await.unwrap().unwrap().code(), Code::Ok);
    assert_eq!((layer.handle().state(), layer.handle().stats().opened), (State::Closed, 2));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_gives_its_place_back() {
    let layer = layer();
    let (mut client, says) = client(&layer);
    open(&mut client, "/a").await;
    tokio::time::advance(Duration::from_secs(1)).await;
    *says.lock().unwrap() = Answer::Never;
    let waits = client.ready().await.unwrap().call(to("/a"));
    let refused = call(&mut client, "/a").await.unwrap().unwrap();
    assert!(refused.message().contains("waits for its probes"), "{}", refused.message());
    let retry = refused.get_details_retry_info().unwrap().retry_delay;
    assert_eq!(retry, Some(Duration::from_millis(100)));
    drop(waits);
    *says.lock().unwrap() = Answer::EndlessBody;
    let stream = client.ready().await.unwrap().call(to("/a")).await.unwrap();
    let refused = call(&mut client, "/a").await.unwrap().unwrap();
    assert!(refused.message().contains("waits for its probes"), "a stream holds its place");
    drop(stream);
    *says.lock().unwrap() = Answer::Headers(Code::Ok);
    call(&mut client, "/a").await.unwrap();
    assert_eq!((layer.handle().state(), layer.handle().stats().neutral), (State::Closed, 2));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_stays_does_not_keep_it_half_open() {
    let layer = layer();
    let (mut client, says) = client(&layer);
    open(&mut client, "/a").await;
    tokio::time::advance(Duration::from_secs(1)).await;
    *says.lock().unwrap() = Answer::EndlessBody;
    let _stream = client.ready().await.unwrap().call(to("/a")).await.unwrap();
    tokio::time::advance(Duration::from_secs(10)).await;
    *says.lock().unwrap() = Answer::Headers(Code::Ok);
    call(&mut client, "/a").await.unwrap();
    assert_eq!(layer.handle().state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn each_method_has_its_own_breaker_where_it_is_asked_for() {
    let layer = layer().by_path();
    let (mut client, says) = client(&layer);
    open(&mut client, "/a").await;
    *says.lock().unwrap() = Answer::Headers(Code::Ok);
    assert_eq!(call(&mut client, "/b").await.unwrap().unwrap().code(), Code::Ok);
    let refused = call(&mut client, "/a").await.unwrap().unwrap();
    assert_eq!(refused.get_details_error_info().unwrap().metadata["key"], "/a");
    let handle = layer.handle();
    let names: Vec<_> = handle
        .states()
        .into_iter()
        .map(|(key, state)| (key.map(|key| key.to_string()), state.name()))
        .collect();
    let named = |key: &str, state| (Some(key.to_owned()), state);
    assert_eq!(names, [(None, "closed"), named("/a", "open"), named("/b", "closed")]);
    let one = handle.key("/a").unwrap();
    assert_eq!((one.stats().failures, handle.stats().successes), (2, 1));
    one.reset();
    assert_eq!(call(&mut client, "/a").await.unwrap().unwrap().code(), Code::Ok);
    assert!(handle.key("/c").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_key_may_stand_in_the_extensions() {
    #[derive(Clone)]
    struct Endpoint(&'static str);
    let layer =
        layer().by(|request| request.extensions().get::<Endpoint>().map_or("", |to| to.0).into());
    let (mut client, _) = client(&layer);
    for endpoint in ["one", "one", "two"] {
        let mut request = to("/a");
        request.extensions_mut().insert(Endpoint(endpoint));
        client.ready().await.unwrap().call(request).await.unwrap();
    }
    assert!(matches!(layer.handle().key("one").unwrap().state(), State::Open { .. }));
    assert_eq!(layer.handle().key("two").unwrap().state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn forced_states_hold_for_keys_that_come_later() {
    let layer = layer().by_path();
    let (mut client, says) = client(&layer);
    layer.handle().force_open();
    *says.lock().unwrap() = Answer::Headers(Code::Ok);
    assert_eq!(call(&mut client, "/new").await.unwrap().unwrap().code(), Code::Unavailable);
    layer.handle().force_close();
    *says.lock().unwrap() = Answer::Broken;
    for path in ["/new", "/new", "/new", "/newer", "/newer", "/newer"] {
        assert!(call(&mut client, path).await.is_err(), "the call is sent");
    }
    layer.handle().reset();
    open_broken(&mut client).await;
    assert!(matches!(layer.handle().key("/new").unwrap().state(), State::Open { .. }));
}

async fn open_broken(client: &mut Client) {
    for _ in 0..2 {
        assert!(call(client, "/new").await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn observers_hear_each_transition_with_its_key() {
    let layer = layer().by_path();
    let (mut client, says) = client(&layer);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    layer.handle().observe(move |key, change| {
        let key = key.map(str::to_owned);
        hears.lock().unwrap().push((key, change.from.name(), change.to.name()));
    });
    open(&mut client, "/a").await;
    tokio::time::advance(Duration::from_secs(1)).await;
    *says.lock().unwrap() = Answer::Headers(Code::Ok);
    call(&mut client, "/a").await.unwrap();
    let expected = [("closed", "open"), ("open", "half-open"), ("half-open", "closed")];
    let expected = expected.map(|(from, to)| (Some("/a".to_owned()), from, to));
    assert_eq!(*heard.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn which_codes_count_can_be_said() {
    assert_eq!(verdict(Outcome::Status(Code::Unimplemented)), Verdict::Neutral);
    assert_eq!(verdict(Outcome::Status(Code::Aborted)), Verdict::Success);
    let layer = layer().verdict(|outcome| match outcome {
        Outcome::Status(Code::Aborted) => Verdict::Failure,
        other => verdict(other),
    });
    let (mut client, says) = client(&layer);
    *says.lock().unwrap() = Answer::Trailers(Code::Aborted);
    for _ in 0..2 {
        call(&mut client, "/a").await.unwrap();
    }
    assert!(matches!(layer.handle().state(), State::Open { .. }));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_given_up_count_for_nothing() {
    let layer = layer();
    let (mut client, says) = client(&layer);
    *says.lock().unwrap() = Answer::Never;
    for _ in 0..20 {
        let call = client.ready().await.unwrap().call(to("/a"));
        let late = tokio::time::timeout(Duration::from_millis(1), call).await;
        assert!(late.is_err());
    }
    assert_eq!((layer.handle().state(), layer.handle().stats().neutral), (State::Closed, 20));
}

/// Both layers over HTTP/2: the server's limit refuses, the client's breaker takes it for a failure.
#[tokio::test]
async fn it_stands_between_a_tonic_client_and_a_tonic_server() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let two = rate_limit::Config { rate: 1, period: Duration::from_secs(3_600), burst: 2 };
    let limit = RateLimitLayer::new(two.validate().unwrap()).by_path();
    let limited = limit.handle();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder().layer(limit).add_service(health);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tokio::spawn(server.serve_with_incoming(incoming));

    let layer = layer().by_path();
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut client = HealthClient::new(layer.layer(channel));
    let mut codes = Vec::new();
    for _ in 0..5 {
        let answer = client.check(HealthCheckRequest::default()).await;
        codes.push(answer.err().map(|status| status.code()));
    }
    let full = Some(Code::ResourceExhausted);
    assert_eq!(codes, [None, None, full, full, Some(Code::Unavailable)]);
    let (passed, stats) = (limited.stats().passed, layer.handle().stats());
    assert_eq!((passed, stats.successes, stats.failures, stats.refused), (2, 2, 2, 1));
    assert!(layer.handle().key("/grpc.health.v1.Health/Check").is_some());
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn what_its_deadline_ends_counts_as_a_failure() {
    let layer = layer();
    let (client, says) = client(&layer);
    *says.lock().unwrap() = Answer::Never;
    let limit = deadline::Config { default: Some(Duration::from_millis(20)), ..Default::default() };
    let mut stack = DeadlineLayer::new(limit.validate().unwrap()).layer(client);
    for _ in 0..2 {
        let answer = stack.ready().await.unwrap().call(Request::new(Body::empty())).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }
    assert_ne!(layer.handle().state(), State::Closed, "two in a row");
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_further_in_refuses_says_nothing_of_the_other_side() {
    let layer = layer();
    let one = rate_limit::Config { rate: 1, burst: 1, ..rate_limit::Config::default() };
    let limit = RateLimitLayer::new(one.validate().unwrap());
    let inside = tower::service_fn(async |_: Request<Body>| {
        Ok::<_, BoxError>(Status::ok("").into_http::<Body>())
    });
    let mut stack = layer.layer(limit.layer(inside));
    let mut refused = 0;
    for _ in 0..10 {
        let answer = stack.ready().await.unwrap().call(Request::new(Body::empty())).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        refused += u32::from(status.code() == Code::ResourceExhausted);
    }
    assert_eq!((refused, layer.handle().state()), (9, State::Closed));
}
