//! Requests arrive at an OpenTelemetry collector as spans of the caller's trace.

use std::sync::{Arc, Mutex};

use quorate::{observe::TraceParent, testing::Cluster};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    codegen::{BoxFuture, Service, http},
    server::{NamedService, UnaryService},
};
use tonic_prost::ProstCodec;

use crate::eventually;

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const PARENT: u64 = 0x00f0_67aa_0ba9_02b7;

/// What of OTLP's messages is looked at here; field numbers are those of opentelemetry-proto.
#[derive(Clone, PartialEq, prost::Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start_nanos: u64,
    #[prost(fixed64, tag = "8")]
    end_nanos: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExportResponse {}

/// A collector that keeps what it is sent.
#[derive(Clone, Debug, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl UnaryService<ExportRequest> for Collector {
    type Response = ExportResponse;
    type Future = BoxFuture<Response<ExportResponse>, Status>;

    fn call(&mut self, request: Request<ExportRequest>) -> Self::Future {
        let scopes = request.into_inner().resources.into_iter().flat_map(|each| each.scopes);
        self.0.lock().expect("nobody panicked").extend(scopes.flat_map(|scope| scope.spans));
        Box::pin(async { Ok(Response::new(ExportResponse {})) })
    }
}

impl Service<http::Request<tonic::body::Body>> for Collector {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let collector = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<ExportResponse, ExportRequest>::default();
            Ok(tonic::server::Grpc::new(codec).unary(collector, request).await)
        })
    }
}

#[tokio::test]
async fn a_request_is_exported_as_a_span_of_its_callers_trace() {
    let collector = Collector::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    let server = tonic::transport::Server::builder().add_service(collector.clone());
    let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    let settings = format!("otlp_endpoint = \"{endpoint}\"\n");
    let mut cluster = Cluster::builder(3).settings(settings).start().await;
    let leader = cluster.wait_for_leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let parent = TraceParent { trace_id: TRACE, parent_id: PARENT, sampled: true };
    let client = cluster.client_at(follower).with_trace_parent(parent);
    client.kv().set("a", "1").await.expect("written");
    let unrecorded = TraceParent { trace_id: 7, sampled: false, ..parent };
    cluster
        .client_at(leader)
        .with_trace_parent(unrecorded)
        .kv()
        .set("b", "1")
        .await
        .expect("written");

    let spans = || collector.0.lock().expect("nobody panicked").clone();
    let of = |trace: u128| move |span: &Span| span.trace_id == trace.to_be_bytes();
    let put = eventually("the request's span", async || {
        spans().into_iter().filter(of(TRACE)).find(|s| s.name == "quorate.kv.v1.KvService/Put")
    });
    let put = put.await;
    assert_eq!(put.parent_span_id, PARENT.to_be_bytes(), "the caller's span is its parent");
    assert!(put.start_nanos < put.end_nanos);
    let stages: Vec<_> =
        spans().into_iter().filter(|span| span.parent_span_id == put.span_id).collect();
    let mut names: Vec<_> = stages.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["answer", "apply", "leader", "queue"], "it was passed on");
    for stage in &stages {
        let within =
            put.start_nanos <= stage.start_nanos && stage.end_nanos <= put.end_nanos + 1_000;
        assert!(within, "{stage:?} lies within {put:?}");
    }
    assert!(!spans().iter().any(of(7)), "what the caller does not record is not exported");
    serving.abort();
}
