//! Brings a node up from its data directory, and down again.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize},
        mpsc,
    },
    thread::JoinHandle,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{
    host,
    machine::{Head, Machine, MachineConfig, store::StoreError},
    node::{
        Directory, Feed, FeedHead, Handle, RestoreError, Transport, Tuning,
        applier::{Applier, learn_members},
        calls::first_sequence,
        clock::Clock,
        disk::Disk,
        driver::Driver,
        pending::Pending,
        places::Places,
        replica::{Recovered, Replica, ReplicaConfig},
        restore::open_state,
        shared::{DriverInput, Shared},
        space,
        wal_writer::{self, WalJobs},
    },
    observe::Metrics,
    pb::{cluster::v1::NodeStatus, command::v1::RegisterMember},
    raft::{Append, Config, HardMark, LogMark, LogStart, Membership, Restored, RoleKind, Status},
    storage::{self, DataDir, RecoveredGroup, Wal, WalOptions},
    types::{GroupId, LogIndex, Term},
};

/// How many inputs may wait for the driver.
const DRIVER_QUEUE: usize = 4_096;

/// Why a node cannot start, or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// The state store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state and the log do not fit together.
    #[error(
        "the state reaches up to entry {state}, the log begins after entry {log}: the state was \
         lost in part; bring the whole data directory back from a copy"
    )]
    Gap {
        /// The state's last entry.
        state: LogIndex,
        /// The last entry that the log no longer holds.
        log: LogIndex,
    },
    /// A backup was to be restored and is not.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// A thread could not be started.
    #[error("no thread can be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The node found that it cannot go on.
    #[error("{0}")]
    Fatal(String),
}

/// What a node is made of.
#[derive(Debug)]
pub struct NodeOptions {
    /// Who the node is and whom it knows.
    pub directory: Arc<Directory>,
    /// Its data directory, locked.
    pub data: DataDir,
    /// The founding members, where the state holds no membership yet.
    pub membership: Membership,
    /// A backup to begin with, where the data directory is empty.
    pub restore: Option<PathBuf>,
    /// The way to its peers.
    pub transport: Arc<dyn Transport>,
    /// Its knobs.
    pub tuning: Tuning,
    /// Its metrics.
    pub metrics: Metrics,
}

/// A node that runs.
#[derive(Debug)]
pub struct Running {
    handle: Handle,
    fatal: watch::Receiver<Option<String>>,
    threads: Vec<JoinHandle<()>>,
    /// Its end stops the guard of the disk's room.
    guard: Option<mpsc::Sender<()>>,
    /// What stands for the threads in a simulation.
    #[cfg(test)]
    stepped: Option<super::stepped::Task>,
}

impl Drop for Running {
    /// A node that is dropped without [`Running::stop`] ends as in a crash, nobody waits for it.
    fn drop(&mut self) {
        let _ = self.handle.shared.driver.try_send(DriverInput::Stop);
    }
}

impl Running {
    /// The way into the node.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until the node cannot go on; for ever while all is well.
    pub async fn failed(&mut self) -> Error {
        match self.fatal.wait_for(Option::is_some).await {
            Ok(words) => Error::Fatal(words.clone().unwrap_or_default()),
            Err(_) => core::future::pending().await,
        }
    }

    /// Stops the node: what waits for the disk is written, calls end as unknown. Blocks for as long
    /// as the last write takes.
    pub async fn stop(mut self) {
        let shared = Arc::clone(&self.handle.shared);
        let threads = core::mem::take(&mut self.threads);
        drop(self.guard.take());
        #[cfg(test)]
        if let Some(task) = self.stepped.take() {
            task.stop(&shared).await;
        }
        let stop = move || {
            // A driver that is gone already is stopped.
            let _ = shared.driver.send(DriverInput::Stop);
            for thread in threads {
                let _ = thread.join();
            }
            if let Err(error) = shared.store.load().persist() {
                tracing::error!(%error, "the state was not made durable; the log makes up for it");
            }
        };
        // The blocking pool is gone only when the runtime is.
        let _ = host::blocking(stop).await;
    }
}

/// Starts a node: opens log and state, and the threads that own them.
///
/// # Errors
/// Where the directory cannot be read, is damaged, or does not fit together.
pub fn start(options: NodeOptions) -> Result<Running, Error> {
    let NodeOptions { directory, data, membership, restore: backup, transport, tuning, metrics } =
        options;
    // The state first: whether it may be restored hangs on there being no log.
    let store = open_state(&data, backup.as_deref())?;
    let wal_options = WalOptions { segment_bytes: tuning.segment_bytes, ..WalOptions::default() };
    let (mut wal, mut groups) = data.open_wal(wal_options)?;
    let recovered = groups.remove(&GroupId::SYSTEM).unwrap_or_default();
    let config = MachineConfig { retained_revisions: tuning.retained_revisions };
    let machine = Machine::open(store, config.clone())?;
    let restored = restore(&mut wal, recovered, machine.head(), membership)?;

    let (driver, inputs) = mpsc::sync_channel(DRIVER_QUEUE);
    let (applier, applier_jobs) = mpsc::channel();
    let (wal_jobs, wal_inputs) = mpsc::channel::<WalJobs>();
    let head = machine.head();
    let feed = Feed::new(FeedHead {
        index: head.index,
        revision: head.revision,
        position: head.position,
        installs: 0,
    });
    let boot = host::seed();
    let shared = Arc::new(Shared {
        directory,
        data: Arc::new(data),
        metrics,
        feed: Arc::new(feed),
        pending: Pending::default(),
        places: Places::default(),
        clock: Clock::start(),
        boot,
        store: ArcSwap::from_pointee(Arc::clone(machine.store())),
        driver,
        overflow: Mutex::default(),
        applier: applier.clone(),
        sequence: AtomicU64::new(first_sequence(boot)),
        open_calls: AtomicUsize::new(0),
        waiters: AtomicUsize::new(0),
        draining: AtomicBool::new(false),
        space: space::Seen::default(),
        installing: tokio::sync::Mutex::default(),
        status: Mutex::new(no_status()),
        status_changes: watch::Sender::new(NodeStatus::default()),
        fatal: watch::Sender::new(None),
        tuning,
    });
    let view = shared.view();
    if let Some(digest) = view.restored_from()? {
        shared.directory.restore_from(digest);
    }
    let (founded, registered) = learn_members(&view, &shared)?;
    let recovered = Recovered {
        raft: restored,
        sessions: view.sessions()?,
        founded,
        registered,
        next_timer: machine.next_timer(),
    };
    let replica = Replica::new(replica_config(&shared), recovered, shared.clock.now());
    let driver = Driver {
        replica,
        shared: Arc::clone(&shared),
        transport: Arc::clone(&transport),
        wal: wal_jobs,
        applier,
        disk: Disk::default(),
        proposed: VecDeque::new(),
        again: Vec::new(),
        recent_events: 0,
    };
    let applier = Applier { machine, config, shared: Arc::clone(&shared), transport };

    #[cfg(test)]
    if host::simulated::is_on() {
        let fatal = shared.fatal.subscribe();
        let parts = super::stepped::Parts {
            driver,
            inputs,
            wal,
            wal_inputs,
            applier,
            applier_jobs,
            shared: Arc::clone(&shared),
        };
        let stepped = Some(super::stepped::Task::spawn(parts));
        let handle = Handle { shared };
        return Ok(Running { handle, fatal, threads: Vec::new(), guard: None, stepped });
    }
    let id = shared.directory.node_id;
    let (writer, watched) = (Arc::clone(&shared), Arc::clone(&shared));
    let (guard, stop) = mpsc::channel();
    let threads = vec![
        thread(&shared, format!("driver-{id}"), move || driver.run(&inputs))?,
        thread(&shared, format!("wal-{id}"), move || wal_writer::run(wal, &wal_inputs, &writer))?,
        thread(&shared, format!("applier-{id}"), move || applier.run(&applier_jobs))?,
        thread(&shared, format!("space-{id}"), move || space::run(&watched, &stop))?,
    ];
    let fatal = shared.fatal.subscribe();
    Ok(Running {
        handle: Handle { shared },
        fatal,
        threads,
        guard: Some(guard),
        #[cfg(test)]
        stepped: None,
    })
}

/// Joins what the log and the state say. A state beyond the log, or one that the log contradicts,
/// is a snapshot that was installed just before a crash: the log starts anew behind it.
pub(crate) fn restore(
    wal: &mut Wal,
    recovered: RecoveredGroup,
    head: &Head,
    founding: Membership,
) -> Result<Restored, Error> {
    let membership =
        if head.membership.voters.is_empty() { founding } else { head.membership.clone() };
    let RecoveredGroup { mut hard, entries, .. } = recovered;
    let mut start = LogStart {
        index: recovered.purged_index,
        term: recovered.purged_term,
        time: recovered.purged_time,
    };
    if head.index < start.index {
        return Err(Error::Gap { state: head.index, log: start.index });
    }
    let known = match entries.iter().find(|entry| entry.index == head.index) {
        Some(entry) => entry.term == head.term,
        None => head.index == start.index,
    };
    if !known {
        start = LogStart { index: head.index, term: head.term, time: head.time };
        if hard.term < head.term {
            (hard.term, hard.vote) = (head.term, None);
        }
        hard.commit = hard.commit.max(head.index);
        let reset = Append {
            hard,
            reset_to: Some(start),
            truncate_from: None,
            entries: Vec::new(),
            hard_mark: HardMark { term: hard.term, vote: hard.vote },
            log_mark: LogMark { leader_term: start.term, index: start.index },
        };
        wal.append(GroupId::SYSTEM, &reset)?;
        wal.sync()?;
    }
    Ok(Restored {
        hard,
        purged_index: start.index,
        purged_term: start.term,
        last_time: start.time,
        entries,
        applied: head.index,
        membership,
    })
}

fn replica_config(shared: &Shared) -> ReplicaConfig {
    let (directory, tuning) = (&shared.directory, &shared.tuning);
    ReplicaConfig {
        raft: Config {
            id: directory.node_id,
            heartbeat_interval: tuning.heartbeat_interval,
            election_timeout_min: tuning.election_timeout_min,
            election_timeout_max: tuning.election_timeout_max,
            seed: host::seed(),
            ..Config::default()
        },
        boot: shared.boot,
        patience: tuning.leader_patience,
        retained_log_bytes: tuning.retained_log_bytes,
        new_cluster_id: host::random().to_string(),
        member: RegisterMember {
            node_id: directory.node_id.value(),
            incarnation: directory.incarnation.to_string(),
            peer_address: directory.peer_address.clone(),
            client_address: directory.client_address.clone(),
        },
    }
}

fn no_status() -> Status {
    Status {
        role: RoleKind::Follower,
        term: Term::ZERO,
        leader: None,
        leader_ready: false,
        first: LogIndex::ZERO,
        last: LogIndex::ZERO,
        commit: LogIndex::ZERO,
        applied: LogIndex::ZERO,
        membership: Membership::default(),
    }
}

/// A thread without which the node cannot go on: should it panic, the node stops.
fn thread(
    shared: &Arc<Shared>,
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, std::io::Error> {
    struct Guard(Arc<Shared>, String);

    impl Drop for Guard {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.fail(format!("the thread {} broke an invariant, see the log", self.1));
                self.0.pending.clear();
            }
        }
    }

    let guard = Guard(Arc::clone(shared), name.clone());
    std::thread::Builder::new().name(name).spawn(move || {
        let _guard = guard;
        body();
    })
}
