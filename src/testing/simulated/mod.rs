//! Whole nodes and clients in turmoil: the server as it is assembled, its services and layers, the
//! transport between nodes and the client library, over a simulated network and simulated time.
//!
//! Only the sockets, the clock, chance and the threads are not those of a shipped build
//! (`src/host/`, `src/node/stepped.rs`). A seed gives the same run again.

mod calls;
mod guards;
mod peers;
mod streams;
mod sweep;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    rc::Rc,
};

use tempfile::TempDir;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    client::Client,
    host,
    pb::cluster::v1::{NodeStatus, Role, StatusRequest},
    server::{Config, Scope, Server, ValidConfig},
    types::Duration,
};

/// How much simulated time a run may take at most.
const RUN_MAX: Duration = Duration::from_secs(600);

/// How long a condition may take to come about, in simulated time.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a message takes at least, and at most where nothing else is said.
const LATENCY_MIN: Duration = Duration::from_millis(1);
const LATENCY_MAX: Duration = Duration::from_millis(10);

const CLIENT_PORT: u16 = 7401;
const PEER_PORT: u16 = 7402;
const ADMIN_PORT: u16 = 7403;

/// What is done to hosts from outside, between two steps.
#[derive(Clone, Copy, Debug)]
enum Order {
    Crash(u64),
    Restart(u64),
}

/// The nodes, as a scenario sees them. Runs on a host of its own, `client`.
#[derive(Clone)]
pub(super) struct World(Rc<Inner>);

struct Inner {
    nodes: u64,
    orders: RefCell<Vec<Order>>,
    dir: PathBuf,
    stops: BTreeMap<u64, Notify>,
    /// The nodes that ended by themselves or in order.
    gone: RefCell<BTreeSet<u64>>,
    trace: RefCell<Vec<String>>,
}

/// How a run differs from others.
struct Setup<'a> {
    seed: u64,
    nodes: u64,
    /// How long a message takes at most.
    latency_max: Duration,
    settings: &'a dyn Fn(&mut Config),
}

impl Setup<'_> {
    const fn new(seed: u64, nodes: u64) -> Self {
        Self { seed, nodes, latency_max: LATENCY_MAX, settings: &|_| {} }
    }
}

/// What a host beside the scenario's own does, until it ends.
type Beside = (String, Pin<Box<dyn Future<Output = ()>>>);

/// Runs a scenario against a fresh cluster until it ends; returns what it noted.
///
/// # Panics
/// Where the scenario or a node does, or the scenario does not end.
fn simulate<Fut>(setup: Setup<'_>, scenario: impl FnOnce(World) -> Fut) -> Vec<String>
where
    Fut: Future<Output = ()> + 'static,
{
    simulate_beside(setup, |_| Vec::new(), scenario)
}

/// The same, with further hosts for clients that faults are to tell apart.
fn simulate_beside<Fut>(
    setup: Setup<'_>,
    beside: impl FnOnce(&World) -> Vec<Beside>,
    scenario: impl FnOnce(World) -> Fut,
) -> Vec<String>
where
    Fut: Future<Output = ()> + 'static,
{
    let Setup { seed, nodes, latency_max, settings } = setup;
    host::simulated::seed(Some(seed));
    let dir = scratch();
    let world = World(Rc::new(Inner {
        nodes,
        orders: RefCell::default(),
        dir: dir.path().to_owned(),
        gone: RefCell::default(),
        stops: (1..=nodes).map(|id| (id, Notify::new())).collect(),
        trace: RefCell::default(),
    }));
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(RUN_MAX)
        .min_message_latency(LATENCY_MIN)
        .max_message_latency(latency_max)
        .build();
    for id in 1..=nodes {
        let (world, config) = (world.clone(), config(id, nodes, dir.path(), settings));
        sim.host(name(id), move || serve(id, config.clone(), world.clone()));
    }
    for (name, work) in beside(&world) {
        sim.client(name, async move {
            work.await;
            Ok(())
        });
    }
    let scenario = scenario(world.clone());
    sim.client("client", async move {
        scenario.await;
        Ok(())
    });
    loop {
        let finished = sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for order in world.0.orders.take() {
            match order {
                Order::Crash(id) => sim.crash(name(id)),
                Order::Restart(id) => sim.bounce(name(id)),
            }
        }
        if finished {
            break;
        }
    }
    drop(sim);
    host::simulated::seed(None);
    world.0.trace.take()
}

/// A node: started, and served until it is told to stop. A crash drops this where it stands.
async fn serve(id: u64, config: ValidConfig, world: World) -> turmoil::Result {
    world.0.gone.borrow_mut().remove(&id);
    let mut server = Server::start(config).await.map_err(|error| format!("node {id}: {error}"))?;
    tokio::select! {
        biased;
        () = world.0.stops[&id].notified() => {
            let in_order = server.stop(Scope::Node).await;
            world.note(format!("node {id} stopped, in order: {in_order}"));
        }
        error = server.failed() => world.note(format!("node {id} ended: {error}")),
    }
    world.0.gone.borrow_mut().insert(id);
    Ok(())
}

fn config(id: u64, nodes: u64, dir: &Path, settings: &dyn Fn(&mut Config)) -> ValidConfig {
    let members: Vec<_> = (1..=nodes).map(|id| format!("{id}={}:{PEER_PORT}", name(id))).collect();
    let mut config = Config {
        id,
        data_dir: dir.join(name(id)),
        listen: format!("0.0.0.0:{CLIENT_PORT}"),
        peer_listen: format!("0.0.0.0:{PEER_PORT}"),
        admin_listen: format!("127.0.0.1:{ADMIN_PORT}"),
        advertise: endpoint(id),
        bootstrap: true,
        initial_cluster: members.join(","),
        insecure_listen: true,
        ..Config::default()
    };
    settings(&mut config);
    config.validate().expect("the settings fit")
}

/// The data directories are real ones, in memory where the system has a place for that: what a node
/// finds there after a crash is what it had written.
fn scratch() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    dir.expect("there is room for a directory")
}

fn name(id: u64) -> String {
    format!("node-{id}")
}

fn endpoint(id: u64) -> String {
    format!("{}:{CLIENT_PORT}", name(id))
}

/// How long the simulation has run.
fn now() -> Duration {
    turmoil::sim_elapsed().expect("a scenario is simulated")
}

async fn pause(span: Duration) {
    sleep_until(Instant::now() + span).await;
}

/// What comes about within [`PATIENCE`].
async fn soon<T>(what: &str, coming: impl Future<Output = T>) -> T {
    timeout(PATIENCE, coming).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

impl World {
    fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        1..=self.0.nodes
    }

    /// A client that knows all nodes.
    fn client(&self) -> Client {
        self.client_of(self.ids())
    }

    /// A client that knows some nodes, and asks them in this order.
    fn client_of(&self, ids: impl IntoIterator<Item = u64>) -> Client {
        Client::builder()
            .endpoints(ids.into_iter().map(endpoint))
            .discover(false)
            .build()
            .expect("it is complete")
    }

    /// Writes a line into the trace, with the time.
    fn note(&self, line: impl Into<String>) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        self.0.trace.borrow_mut().push(format!("{at} ms: {}", line.into()));
    }

    /// Ends a node where it stands, and its connections with it.
    async fn crash(&self, id: u64) {
        self.order(Order::Crash(id)).await;
    }

    /// Starts a node that was crashed.
    async fn restart(&self, id: u64) {
        self.order(Order::Restart(id)).await;
    }

    /// Has a node drain and stop.
    fn stop(&self, id: u64) {
        self.0.stops[&id].notify_one();
    }

    /// Waits until a node has ended.
    async fn gone(&self, id: u64) {
        while !self.0.gone.borrow().contains(&id) {
            pause(Duration::from_millis(10)).await;
        }
    }

    fn data_dir(&self, id: u64) -> PathBuf {
        self.0.dir.join(name(id))
    }

    async fn order(&self, order: Order) {
        self.note(format!("{order:?}"));
        self.0.orders.borrow_mut().push(order);
        // It is carried out before the next step.
        pause(Duration::from_millis(2)).await;
    }

    /// Loses everything between two hosts, both ways.
    fn cut(&self, a: &str, b: &str) {
        self.note(format!("cut {a} {b}"));
        turmoil::partition(a, b);
    }

    fn mend(&self, a: &str, b: &str) {
        self.note(format!("mend {a} {b}"));
        turmoil::repair(a, b);
    }

    /// Cuts a node off from its peers; clients reach it.
    fn isolate(&self, id: u64) {
        for other in self.ids().filter(|other| *other != id) {
            self.cut(&name(id), &name(other));
        }
    }

    fn rejoin(&self, id: u64) {
        for other in self.ids().filter(|other| *other != id) {
            self.mend(&name(id), &name(other));
        }
    }

    /// How a node stands, as it says itself.
    async fn status(&self, id: u64) -> Option<NodeStatus> {
        let client = self.client_of([id]).with_timeout(Duration::from_millis(500));
        let status = client.cluster().status(StatusRequest::default()).await.ok()?;
        status.nodes.into_iter().find(|node| node.node_id == id)
    }

    /// Waits until a node leads that the others follow; nodes in `besides` do not count.
    async fn leader(&self, besides: &[u64]) -> u64 {
        let looking = async {
            loop {
                let mut leaders = Vec::new();
                for id in self.ids().filter(|id| !besides.contains(id)) {
                    let status = self.status(id).await;
                    leaders.push(status.map(|status| (status.leader_id, status.role())));
                }
                if let Some(leader) = agreed(&leaders)
                    && !besides.contains(&leader)
                {
                    return leader;
                }
                pause(Duration::from_millis(50)).await;
            }
        };
        soon("a leader", looking).await
    }

    /// Waits until all nodes have applied the same and hold equal states.
    async fn converge(&self) {
        let looking = async {
            loop {
                let mut hashes = Vec::new();
                for id in self.ids() {
                    let client = self.client_of([id]).with_timeout(Duration::from_secs(1));
                    let hash = client.cluster().state_hash(Default::default()).await;
                    hashes.push(hash.map(|hash| (hash.applied_index, hash.full_hash)).ok());
                }
                if hashes[0].is_some() && hashes.iter().all(|hash| *hash == hashes[0]) {
                    return;
                }
                pause(Duration::from_millis(50)).await;
            }
        };
        soon("equal states", looking).await;
    }
}

/// The leader, where all name the same and it is one of them.
fn agreed(leaders: &[Option<(u64, Role)>]) -> Option<u64> {
    let (first, _) = (*leaders.first()?)?;
    let same = leaders.iter().all(|leader| leader.is_some_and(|(id, _)| id == first));
    let leads = leaders.iter().flatten().any(|(_, role)| *role == Role::Leader);
    (first != 0 && same && leads).then_some(first)
}
