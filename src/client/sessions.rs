//! Sessions: open, keep alive, close.

use tonic::Status;

use crate::{
    client::{Client, Error, SessionGuard, SessionRequest, balance::Picked, request::identified},
    pb::session::v1::{
        CloseSessionRequest, CloseSessionResponse, KeepAliveRequest, KeepAliveResponse,
        OpenSessionRequest, OpenSessionResponse, session_service_client::SessionServiceClient,
    },
};

/// The sessions of a cluster.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), quorate::client::Error> {
/// # let cluster = quorate::testing::Cluster::start(1).await;
/// # let client = cluster.client();
/// use quorate::pb::kv::v1::PutRequest;
///
/// let session = client.sessions().start().owner("a worker").await?;
/// let here = PutRequest { key: "here".into(), session_id: session.id(), ..Default::default() };
/// client.kv().put(here).await?;
/// let lock = client.locks().lock("jobs").session(session.id()).await?;
///
/// // With the session goes what is bound to it.
/// session.close().await?;
/// assert!(client.kv().get("here").await?.is_none());
/// lock.lost().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Sessions {
    client: Client,
}

impl Sessions {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Asks for a session that is kept alive until its guard goes. Await what this returns, or give
    /// it a TTL or an owner before.
    pub fn start(&self) -> SessionRequest {
        SessionRequest::new(self.clone())
    }

    /// Opens a session as [`Sessions::open`] does, and keeps it alive until its guard goes. Must be
    /// called inside a tokio runtime.
    ///
    /// Not cancel-safe: dropped, the session may be opened all the same, and is left to its TTL.
    ///
    /// # Errors
    /// As [`Sessions::open`].
    pub async fn hold(&self, request: OpenSessionRequest) -> Result<SessionGuard, Error> {
        SessionGuard::open(self.client.clone(), request).await
    }

    /// Opens a session.
    ///
    /// Not cancel-safe: dropped, the session may be opened all the same, and is left to its TTL.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED with an unknown outcome; UNAVAILABLE where nothing was proposed.
    pub async fn open(&self, request: OpenSessionRequest) -> Result<OpenSessionResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).open_session(q).await).await
    }

    /// Renews a session once. Count the answer's `ttl` from before the call.
    ///
    /// Not cancel-safe: dropped, it may take effect or not; to renew again is harmless.
    ///
    /// # Errors
    /// NOT_FOUND where the session is gone.
    pub async fn keep_alive(&self, session_id: u64) -> Result<KeepAliveResponse, Error> {
        self.client.write(KeepAliveRequest { session_id }, renew_once).await
    }

    /// Closes a session and releases what is bound to it.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// NOT_FOUND where the session is gone.
    pub async fn close(&self, request: CloseSessionRequest) -> Result<CloseSessionResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).close_session(q).await).await
    }
}

/// One renewal over a stream of its own.
async fn renew_once(
    node: Picked,
    request: tonic::Request<KeepAliveRequest>,
) -> Result<tonic::Response<KeepAliveResponse>, Status> {
    let one = request.map(tokio_stream::once);
    let mut answers = stub(node).keep_alive(one).await?.into_inner();
    let answer = answers.message().await?;
    answer.map(tonic::Response::new).ok_or_else(|| Status::unavailable("the stream ended"))
}

fn stub(node: Picked) -> SessionServiceClient<Picked> {
    SessionServiceClient::new(node)
}
