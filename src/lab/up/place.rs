//! Where a cluster lives: its directory, what is known of it, and its ports.
//!
//! All checks that can refuse an `up` are here, and all of them come before the first node starts.

use std::{
    env, fs, io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use crate::{
    lab::{
        certificates::{Certificates, LOOPBACK},
        process::NodeSpec,
        up::{Error, UpOptions},
    },
    server::Addresses,
    types::Duration,
};

/// What is known of the cluster, in its directory.
const CLUSTER_FILE: &str = "cluster.toml";

/// Held locked while an `up` runs; holds its process id.
const LOCK_FILE: &str = "up.lock";

/// The client addresses, for the command line: one line, separated by commas.
const ENDPOINTS_FILE: &str = "endpoints";

/// The CA that clients trust, beside the endpoints, where nodes speak TLS.
const CA_FILE: &str = "ca.pem";

/// The version of the cluster file's format.
const VERSION: u32 = 1;

/// How many names a temporary directory may find taken.
const TEMPORARY_ATTEMPTS: u32 = 100;

/// How often the lock is tried for, and how long to wait in between.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    version: u32,
    nodes: u8,
    founded: bool,
}

/// A cluster's directory, locked for this `up`.
#[derive(Debug)]
pub(super) struct Place {
    dir: PathBuf,
    nodes: u8,
    founded: bool,
    ephemeral: bool,
    /// Unlocks when dropped.
    _lock: fs::File,
}

impl Place {
    /// Takes the directory, made if need be.
    pub(super) fn take(options: &UpOptions) -> Result<Self, Error> {
        let dir = if options.ephemeral {
            temporary_dir()?
        } else {
            make_dir(&options.data_dir)?;
            options.data_dir.clone()
        };
        // Children get absolute paths, so that the commands to copy work from anywhere.
        let dir = fs::canonicalize(&dir).map_err(|why| cannot(&dir, "be opened", &why))?;
        let lock = lock(&dir)?;
        let founded = match read_cluster(&dir)? {
            Some(cluster) if cluster.nodes != options.nodes => {
                return Err(Error::new(
                    format!(
                        "{} was made with --nodes {}, not {}",
                        dir.display(),
                        cluster.nodes,
                        options.nodes
                    ),
                    format!("use --nodes {}, another --data-dir or --ephemeral", cluster.nodes),
                ));
            }
            Some(cluster) if cluster.founded && options.restore.is_some() => {
                return Err(Error::new(
                    format!("{} holds a cluster, which a backup does not replace", dir.display()),
                    "restore into another --data-dir or --ephemeral, or leave --restore out",
                ));
            }
            Some(cluster) => cluster.founded,
            None => {
                refuse_foreign(&dir)?;
                false
            }
        };
        let place =
            Self { dir, nodes: options.nodes, founded, ephemeral: options.ephemeral, _lock: lock };
        place.write_cluster()?;
        Ok(place)
    }

    /// The directory, absolute.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the cluster had a leader once: an empty disk must not found it again.
    pub(super) const fn is_founded(&self) -> bool {
        self.founded
    }

    /// Notes that the cluster had a leader.
    pub(super) fn found(&mut self) -> Result<(), Error> {
        if self.founded {
            return Ok(());
        }
        self.founded = true;
        self.write_cluster()
    }

    /// Finds the certificates of the cluster, or makes them.
    pub(super) fn certificates(&self) -> Result<Certificates, Error> {
        let made = Certificates::in_dir(&self.dir, self.nodes, &LOOPBACK);
        made.map_err(|why| cannot(&self.dir.join("tls"), "be filled", &why))
    }

    /// Tells the command line where the nodes are, and whom to trust where they speak TLS.
    pub(super) fn write_endpoints(
        &self,
        specs: &[NodeSpec],
        tls: Option<&Certificates>,
    ) -> Result<(), Error> {
        let (file, ca) = (self.dir.join(ENDPOINTS_FILE), self.ca_file());
        match tls {
            Some(tls) => {
                let text = fs::read_to_string(tls.ca());
                replace(&ca, &text.map_err(|why| cannot(&tls.ca(), "be read", &why))?)?;
            }
            // An `up` that was killed may have left it.
            None => remove(&ca)?,
        }
        replace(&file, &(endpoints(specs) + "\n"))
    }

    /// Where clients find the CA while nodes speak TLS.
    pub(super) fn ca_file(&self) -> PathBuf {
        self.dir.join(CA_FILE)
    }

    /// Leaves the directory as it should be found: without endpoints that nobody serves, or not at
    /// all.
    pub(super) fn leave(self) {
        if self.ephemeral {
            if let Err(error) = fs::remove_dir_all(&self.dir) {
                tracing::warn!(%error, dir = %self.dir.display(), "not removed");
            }
        } else {
            // It was written by this `up`, and another `up` writes it again.
            let _gone = fs::remove_file(self.dir.join(ENDPOINTS_FILE));
            let _gone = fs::remove_file(self.ca_file());
        }
    }

    fn write_cluster(&self) -> Result<(), Error> {
        let text = format!(
            "# Written by `quorate up`.\nversion = {VERSION}\nnodes = {}\nfounded = {}\n",
            self.nodes, self.founded
        );
        replace(&self.dir.join(CLUSTER_FILE), &text)
    }
}

/// The client addresses, separated by commas.
pub(super) fn endpoints(specs: &[NodeSpec]) -> String {
    specs.iter().map(|spec| spec.addresses.client.to_string()).collect::<Vec<_>>().join(",")
}

/// Refuses where a port is taken. Whoever takes one between here and the start wins; the node then
/// says so itself.
pub(super) fn check_ports(specs: &[NodeSpec]) -> Result<(), Error> {
    for spec in specs {
        let Addresses { client, peer, admin } = spec.addresses;
        for (address, use_of) in [(client, "clients"), (peer, "peers"), (admin, "admin pages")] {
            check_port(address).map_err(|why| {
                Error::new(
                    format!("{address}, for node {}'s {use_of}: {why}", spec.id),
                    "stop what listens there, or choose other ports with --base-port",
                )
            })?;
        }
    }
    Ok(())
}

fn check_port(address: SocketAddr) -> Result<(), String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err("the port is taken".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|why| cannot(dir, "be made", &why))
}

/// A directory of our own below the system's temporary one.
fn temporary_dir() -> Result<PathBuf, Error> {
    let parent = env::temp_dir();
    for attempt in 0..TEMPORARY_ATTEMPTS {
        let dir = parent.join(format!("quorate-up-{}-{attempt}", std::process::id()));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot(&dir, "be made", &error)),
        }
    }
    Err(Error::new(
        format!("{}: no name is free for a temporary directory", parent.display()),
        "remove old quorate-up-* directories there",
    ))
}

fn lock(dir: &Path) -> Result<fs::File, Error> {
    let file = dir.join(LOCK_FILE);
    let lock = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(|why| cannot(&file, "be written", &why))?;
    if !try_lock(&lock) {
        let holder = fs::read_to_string(&file).unwrap_or_default();
        let holder = holder.trim();
        let by = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
        return Err(Error::new(
            format!("{} is in use by another `quorate up`{by}", dir.display()),
            "stop that one, or use another --data-dir or --ephemeral",
        ));
    }
    fs::write(&file, format!("{}\n", std::process::id()))
        .map_err(|why| cannot(&file, "be written", &why))?;
    Ok(lock)
}

/// Tries for a moment: a child that was forked and has not begun its program yet holds a copy of
/// every lock of its parent.
fn try_lock(file: &fs::File) -> bool {
    for _ in 0..LOCK_ATTEMPTS {
        if flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else is under way yet")]
        std::thread::sleep(LOCK_PAUSE);
    }
    false
}

fn read_cluster(dir: &Path) -> Result<Option<ClusterFile>, Error> {
    let file = dir.join(CLUSTER_FILE);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot(&file, "be read", &error)),
    };
    let unknown = || {
        Error::new(
            format!("{} is not what this version writes", file.display()),
            "use another --data-dir or --ephemeral",
        )
    };
    let cluster: ClusterFile = toml::from_str(&text).map_err(|_| unknown())?;
    if cluster.version == VERSION { Ok(Some(cluster)) } else { Err(unknown()) }
}

/// A directory with somebody else's files in it is not made into a cluster.
fn refuse_foreign(dir: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(dir).map_err(|why| cannot(dir, "be read", &why))?;
    let names = entries.filter_map(Result::ok).map(|entry| entry.file_name());
    match names.into_iter().find(|name| name != LOCK_FILE) {
        None => Ok(()),
        Some(name) => Err(Error::new(
            format!("{} holds something else: {}", dir.display(), name.to_string_lossy()),
            "use an empty or a new --data-dir, or --ephemeral",
        )),
    }
}

/// Replaces a file whole.
fn replace(file: &Path, text: &str) -> Result<(), Error> {
    let fresh = file.with_extension("new");
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, file))
        .map_err(|why| cannot(file, "be written", &why))
}

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(cannot(file, "be removed", &error))
        }
        _ => Ok(()),
    }
}

fn cannot(path: &Path, what: &str, why: &io::Error) -> Error {
    Error::new(
        format!("{} cannot {what}: {why}", path.display()),
        "use another --data-dir or --ephemeral",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, nodes: u8) -> UpOptions {
        UpOptions {
            nodes,
            base_port: 7400,
            data_dir: dir.to_owned(),
            ephemeral: false,
            restore: None,
            tls: false,
            node_flags: Vec::new(),
            program: "quorate".into(),
            typed_as: "quorate".to_owned(),
        }
    }

    #[test]
    fn a_place_is_taken_once_at_a_time_and_remembers_what_it_is() {
        let parent = tempfile::tempdir().expect("a directory");
        let dir = parent.path().join("data");
        let mut place = Place::take(&options(&dir, 3)).expect("free");
        assert!(!place.is_founded());
        let taken = Place::take(&options(&dir, 3)).expect_err("taken");
        assert!(taken.to_string().contains("in use by another"), "{taken}");
        place.found().expect("written");
        place.leave();

        let other = Place::take(&options(&dir, 5)).expect_err("another size");
        assert!(other.to_string().contains("was made with --nodes 3, not 5"), "{other}");
        assert!(other.to_string().contains("use --nodes 3"), "{other}");
        let backup = UpOptions { restore: Some("b".into()), ..options(&dir, 3) };
        let used = Place::take(&backup).expect_err("a backup does not replace it");
        assert!(used.to_string().contains("holds a cluster"), "{used}");
        let again = Place::take(&options(&dir, 3)).expect("free again");
        assert!(again.is_founded());
    }

    #[test]
    fn somebody_elses_directory_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("thesis.tex"), "dear").expect("written");
        let refused = Place::take(&options(dir.path(), 3)).expect_err("foreign");
        assert!(refused.to_string().contains("holds something else: thesis.tex"), "{refused}");
    }

    #[test]
    fn an_ephemeral_place_is_gone_afterwards() {
        let options = UpOptions { ephemeral: true, ..options("quorate-data".as_ref(), 1) };
        let place = Place::take(&options).expect("made");
        let dir = place.dir().to_owned();
        assert!(dir.is_dir() && !dir.ends_with("quorate-data"));
        place.leave();
        assert!(!dir.exists());
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        let mut specs = options("d".as_ref(), 1).specs("d".as_ref(), false, None);
        specs[0].addresses.client = address;
        let refused = check_ports(&specs[..1]).expect_err("taken");
        assert!(refused.to_string().contains(&address.to_string()), "{refused}");
        assert!(refused.to_string().contains("--base-port"), "{refused}");
    }
}
