//! What an endpoint says of its own health: `grpc.health.v1.Health/Watch` over its connection.
//! (gRPC "Client-Side Health Checking", gRFC A17.)

use std::{
    future::Future,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status, body::Body};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tower::Service;

use crate::{
    client::balance::{BoxFuture, CallError, Connection, member::Health},
    types::Duration,
};

/// How long to wait before a watch that broke is opened again.
const AGAIN: Duration = Duration::from_secs(1);

/// Watches the health of `service` until it is dropped, and tells each change.
pub(super) async fn watch<F>(
    connection: Arc<dyn Connection>,
    service: Arc<str>,
    mut told: impl FnMut(Health) -> F,
) where
    F: Future<Output = ()>,
{
    let mut client = HealthClient::new(Direct(connection));
    loop {
        let request = HealthCheckRequest { service: service.to_string() };
        let ended = match client.watch(request).await {
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.message().await {
                        Ok(Some(answer)) => {
                            let serves = answer.status() == ServingStatus::Serving;
                            told(if serves { Health::Serving } else { Health::NotServing }).await;
                        }
                        Ok(None) => break Status::unavailable("the watch ended"),
                        Err(status) => break status,
                    }
                }
            }
            Err(status) => status,
        };
        if ended.code() == Code::Unimplemented {
            told(Health::Serving).await;
            return;
        }
        told(Health::NotServing).await;
        sleep_until(Instant::now() + AGAIN).await;
    }
}

/// A connection as tonic's clients take it.
struct Direct(Arc<dyn Connection>);

impl Service<Request<Body>> for Direct {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async {
            answer.await.map_err(|error| match error {
                CallError::NotSent(_, error) | CallError::Broken(error) => {
                    Status::from_error(error)
                }
            })
        })
    }
}
