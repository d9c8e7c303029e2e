//! A command that runs while a lock is held or a service is registered.
//!
//! Signals reach it once: where standard input is a terminal it shares this process's group, and
//! the terminal's own signals with it; otherwise it leads a group of its own, to which signals are
//! forwarded, so that what it started is stopped with it.

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::Command,
    signal::unix::{self, SignalKind},
    time::{Instant, timeout_at},
};

use crate::{cli::Error, types::Duration};

/// The exit code of a command that was not found.
const NOT_FOUND: u8 = 127;

/// The exit code of a command that could not be run.
const NOT_RUN: u8 = 126;

#[derive(Debug)]
pub(crate) struct Child {
    inner: tokio::process::Child,
    pid: Pid,
    own_group: bool,
}

/// The exit code to pass on: the command's own, or 128 and the signal that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended(pub(crate) u8);

impl Child {
    /// Starts a command.
    ///
    /// # Errors
    /// The exit code to end with where it cannot be started, the reason having been told.
    pub(crate) fn spawn(command: &[OsString], environment: &[(&str, String)]) -> Result<Self, u8> {
        let own_group = !io::stdin().is_terminal();
        let mut process = Command::new(&command[0]);
        process.args(&command[1..]).envs(environment.iter().map(|(name, value)| (name, value)));
        if own_group {
            process.process_group(0);
        }
        let inner = process.spawn().map_err(|error| {
            eprintln!("error: cannot run {}: {error}", command[0].to_string_lossy());
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_RUN }
        })?;
        let pid = inner.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.expect("a process that was just started has an id");
        Ok(Self { inner, pid, own_group })
    }

    /// Waits for its end.
    pub(crate) async fn wait(&mut self) -> Result<Ended, Error> {
        let status = self.inner.wait().await;
        status.map(ended).map_err(|error| Error::failed(format!("cannot wait: {error}")))
    }

    /// Passes on a signal that this process got.
    pub(crate) fn forward(&self, signal: Signal) {
        // In a shared group the terminal has sent it to both.
        if self.own_group || signal != Signal::INT {
            self.signal(signal);
        }
    }

    /// Ends it: SIGTERM, and SIGKILL after `grace`.
    pub(crate) async fn stop(&mut self, grace: Duration) -> Result<(), Error> {
        self.signal(Signal::TERM);
        if timeout_at(Instant::now() + grace, self.inner.wait()).await.is_err() {
            self.signal(Signal::KILL);
            self.wait().await?;
        } else if self.own_group {
            // What it started and left behind ends too.
            self.signal(Signal::KILL);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        // It may have ended just now; then nobody is there to get it.
        let _ = if self.own_group {
            kill_process_group(self.pid, signal)
        } else {
            kill_process(self.pid, signal)
        };
    }
}

fn ended(status: ExitStatus) -> Ended {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ended(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The signals that are passed on while a command runs.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Error> {
        let listen = |kind| {
            unix::signal(kind)
                .map_err(|error| Error::failed(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.hangup.recv() => Signal::HUP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        let command = ["sh", "-c", script].map(OsString::from);
        Child::spawn(&command, &[("QUORATE_FENCING_TOKEN", "7".to_owned())]).expect("sh is there")
    }

    #[tokio::test]
    async fn the_exit_code_is_passed_on_and_the_environment_is_there() {
        let ended = shell("exit $QUORATE_FENCING_TOKEN").wait().await.expect("it ends");
        assert_eq!(ended, Ended(7));
        let ended = shell("kill -TERM $$").wait().await.expect("it ends");
        assert_eq!(ended, Ended(128 + 15));
    }

    #[tokio::test]
    async fn a_command_that_ignores_sigterm_is_killed() {
        let mut child = shell("trap '' TERM; while :; do sleep 1; done");
        child.stop(Duration::from_millis(200)).await.expect("it ends");
        assert!(child.wait().await.is_ok());
    }

    #[test]
    fn a_command_that_is_not_there_is_127() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let _entered = runtime.enter();
        let refused = Child::spawn(&["no-such-command-here".into()], &[]).expect_err("not there");
        assert_eq!(refused, NOT_FOUND);
    }
}
