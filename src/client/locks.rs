//! Locks: acquire, renew, release, and watch who holds them.

use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::{
    client::{
        Client, Error, LockGuard, LockRequest, Resuming,
        balance::Picked,
        call::{Effect, Limit},
        reconcile::{Entry, Reconciling},
        request::identified,
        resume::{Outlook, Resume},
    },
    pb::lock::v1::{
        AcquireRequest, AcquireResponse, DescribeRequest, DescribeResponse, ListRequest,
        ListResponse, Lock, LockEvent, ReleaseRequest, ReleaseResponse, RenewRequest,
        RenewResponse, WatchRequest, WatchResponse, lock_event::Kind,
        lock_service_client::LockServiceClient,
    },
    types::Duration,
};

/// A watch that tells after a break what changed meanwhile.
pub type LockWatch = Resuming<Reconciling<WatchRequest>>;

/// The locks of a cluster.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), quorate::client::Error> {
/// # let cluster = quorate::testing::Cluster::start(1).await;
/// # let client = cluster.client();
/// use std::time::Duration;
///
/// use quorate::pb::kv::v1::PutRequest;
///
/// let guard = client.locks().lock("jobs").ttl(Duration::from_secs(10)).await?;
/// let write = PutRequest {
///     key: "job".into(),
///     value: "done".into(),
///     // The cluster refuses the write where the lock went to another meanwhile.
///     require_lock: Some(guard.proof()),
///     ..Default::default()
/// };
/// guard.while_held(client.kv().put(write)).await.expect("the lock is held")?;
/// assert!(client.locks().lock("jobs").try_acquire().await?.is_none());
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Locks {
    client: Client,
}

impl Locks {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Asks for a lock that is kept until its guard goes. Await what this returns, or give it a
    /// TTL, a bound of the wait, an owner or a session before.
    pub fn lock(&self, name: impl Into<String>) -> LockRequest {
        LockRequest::new(self.clone(), name.into())
    }

    /// Acquires a lock as [`Locks::acquire`] does, and keeps it until its guard goes. Must be
    /// called inside a tokio runtime.
    ///
    /// Not cancel-safe: dropped, it leaves the line, but a grant that is on its way at that moment
    /// is left to its TTL.
    ///
    /// # Errors
    /// As [`Locks::acquire`].
    pub async fn hold(&self, request: AcquireRequest) -> Result<LockGuard, Error> {
        LockGuard::acquire(self.client.clone(), request).await
    }

    /// Acquires a lock, waiting in line for `wait`, or for as long as the future lives where it is
    /// absent; the client's timeout comes on top.
    ///
    /// Not cancel-safe: dropped, it leaves the line, but a grant that is on its way at that moment
    /// is left to its TTL.
    ///
    /// # Errors
    /// FAILED_PRECONDITION (LOCK_HELD) where `wait` ran out; DEADLINE_EXCEEDED with an unknown
    /// outcome; UNAVAILABLE where no node took the request.
    pub async fn acquire(&self, request: AcquireRequest) -> Result<AcquireResponse, Error> {
        let Client { timeout, patience, .. } = self.client;
        let limit = match &request.wait {
            None => Limit::Outage { first: timeout, established: patience.max(timeout) },
            Some(wait) => {
                let wait = Duration::try_from(*wait)
                    .map_err(|_| Error::invalid("wait must not be negative"))?;
                Limit::Waiting(timeout.saturating_add(wait))
            }
        };
        let request = identified(request);
        self.client.call(Effect::Write, limit, request, async |c, q| stub(c).acquire(q).await).await
    }

    /// Prolongs a held lock. Count the answer's `ttl` from before the call.
    ///
    /// Not cancel-safe: dropped, it may take effect or not; to renew again is harmless.
    ///
    /// # Errors
    /// FAILED_PRECONDITION where the lock is not held with this token.
    pub async fn renew(&self, request: RenewRequest) -> Result<RenewResponse, Error> {
        self.client.write(request, async |c, q| stub(c).renew(q).await).await
    }

    /// Releases a held lock.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// FAILED_PRECONDITION where the lock is not held with this token.
    pub async fn release(&self, request: ReleaseRequest) -> Result<ReleaseResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).release(q).await).await
    }

    /// Describes one lock.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// UNAVAILABLE or DEADLINE_EXCEEDED where no node answered.
    pub async fn describe(&self, request: DescribeRequest) -> Result<DescribeResponse, Error> {
        self.client.read(request, async |c, q| stub(c).describe(q).await).await
    }

    /// Lists one page of the locks that are held.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Locks::describe`].
    pub async fn list(&self, request: ListRequest) -> Result<ListResponse, Error> {
        self.client.read(request, async |c, q| stub(c).list(q).await).await
    }

    /// Streams changes of holders: first who holds now, then each change. After a break, changes
    /// that cancelled each other out meanwhile are not told.
    pub fn watch(&self, request: WatchRequest) -> LockWatch {
        Resuming::new(self.client.clone(), Reconciling::new(request))
    }
}

fn stub(node: Picked) -> LockServiceClient<Picked> {
    LockServiceClient::new(node)
}

impl Resume for Reconciling<WatchRequest> {
    type Response = WatchResponse;

    async fn open(self, node: Picked) -> Result<Streaming<WatchResponse>, Status> {
        Ok(stub(node).watch(self.request).await?.into_inner())
    }

    fn reopened(&mut self) {
        self.begin();
    }

    fn advance(&mut self, response: &mut WatchResponse) -> Outlook {
        self.reconcile(&mut response.events, response.caught_up, response.revision)
    }
}

impl Entry for LockEvent {
    fn name(&self) -> Bytes {
        self.lock.as_ref().map(|lock| lock.name.clone().into()).unwrap_or_default()
    }

    fn identity(&self) -> u64 {
        let holder = self.lock.as_ref().and_then(|lock| lock.holder.as_ref());
        holder.map_or(0, |holder| holder.fencing_token)
    }

    fn is_gone(&self) -> bool {
        self.kind() == Kind::Freed
    }

    fn gone(mut self, revision: u64) -> Self {
        let name = self.lock.take().map(|lock| lock.name).unwrap_or_default();
        let lock = Some(Lock { name, ..Default::default() });
        Self { kind: Kind::Freed.into(), lock, revision }
    }
}
