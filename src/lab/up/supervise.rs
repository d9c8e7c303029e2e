//! The supervisor: starts the nodes, waits for a leader, says what dies, stops everything.
//!
//! A node that dies stays dead until a person restarts it with the command that is printed; the
//! others go on. A stop closes the nodes' standard inputs, a second one kills them.

use std::{future::poll_fn, io, path::Path, pin::pin, process::ExitStatus, task::Poll};

use rustix::process::Signal as Kill;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, interval, timeout_at},
};

use crate::{
    lab::{
        certificates::Certificates,
        probe,
        process::{NodeProcess, NodeSpec},
        up::{
            Error, UpOptions,
            place::{self, Place},
            screen::{self, Hints, Progress, say},
        },
    },
    types::Duration,
};

/// How long a cluster may take to have a leader.
const LEADER_LIMIT: Duration = Duration::from_secs(30);

/// How long the other nodes may take to be ready once there is a leader.
const FOLLOWERS_LIMIT: Duration = Duration::from_secs(5);

/// How often the nodes are asked how they stand while the cluster starts.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// How long the nodes may take to stop; a little more than each allows itself.
const STOP_LIMIT: Duration = Duration::from_secs(13);

/// Where the command line looks for a cluster that it was not told of.
const DEFAULT_DATA_DIR: &str = "quorate-data";
const DEFAULT_BASE_PORT: u16 = 7400;

/// Runs the cluster until it is told to stop by SIGINT, SIGTERM or SIGHUP.
///
/// # Errors
/// One line that names what stands in the way and the way out. Nothing is left running.
pub async fn run(options: UpOptions) -> Result<(), Error> {
    options.check()?;
    let mut interrupts = Interrupts::take()?;
    place::check_ports(&options.specs(&options.data_dir, false, None))?;
    let mut place = Place::take(&options)?;
    let ended = run_in(&mut place, &options, &mut interrupts).await;
    place.leave();
    ended
}

async fn run_in(
    place: &mut Place,
    options: &UpOptions,
    interrupts: &mut Interrupts,
) -> Result<(), Error> {
    let tls = options.tls.then(|| place.certificates()).transpose()?;
    let specs = options.specs(place.dir(), !place.is_founded(), tls.as_ref());
    let mut supervisor = Supervisor::start(specs, tls, options)?;
    supervisor.run(options, place, interrupts).await
}

/// What tells `up` to stop.
#[derive(Debug)]
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn take() -> Result<Self, Error> {
        let take = |kind| {
            signal(kind).map_err(|error| {
                Error::new(format!("signals cannot be taken: {error}"), "try again")
            })
        };
        Ok(Self([
            take(SignalKind::interrupt())?,
            take(SignalKind::terminate())?,
            take(SignalKind::hangup())?,
        ]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The nodes; one that died has no process.
#[derive(Debug)]
struct Supervisor {
    nodes: Vec<(NodeSpec, Option<NodeProcess>)>,
    tls: Option<Certificates>,
}

impl Supervisor {
    /// Starts every node, or none.
    fn start(
        specs: Vec<NodeSpec>,
        tls: Option<Certificates>,
        options: &UpOptions,
    ) -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for spec in specs {
            let process = spec.spawn(&options.program).map_err(|error| {
                Error::new(
                    format!("node {} cannot be started: {error}", spec.id),
                    format!("see that {} can run", options.program.display()),
                )
            })?;
            nodes.push((spec, Some(process)));
        }
        Ok(Self { nodes, tls })
    }

    async fn run(
        &mut self,
        options: &UpOptions,
        place: &mut Place,
        interrupts: &mut Interrupts,
    ) -> Result<(), Error> {
        let leader = tokio::select! {
            leader = self.wait_for_leader(place.dir()) => leader,
            () = interrupts.next() => {
                self.stop(interrupts).await;
                return Ok(());
            }
        };
        let ready = leader.and_then(|leader| {
            place.found()?;
            place.write_endpoints(&self.specs(), self.tls.as_ref())?;
            Ok(leader)
        });
        let leader = match ready {
            Ok(leader) => leader,
            Err(error) => {
                self.stop(interrupts).await;
                return Err(error);
            }
        };
        let specs = self.specs();
        let ca = options.tls.then(|| place.ca_file());
        let endpoints = needs_endpoints(options);
        let hints = Hints { typed_as: &options.typed_as, endpoints, ca: ca.as_deref() };
        screen::welcome(&specs, leader, hints, place.dir());
        self.watch(options, interrupts).await
    }

    fn specs(&self) -> Vec<NodeSpec> {
        self.nodes.iter().map(|(spec, _)| spec.clone()).collect()
    }

    /// Waits until one node leads and the others follow. A node that ends meanwhile ends it all.
    async fn wait_for_leader(&mut self, dir: &Path) -> Result<u64, Error> {
        let specs = self.specs();
        let mut progress = Progress::new();
        let led = {
            let mut elected =
                pin!(timeout_at(Instant::now() + LEADER_LIMIT, elected(&specs, &mut progress)));
            tokio::select! {
                led = &mut elected => led.map_err(|_| None),
                died = first_end(&mut self.nodes) => Err(Some(died)),
            }
        };
        progress.clear();
        let logs = format!("see {}/node-*/node.log", dir.display());
        led.map_err(|died| match died {
            None => Error::new(format!("no leader after {LEADER_LIMIT:?}"), logs),
            Some((id, how)) => {
                let words = specs.iter().find(|spec| spec.id == id).and_then(NodeSpec::last_words);
                let words = words.map(|words| format!(": {words}")).unwrap_or_default();
                Error::new(format!("node {id} ended at its start ({}){words}", told(&how)), logs)
            }
        })
    }

    /// Says what dies until told to stop.
    async fn watch(
        &mut self,
        options: &UpOptions,
        interrupts: &mut Interrupts,
    ) -> Result<(), Error> {
        loop {
            let (id, how) = tokio::select! {
                died = first_end(&mut self.nodes) => died,
                () = interrupts.next() => {
                    self.stop(interrupts).await;
                    return Ok(());
                }
            };
            for (spec, _) in self.nodes.iter_mut().filter(|(spec, _)| spec.id == id) {
                // It must not found a second cluster should its data be lost.
                spec.bootstrap = false;
                let ended = matches!(&how, Ok(status) if status.success());
                let what = if ended { "stopped" } else { "died" };
                say(format_args!(
                    "node {id} {what} ({}); its log: {}\nto restart it:\n  {}",
                    told(&how),
                    spec.log().display(),
                    spec.shell_command(&options.typed_as)
                ));
            }
            if self.nodes.iter().all(|(_, process)| process.is_none()) {
                return Err(Error::new("no node is left", "run `up` again: the data is kept"));
            }
        }
    }

    /// Stops every node and waits for it; a second interrupt, or too long a wait, kills.
    async fn stop(&mut self, interrupts: &mut Interrupts) {
        say("stopping; once more kills");
        for (_, process) in &mut self.nodes {
            if let Some(process) = process {
                process.close();
            }
        }
        let deadline = Instant::now() + STOP_LIMIT;
        tokio::select! {
            stopped = timeout_at(deadline, self.all_ended()) => {
                if stopped.is_err() {
                    say(format_args!("killing what has not stopped after {STOP_LIMIT:?}"));
                }
            }
            () = interrupts.next() => say("killing"),
        }
        for (_, process) in &mut self.nodes {
            if let Some(process) = process {
                process.signal(Kill::KILL);
            }
        }
        self.all_ended().await;
    }

    async fn all_ended(&mut self) {
        while self.nodes.iter().any(|(_, process)| process.is_some()) {
            let _ended = first_end(&mut self.nodes).await;
        }
    }
}

/// Waits until one node leads and all are ready, or leads for a while. Returns the leader.
async fn elected(specs: &[NodeSpec], progress: &mut Progress) -> u64 {
    let mut ticks = interval(PROBE_INTERVAL);
    let mut others_by = None;
    loop {
        ticks.tick().await;
        let (mut ready, mut leader) = (0, None);
        let answers = probe::all(specs.iter().map(|spec| spec.addresses.admin)).await;
        for readiness in answers.into_iter().flatten() {
            ready += usize::from(readiness.ready);
            leader = leader.or(readiness.leads.then_some(readiness.node_id));
        }
        let (of, who) = (specs.len(), if leader.is_some() { "" } else { ", no leader yet" });
        progress.show(format!("starting: {ready} of {of} nodes are ready{who}"));
        if let Some(leader) = leader {
            let late = *others_by.get_or_insert_with(|| Instant::now() + FOLLOWERS_LIMIT);
            if ready == of || Instant::now() > late {
                return leader;
            }
        }
    }
}

/// Waits until a node ends, and takes its process away. Never returns when none is left.
async fn first_end(nodes: &mut [(NodeSpec, Option<NodeProcess>)]) -> (u64, io::Result<ExitStatus>) {
    let (at, how) = {
        let mut waits: Vec<_> = nodes
            .iter_mut()
            .enumerate()
            .filter_map(|(at, (_, process))| Some((at, Box::pin(process.as_mut()?.wait()))))
            .collect();
        poll_fn(|context| {
            for (at, wait) in &mut waits {
                if let Poll::Ready(how) = wait.as_mut().poll(context) {
                    return Poll::Ready((*at, how));
                }
            }
            Poll::Pending
        })
        .await
    };
    nodes[at].1 = None;
    (nodes[at].0.id, how)
}

/// How a process ended, in words: `exit status: 1`, `signal: 9 (SIGKILL)`.
fn told(how: &io::Result<ExitStatus>) -> String {
    match how {
        Ok(status) => status.to_string(),
        Err(error) => format!("unknown: {error}"),
    }
}

/// Whether the command line finds this cluster only when it is told where it is.
fn needs_endpoints(options: &UpOptions) -> bool {
    let default_dir = Path::new(DEFAULT_DATA_DIR);
    let found_by_file = !options.ephemeral
        && options.data_dir.strip_prefix(".").unwrap_or(&options.data_dir) == default_dir;
    let hidden_by_file = default_dir.join("endpoints").exists();
    let found_by_port =
        options.base_port == DEFAULT_BASE_PORT && options.nodes <= 3 && !hidden_by_file;
    // By port alone nobody finds the CA.
    !found_by_file && (options.tls || !found_by_port)
}
