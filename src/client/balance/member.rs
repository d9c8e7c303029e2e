//! One endpoint as the balancer's task keeps it.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    client::balance::{
        BoxError, Connection, Connectivity, Endpoint, Load, policy::Backend, snapshot::Known,
        subchannel::Subchannel,
    },
    types::Instant,
};

/// What is known of an endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It was asked and has not answered yet.
    Unknown,
    /// It serves, or nobody asks.
    Serving,
    /// It says that it does not serve.
    NotServing,
}

pub(super) struct Member {
    /// Unique for good: an endpoint that comes back at another address is another member.
    pub(super) number: u64,
    pub(super) endpoint: Endpoint,
    pub(super) load: Arc<Load>,
    pub(super) subchannel: Subchannel,
    /// Counts attempts to connect: what is told of an earlier one is void.
    pub(super) attempt: u64,
    pub(super) connection: Option<Arc<dyn Connection>>,
    pub(super) health: Health,
    pub(super) ready_since: Instant,
    /// Why connecting failed, or the connection broke, last.
    pub(super) error: Option<Arc<str>>,
    pub(super) cause: Option<Arc<BoxError>>,
    /// Whether it failed since it was last connected, so that nobody waits for it.
    pub(super) has_failed: bool,
    pub(super) ejections: u64,
    /// Ends what is under way for it: an attempt to connect, the watch of its health.
    tasks: Option<DropGuard>,
    backend: Option<Arc<Backend>>,
}

impl Member {
    pub(super) const fn new(
        number: u64,
        endpoint: Endpoint,
        load: Arc<Load>,
        subchannel: Subchannel,
    ) -> Self {
        Self {
            number,
            endpoint,
            load,
            subchannel,
            attempt: 0,
            connection: None,
            health: Health::Unknown,
            ready_since: Instant::ZERO,
            error: None,
            cause: None,
            has_failed: false,
            ejections: 0,
            tasks: None,
            backend: None,
        }
    }

    /// A token for the tasks of a new attempt; those of the one before end.
    pub(super) fn begin(&mut self) -> (u64, CancellationToken) {
        self.attempt += 1;
        let token = CancellationToken::new();
        self.tasks = Some(token.clone().drop_guard());
        (self.attempt, token)
    }

    /// The same endpoint is told with another weight, zone or state.
    pub(super) fn update(&mut self, endpoint: Endpoint) {
        self.endpoint = endpoint;
        self.backend = None;
    }

    pub(super) fn connected(
        &mut self,
        connection: Arc<dyn Connection>,
        health: Health,
        now: Instant,
    ) {
        self.subchannel.connected(now);
        self.connection = Some(connection);
        self.health = health;
        self.has_failed = false;
        self.ready_since = now;
        // What was known is of a process that may be gone.
        self.load.forget(now);
        self.error = None;
        self.cause = None;
        self.backend = None;
    }

    /// There is no connection any more, or none could be made.
    pub(super) fn disconnected(&mut self, error: Arc<str>, cause: Option<Arc<BoxError>>) {
        self.error = Some(error);
        self.cause = cause;
        // One that stood and was closed is being made again: that is worth waiting for.
        self.has_failed = self.subchannel.state() == Connectivity::TransientFailure;
        self.connection = None;
        self.tasks = None;
        self.backend = None;
    }

    /// Whether its connection stands and its health is known.
    pub(super) fn is_ready(&self) -> bool {
        self.connection.is_some() && self.health != Health::Unknown
    }

    /// gRPC's state, in which an endpoint whose health is not known yet is still connecting.
    pub(super) fn state(&self) -> Connectivity {
        match self.subchannel.state() {
            Connectivity::Ready if self.health == Health::Unknown => Connectivity::Connecting,
            state => state,
        }
    }

    /// The endpoint as policies see it; the same one while nothing about it changes.
    pub(super) fn backend(&mut self) -> Arc<Backend> {
        let make = || {
            let backend =
                Backend::new(self.endpoint.clone(), Arc::clone(&self.load), self.ready_since);
            Arc::new(backend)
        };
        Arc::clone(self.backend.get_or_insert_with(make))
    }

    pub(super) fn known(&self, ejected: bool) -> Known {
        Known {
            endpoint: self.endpoint.clone(),
            load: Arc::clone(&self.load),
            state: self.state(),
            healthy: self.health != Health::NotServing,
            ejected,
            ejections: self.ejections,
            error: self.error.clone(),
        }
    }
}
