//! Child processes that never outlive this one: killed and waited for on drop, and told by the
//! system to die where this process is killed itself.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use crate::Error;

/// A child. Dropping it kills it with SIGKILL and waits until it is gone.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program whose output goes to a file.
    pub fn start(program: &Path, args: &[String], log: &Path) -> Result<Self, Error> {
        let out = fs::File::options().create(true).append(true).open(log)?;
        let mut command = if dies_with_parent() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("ETCD_") || name.starts_with("QUORATE_") {
                command.env_remove(name);
            }
        }
        let child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(Self { child })
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// A line of `/proc/PID/status` in kilobytes, such as `VmRSS`.
    pub fn kilobytes(&self, name: &str) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether `setpriv` is there, which replaces itself with the program.
fn dies_with_parent() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let tried = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "true"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        tried.is_ok_and(|status| status.success())
    })
}
