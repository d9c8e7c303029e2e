//! `quorate.session.v1.SessionService`: sessions and their renewals.

use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    pb::{
        command::v1::command::Op,
        session::v1::{
            CloseSessionRequest, CloseSessionResponse, KeepAliveRequest, KeepAliveResponse,
            OpenSessionRequest, OpenSessionResponse, session_service_server::SessionService,
        },
    },
    services::{
        call::{Context, expect_result},
        deadline::DEADLINE_DEFAULT,
        gate::Call,
    },
    streaming::{Updates, updates},
    types::SessionId,
};

/// How many renewals of one stream are under way at the same time.
const RENEWALS_MAX: usize = 64;

/// The service on one node.
#[derive(Clone, Debug)]
pub(crate) struct Sessions(pub(crate) Context);

#[tonic::async_trait]
impl SessionService for Sessions {
    async fn open_session(
        &self,
        mut request: Request<OpenSessionRequest>,
    ) -> Result<Response<OpenSessionResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::OpenSession(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, OpenSession)
    }

    type KeepAliveStream = Updates<KeepAliveResponse>;

    async fn keep_alive(
        &self,
        mut request: Request<Streaming<KeepAliveRequest>>,
    ) -> Result<Response<Self::KeepAliveStream>, Status> {
        let call = Call::of(&mut request);
        let (requests, context) = (request.into_inner(), self.0.clone());
        let produce = move |queue| keep_alive(context, requests, queue);
        Ok(Response::new(updates(self.0.terms(call), produce)))
    }

    async fn close_session(
        &self,
        mut request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let call = Call::of(&mut request);
        let op = Op::CloseSession(request.into_inner());
        expect_result!(self.0.change(op, &call).await?, CloseSession)
    }
}

type Answer = oneshot::Receiver<Result<KeepAliveResponse, Status>>;

/// Answers in the order of asking, while several renewals are under way.
async fn keep_alive(
    context: Context,
    mut requests: Streaming<KeepAliveRequest>,
    queue: mpsc::Sender<KeepAliveResponse>,
) -> Result<(), Status> {
    let (line, mut answers) = mpsc::channel::<Answer>(RENEWALS_MAX);
    let take = async move {
        while let Some(request) = requests.next().await {
            let Ok(room) = line.reserve().await else { break };
            let (answer, receiver) = oneshot::channel();
            let (context, request) = (context.clone(), request?);
            tokio::spawn(async move { answer.send(renew(&context, request).await) });
            room.send(receiver);
        }
        drop(line);
        Ok(())
    };
    let give = async move {
        while let Some(answer) = answers.recv().await {
            let answer =
                answer.await.unwrap_or_else(|_| Err(Status::internal("a renewal was lost")));
            if queue.send(answer?).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    // The first error ends both.
    tokio::try_join!(take, give).map(|_| ())
}

async fn renew(context: &Context, request: KeepAliveRequest) -> Result<KeepAliveResponse, Status> {
    let deadline = tokio::time::Instant::now() + DEADLINE_DEFAULT;
    let session = SessionId::new(request.session_id);
    let ttl = context.node.renew(session, Some(deadline)).await;
    let ttl = ttl.map_err(|refusal| context.refused(refusal))?;
    let ttl = prost_types::Duration::try_from(ttl).ok();
    Ok(KeepAliveResponse { session_id: request.session_id, ttl })
}
