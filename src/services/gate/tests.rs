//! The gate inside tonic's real server, asked over plain HTTP/2: tonic's own client would bring its
//! own timeout along.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::{Router, middleware::from_fn_with_state};
use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, service::Routes, transport::Server};
use tower::util::MapRequestLayer;

use super::*;
use crate::{pb, types::Duration};

const PUT: &str = "/quorate.kv.v1.KvService/Put";
const RANGE: &str = "/quorate.kv.v1.KvService/Range";
const WATCH: &str = "/quorate.kv.v1.KvService/Watch";
const CHECK: &str = "/grpc.health.v1.Health/Check";

const PATIENCE: Duration = Duration::from_secs(10);

/// A server with the gate before one handler, and a connection to it.
async fn serve<F, R>(gate: Gate, handler: F) -> SendRequest<Bytes>
where
    F: Fn(Request) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response> + Send + 'static,
{
    let router = Router::new().fallback(handler);
    let router = router.layer(from_fn_with_state(Arc::new(gate), pass));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let noted = MapRequestLayer::new(|mut request| {
        deadline::arrive(&mut request);
        request
    });
    let server = Server::builder().layer(noted).add_routes(Routes::from(router));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let (requests, connection) =
        h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    requests
}

/// The code and the message that a call is answered with.
async fn call(requests: &SendRequest<Bytes>, path: &str, timeout: &str) -> (Code, String) {
    let mut request = http::Request::post(format!("http://test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if !timeout.is_empty() {
        request = request.header("grpc-timeout", timeout);
    }
    let mut requests = requests.clone().ready().await.unwrap();
    let (response, mut body) = requests.send_request(request.body(()).unwrap(), false).unwrap();
    // The handler may have answered before; then nobody wants the body.
    let _ = body.send_data(Bytes::from_static(&[0; 5]), true);
    let response = tokio::time::timeout(PATIENCE, response).await.expect("an answer").unwrap();
    let header = |name| response.headers().get(name).map_or("", |value| value.to_str().unwrap());
    let code = Code::from_bytes(header("grpc-status").as_bytes());
    (code, header("grpc-message").replace("%20", " "))
}

fn gate(limits: Limits) -> (Gate, CancellationToken) {
    let drain = CancellationToken::new();
    (Gate::new(limits, drain.clone(), LeaderHint::default(), Metrics::new()), drain)
}

async fn hang(_: Request) -> Response {
    core::future::pending().await
}

#[tokio::test]
async fn an_expired_deadline_is_never_told_as_cancelled() {
    let (gate, _drain) = gate(Limits::default());
    let server = serve(gate, hang).await;
    let mut calls = tokio::task::JoinSet::new();
    for round in 0..200 {
        let server = server.clone();
        let timeout = format!("{}m", 20 + round % 40);
        calls.spawn(async move { call(&server, PUT, &timeout).await });
    }
    for (code, message) in calls.join_all().await {
        assert_eq!(code, Code::DeadlineExceeded, "{message}");
        assert!(message.contains("is unknown"), "{message}");
    }
    let (code, message) = call(&server, RANGE, "20m").await;
    assert_eq!(code, Code::DeadlineExceeded);
    assert!(!message.contains("unknown"), "a read changes nothing: {message}");
    assert_eq!(call(&server, CHECK, "20m").await.0, Code::DeadlineExceeded);
    assert_eq!(call(&server, PUT, "0m").await.0, Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_handler_that_keeps_its_deadline_has_the_last_word() {
    let (gate, _drain) = gate(Limits::default());
    let server = serve(gate, async |mut request: Request| {
        let call: Call = request.extensions_mut().remove().unwrap();
        tokio::time::sleep_until(call.deadline.unwrap()).await;
        answer(Status::deadline_exceeded("certainly not proposed"))
    })
    .await;
    for _ in 0..20 {
        let answer = call(&server, PUT, "30m").await;
        assert_eq!(answer, (Code::DeadlineExceeded, "certainly not proposed".to_owned()));
    }
}

#[tokio::test]
async fn what_is_too_much_is_refused_by_kind() {
    for control in [OverloadControl::Adaptive, OverloadControl::Fixed] {
        refuse_by_kind(control).await;
    }
}

async fn refuse_by_kind(overload_control: OverloadControl) {
    let limits = Limits { calls_max: 2, waits_max: 1, streams_max: 1, ..Limits::default() };
    let limits = Limits { overload_control, ..limits };
    let (gate, _drain) = gate(limits);
    let running = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&running);
    let server = serve(gate, move |request| {
        count.fetch_add(1, Relaxed);
        hang(request)
    })
    .await;
    let hold = |path: &'static str| {
        let server = server.clone();
        tokio::spawn(async move { call(&server, path, "").await });
    };
    hold(PUT);
    hold(RANGE);
    hold(WATCH);
    let held = async {
        while running.load(Relaxed) < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("the calls arrive");
    for path in [PUT, RANGE, WATCH] {
        assert_eq!(call(&server, path, "").await.0, Code::ResourceExhausted, "{path}");
    }
    let acquire = call(&server, "/quorate.lock.v1.LockService/Acquire", "20m").await;
    assert_eq!(acquire.0, Code::DeadlineExceeded, "waiting has places of its own");
    assert_eq!(call(&server, CHECK, "20m").await.0, Code::DeadlineExceeded, "health is let in");
}

#[tokio::test]
async fn a_place_is_free_again_after_the_answer_or_the_streams_end() {
    let limits = Limits { calls_max: 1, waits_max: 1, streams_max: 1, ..Limits::default() };
    let (gate, _drain) = gate(limits);
    let open: Arc<std::sync::Mutex<Vec<Call>>> = Arc::default();
    let kept = Arc::clone(&open);
    let server = serve(gate, move |mut request: Request| {
        // As a stream's task does; a unary handler drops it.
        let call: Call = request.extensions_mut().remove().unwrap();
        if request.uri().path() == WATCH {
            kept.lock().unwrap().push(call);
        }
        async { answer(Status::ok("")) }
    })
    .await;
    for _ in 0..3 {
        assert_eq!(call(&server, PUT, "").await.0, Code::Ok);
    }
    assert_eq!(call(&server, WATCH, "").await.0, Code::Ok);
    assert_eq!(call(&server, WATCH, "").await.0, Code::ResourceExhausted, "the stream is open");
    open.lock().unwrap().clear();
    assert_eq!(call(&server, WATCH, "").await.0, Code::Ok);
}

#[tokio::test]
async fn a_draining_node_takes_no_calls_and_stays_observable() {
    let (gate, drain) = gate(Limits::default());
    let server = serve(gate, async |_| answer(Status::ok(""))).await;
    drain.cancel();
    assert_eq!(call(&server, PUT, "").await.0, Code::Unavailable);
    assert_eq!(call(&server, WATCH, "").await.0, Code::Unavailable);
    assert_eq!(call(&server, CHECK, "").await.0, Code::Ok);
}

#[test]
fn every_method_of_the_protos_has_its_kind() {
    let descriptors = prost_types::FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap();
    let mut changes = Vec::new();
    for file in &descriptors.file {
        for service in file.service.iter().filter(|_| file.package() != "quorate.raft.v1") {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let kind = Kind::of(&path);
                assert_eq!(kind == Kind::Stream, method.server_streaming(), "{path}");
                let lab = file.package() == "quorate.lab.v1";
                assert_eq!(kind == Kind::Foreign, lab, "{path}");
                if kind == Kind::Change {
                    changes.push(method.name().to_owned());
                }
            }
        }
    }
    changes.sort();
    changes.dedup();
    let expected = [
        "Append",
        "CloseSession",
        "Compact",
        "DeleteRange",
        "DeleteStream",
        "Deregister",
        "OpenSession",
        "Put",
        "Register",
        "Release",
        "Renew",
        "SetInstanceState",
        "SetStreamLimits",
        "TransferLeadership",
        "TrimStream",
        "Txn",
    ];
    assert_eq!(changes, expected, "a new method needs its kind");
}
