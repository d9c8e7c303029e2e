//! One node as a child process: its command line, its start, its end.
//!
//! A child runs in a process group of its own, so that a Ctrl-C at the terminal reaches only the
//! supervisor, and with a pipe as standard input, whose closing tells it to stop: so nothing is
//! left behind even when the supervisor is killed.

use std::{
    ffi::OsString,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use tokio::process::{Child, ChildStdin, Command};

use crate::{lab::certificates::NodeFiles, server::Addresses, types::Duration};

/// Variables that set what differs from node to node: here the flags say it, and whoever runs this
/// may have them set for a node of another cluster.
const OF_ONE_NODE: [&str; 19] = [
    "QUORATE_ID",
    "QUORATE_DATA_DIR",
    "QUORATE_LISTEN",
    "QUORATE_PEER_LISTEN",
    "QUORATE_ADMIN_LISTEN",
    "QUORATE_ADVERTISE",
    "QUORATE_PEER_ADVERTISE",
    "QUORATE_ZONE",
    "QUORATE_WEIGHT",
    "QUORATE_BOOTSTRAP",
    "QUORATE_INITIAL_CLUSTER",
    "QUORATE_RESTORE",
    "QUORATE_TLS_CERT",
    "QUORATE_TLS_KEY",
    "QUORATE_TLS_CLIENT_CA",
    "QUORATE_PEER_TLS_CERT",
    "QUORATE_PEER_TLS_KEY",
    "QUORATE_PEER_TLS_CA",
    "QUORATE_PEER_TLS_NAME",
];

/// The log's name in a node's directory.
pub(crate) const LOG_FILE: &str = "node.log";

/// What a node is started with.
#[derive(Clone, Debug)]
pub(crate) struct NodeSpec {
    pub(crate) id: u64,
    /// Its data directory, where its log goes as well.
    pub(crate) dir: PathBuf,
    pub(crate) addresses: Addresses,
    /// Every member's peer address.
    pub(crate) members: Vec<(u64, SocketAddr)>,
    /// Whether its empty data directory may found the cluster.
    pub(crate) bootstrap: bool,
    /// The backup that it founds the cluster from; it counts beside `bootstrap` only.
    pub(crate) restore: Option<PathBuf>,
    /// Its certificates, for clients and for peers; plaintext where there are none.
    pub(crate) tls: Option<NodeFiles>,
    /// Further flags, as a person gave them.
    pub(crate) flags: Vec<String>,
}

impl NodeSpec {
    /// What follows the binary's name.
    fn args(&self) -> Vec<OsString> {
        let members: Vec<String> =
            self.members.iter().map(|(id, address)| format!("{id}={address}")).collect();
        let mut args: Vec<OsString> = vec![
            "node".into(),
            "--id".into(),
            self.id.to_string().into(),
            "--data-dir".into(),
            self.dir.clone().into(),
            "--listen".into(),
            self.addresses.client.to_string().into(),
            "--peer-listen".into(),
            self.addresses.peer.to_string().into(),
            "--admin-listen".into(),
            self.addresses.admin.to_string().into(),
            "--initial-cluster".into(),
            members.join(",").into(),
        ];
        if self.bootstrap {
            args.push("--bootstrap".into());
            if let Some(file) = &self.restore {
                args.extend(["--restore".into(), file.clone().into()]);
            }
        }
        if let Some(NodeFiles { cert, key, ca }) = &self.tls {
            for (flag, file) in [
                ("--tls-cert", cert),
                ("--tls-key", key),
                ("--peer-tls-cert", cert),
                ("--peer-tls-key", key),
                ("--peer-tls-ca", ca),
            ] {
                args.extend([flag.into(), file.clone().into()]);
            }
        }
        args.extend(self.flags.iter().map(OsString::from));
        args
    }

    /// The command that starts this node from a shell, to be copied.
    pub(crate) fn shell_command(&self, program: &str) -> String {
        let args = self.args();
        let words = args.iter().map(|arg| shell_word(&arg.to_string_lossy()));
        std::iter::once(shell_word(program)).chain(words).collect::<Vec<_>>().join(" ")
    }

    /// Starts it; it stops when this process ends.
    pub(crate) fn spawn(&self, program: &Path) -> io::Result<NodeProcess> {
        fs::create_dir_all(&self.dir)?;
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(program);
        for variable in OF_ONE_NODE {
            command.env_remove(variable);
        }
        let mut child = command
            .args(self.args())
            .arg("--stop-on-stdin-close")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let pid = pid.expect("a child that was just started has an id");
        Ok(NodeProcess { child, stdin, pid })
    }

    /// Where its log goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join(LOG_FILE)
    }

    /// The last line of its log that is not empty.
    pub(crate) fn last_words(&self) -> Option<String> {
        let log = fs::read_to_string(self.log()).ok()?;
        log.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

/// A node that was started. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct NodeProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    pid: Pid,
}

impl NodeProcess {
    /// Its process id.
    pub(crate) fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until it has ended. May be given up and called again.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Closes its standard input: the whole cluster stops.
    pub(crate) fn close(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal to its process group. One that has ended is left alone.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It ends on its own between the two lines at worst; then there is nobody to tell.
            let _gone = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    /// Stops it where it stands, and waits until no thread of it runs any more: the signal alone
    /// only asks for that. Returns at once where it has ended.
    pub(crate) fn freeze(&mut self) {
        self.signal(Signal::STOP);
        let look = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
        let pid = self.pid;
        blink_until(|| !matches!(waitid(WaitId::Pid(pid), look), Ok(None)));
    }

    /// Kills it and waits, without a runtime, until it is gone and holds no file any more.
    pub(crate) fn kill_and_reap(&mut self) {
        self.signal(Signal::KILL);
        blink_until(|| !matches!(self.child.try_wait(), Ok(None)));
    }
}

/// How long a process may take to obey a signal that it cannot refuse.
const OBEY_LIMIT: Duration = Duration::from_secs(5);

/// How often it is looked at meanwhile.
const BLINK: Duration = Duration::from_millis(1);

/// Looks again and again whether a process has obeyed, and gives up at the limit.
fn blink_until(mut obeyed: impl FnMut() -> bool) {
    let mut left = OBEY_LIMIT;
    while !obeyed() && !left.is_zero() {
        #[expect(clippy::disallowed_methods, reason = "a drop has no runtime to wait on")]
        std::thread::sleep(BLINK);
        left = left.saturating_sub(BLINK);
    }
}

/// A word as a shell reads it back unchanged.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dir: &Path) -> NodeSpec {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        NodeSpec {
            id: 2,
            dir: dir.to_owned(),
            addresses: Addresses { client: local(7402), peer: local(7412), admin: local(7422) },
            members: vec![(1, local(7411)), (2, local(7412))],
            bootstrap: false,
            restore: Some("backup".into()),
            tls: None,
            flags: vec!["--log-level".to_owned(), "info,quorate=debug".to_owned()],
        }
    }

    #[test]
    fn the_command_to_copy_is_the_whole_command_and_does_not_hang_on_a_terminal() {
        let command = spec(Path::new("my data/node-2")).shell_command("./quorate");
        assert_eq!(
            command,
            "./quorate node --id 2 --data-dir 'my data/node-2' --listen 127.0.0.1:7402 \
             --peer-listen 127.0.0.1:7412 --admin-listen 127.0.0.1:7422 \
             --initial-cluster 1=127.0.0.1:7411,2=127.0.0.1:7412 --log-level info,quorate=debug"
        );
    }

    #[test]
    fn a_backup_is_named_where_the_node_founds_the_cluster() {
        let spec = NodeSpec { bootstrap: true, ..spec(Path::new("d")) };
        let command = spec.shell_command("quorate");
        assert!(command.contains(" --bootstrap --restore backup "), "{command}");
    }

    #[test]
    fn words_survive_the_shell() {
        for word in ["plain", "", "two words", "it's", "$HOME", "a\"b", "*"] {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", shell_word(word))])
                .output()
                .expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[tokio::test]
    async fn a_child_sees_its_input_close_and_its_last_words_are_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("fake");
        let script = "#!/bin/sh\necho started >&2\ncat >/dev/null\necho closed >&2\nexit 3\n";
        fs::write(&program, script).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).expect("executable");
        let spec = spec(&dir.path().join("node"));
        let mut node = spec.spawn(&program).expect("started");
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), node.wait()).await;
        assert!(early.is_err(), "waiting alone closes nothing");
        node.close();
        assert_eq!(node.wait().await.expect("it ended").code(), Some(3));
        assert_eq!(spec.last_words().as_deref(), Some("closed"));
        node.signal(Signal::KILL);
    }

    #[tokio::test]
    async fn a_frozen_child_does_nothing_until_it_is_let_go_on() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("fake");
        let script = "#!/bin/sh\nwhile :; do echo busy >&2; done\n";
        fs::write(&program, script).expect("written");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, mode).expect("executable");
        let spec = spec(&dir.path().join("node"));
        let mut node = spec.spawn(&program).expect("started");
        let said = || fs::metadata(spec.log()).map_or(0, |log| log.len());
        node.freeze();
        let before = said();
        let early = tokio::time::timeout(std::time::Duration::from_millis(20), node.wait()).await;
        assert!(early.is_err(), "it has not ended");
        assert_eq!(said(), before, "it went on");
        node.signal(Signal::CONT);
        blink_until(|| said() > before);
        assert!(said() > before, "it does not go on");
        node.kill_and_reap();
        node.freeze();
    }
}
