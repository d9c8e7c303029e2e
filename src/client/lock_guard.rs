//! A lock that keeps itself: renewed while it is held, and released when the guard goes.
//!
//! The guard never claims the lock for longer than the cluster grants it, as long as clocks differ
//! in speed by less than a twentieth. What is beyond clocks, a process that stands still between
//! the question and the deed, is what the fencing token is for.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
};

use tokio::time::Instant;
use tonic::Code;

use crate::{
    client::{
        Client, Error, Locks,
        keep::{Clock, Kept, Renewable, chance},
        lease::{Lease, Loss},
        request::to_proto,
    },
    pb::{
        kv::v1::HeldLock,
        lock::v1::{
            AcquireRequest, AcquireResponse, ReleaseRequest, ReleaseResponse, RenewRequest,
        },
    },
    types::Duration,
};

/// What an absent TTL is, as the cluster has it.
const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// Asks for a lock. Made by [`Locks::lock`]; await it to acquire the lock.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked for before it is awaited"]
pub struct LockRequest {
    locks: Locks,
    name: String,
    ttl: Duration,
    wait: Option<Duration>,
    owner: String,
    session_id: u64,
}

impl LockRequest {
    pub(super) const fn new(locks: Locks, name: String) -> Self {
        Self { locks, name, ttl: TTL_DEFAULT, wait: None, owner: String::new(), session_id: 0 }
    }

    /// How long the lock outlives its last renewal, and so its holder; 1 s to 24 h, default 30 s.
    /// Of no account with [`LockRequest::session`].
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Waits in line for so long; zero tries once. Default: for as long as the future lives.
    pub const fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// A label for people, at most 256 bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = owner.into();
        self
    }

    /// Holds the lock under this session, so that it goes when the session goes. Renewing the lock
    /// renews the session; releasing it leaves the session alone.
    pub const fn session(mut self, session_id: u64) -> Self {
        self.session_id = session_id;
        self
    }

    /// Waits for the lock; the same as awaiting the request.
    ///
    /// Not cancel-safe: dropped, it leaves the line, but a grant that is on its way at that moment
    /// is left to its TTL.
    ///
    /// # Errors
    /// As [`Locks::hold`].
    pub async fn acquire(self) -> Result<LockGuard, Error> {
        let request = AcquireRequest {
            ttl: Some(to_proto(self.ttl, "ttl")?),
            wait: self.wait.map(|wait| to_proto(wait, "wait")).transpose()?,
            name: self.name,
            owner: self.owner,
            session_id: self.session_id,
            ..Default::default()
        };
        self.locks.hold(request).await
    }

    /// Tries once: `None` where somebody holds the lock. Not cancel-safe, as
    /// [`LockRequest::acquire`].
    ///
    /// # Errors
    /// As [`Locks::hold`], but for LOCK_HELD.
    pub async fn try_acquire(self) -> Result<Option<LockGuard>, Error> {
        match self.wait(Duration::ZERO).acquire().await {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if error.reason() == "LOCK_HELD" => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl IntoFuture for LockRequest {
    type Output = Result<LockGuard, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.acquire())
    }
}

/// A lock that is held and renews itself, from [`Locks::lock`] or [`Locks::hold`].
///
/// A task of its own renews it after each third of its TTL. Each confirmation counts from when the
/// renewal was sent, less a twentieth for clocks that differ in speed: see
/// [`LockGuard::valid_until`]. The clock is tokio's, which is the system's monotonic one; on Linux
/// that stands still while the machine is suspended. Pass [`LockGuard::fencing_token`] on to what
/// the lock guards.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), quorate::client::Error> {
/// # let cluster = quorate::testing::Cluster::start(1).await;
/// # let client = cluster.client();
/// let guard = client.locks().lock("jobs").owner("a worker").await?;
/// println!("leading with token {}", guard.fencing_token());
/// tokio::select! {
///     loss = guard.lost() => eprintln!("{} was lost: {loss}", guard.name()),
///     () = work() => guard.release().await.map(drop)?,
/// }
/// # Ok(())
/// # }
/// # async fn work() {}
/// ```
///
/// Dropping the guard releases the lock without waiting: the task sends the release, once and
/// within the client's timeout. Where its runtime has ended by then, as at the end of `main`, or no
/// node is reached, the TTL ends the lock; [`LockGuard::release`] waits for it.
#[must_use = "the lock is released when its guard is dropped"]
pub struct LockGuard {
    grant: AcquireResponse,
    kept: Kept<Held>,
}

impl LockGuard {
    /// Acquires a lock and keeps it.
    pub(super) async fn acquire(client: Client, request: AcquireRequest) -> Result<Self, Error> {
        let in_session = request.session_id != 0;
        let clock = Clock::start();
        // A grant under an id that was used before may be of long ago.
        let fresh = request.request_id.is_empty();
        let asked = clock.now();
        let grant = client.locks().acquire(request).await?;
        let granted = clock.now();
        let ttl = grant.ttl.and_then(|ttl| Duration::try_from(ttl).ok()).unwrap_or(TTL_DEFAULT);
        let held = Held {
            name: grant.name.clone(),
            fencing_token: grant.fencing_token,
            client: client.clone(),
        };
        // After some time in line nobody knows when the grant came, and a session counts from its
        // own last renewal: then only a renewal tells how long the lock holds.
        let lease = if fresh && !in_session && granted.since(asked) < ttl / 3 {
            Lease::confirmed_since(chance(), asked, Some(ttl))
        } else {
            Lease::unconfirmed(chance(), granted, ttl, granted.after(client.timeout()))
        };
        let guard = Self { grant, kept: Kept::start(held, lease, clock) };
        match guard.kept.claim().confirmed().await {
            Ok(()) => Ok(guard),
            Err(Loss::Refused(error) | Loss::Lapsed { last: Some(error) }) => Err(error),
            Err(_) => Err(Error::deadline(client.timeout(), true, None)),
        }
    }

    /// The name of the lock.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.grant.name
    }

    /// The token of this grant, larger than that of every grant of this name before it. Who is told
    /// it refuses whoever comes with a smaller one.
    #[must_use]
    pub const fn fencing_token(&self) -> u64 {
        self.grant.fencing_token
    }

    /// The session that holds the lock: the one that was given, or the lock's own.
    #[must_use]
    pub const fn session_id(&self) -> u64 {
        self.grant.session_id
    }

    /// The store's revision at the grant.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.grant.revision
    }

    /// The lock as a condition of writes: with it in `require_lock`, the cluster refuses the write
    /// once the lock is not held with this token any more.
    #[must_use]
    pub fn proof(&self) -> HeldLock {
        HeldLock { name: self.grant.name.clone(), fencing_token: self.grant.fencing_token }
    }

    /// Whether the lock may be claimed at this moment. Once `false`, always `false`.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.kept.claim().is_valid()
    }

    /// The moment from which on the guard does not claim the lock. Each confirmed renewal moves it
    /// on. A lock that is lost gives the present.
    #[must_use]
    pub fn valid_until(&self) -> Instant {
        self.kept.claim().valid_until()
    }

    /// Resolves with the reason when the lock cannot be claimed any more: a renewal was refused,
    /// none was confirmed until [`LockGuard::valid_until`], or the guard was released or dropped.
    ///
    /// Cancel-safe. The future borrows nothing, and who asks after the loss is told at once.
    #[must_use = "futures do nothing unless polled"]
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + use<> {
        self.kept.claim().lost()
    }

    /// Runs `work` for as long as the lock is held, and drops it at its next point of waiting when
    /// the lock is lost. As cancel-safe as `work` is: dropped, it drops the work, and the lock
    /// stays.
    ///
    /// # Errors
    /// Why the lock was lost before `work` was done.
    pub async fn while_held<F: Future>(&self, work: F) -> Result<F::Output, Loss> {
        tokio::select! {
            biased;
            loss = self.lost() => Err(loss),
            done = work => Ok(done),
        }
    }

    /// Releases the lock, waits for that, and returns the store's revision after it. From the call
    /// on the lock is not claimed. Cancel-safe: dropped, the lock is released all the same.
    ///
    /// # Errors
    /// FAILED_PRECONDITION (WRONG_FENCING_TOKEN) where the lock was lost before; what
    /// [`Locks::release`] fails with: then the TTL ends the lock.
    pub async fn release(self) -> Result<u64, Error> {
        self.kept.end().await.map(|answer| answer.revision)
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("name", &self.grant.name)
            .field("fencing_token", &self.grant.fencing_token)
            .field("session_id", &self.grant.session_id)
            .field("is_held", &self.is_held())
            .finish_non_exhaustive()
    }
}

/// A grant, as its renewals and its release name it.
struct Held {
    client: Client,
    name: String,
    fencing_token: u64,
}

impl Renewable for Held {
    type Ended = ReleaseResponse;

    async fn renew(&self, within: Duration) -> Result<Option<Duration>, Error> {
        let request = RenewRequest { name: self.name.clone(), fencing_token: self.fencing_token };
        let answer =
            self.client.without_retry_budget().with_timeout(within).locks().renew(request).await?;
        Ok(answer.ttl.and_then(|ttl| Duration::try_from(ttl).ok()))
    }

    fn is_gone(error: &Error) -> bool {
        matches!(error.code(), Code::FailedPrecondition | Code::NotFound)
    }

    async fn end(&self) -> Result<ReleaseResponse, Error> {
        let (name, fencing_token) = (self.name.clone(), self.fencing_token);
        let request = ReleaseRequest { name, fencing_token, ..Default::default() };
        self.client.locks().release(request).await
    }
}
