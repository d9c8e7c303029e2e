//! A cluster that a test starts, breaks and looks at.

use std::{
    collections::BTreeMap,
    env, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::Signal;
use tokio::time::{Instant, interval, timeout};

use crate::{
    client::{self, Client, Error, Tls},
    lab::{
        certificates::{Certificates, NodeFiles},
        probe,
        process::{NodeProcess, NodeSpec},
    },
    pb::lab::v1::{LinkFault, ListLinkFaultsResponse},
    server::{Config, Readiness, Settings},
    testing::{ClusterBuilder, addresses, in_process::InProcess},
    types::Duration,
};

/// How long to wait for anything; ten times what a slow machine needs.
const LIMIT: Duration = Duration::from_secs(30);

/// How long a node may take to clear its link faults.
const HEAL_LIMIT: Duration = Duration::from_secs(5);

/// How often the nodes are asked while something is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Grows with each directory of this process.
static DIRECTORIES: AtomicU32 = AtomicU32::new(0);

/// A cluster for a test. Dropping it kills the nodes and removes their directories, unless the test
/// is failing: then the directories stay, and where they are is printed.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    program: Option<PathBuf>,
    settings: Settings,
    nodes: BTreeMap<u64, Member>,
    tls: Option<Certificates>,
}

#[derive(Debug)]
struct Member {
    spec: NodeSpec,
    state: State,
}

#[derive(Debug)]
enum State {
    Down,
    InProcess(InProcess),
    Process { process: NodeProcess, paused: bool },
}

impl Cluster {
    /// Starts nodes inside this process and waits until one leads and all are ready.
    ///
    /// # Panics
    /// Where that does not come about.
    pub async fn start(nodes: u8) -> Self {
        Self::builder(nodes).start().await
    }

    /// The same with a process a node, of the binary at `program`. In the tests of the package
    /// that builds it, that is `env!("CARGO_BIN_EXE_quorate")`.
    ///
    /// # Panics
    /// Where that does not come about.
    pub async fn processes(program: impl Into<PathBuf>, nodes: u8) -> Self {
        Self::builder(nodes).program(program).start().await
    }

    /// Describes a cluster in more detail; 1 to 9 nodes.
    #[must_use]
    pub const fn builder(nodes: u8) -> ClusterBuilder {
        ClusterBuilder::new(nodes)
    }

    pub(super) async fn begin(builder: ClusterBuilder, settings: Settings) -> Self {
        let dir = fresh_dir();
        let mut flags = Vec::new();
        if builder.program.is_some() && !builder.settings.is_empty() {
            let file = dir.join("settings.toml");
            fs::write(&file, &builder.settings).expect("the cluster's directory can be written");
            flags = vec!["--config".to_owned(), file.display().to_string()];
        }
        if builder.program.is_some() && builder.lab {
            flags.push("--lab".to_owned());
        }
        let reserved = addresses::reserve(builder.nodes);
        let host = reserved[0].client.ip().to_string();
        let tls = builder.tls.then(|| Certificates::in_dir(&dir, builder.nodes, &[&host]));
        let tls = tls.transpose().expect("the cluster's directory can be written");
        let members: Vec<_> = (1..).zip(&reserved).map(|(id, a)| (id, a.peer)).collect();
        let nodes = (1..).zip(reserved).map(|(id, addresses)| {
            let dir = dir.join(format!("node-{id}"));
            let (members, flags) = (members.clone(), flags.clone());
            let restore = builder.restore.clone();
            let tls = tls.as_ref().map(|tls| tls.of_node(id));
            let spec =
                NodeSpec { id, dir, addresses, members, bootstrap: true, restore, tls, flags };
            (id, Member { spec, state: State::Down })
        });
        let mut cluster =
            Self { nodes: nodes.collect(), dir, program: builder.program, settings, tls };
        for id in cluster.ids() {
            cluster.restart(id).await;
        }
        cluster.wait_until_ready().await;
        for member in cluster.nodes.values_mut() {
            // A node that lost its directory must not found another cluster.
            member.spec.bootstrap = false;
        }
        cluster
    }

    /// The nodes' ids, ascending, whether they run or not.
    #[must_use]
    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// Where clients reach the nodes, in the order of their ids.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(|member| member.spec.addresses.client.to_string()).collect()
    }

    /// Where clients reach a node.
    ///
    /// # Panics
    /// Where there is no such node; so do all functions that take an id.
    #[must_use]
    pub fn endpoint(&self, id: u64) -> String {
        self.member(id).spec.addresses.client.to_string()
    }

    /// Where peers reach a node.
    #[must_use]
    pub fn peer_address(&self, id: u64) -> SocketAddr {
        self.member(id).spec.addresses.peer
    }

    /// Where a node serves health and metrics.
    #[must_use]
    pub fn admin_address(&self, id: u64) -> SocketAddr {
        self.member(id).spec.addresses.admin
    }

    /// A node's data directory.
    #[must_use]
    pub fn data_dir(&self, id: u64) -> &Path {
        &self.member(id).spec.dir
    }

    /// The CA that clients trust, in PEM.
    ///
    /// # Panics
    /// Where the cluster was not built with [`ClusterBuilder::tls`].
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.tls.as_ref().expect("the cluster was built without TLS").ca()
    }

    /// What a node has logged; empty for nodes inside this process, which log to its subscriber.
    #[must_use]
    pub fn log(&self, id: u64) -> String {
        fs::read_to_string(self.member(id).spec.log()).unwrap_or_default()
    }

    /// A client that knows all nodes, and learns of others from the registry.
    #[must_use]
    pub fn client(&self) -> Client {
        self.dialling(self.endpoints()).build().expect("the addresses are well formed")
    }

    /// A client that knows one node only, and others as far as refusals name them.
    #[must_use]
    pub fn client_at(&self, id: u64) -> Client {
        let builder = self.dialling(vec![self.endpoint(id)]).discover(false);
        builder.build().expect("the addresses are well formed")
    }

    /// Whether a node runs; a paused one does.
    #[must_use]
    pub fn is_running(&self, id: u64) -> bool {
        !matches!(self.member(id).state, State::Down)
    }

    /// Whether a node is paused.
    #[must_use]
    pub fn is_paused(&self, id: u64) -> bool {
        matches!(self.member(id).state, State::Process { paused: true, .. })
    }

    /// Kills a node: SIGKILL for a process; inside this process every task of it is dropped where
    /// it stands. One that is down stays down.
    pub async fn kill(&mut self, id: u64) {
        let member = self.member_mut(id);
        match std::mem::replace(&mut member.state, State::Down) {
            State::Down | State::InProcess(_) => {}
            State::Process { mut process, .. } => {
                process.signal(Signal::KILL);
                ended(id, &mut process).await;
            }
        }
    }

    /// Drains a node as SIGTERM does, and waits until it has ended: it shows itself as draining,
    /// hands leadership over, finishes what it has and takes its registration back.
    pub async fn stop(&mut self, id: u64) {
        let member = self.member_mut(id);
        match std::mem::replace(&mut member.state, State::Down) {
            State::Down => {}
            State::InProcess(node) => node.stop().await,
            State::Process { mut process, .. } => {
                process.signal(Signal::CONT);
                process.signal(Signal::TERM);
                ended(id, &mut process).await;
            }
        }
    }

    /// Starts a node that is down, over the data that it had. Returns when it was started, which
    /// is before it is ready; see [`Cluster::wait_until_ready`]. One that runs is killed first.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub async fn restart(&mut self, id: u64) {
        self.kill(id).await;
        let spec = self.member(id).spec.clone();
        let started = match &self.program {
            Some(program) => spec
                .spawn(program)
                .map(|process| State::Process { process, paused: false })
                .map_err(|error| format!("{}: {error}", program.display())),
            None => match in_process_config(&spec, &self.settings).validate() {
                Ok(config) => InProcess::start(config).await.map(State::InProcess),
                Err(error) => Err(error.to_string()),
            },
        };
        let state = started.unwrap_or_else(|error| panic!("node {id} cannot start: {error}"));
        self.member_mut(id).state = state;
    }

    /// Starts a node over the data that it had, at another address for clients, and returns that
    /// address; peers reach it where they did. [`Cluster::endpoint`] and [`Cluster::endpoints`] tell
    /// the new one from now on; clients that were made before know the old one. A node that runs is
    /// killed first; call [`Cluster::stop`] before to have it drained.
    ///
    /// # Panics
    /// Where it cannot be started.
    pub async fn restart_elsewhere(&mut self, id: u64) -> String {
        let taken: Vec<_> = self.nodes.values().map(|member| member.spec.addresses).collect();
        let addresses = &mut self.member_mut(id).spec.addresses;
        addresses.client = addresses::elsewhere(addresses.client, &taken);
        self.restart(id).await;
        self.endpoint(id)
    }

    /// Stops a process where it stands (SIGSTOP), without its knowing. When this returns, no thread
    /// of it runs.
    ///
    /// # Panics
    /// Where the node does not run as a process: this process cannot be stopped in part.
    pub fn pause(&mut self, id: u64) {
        self.signal_pause(id, true);
    }

    /// Lets a paused process go on (SIGCONT).
    ///
    /// # Panics
    /// As [`Cluster::pause`].
    pub fn resume(&mut self, id: u64) {
        self.signal_pause(id, false);
    }

    /// Breaks a node's link to a peer in one direction for `lease`, and returns the fault's number
    /// at the node. Meant for clusters built with [`ClusterBuilder::lab`].
    ///
    /// # Errors
    /// Where the node does not answer or refuses the fault.
    pub async fn break_link(
        &self,
        id: u64,
        fault: LinkFault,
        lease: Duration,
    ) -> Result<u64, Error> {
        Ok(self.client_at(id).lab().add_link_fault(fault, lease).await?.fault_id)
    }

    /// Takes all link faults of all nodes away that run and answer. Faults of the others end with
    /// their leases.
    pub async fn heal_links(&self) {
        for id in self.ids() {
            if self.is_running(id) && !self.is_paused(id) {
                let client = self.client_at(id).with_timeout(HEAL_LIMIT);
                let _asleep = client.lab().clear_link_faults(&[]).await;
            }
        }
    }

    /// The link faults of a node, and what faults did there since it started.
    ///
    /// # Errors
    /// Where the node does not answer.
    pub async fn link_faults(&self, id: u64) -> Result<ListLinkFaultsResponse, Error> {
        self.client_at(id).lab().link_faults().await
    }

    /// Waits until a node leads and a majority of all nodes follows it in its term. Returns its id.
    ///
    /// # Panics
    /// Where none does within 30 seconds.
    pub async fn wait_for_leader(&mut self) -> u64 {
        self.wait("a leader", |answers| leader_of(&answers)).await
    }

    /// Waits until every node that runs and is not paused is ready.
    ///
    /// # Panics
    /// Where they are not within 30 seconds.
    pub async fn wait_until_ready(&mut self) {
        let asked: Vec<bool> = self
            .nodes
            .values()
            .map(|member| match &member.state {
                State::Down => false,
                State::Process { paused, .. } => !paused,
                State::InProcess(_) => true,
            })
            .collect();
        self.wait("all nodes to be ready", |answers| {
            let mut both = asked.iter().zip(answers);
            let ready = |answer: Option<Readiness>| answer.is_some_and(|answer| answer.ready);
            both.all(|(asked, answer)| !asked || ready(answer)).then_some(())
        })
        .await;
    }

    async fn wait<T>(
        &mut self,
        what: &str,
        done: impl Fn(Vec<Option<Readiness>>) -> Option<T>,
    ) -> T {
        let give_up = Instant::now() + LIMIT;
        let mut ticks = interval(LOOK_INTERVAL);
        loop {
            ticks.tick().await;
            let admins = self.nodes.values().map(|member| member.spec.addresses.admin);
            let answers = probe::all(admins).await;
            if let Some(done) = done(answers.clone()) {
                return done;
            }
            self.check_processes(what).await;
            assert!(Instant::now() < give_up, "waited {LIMIT:?} for {what}: {answers:#?}");
        }
    }

    /// A process that ended on its own is not waited for in vain.
    async fn check_processes(&mut self, what: &str) {
        for (id, member) in &mut self.nodes {
            let State::Process { process, .. } = &mut member.state else { continue };
            if let Ok(how) = timeout(Duration::ZERO, process.wait()).await {
                member.state = State::Down;
                let words = member.spec.last_words().unwrap_or_default();
                panic!("waiting for {what}: node {id} ended by itself ({how:?}): {words}");
            }
        }
    }

    fn signal_pause(&mut self, id: u64, pause: bool) {
        let State::Process { process, paused } = &mut self.member_mut(id).state else {
            panic!("node {id} does not run as a process");
        };
        if pause {
            process.freeze();
        } else {
            process.signal(Signal::CONT);
        }
        *paused = pause;
    }

    fn dialling(&self, endpoints: Vec<String>) -> client::Builder {
        let mut builder = Client::builder().endpoints(endpoints);
        if let Some(tls) = &self.tls {
            builder = builder.tls(Tls::trusting(fs::read(tls.ca()).expect("it was made")));
        }
        builder
    }

    fn member(&self, id: u64) -> &Member {
        self.nodes.get(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    fn member_mut(&mut self, id: u64) -> &mut Member {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (_, mut member) in std::mem::take(&mut self.nodes) {
            if let State::Process { process, .. } = &mut member.state {
                process.kill_and_reap();
            }
        }
        if std::thread::panicking() {
            eprintln!("the cluster's directories and logs stay in {}", self.dir.display());
        } else {
            // Tasks of killed nodes may still write; what they leave is in a temporary directory.
            let _left = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The node that leads in the newest term and is followed by a majority.
fn leader_of(answers: &[Option<Readiness>]) -> Option<u64> {
    let known = || answers.iter().flatten();
    let term = known().map(|answer| answer.term).max()?;
    let leader = known().find(|answer| answer.term == term && answer.leads)?.node_id;
    let followers =
        known().filter(|answer| answer.term == term && answer.leader_id == leader).count();
    (followers > answers.len() / 2).then_some(leader)
}

async fn ended(id: u64, process: &mut NodeProcess) {
    let how = timeout(LIMIT, process.wait()).await;
    assert!(how.is_ok(), "node {id} has not ended after {LIMIT:?}");
}

fn in_process_config(spec: &NodeSpec, settings: &Settings) -> Config {
    let members: Vec<_> =
        spec.members.iter().map(|(id, address)| format!("{id}={address}")).collect();
    let own = |file: fn(&NodeFiles) -> &PathBuf| spec.tls.as_ref().map(file).cloned();
    let (cert, key) = (own(|files| &files.cert), own(|files| &files.key));
    let tls = Settings {
        tls_cert: cert.clone(),
        tls_key: key.clone(),
        peer_tls_cert: cert,
        peer_tls_key: key,
        peer_tls_ca: own(|files| &files.ca),
        ..Settings::default()
    };
    Config {
        id: spec.id,
        data_dir: spec.dir.clone(),
        listen: spec.addresses.client.to_string(),
        peer_listen: spec.addresses.peer.to_string(),
        admin_listen: spec.addresses.admin.to_string(),
        bootstrap: spec.bootstrap,
        restore: spec.restore.clone().filter(|_| spec.bootstrap).unwrap_or_default(),
        initial_cluster: members.join(","),
        ..tls.over(settings.clone()).over_defaults()
    }
}

fn fresh_dir() -> PathBuf {
    let parent = env::temp_dir();
    loop {
        let number = DIRECTORIES.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("quorate-test-{}-{number}", std::process::id()));
        match fs::create_dir(&dir) {
            Ok(()) => return dir,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => panic!("{} cannot be made: {error}", dir.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(node_id: u64, leader_id: u64, term: u64) -> Option<Readiness> {
        let leads = node_id == leader_id;
        Some(Readiness { node_id, leader_id, term, leads, ..Readiness::default() })
    }

    #[test]
    fn a_leader_needs_the_newest_term_and_a_majority() {
        assert_eq!(leader_of(&[answer(1, 2, 5), answer(2, 2, 5), None]), Some(2));
        let alone = [answer(1, 1, 5), None, None];
        assert_eq!(leader_of(&alone), None, "nobody follows");
        let old = [answer(1, 1, 5), answer(2, 1, 5), answer(3, 0, 6)];
        assert_eq!(leader_of(&old), None, "a newer term has begun");
        let dead = [None, answer(2, 1, 5), answer(3, 1, 5)];
        assert_eq!(leader_of(&dead), None, "the leader does not answer");
        assert_eq!(leader_of(&[]), None);
    }
}
