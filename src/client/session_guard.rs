//! A session that keeps itself alive, and is closed when its guard goes.
//!
//! What is bound to the session, locks, instances and keys, goes with it. The guard's claim is
//! reckoned as that of a lock: see `lease.rs`.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
};

use tokio::time::Instant;
use tonic::Code;

use crate::{
    client::{
        Client, Error, Sessions,
        keep::{Clock, Kept, Renewable, chance},
        lease::{Lease, Loss},
        request::to_proto,
    },
    pb::session::v1::{CloseSessionRequest, CloseSessionResponse, OpenSessionRequest},
    types::Duration,
};

/// What an absent TTL is, as the cluster has it.
const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// Asks for a session. Made by [`Sessions::start`]; await it to open the session.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked for before it is awaited"]
pub struct SessionRequest {
    sessions: Sessions,
    ttl: Duration,
    owner: String,
}

impl SessionRequest {
    pub(super) const fn new(sessions: Sessions) -> Self {
        Self { sessions, ttl: TTL_DEFAULT, owner: String::new() }
    }

    /// How long the session outlives its last renewal, and so its owner; 1 s to 24 h, default 30 s.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// A label for people, at most 256 bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// Opens the session; the same as awaiting the request.
    ///
    /// Not cancel-safe: dropped, the session may be opened all the same, and is left to its TTL.
    ///
    /// # Errors
    /// As [`Sessions::open`].
    pub async fn open(self) -> Result<SessionGuard, Error> {
        let ttl = Some(to_proto(self.ttl, "ttl")?);
        let request = OpenSessionRequest { ttl, owner: self.owner, ..Default::default() };
        self.sessions.hold(request).await
    }
}

impl IntoFuture for SessionRequest {
    type Output = Result<SessionGuard, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.open())
    }
}

/// A session that keeps itself alive, from [`Sessions::start`] or [`Sessions::hold`].
///
/// A task of its own renews it after each third of its TTL. Dropping the guard closes the session
/// without waiting, as a [`LockGuard`](crate::client::LockGuard) releases its lock, and with it
/// goes everything that is bound to the session.
#[must_use = "the session is closed when its guard is dropped"]
pub struct SessionGuard {
    id: u64,
    kept: Kept<Open>,
}

impl SessionGuard {
    /// Opens a session and keeps it.
    pub(super) async fn open(client: Client, request: OpenSessionRequest) -> Result<Self, Error> {
        let clock = Clock::start();
        let fresh = request.request_id.is_empty();
        let mut sent = clock.now();
        let opened = client.sessions().open(request).await?;
        let (id, mut ttl) = (opened.session_id, opened.ttl);
        if !fresh {
            // Under an id that was used before it may have been opened long ago.
            sent = clock.now();
            ttl = client.sessions().keep_alive(id).await?.ttl;
        }
        let ttl = ttl.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or(TTL_DEFAULT);
        let lease = Lease::confirmed_since(chance(), sent, Some(ttl));
        Ok(Self { id, kept: Kept::start(Open { client, id }, lease, clock) })
    }

    /// The session's id, for requests that bind something to it.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Whether the session is there at this moment, as far as was confirmed. Once `false`, always
    /// `false`.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.kept.claim().is_valid()
    }

    /// The moment from which on the session is not claimed to be there. Each confirmed renewal
    /// moves it on. A session that is lost gives the present.
    #[must_use]
    pub fn valid_until(&self) -> Instant {
        self.kept.claim().valid_until()
    }

    /// Resolves with the reason when the session cannot be claimed any more: it is gone, no renewal
    /// was confirmed until [`SessionGuard::valid_until`], or the guard was closed or dropped.
    ///
    /// Cancel-safe. The future borrows nothing.
    #[must_use = "futures do nothing unless polled"]
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + use<> {
        self.kept.claim().lost()
    }

    /// Closes the session, waits for that, and returns the store's revision after everything bound
    /// to it was released. Cancel-safe: dropped, the session is closed all the same.
    ///
    /// # Errors
    /// NOT_FOUND where the session was lost before; what [`Sessions::close`] fails with: then the
    /// TTL ends the session.
    pub async fn close(self) -> Result<u64, Error> {
        self.kept.end().await.map(|answer| answer.revision)
    }
}

impl fmt::Debug for SessionGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionGuard")
            .field("id", &self.id)
            .field("is_alive", &self.is_alive())
            .finish_non_exhaustive()
    }
}

/// A session, as its renewals and its end name it.
struct Open {
    client: Client,
    id: u64,
}

impl Renewable for Open {
    type Ended = CloseSessionResponse;

    async fn renew(&self, within: Duration) -> Result<Option<Duration>, Error> {
        let answer = self
            .client
            .without_retry_budget()
            .with_timeout(within)
            .sessions()
            .keep_alive(self.id)
            .await?;
        Ok(answer.ttl.and_then(|ttl| Duration::try_from(ttl).ok()))
    }

    fn is_gone(error: &Error) -> bool {
        error.code() == Code::NotFound
    }

    async fn end(&self) -> Result<CloseSessionResponse, Error> {
        let request = CloseSessionRequest { session_id: self.id, ..Default::default() };
        self.client.sessions().close(request).await
    }
}
