//! The nodes of a soak: child processes that are killed, started again and looked at.
//!
//! Nothing here decides when.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use tokio::time::{Instant, interval, timeout};

use crate::{
    cli::Error,
    lab::{
        probe,
        process::{NodeProcess, NodeSpec},
    },
    testing::addresses,
    types::Duration,
};

/// How long the whole cluster may take to become ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How long a killed process may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(10);

const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The nodes. Dropping them kills them; their data is removed unless it is to be kept.
#[derive(Debug)]
pub(super) struct Members {
    dir: PathBuf,
    program: PathBuf,
    nodes: BTreeMap<u64, Member>,
    keep: bool,
}

#[derive(Debug)]
struct Member {
    spec: NodeSpec,
    process: Option<NodeProcess>,
}

impl Members {
    /// Starts nodes over empty data below `dir` and waits until all are ready.
    pub(super) async fn start(dir: PathBuf, nodes: u8) -> Result<Self, Error> {
        fs::create_dir(&dir)
            .map_err(|why| Error::failed(format!("{} cannot be made: {why}", dir.display())))?;
        let program = std::env::current_exe()
            .map_err(|why| Error::failed(format!("this program cannot be found: {why}")))?;
        let reserved = addresses::reserve(nodes);
        let members: Vec<_> = (1..).zip(&reserved).map(|(id, a)| (id, a.peer)).collect();
        let nodes = (1..).zip(reserved).map(|(id, addresses)| {
            let dir = dir.join(format!("node-{id}"));
            let (members, flags) = (members.clone(), Vec::new());
            let spec = NodeSpec {
                id,
                dir,
                addresses,
                members,
                bootstrap: true,
                restore: None,
                tls: None,
                flags,
            };
            (id, Member { spec, process: None })
        });
        let mut members = Self { nodes: nodes.collect(), dir, program, keep: false };
        members.start_all()?;
        members.wait_until_ready().await?;
        Ok(members)
    }

    /// Starts every node that is down.
    pub(super) fn start_all(&mut self) -> Result<(), Error> {
        for (id, member) in &mut self.nodes {
            if member.process.is_none() {
                let started = member.spec.spawn(&self.program);
                let why = |error| Error::failed(format!("node {id} cannot start: {error}"));
                member.process = Some(started.map_err(why)?);
            }
        }
        Ok(())
    }

    /// Where clients reach the nodes.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(|member| member.spec.addresses.client.to_string()).collect()
    }

    /// Kills a node with SIGKILL and waits until it is gone. One that is down stays down.
    pub(super) async fn kill(&mut self, id: u64) {
        let process = self.nodes.get_mut(&id).and_then(|member| member.process.take());
        if let Some(mut process) = process {
            process.signal(Signal::KILL);
            // It cannot refuse; dropping it reaps what is left.
            let _gone = timeout(END_LIMIT, process.wait()).await;
        }
    }

    /// Whether every node runs and is ready.
    pub(super) async fn are_ready(&self) -> bool {
        let admins = self.nodes.values().map(|member| member.spec.addresses.admin);
        let answers = probe::all(admins).await;
        answers.iter().all(|answer| answer.as_ref().is_some_and(|answer| answer.ready))
    }

    /// Waits until all nodes are ready.
    pub(super) async fn wait_until_ready(&mut self) -> Result<(), Error> {
        let give_up = Instant::now() + READY_LIMIT;
        let mut ticks = interval(LOOK_INTERVAL);
        while !self.are_ready().await {
            self.check_processes().await?;
            if Instant::now() > give_up {
                return Err(Error::failed(format!(
                    "the nodes are not ready after {READY_LIMIT:?}"
                )));
            }
            ticks.tick().await;
        }
        Ok(())
    }

    /// Refuses to go on where a node ended that nobody killed.
    pub(super) async fn check_processes(&mut self) -> Result<(), Error> {
        for (id, member) in &mut self.nodes {
            let Some(process) = &mut member.process else { continue };
            if timeout(Duration::ZERO, process.wait()).await.is_ok() {
                let words = member.spec.last_words().unwrap_or_default();
                return Err(Error::failed(format!("node {id} ended by itself: {words}")));
            }
        }
        Ok(())
    }

    /// The resident memory of each node that runs, in kilobytes; empty where the system does not
    /// tell.
    pub(super) fn resident_kilobytes(&self) -> Vec<(u64, u64)> {
        let running =
            self.nodes.iter().filter_map(|(id, member)| Some((id, member.process.as_ref()?)));
        running.filter_map(|(id, process)| Some((*id, resident(process)?))).collect()
    }

    /// How many bytes the nodes keep on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        bytes_below(&self.dir)
    }

    /// Leaves the data where it is, and tells where.
    pub(super) fn keep(&mut self) -> &Path {
        self.keep = true;
        &self.dir
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in self.nodes.values_mut() {
            if let Some(process) = &mut member.process {
                process.kill_and_reap();
            }
        }
        if !self.keep {
            let _left = fs::remove_dir_all(&self.dir);
        }
    }
}

fn resident(process: &NodeProcess) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}
