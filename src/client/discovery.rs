//! Services and their instances: register, renew, resolve, watch.

use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::{
    client::{
        Client, Error, Registration, RegistrationRequest, Resuming,
        balance::Picked,
        call::ANSWER_BYTES_MAX,
        reconcile::{Entry, Reconciling},
        request::identified,
        resume::{Outlook, Resume},
    },
    pb::discovery::v1::{
        DeregisterRequest, DeregisterResponse, Instance, InstanceEvent, ListServicesRequest,
        ListServicesResponse, RegisterRequest, RegisterResponse, RenewRequest, RenewResponse,
        ResolveRequest, ResolveResponse, SetInstanceStateRequest, SetInstanceStateResponse,
        WatchRequest, WatchResponse, discovery_service_client::DiscoveryServiceClient,
        instance_event::Kind,
    },
};

/// A watch that tells after a break what changed meanwhile.
pub type InstanceWatch = Resuming<Reconciling<WatchRequest>>;

/// The services that are registered with a cluster.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), quorate::client::Error> {
/// # let cluster = quorate::testing::Cluster::start(1).await;
/// # let client = cluster.client();
/// use quorate::pb::discovery::v1::ResolveRequest;
///
/// let discovery = client.discovery();
/// let registration = discovery.announce("web", "127.0.0.1:9000").zone("a").weight(2).await?;
///
/// let web = ResolveRequest { service: "web".into(), ..Default::default() };
/// let found = discovery.resolve(web).await?.instances;
/// assert_eq!(found[0].address, "127.0.0.1:9000");
///
/// registration.drain().await?; // no new calls; what is under way is finished
/// registration.deregister().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Discovery {
    client: Client,
}

impl Discovery {
    pub(super) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Asks for an instance that stays registered until its handle goes. Await what this returns,
    /// or say more of the instance before. `address` is `host:port`, at most 512 bytes.
    pub fn announce(
        &self,
        service: impl Into<String>,
        address: impl Into<String>,
    ) -> RegistrationRequest {
        RegistrationRequest::new(self.clone(), service.into(), address.into())
    }

    /// Registers an instance as [`Discovery::register`] does, and keeps it registered until its
    /// handle goes. Without TTL and session the TTL is 10 s. Must be called inside a tokio runtime.
    ///
    /// Not cancel-safe: dropped, the instance may be registered all the same, and is left to its
    /// TTL.
    ///
    /// # Errors
    /// As [`Discovery::register`].
    pub async fn hold(&self, request: RegisterRequest) -> Result<Registration, Error> {
        Registration::register(self.client.clone(), request).await
    }

    /// Registers an instance, or replaces the one with the same id.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for a malformed instance; DEADLINE_EXCEEDED with an unknown outcome;
    /// UNAVAILABLE where nothing was proposed.
    pub async fn register(&self, request: RegisterRequest) -> Result<RegisterResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).register(q).await).await
    }

    /// Prolongs an instance. Count the answer's `ttl` from before the call.
    ///
    /// Not cancel-safe: dropped, it may take effect or not; to renew again is harmless.
    ///
    /// # Errors
    /// NOT_FOUND where it is gone.
    pub async fn renew(&self, request: RenewRequest) -> Result<RenewResponse, Error> {
        self.client.write(request, async |c, q| stub(c).renew(q).await).await
    }

    /// Removes an instance.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// NOT_FOUND where it is gone.
    pub async fn deregister(
        &self,
        request: DeregisterRequest,
    ) -> Result<DeregisterResponse, Error> {
        self.client.write(identified(request), async |c, q| stub(c).deregister(q).await).await
    }

    /// Says whether an instance takes new calls; nothing else of it changes.
    ///
    /// Not cancel-safe: dropped, it may take effect or not, and never twice.
    ///
    /// # Errors
    /// NOT_FOUND where it is gone; INVALID_ARGUMENT for a state other than serving or draining.
    pub async fn set_instance_state(
        &self,
        request: SetInstanceStateRequest,
    ) -> Result<SetInstanceStateResponse, Error> {
        let call = async |c, q| stub(c).set_instance_state(q).await;
        self.client.write(identified(request), call).await
    }

    /// Returns the instances of a service.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// UNAVAILABLE or DEADLINE_EXCEEDED where no node answered.
    pub async fn resolve(&self, request: ResolveRequest) -> Result<ResolveResponse, Error> {
        self.client.read(request, async |c, q| stub(c).resolve(q).await).await
    }

    /// Lists the services that have instances.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Discovery::resolve`].
    pub async fn list_services(
        &self,
        request: ListServicesRequest,
    ) -> Result<ListServicesResponse, Error> {
        self.client.read(request, async |c, q| stub(c).list_services(q).await).await
    }

    /// Streams the instances of a service: first those that are there, then each change. After a
    /// break, changes that cancelled each other out meanwhile are not told.
    pub fn watch(&self, request: WatchRequest) -> InstanceWatch {
        Resuming::new(self.client.clone(), Reconciling::new(request))
    }
}

fn stub(node: Picked) -> DiscoveryServiceClient<Picked> {
    DiscoveryServiceClient::new(node).max_decoding_message_size(ANSWER_BYTES_MAX)
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

impl Entry for InstanceEvent {
    fn name(&self) -> Bytes {
        let Some(instance) = &self.instance else { return Bytes::new() };
        format!("{}\0{}", instance.service, instance.instance_id).into()
    }

    fn identity(&self) -> u64 {
        self.instance.as_ref().map_or(0, |instance| instance.revision)
    }

    fn is_gone(&self) -> bool {
        self.kind() == Kind::Removed
    }

    fn gone(mut self, revision: u64) -> Self {
        let Instance { service, instance_id, .. } = self.instance.take().unwrap_or_default();
        let instance = Some(Instance { service, instance_id, ..Default::default() });
        Self { kind: Kind::Removed.into(), instance, revision }
    }
}
