//! The data directory of a node, held by one process at a time.
//!
//! ```text
//! lock        held while a process works here; says which
//! identity    node, disk incarnation, cluster
//! wal/        the log of all groups
//! state/      the state store: rows.redb, and incoming.redb while a snapshot is installed
//! snapshots/  snapshots on their way in
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    host,
    machine::store::Store,
    storage::{
        Error, Identity, RecoveredGroup, Step, Wal, WalOptions,
        files::{DiskFiles, sync_directory},
        reached,
        store::RedbStore,
    },
    types::{ClusterId, GroupId, Incarnation, NodeId},
};

const LOCK_FILE: &str = "lock";
const WAL_DIRECTORY: &str = "wal";
const STATE_DIRECTORY: &str = "state";
const SNAPSHOT_DIRECTORY: &str = "snapshots";
const STATE_FILE: &str = "rows.redb";
const INCOMING_FILE: &str = "incoming.redb";

/// What the operator said about an empty directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bootstrap {
    /// Nothing: an empty directory is refused.
    No,
    /// It is meant: this node belongs to a cluster that is being founded.
    Yes,
}

/// A data directory that this process holds. Clones are the same directory, from any thread; it is
/// free again when the last one is dropped.
#[derive(Clone, Debug)]
pub struct DataDir {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    identity: Mutex<Identity>,
    fresh: bool,
    /// The lock goes with the descriptor.
    _lock: File,
}

/// A store that is being filled and is not the node's state yet. Dropped without
/// [`DataDir::switch_state`] it is removed at the next start.
#[derive(Debug)]
pub struct PendingState {
    store: Arc<dyn Store>,
}

impl DataDir {
    /// Takes a directory for a node. An empty one becomes the node's where `bootstrap` says so.
    ///
    /// # Errors
    /// Where another process holds it, it is another node's, it is empty without a bootstrap, part
    /// of it is missing, its format is unknown or the disk fails.
    pub fn open(path: &Path, node_id: NodeId, bootstrap: Bootstrap) -> Result<Self, Error> {
        let shown = || path.display().to_string();
        fs::create_dir_all(path).map_err(|error| Error::io("create", shown(), error))?;
        let lock = lock(path)?;
        let known = Identity::read(path)?;
        let fresh = known.is_none();
        let identity = match known {
            Some(identity) if identity.node_id == node_id => identity,
            Some(Identity { node_id: found, .. }) => {
                return Err(Error::OtherNode { path: path.into(), found, wanted: node_id });
            }
            None => begin(path, node_id, bootstrap)?,
        };
        for directory in [STATE_DIRECTORY, SNAPSHOT_DIRECTORY] {
            fs::create_dir_all(path.join(directory))
                .map_err(|error| Error::io("create", shown(), error))?;
        }
        let this = Inner { path: path.into(), identity: identity.into(), fresh, _lock: lock };
        this.remove_leftovers().map_err(|error| Error::io("clean", shown(), error))?;
        Ok(Self { inner: Arc::new(this) })
    }

    /// Whose directory this is, as known now.
    #[must_use]
    pub fn identity(&self) -> Identity {
        *self.inner.identity()
    }

    /// Whether the directory was empty when it was opened.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.inner.fresh
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Notes durably which cluster the directory belongs to.
    ///
    /// # Errors
    /// Where it belongs to another one, or the disk fails.
    pub fn set_cluster_id(&self, cluster_id: ClusterId) -> Result<(), Error> {
        let path = &self.inner.path;
        self.inner.change_identity(|identity| match identity.cluster_id {
            Some(found) if found != cluster_id => {
                Err(Error::OtherCluster { path: path.clone(), found, wanted: cluster_id })
            }
            _ => {
                identity.cluster_id = Some(cluster_id);
                Ok(())
            }
        })
    }

    /// Opens the log.
    ///
    /// # Errors
    /// Where it is gone, corrupt, of an unknown version, or the disk fails.
    pub fn open_wal(
        &self,
        options: WalOptions,
    ) -> Result<(Wal, std::collections::BTreeMap<GroupId, RecoveredGroup>), Error> {
        let path = self.inner.path.join(WAL_DIRECTORY);
        let shown = path.display().to_string();
        let files =
            DiskFiles::open(&path).map_err(|error| Error::io("open", shown.clone(), error))?;
        if self.identity().log_begun && !Wal::exists(&files)? {
            return Err(Error::Missing { what: format!("the log {shown}") });
        }
        let opened = Wal::open(files, options)?;
        self.inner.change_identity(|identity| {
            identity.log_begun = true;
            Ok(())
        })?;
        Ok(opened)
    }

    /// Opens the state store. It holds the batches up to some point not before the last persist;
    /// a missing one is empty, so compare its head with where the log starts.
    ///
    /// # Errors
    /// Where it is corrupt, of an unknown version, or the disk fails.
    pub fn open_state(&self) -> Result<Arc<dyn Store>, Error> {
        Ok(Arc::new(RedbStore::open(&self.inner.state(STATE_FILE))?))
    }

    /// Whether there is a state store, empty or not.
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.inner.state(STATE_FILE).exists()
    }

    /// Makes an empty store for a snapshot that is being installed. Only one is made at a time.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn begin_state(&self) -> Result<(Arc<dyn Store>, PendingState), Error> {
        let path = self.inner.state(INCOMING_FILE);
        remove(&path).map_err(|error| Error::io("remove", path.display().to_string(), error))?;
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(&path)?);
        Ok((Arc::clone(&store), PendingState { store }))
    }

    /// Persists a filled store and makes it the node's state. A crash leaves the old state or the
    /// new one whole; the store that [`DataDir::begin_state`] gave stays open and is the state now.
    /// Views of the old one stay readable till they are dropped.
    ///
    /// # Errors
    /// Where the disk fails; then the old state may or may not be in force, and the node must stop.
    pub fn switch_state(&self, pending: PendingState) -> Result<(), Error> {
        pending.store.persist()?;
        let (from, to) = (self.inner.state(INCOMING_FILE), self.inner.state(STATE_FILE));
        let switched = fs::rename(&from, &to).and_then(|()| {
            reached(Step::Renamed);
            sync_directory(&self.inner.path.join(STATE_DIRECTORY))
        });
        switched.map_err(|error| Error::io("switch to", from.display().to_string(), error))?;
        reached(Step::Switched);
        Ok(())
    }

    /// Where received snapshots are kept till they are installed.
    #[must_use]
    pub fn incoming_path(&self) -> PathBuf {
        self.inner.path.join(SNAPSHOT_DIRECTORY)
    }
}

impl Inner {
    fn identity(&self) -> MutexGuard<'_, Identity> {
        // It is only ever replaced as a whole.
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_identity(
        &self,
        change: impl FnOnce(&mut Identity) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut identity = self.identity();
        let mut changed = *identity;
        change(&mut changed)?;
        if changed != *identity {
            changed.write(&self.path)?;
            *identity = changed;
        }
        Ok(())
    }

    fn state(&self, file: &str) -> PathBuf {
        self.path.join(STATE_DIRECTORY).join(file)
    }

    /// Removes what an earlier process was in the middle of.
    fn remove_leftovers(&self) -> io::Result<()> {
        remove(&self.state(INCOMING_FILE))?;
        sync_directory(&self.path)
    }
}

/// How many bytes are free for this process in the file system of a path.
///
/// # Errors
/// Where the file system does not say.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Makes an empty directory a node's.
fn begin(path: &Path, node_id: NodeId, bootstrap: Bootstrap) -> Result<Identity, Error> {
    for (part, found) in [(WAL_DIRECTORY, "a log"), (STATE_DIRECTORY, "state")] {
        let full = fs::read_dir(path.join(part)).is_ok_and(|mut files| files.next().is_some());
        if full {
            return Err(Error::NoIdentity { path: path.into(), found });
        }
    }
    if bootstrap == Bootstrap::No {
        return Err(Error::Empty { path: path.into() });
    }
    let incarnation = Incarnation::new(host::random());
    let identity = Identity { node_id, incarnation, cluster_id: None, log_begun: false };
    identity.write(path)?;
    if let Some(parent) = path.parent() {
        sync_directory(parent)
            .map_err(|error| Error::io("sync", parent.display().to_string(), error))?;
    }
    Ok(identity)
}

/// Locks a directory against other processes.
fn lock(path: &Path) -> Result<File, Error> {
    let file = path.join(LOCK_FILE);
    let io = |error| Error::io("lock", file.display().to_string(), error);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file);
    let mut lock = open.map_err(io)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            let holder = match lock.read_to_string(&mut holder) {
                Ok(_) if !holder.trim().is_empty() => format!(" (pid {})", holder.trim()),
                _ => String::new(),
            };
            return Err(Error::InUse { path: path.into(), holder });
        }
        Err(error) => return Err(io(error.into())),
    }
    // For people only; the lock is the descriptor's.
    let pid = format!("{}\n", std::process::id());
    lock.set_len(0).and_then(|()| lock.write_all(pid.as_bytes())).map_err(io)?;
    Ok(lock)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
