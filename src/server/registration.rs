//! Keeps this node registered as an instance of the service `quorate`.
//!
//! The instance's id is the node's own, so a node that comes back, also at another address or while
//! its old registration still lives, replaces what it said before. A node that is about to stop
//! first says that it is draining, and takes its registration back last.
//!
//! The node does what any service does: it registers with a TTL and renews. It registers again when
//! the registration is gone, and never stands in the way of serving: what fails here is tried again.

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    machine::{NODE_SERVICE, refusal},
    node::Handle,
    pb::{
        command::v1::{Reason, Refusal, command::Op, outcome},
        discovery::v1::{
            DeregisterRequest, InstanceState, RegisterRequest, SetInstanceStateRequest,
        },
    },
    types::{Duration, SessionId},
};

const SERVICE: &str = NODE_SERVICE;

/// How long a node that vanished stays registered.
const TTL: Duration = Duration::from_secs(15);

/// How often the registration is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(4);

/// This node's registration.
#[derive(Clone, Debug)]
pub(crate) struct Registration {
    handle: Handle,
    instance: RegisterRequest,
}

impl Registration {
    /// Registers the node with what `instance` says of it: address, zone, weight and metadata.
    pub(crate) fn new(handle: Handle, instance: RegisterRequest) -> Self {
        let instance = RegisterRequest {
            service: SERVICE.to_owned(),
            instance_id: format!("node-{}", handle.directory().node_id),
            ttl: Some(prost_types::Duration { seconds: TTL.as_secs().cast_signed(), nanos: 0 }),
            ..instance
        };
        Self { handle, instance }
    }

    /// Registers and renews until `stop`.
    pub(crate) async fn keep(self, stop: CancellationToken) {
        stop.run_until_cancelled_owned(self.keep_forever()).await;
    }

    async fn keep_forever(self) {
        let mut session = None;
        loop {
            let kept = match session {
                Some(session) => self.renew(session).await.map(|()| session),
                None => self.register().await,
            };
            let pause = match kept {
                Ok(kept) => {
                    session = Some(kept);
                    RENEW_INTERVAL
                }
                Err(refused) if refused.reason() == Reason::SessionNotFound => {
                    session = None;
                    Duration::ZERO
                }
                Err(refused) => {
                    tracing::debug!(error = refused.message, "registration has to wait");
                    RETRY_INTERVAL
                }
            };
            tokio::time::sleep_until(Instant::now() + pause).await;
        }
    }

    async fn register(&self) -> Result<SessionId, Refusal> {
        let request = self.instance.clone();
        let deadline = Instant::now() + ATTEMPT;
        let outcome = self.handle.propose(Op::Register(request), Some(deadline)).await?;
        match outcome.result {
            Some(outcome::Result::Register(done)) => {
                tracing::info!(service = SERVICE, instance = self.instance_id(), "registered");
                Ok(SessionId::new(done.session_id))
            }
            Some(outcome::Result::Refusal(refused)) => Err(refused),
            _ => Err(refusal(Reason::OutcomeUnknown, "a registration had another outcome")),
        }
    }

    async fn renew(&self, session: SessionId) -> Result<(), Refusal> {
        self.handle.renew(session, Some(Instant::now() + ATTEMPT)).await?;
        Ok(())
    }

    /// Says that this node takes no new calls soon, so that nobody begins any here. Gives up at
    /// `limit`.
    pub(crate) async fn drain(&self, limit: Duration) {
        let request = SetInstanceStateRequest {
            service: SERVICE.to_owned(),
            instance_id: self.instance_id(),
            state: InstanceState::Draining.into(),
            ..SetInstanceStateRequest::default()
        };
        if !self.change(Op::SetInstanceState(request), limit).await {
            tracing::debug!("nobody was told that this node drains");
        }
    }

    /// Removes the registration, so that nobody looks for this node any more. Gives up at `limit`.
    pub(crate) async fn remove(&self, limit: Duration) {
        let request = DeregisterRequest {
            service: SERVICE.to_owned(),
            instance_id: self.instance_id(),
            ..DeregisterRequest::default()
        };
        if !self.change(Op::Deregister(request), limit).await {
            tracing::debug!("the registration is left to its ttl");
        }
    }

    /// Proposes a command once, and tells whether it was applied in time.
    async fn change(&self, op: Op, limit: Duration) -> bool {
        let done = self.handle.propose(op, Some(Instant::now() + limit));
        matches!(timeout(limit, done).await, Ok(Ok(_)))
    }

    fn instance_id(&self) -> String {
        self.instance.instance_id.clone()
    }
}
