//! The instances of a service that is registered with a Quorate cluster, watched.

use std::collections::BTreeMap;

use tokio::time::{Instant, sleep_until};

use crate::{
    client::{
        Client, Error, InstanceWatch,
        balance::{Endpoint, Resolver},
    },
    pb::discovery::v1::{
        Instance, InstanceEvent, InstanceState, WatchRequest, instance_event::Kind,
    },
    types::Duration,
};

/// How long to wait before a watch that gave up is begun anew.
const AGAIN: Duration = Duration::from_secs(1);

/// Resolves the instances of one service by watching them.
///
/// While the registry is away, what it told last stays in force, and what changed meanwhile is told
/// once it is back. An instance whose address is not `host:port` is left out.
#[derive(Debug)]
#[must_use]
pub struct Registry {
    client: Client,
    service: String,
    watch: Option<InstanceWatch>,
    /// Set when the watch gave up.
    pause_until: Option<Instant>,
    instances: BTreeMap<String, Instance>,
    /// Whether the watch has told all that was there when it began.
    complete: bool,
}

impl Registry {
    /// Watches `service` through `client`.
    pub fn new(client: Client, service: impl Into<String>) -> Self {
        Self {
            client,
            service: service.into(),
            watch: None,
            pause_until: None,
            instances: BTreeMap::new(),
            complete: false,
        }
    }

    fn take(&mut self, event: InstanceEvent) {
        let kind = event.kind();
        let Some(instance) = event.instance else { return };
        let id = instance.instance_id.clone();
        match kind {
            Kind::Removed => self.instances.remove(&id),
            _ => self.instances.insert(id, instance),
        };
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        self.instances.values().filter_map(endpoint_of).collect()
    }
}

impl Resolver for Registry {
    async fn next(&mut self) -> Result<Vec<Endpoint>, Error> {
        if let Some(until) = self.pause_until {
            sleep_until(until).await;
            self.pause_until = None;
        }
        loop {
            let watch = self.watch.get_or_insert_with(|| {
                let request = WatchRequest { service: self.service.clone() };
                self.client.discovery().watch(request)
            });
            let error = match watch.next().await {
                Ok(Some(told)) => {
                    told.events.into_iter().for_each(|event| self.take(event));
                    self.complete |= told.caught_up;
                    // Half a list would take the rest for gone.
                    if self.complete {
                        return Ok(self.endpoints());
                    }
                    continue;
                }
                Ok(None) => Error::unresolved("the watch ended".to_owned()),
                Err(error) => error,
            };
            // A new watch tells all that is there: what is gone by then must not stay.
            self.watch = None;
            self.complete = false;
            self.instances.clear();
            self.pause_until = Some(Instant::now() + AGAIN);
            return Err(error);
        }
    }
}

/// An instance as an endpoint.
fn endpoint_of(instance: &Instance) -> Option<Endpoint> {
    let endpoint = Endpoint::new(&instance.address).ok()?;
    Some(
        endpoint
            .with_id(&instance.instance_id)
            .in_zone(&instance.zone)
            .with_weight(instance.weight)
            .draining(instance.state() == InstanceState::Draining),
    )
}
