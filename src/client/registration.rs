//! An instance of a service that stays registered: renewed, registered again when it is gone, and
//! deregistered when its handle goes.
//!
//! Nothing is guarded by a registration, so it does not end where nobody confirms it for a while:
//! the handle goes on until an answer says how things stand.

use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{Mutex, watch};
use tonic::Code;

use crate::{
    client::{
        Client, Discovery, Error,
        keep::{Clock, Kept, Renewable, chance},
        lease::{Lease, Loss},
        request::to_proto,
    },
    pb::discovery::v1::{
        DeregisterRequest, DeregisterResponse, InstanceState, RegisterRequest, RegisterResponse,
        RenewRequest, SetInstanceStateRequest,
    },
    types::Duration,
};

/// How long an instance outlives its last renewal, unless said otherwise.
const TTL_DEFAULT: Duration = Duration::from_secs(10);

/// Asks for a registration. Made by [`Discovery::announce`]; await it to register.
#[derive(Clone, Debug)]
#[must_use = "nothing is asked for before it is awaited"]
pub struct RegistrationRequest {
    discovery: Discovery,
    ttl: Option<Duration>,
    request: RegisterRequest,
}

impl RegistrationRequest {
    pub(super) fn new(discovery: Discovery, service: String, address: String) -> Self {
        let request = RegisterRequest { service, address, ..Default::default() };
        Self { discovery, ttl: None, request }
    }

    /// The instance's id, at most 256 bytes. Default: the cluster chooses one.
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> Self {
        self.request.instance_id = instance_id.into();
        self
    }

    /// How long the instance outlives its last renewal; 1 s to 24 h, default 10 s. Excludes
    /// [`RegistrationRequest::session`].
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Lets the instance live with this session, and go with it for good.
    pub const fn session(mut self, session_id: u64) -> Self {
        self.request.session_id = session_id;
        self
    }

    /// The zone that the instance runs in.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.request.zone = zone.into();
        self
    }

    /// The instance's share of the load; 1 to 65,535, default 1.
    pub const fn weight(mut self, weight: u32) -> Self {
        self.request.weight = weight;
        self
    }

    /// What else the instance tells of itself; may be called again for each key. At most 64
    /// entries, 16 KiB in all.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.metadata.insert(key.into(), value.into());
        self
    }

    /// Whether it takes calls from the start. Default: it does.
    pub fn state(mut self, state: InstanceState) -> Self {
        self.request.set_state(state);
        self
    }

    /// Registers the instance; the same as awaiting the request.
    ///
    /// Not cancel-safe: dropped, the instance may be registered all the same, and is left to its
    /// TTL.
    ///
    /// # Errors
    /// As [`Discovery::hold`].
    pub async fn register(self) -> Result<Registration, Error> {
        let ttl = self.ttl.map(|ttl| to_proto(ttl, "ttl")).transpose()?;
        self.discovery.hold(RegisterRequest { ttl, ..self.request }).await
    }
}

impl IntoFuture for RegistrationRequest {
    type Output = Result<Registration, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.register())
    }
}

/// How things stand with a registration, as far as is known.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Standing {
    /// It is there.
    Registered {
        /// How often it was gone and was registered again.
        again: u64,
    },
    /// A renewal failed; the instance may be there or not.
    Unconfirmed(Error),
    /// It was gone, and to register it again failed.
    Missing(Error),
}

/// An instance that stays registered, from [`Discovery::announce`] or [`Discovery::hold`].
///
/// A task of its own renews it after each third of its TTL, and registers it again, with the same
/// id, when it is gone: expired while no node was reached, or deregistered by somebody else. An
/// instance that lives with a session ends with it; see [`Registration::lost`].
///
/// Dropping the handle deregisters the instance without waiting: the task sends that, once and
/// within the client's timeout. Where its runtime has ended by then, or no node is reached, the TTL
/// ends the instance; [`Registration::deregister`] waits for it.
#[must_use = "the instance is deregistered when its handle is dropped"]
pub struct Registration {
    answer: RegisterResponse,
    service: String,
    standing: watch::Receiver<Standing>,
    shared: Arc<Shared>,
    kept: Kept<Registered>,
}

/// What the handle and its task have in common.
struct Shared {
    client: Client,
    /// What is registered. Whoever changes the instance holds the lock meanwhile, so that to
    /// register it again and to change its state do not overtake each other.
    request: Mutex<RegisterRequest>,
}

impl Registration {
    /// Registers an instance and keeps it.
    pub(super) async fn register(
        client: Client,
        mut request: RegisterRequest,
    ) -> Result<Self, Error> {
        if request.session_id == 0 && request.ttl.is_none() {
            request.ttl = Some(to_proto(TTL_DEFAULT, "ttl")?);
        }
        let clock = Clock::start();
        let sent = clock.now();
        let answer = client.discovery().register(request.clone()).await?;
        // Each time that it is registered again is a request of its own.
        request.request_id.clear();
        request.instance_id.clone_from(&answer.instance_id);
        let ttl = answer.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
        let lease = if request.session_id == 0 {
            Lease::confirmed_since(chance(), sent, ttl)
        } else {
            // The session counts from its own last renewal, so the first one is due now.
            Lease::unconfirmed(chance(), sent, ttl.unwrap_or(TTL_DEFAULT), sent)
        };
        let service = request.service.clone();
        let shared = Arc::new(Shared { client, request: Mutex::new(request) });
        let (tell, standing) = watch::channel(Standing::Registered { again: 0 });
        let registered = Registered {
            service: service.clone(),
            instance_id: answer.instance_id.clone(),
            shared: Arc::clone(&shared),
            standing: tell,
            again: AtomicU64::new(0),
        };
        let kept = Kept::start(registered, lease.persistent(), clock);
        Ok(Self { answer, service, standing, shared, kept })
    }

    /// The name of the service.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The instance's id.
    #[must_use]
    pub fn instance_id(&self) -> &str {
        &self.answer.instance_id
    }

    /// The session that the instance lives with, and the revision of its first registration, as the
    /// cluster answered.
    #[must_use]
    pub const fn answer(&self) -> &RegisterResponse {
        &self.answer
    }

    /// Whether the instance is there at this moment, as far as was confirmed.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.kept.claim().is_valid()
    }

    /// How things stood after the last renewal.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Waits for the next change of the standing and returns it; pending for ever once the instance
    /// is [lost](Registration::lost). Cancel-safe: of changes that
    /// come meanwhile the last is told.
    pub async fn changed(&mut self) -> Standing {
        if self.standing.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.standing.borrow_and_update().clone()
    }

    /// Resolves with the reason when the instance is gone and will not come back: its session is
    /// gone, the cluster refuses to register it, or the handle was dropped.
    ///
    /// Cancel-safe. The future borrows nothing.
    #[must_use = "futures do nothing unless polled"]
    pub fn lost(&self) -> impl Future<Output = Loss> + Send + use<> {
        self.kept.claim().lost()
    }

    /// Says that the instance finishes what it has and takes no new calls, and returns the revision
    /// of that. It stays so where the instance is registered again.
    ///
    /// Not cancel-safe: dropped, it may take effect or not; to say it again is harmless.
    ///
    /// # Errors
    /// NOT_FOUND where the instance is gone at the moment: it comes back draining.
    /// DEADLINE_EXCEEDED with an unknown outcome; UNAVAILABLE where nothing was proposed.
    pub async fn drain(&self) -> Result<u64, Error> {
        self.set_state(InstanceState::Draining).await
    }

    /// Takes [`Registration::drain`] back. Not cancel-safe either.
    ///
    /// # Errors
    /// As [`Registration::drain`].
    pub async fn resume(&self) -> Result<u64, Error> {
        self.set_state(InstanceState::Serving).await
    }

    async fn set_state(&self, state: InstanceState) -> Result<u64, Error> {
        let mut registered = self.shared.request.lock().await;
        registered.set_state(state);
        let request = SetInstanceStateRequest {
            service: self.service.clone(),
            instance_id: self.answer.instance_id.clone(),
            state: state.into(),
            ..Default::default()
        };
        let answer = self.shared.client.discovery().set_instance_state(request).await?;
        Ok(answer.revision)
    }

    /// Deregisters the instance, waits for that, and returns the revision of the removal.
    /// Cancel-safe: dropped, the instance goes all the same.
    ///
    /// # Errors
    /// NOT_FOUND where the instance was gone; what [`Discovery::deregister`] fails with: then the
    /// TTL ends the instance.
    pub async fn deregister(self) -> Result<u64, Error> {
        self.kept.end().await.map(|answer| answer.revision)
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("service", &self.service)
            .field("instance_id", &self.answer.instance_id)
            .field("standing", &*self.standing.borrow())
            .finish_non_exhaustive()
    }
}

/// The instance, as its task keeps it.
struct Registered {
    service: String,
    instance_id: String,
    shared: Arc<Shared>,
    standing: watch::Sender<Standing>,
    /// How often it was registered again.
    again: AtomicU64,
}

impl Registered {
    fn tell(&self, standing: Standing) {
        self.standing.send_replace(standing);
    }

    /// It is there; after `again`, for the reason that it was registered again.
    fn confirm(&self, again: bool) {
        let before = self.again.fetch_add(u64::from(again), Ordering::Relaxed);
        let times = before + u64::from(again);
        self.standing.send_if_modified(|standing| {
            let news = again || !matches!(standing, Standing::Registered { .. });
            if news {
                *standing = Standing::Registered { again: times };
            }
            news
        });
    }
}

impl Renewable for Registered {
    type Ended = DeregisterResponse;

    async fn renew(&self, within: Duration) -> Result<Option<Duration>, Error> {
        let discovery = self.shared.client.without_retry_budget().with_timeout(within).discovery();
        let (service, instance_id) = (self.service.clone(), self.instance_id.clone());
        let ttl = match discovery.renew(RenewRequest { service, instance_id }).await {
            Ok(answer) => {
                self.confirm(false);
                answer.ttl
            }
            Err(error) if error.code() == Code::NotFound => {
                let request = self.shared.request.lock().await;
                let answer = discovery.register(request.clone()).await;
                let answer =
                    answer.inspect_err(|error| self.tell(Standing::Missing(error.clone())));
                let ttl = answer?.ttl;
                self.confirm(true);
                ttl
            }
            Err(error) => {
                self.tell(Standing::Unconfirmed(error.clone()));
                return Err(error);
            }
        };
        Ok(ttl.and_then(|ttl| Duration::try_from(ttl).ok()))
    }

    fn is_gone(error: &Error) -> bool {
        // An instance that is gone is registered again; of that, these answers say that it is
        // not to be.
        matches!(error.code(), Code::NotFound | Code::InvalidArgument)
    }

    async fn end(&self) -> Result<DeregisterResponse, Error> {
        let (service, instance_id) = (self.service.clone(), self.instance_id.clone());
        let request = DeregisterRequest { service, instance_id, ..Default::default() };
        self.shared.client.discovery().deregister(request).await
    }
}
