//! What passes, waits and is refused, by key and in virtual time.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer as _, Service as _, ServiceExt as _, util::BoxCloneService};

use super::*;
use crate::{
    layers::{BoxError, refusal::REFUSAL_DOMAIN},
    resilience::rate_limit::{Config, RateLimiter},
    types::Instant,
};

type Client = BoxCloneService<Request<Body>, Response<Body>, BoxError>;

/// One call in 100 ms, two at once.
fn layer() -> RateLimitLayer {
    let config = Config { rate: 10, period: Duration::from_secs(1), burst: 2 };
    RateLimitLayer::new(config.validate().unwrap())
}

fn client(layer: &RateLimitLayer) -> Client {
    let works = |_: Request<Body>| async { Ok(Status::ok("").into_http::<Body>()) };
    BoxCloneService::new(layer.layer(tower::service_fn(works)))
}

async fn call(client: &mut Client, path: &str) -> Status {
    let request = Request::builder().uri(path).body(Body::empty()).unwrap();
    let response = client.ready().await.unwrap().call(request).await.unwrap();
    Status::from_header_map(response.headers()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_over_the_rate_is_refused_with_the_time_to_come_back() {
    let layer = layer();
    let mut client = client(&layer);
    for _ in 0..2 {
        assert_eq!(call(&mut client, "/a").await.code(), Code::Ok);
    }
    tokio::time::advance(Duration::from_millis(40)).await;
    let refused = call(&mut client, "/a").await;
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let expected = "the rate limit of this service, 10 calls in 1s, is reached: try again in 60ms";
    assert_eq!(refused.message(), expected);
    let info = refused.get_details_error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), (RATE_LIMITED, REFUSAL_DOMAIN));
    let delay = refused.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(delay, Duration::from_millis(60));
    tokio::time::advance(delay).await;
    assert_eq!(call(&mut client, "/a").await.code(), Code::Ok);
    let expected = Stats { passed: 3, waited: 0, refused: 1, given_up: 0 };
    assert_eq!(layer.handle().stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn calls_wait_in_order_up_to_the_bound() {
    let layer = layer().wait(Duration::from_millis(250));
    let mut client = client(&layer);
    let start = tokio::time::Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..6 {
        let request = Request::builder().uri("/a").body(Body::empty()).unwrap();
        let answer = client.ready().await.unwrap().call(request);
        calls.spawn(async move {
            let response = answer.await.unwrap();
            let code = Status::from_header_map(response.headers()).unwrap().code();
            (number, code, start.elapsed().as_millis())
        });
    }
    let mut ended = calls.join_all().await;
    ended.sort_unstable_by_key(|end| end.0);
    let codes: Vec<_> = ended.iter().map(|end| end.1).collect();
    let (ok, refused) = (Code::Ok, Code::ResourceExhausted);
    assert_eq!(codes, [ok, ok, ok, ok, refused, refused]);
    let times: Vec<_> = ended.iter().map(|end| end.2).collect();
    assert_eq!(times, [0, 0, 100, 200, 0, 0]);
    let expected = Stats { passed: 4, waited: 2, refused: 2, given_up: 0 };
    assert_eq!(layer.handle().stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_while_it_waits_makes_room() {
    let layer = layer().wait(Duration::from_millis(100));
    let mut client = client(&layer);
    for _ in 0..2 {
        call(&mut client, "/a").await;
    }
    let request = || Request::builder().uri("/a").body(Body::empty()).unwrap();
    let waits = client.ready().await.unwrap().call(request());
    assert_eq!(call(&mut client, "/a").await.code(), Code::ResourceExhausted);
    drop(waits);
    let answer = client.ready().await.unwrap().call(request()).await.unwrap();
    assert_eq!(Status::from_header_map(answer.headers()).unwrap().code(), Code::Ok);
    let expected = Stats { passed: 3, waited: 2, refused: 1, given_up: 1 };
    assert_eq!(layer.handle().stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn each_key_has_its_own_rate_and_idle_keys_make_room() {
    let layer = layer().by_path().keys_max(2);
    let mut client = client(&layer);
    let codes = async |client: &mut Client, path: &str| {
        [
            call(client, path).await.code(),
            call(client, path).await.code(),
            call(client, path).await.code(),
        ]
    };
    let all = [Code::Ok, Code::Ok, Code::ResourceExhausted];
    assert_eq!(codes(&mut client, "/a").await, all);
    assert_eq!(codes(&mut client, "/b").await, all);
    assert_eq!(codes(&mut client, "/c").await, all, "it is the first of those that share one");
    assert_eq!(call(&mut client, "/d").await.code(), Code::ResourceExhausted, "it shares it");
    assert_eq!((layer.handle().keys(), layer.handle().available_to("/c")), (2, None));
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(codes(&mut client, "/d").await, all, "the others have rested");
    assert_eq!(layer.handle().available_to("/d"), Some(0));
    assert_eq!((layer.handle().keys(), layer.handle().available()), (1, 2));
}

#[test]
fn threads_together_get_no_more_than_the_burst() {
    let config = Config { rate: 1, period: Duration::from_secs(1), burst: 1_000 };
    let limiter = Arc::new(RateLimiter::new(config.validate().unwrap()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let limiter = Arc::clone(&limiter);
            let take = move |_: &u32| limiter.try_take(1, Instant::ZERO).is_ok();
            std::thread::spawn(move || (0..1_000).filter(take).count())
        })
        .collect();
    let taken: usize = threads.into_iter().map(|thread| thread.join().expect("it counts")).sum();
    assert_eq!(taken, 1_000);
}
