//! Which node a call goes to: the nodes that are known, the one that leads, and the balancer over
//! them.
//!
//! Changes go to the leader where it is known and can be reached, everything else wherever the
//! policy says; any node answers any request, so a wrong guess costs a hop and nothing else. Known
//! are the endpoints that the client was built with, those that refusals named, and what the
//! registry says of the service `quorate`.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use arc_swap::ArcSwapOption;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, metadata::MetadataMap};

use crate::{
    client::{
        Client, Error,
        balance::{Balance, Builder, Endpoint, Hints, Picked, Registry, Resolver},
        call::Effect,
    },
    machine::NODE_SERVICE,
    types::Duration,
    wire::LEADER_KEY,
};

/// How many nodes a client knows at most, those it was led to included.
const NODES_MAX: usize = 64;

/// How long a call waits for the connection to a leader of which it was just told.
const REACH_LIMIT: Duration = Duration::from_millis(100);

/// Chooses the node for each call of a client and its clones.
#[derive(Debug)]
pub(crate) struct Router {
    /// Made at the first call, which is inside a runtime.
    balance: OnceLock<Balance>,
    builder: Builder,
    known: RwLock<Known>,
    /// What the balancer is told: what is known, each address once.
    list: watch::Sender<Vec<Endpoint>>,
    leader: ArcSwapOption<Arc<str>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Given, or named by a refusal.
    told: Vec<Endpoint>,
    registered: Vec<Endpoint>,
}

impl Known {
    /// Each address once. What the registry says of it counts, and its address is its id: a node
    /// that is given and registered is one.
    fn merged(&self) -> Vec<Endpoint> {
        let mut merged: Vec<Endpoint> = Vec::with_capacity(self.told.len());
        for endpoint in self.registered.iter().chain(&self.told) {
            if merged.iter().all(|known| known.address() != endpoint.address()) {
                merged.push(endpoint.clone().with_id(endpoint.address()));
            }
        }
        // In the order that was asked for, so that the first is tried first.
        let place = |endpoint: &Endpoint| {
            self.told.iter().position(|told| told.address() == endpoint.address())
        };
        merged.sort_by_key(|endpoint| place(endpoint).unwrap_or(usize::MAX));
        merged
    }
}

impl Router {
    pub(crate) fn new(endpoints: Vec<Endpoint>, builder: Builder) -> Self {
        assert!(!endpoints.is_empty(), "the builder refuses a client without endpoints");
        let known = Known { told: endpoints, registered: Vec::new() };
        Self {
            balance: OnceLock::new(),
            builder,
            list: watch::Sender::new(known.merged()),
            known: RwLock::new(known),
            leader: ArcSwapOption::empty(),
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.list.borrow().iter().map(|endpoint| endpoint.address().to_owned()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.borrow().len()
    }

    /// The balancer over the nodes. Must be called inside a tokio runtime.
    pub(crate) fn balance(&self) -> &Balance {
        self.balance.get_or_init(|| {
            let mut list = self.list.subscribe();
            list.mark_changed();
            self.builder.clone().resolve(Nodes(list))
        })
    }

    /// Chooses the node for one attempt. Waits while connections are being made.
    pub(crate) async fn pick(&self, effect: Effect, avoid: &[Arc<str>]) -> Result<Picked, Status> {
        let leader = match effect {
            Effect::Read => None,
            Effect::Write | Effect::Once => self.leader.load_full(),
        };
        let prefer = leader.as_ref().map(|leader| &***leader);
        let prefer = prefer.filter(|leader| avoid.iter().all(|avoided| **avoided != **leader));
        self.balance().pick_by(Hints { prefer, avoid, ..Hints::default() }).await
    }

    /// Chooses a node that can be called now.
    pub(crate) fn try_pick(&self, avoid: &[Arc<str>]) -> Option<Picked> {
        self.balance().try_pick_by(&Hints { avoid, ..Hints::default() })
    }

    /// Takes note of the leader that an answer names.
    pub(crate) fn heard(&self, metadata: &MetadataMap) {
        let Some(address) = metadata.get(LEADER_KEY).and_then(|text| text.to_str().ok()) else {
            return;
        };
        let known = self.leader.load();
        if known.as_ref().is_none_or(|known| ***known != *address) {
            self.leader.store(Some(Arc::new(address.into())));
        }
    }

    /// Goes to the leader that a refusal named. Returns whether that is another node than `at`, so
    /// that it may be asked at once.
    pub(crate) fn follow(&self, at: Option<&str>, address: &str) -> bool {
        let Ok(endpoint) = Endpoint::new(address) else { return false };
        let is_known = || self.list.borrow().iter().any(|known| known.address() == address);
        if !is_known() {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if known.told.len() >= NODES_MAX {
                return false;
            }
            if !is_known() {
                known.told.push(endpoint);
                self.list.send_replace(known.merged());
            }
        }
        self.leader.store(Some(Arc::new(address.into())));
        at != Some(address)
    }

    /// Waits a short time for the connection to a node of which was just told.
    pub(crate) async fn reach(&self, address: &str) {
        // Too late is no harm: another node is asked then.
        let _ = timeout(REACH_LIMIT, self.balance().settled(address)).await;
    }

    /// Takes in what the registry says of the nodes.
    fn registered(&self, mut nodes: Vec<Endpoint>) {
        nodes.truncate(NODES_MAX);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.registered = nodes;
        let merged = known.merged();
        self.list.send_if_modified(|list| {
            let changed = *list != merged;
            if changed {
                *list = merged;
            }
            changed
        });
    }
}

/// Keeps the router told of the nodes that are registered, until the guard is dropped. `client` must
/// not itself hold the guard.
pub(crate) fn follow_registry(client: Client) -> DropGuard {
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let router = Arc::clone(&client.router);
        let mut registry = Registry::new(client, NODE_SERVICE);
        loop {
            match registry.next().await {
                Ok(nodes) => router.registered(nodes),
                Err(error) if error.code() == Code::Unimplemented => return,
                Err(error) => tracing::debug!(%error, "the registry of nodes is away"),
            }
        }
    }));
    guard
}

/// Tells the balancer what the router knows.
#[derive(Debug)]
struct Nodes(watch::Receiver<Vec<Endpoint>>);

impl Resolver for Nodes {
    async fn next(&mut self) -> Result<Vec<Endpoint>, Error> {
        match self.0.changed().await {
            Ok(()) => Ok(self.0.borrow_and_update().clone()),
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str) -> Endpoint {
        Endpoint::new(address).expect("it is well formed")
    }

    fn router(addresses: &[&str]) -> Router {
        Router::new(addresses.iter().map(|address| endpoint(address)).collect(), Balance::builder())
    }

    #[test]
    fn a_hint_is_followed_also_to_a_node_not_known_before() {
        let router = router(&["a:1", "b:2"]);
        assert!(router.follow(Some("a:1"), "b:2"));
        assert!(!router.follow(Some("b:2"), "b:2"), "it is asked already");
        assert!(router.follow(Some("b:2"), "c:3"));
        assert_eq!(router.addresses(), ["a:1", "b:2", "c:3"]);
        assert!(!router.follow(Some("c:3"), "not an address"));
    }

    #[test]
    fn what_is_registered_is_known_beside_what_was_given() {
        let router = router(&["a:1", "b:2"]);
        let moved = endpoint("c:3").with_id("node-1");
        let leaving = endpoint("b:2").with_id("node-2").draining(true);
        router.registered(vec![moved, leaving]);
        assert_eq!(router.addresses(), ["a:1", "b:2", "c:3"]);
        let list = router.list.borrow().clone();
        assert_eq!(list[1].id(), "b:2", "it is the one that was given");
        assert!(list[1].is_draining());
        router.registered(Vec::new());
        assert_eq!(router.addresses(), ["a:1", "b:2"]);
    }

    #[test]
    fn the_leader_is_learnt_from_any_answer() {
        let router = router(&["a:1"]);
        let mut metadata = MetadataMap::new();
        router.heard(&metadata);
        assert!(router.leader.load().is_none());
        metadata.insert(LEADER_KEY, "b:2".parse().expect("it is ASCII"));
        router.heard(&metadata);
        assert_eq!(router.leader.load_full().map(|leader| leader.to_string()), Some("b:2".into()));
        assert_eq!(router.addresses(), ["a:1"], "a hint alone makes no node known");
    }
}
