//! The layer in virtual time: what it measures, whom it sheds and how it tells.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use http::Request;
use tokio::time::advance;
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use super::*;
use crate::{
    layers::{BoxFuture, code_in},
    resilience::load_shed::{Config, State, ValidConfig},
    types::Duration,
};

type Answer = Result<http::Response<Body>, Infallible>;
type Inner = tower::util::BoxCloneSyncService<Request<Body>, http::Response<Body>, Infallible>;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn layer() -> LoadShedLayer {
    LoadShedLayer::new(ValidConfig::default()).by_class(|request| {
        let class = request.uri().path().strip_prefix("/").and_then(|class| class.parse().ok());
        class.expect("the path is the class")
    })
}

/// A service behind the layer, and how often it was called.
fn service(layer: &LoadShedLayer) -> (LoadShed<Inner>, Arc<AtomicUsize>) {
    let called = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&called);
    let inner = Inner::new(service_fn(move |_| {
        count.fetch_add(1, SeqCst);
        async { Ok(Status::ok("").into_http::<Body>()) }
    }));
    (layer.layer(inner), called)
}

/// A call that was made and not polled yet.
async fn made(service: &mut LoadShed<Inner>, class: u8) -> BoxFuture<Answer> {
    let request = Request::post(format!("/{class}")).body(Body::empty()).expect("a path");
    service.ready().await.expect("infallible").call(request)
}

async fn call(service: &mut LoadShed<Inner>, class: u8) -> Status {
    let response = made(service, class).await.await.expect("infallible");
    Status::from_header_map(response.headers()).expect("it has one")
}

/// Has a queue stand with a delay for a while.
async fn stand(handle: &LoadShedHandle, delay: Duration, span: Duration) {
    for _ in 0..span.as_millis() {
        advance(ms(1)).await;
        handle.observe(0, delay);
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_until_a_calls_first_turn_is_the_queues_delay() {
    let layer = layer();
    let (mut service, _) = service(&layer);
    for _ in 0..40 {
        let call = made(&mut service, 0).await;
        // As a busy runtime does.
        advance(ms(20)).await;
        let response = call.await.expect("infallible");
        assert_eq!(code_in(response.headers()), Some(Code::Ok), "the most important class");
    }
    assert_eq!(layer.handle().stats().state, State::Rising);
    let mut quick = service;
    for _ in 0..4_000 {
        advance(ms(1)).await;
        call(&mut quick, 0).await;
    }
    assert_eq!(layer.handle().stats().state, State::Calm);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_others_tell_sheds_the_least_important_first() {
    let layer = layer();
    let (mut service, called) = service(&layer);
    let handle = layer.handle();
    // Ten steps and a little: the last class wholly, the one before it in part.
    stand(&handle, ms(30), ms(720)).await;
    assert!((11..=15).contains(&handle.stats().pressure), "{:?}", handle.stats());
    for class in [0, 1] {
        assert_eq!(call(&mut service, class).await.code(), Code::Ok, "class {class}");
    }
    let before = called.load(SeqCst);
    for _ in 0..10 {
        assert_eq!(call(&mut service, 3).await.code(), Code::ResourceExhausted);
    }
    assert_eq!(called.load(SeqCst), before, "what is shed never begins");
    let mut codes = Vec::new();
    for _ in 0..10 {
        codes.push(call(&mut service, 2).await.code());
    }
    assert!(codes.contains(&Code::Ok) && codes.contains(&Code::ResourceExhausted), "{codes:?}");
    let stats = handle.stats();
    assert_eq!((stats.shed[0], stats.shed[1], stats.shed[3]), (0, 0, 10));
    assert_eq!(stats.admitted[2] + stats.shed[2], 10);

    stand(&handle, ms(1), ms(3_000)).await;
    assert_eq!(call(&mut service, 3).await.code(), Code::Ok, "the queue has gone");
    assert_eq!(handle.stats().state, State::Calm);
}

#[tokio::test(start_paused = true)]
async fn what_is_shed_is_told_why_and_when_to_come_again() {
    let layer = layer();
    let (mut service, _) = service(&layer);
    stand(&layer.handle(), ms(30), ms(1_000)).await;
    let status = call(&mut service, 3).await;
    let info = status.get_details_error_info().expect("it says why");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("LOAD_SHED", "quorate.layers"));
    assert_eq!(info.metadata["class"], "3");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
    assert!(status.message().contains("more to do than it can"), "{}", status.message());
}

#[tokio::test(start_paused = true)]
async fn clones_share_the_pressure_and_classes_that_must_pass_do() {
    let config = Config { never_shed: 1, ..Config::default() }.validate().expect("it works");
    let layer = LoadShedLayer::new(config).by_class(|_| 0);
    let (mut service, _) = service(&layer.clone());
    stand(&layer.handle(), Duration::from_secs(1), ms(5_000)).await;
    for _ in 0..100 {
        assert_eq!(call(&mut service.clone(), 0).await.code(), Code::Ok);
        assert_eq!(call(&mut service, 0).await.code(), Code::Ok);
    }
    assert_eq!(layer.handle().stats().admitted[0], 200);
}
