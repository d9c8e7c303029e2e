//! The program as a subprocess: what it is given, and what came out of it.

use std::process::{ExitStatus, Stdio};

use quorate::testing::Cluster;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{LIMIT, PROGRAM};

/// The command line against one cluster.
#[derive(Clone, Debug)]
pub(crate) struct Cli {
    endpoints: String,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cli {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self::at(cluster.endpoints().join(","))
    }

    pub(crate) fn at(endpoints: impl Into<String>) -> Self {
        Self { endpoints: endpoints.into() }
    }

    /// A command that was not started, in a directory without a `quorate-data`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .args(args)
            .env("QUORATE_ENDPOINTS", &self.endpoints)
            .env_remove("QUORATE_CONFIG")
            .env_remove("QUORATE_OUTPUT")
            .env_remove("QUORATE_TIMEOUT")
            .env_remove("QUORATE_TLS_CA")
            .env_remove("QUORATE_TLS_CLIENT_CERT")
            .env_remove("QUORATE_TLS_CLIENT_KEY")
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, "").await
    }

    /// Runs a command that reads `input`.
    pub(crate) async fn run_with(&self, args: &[&str], input: &str) -> Ended {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        // A command that does not read may have ended.
        let _ended = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = timeout(LIMIT, child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("{args:?} has not ended"));
        let output = output.expect("its end is seen");
        Ended {
            code: code(output.status),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    }

    /// Runs a command that must succeed without a word on standard error; its output.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args).await;
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{args:?}: {ended:?}");
        ended.stdout
    }

    /// As [`Cli::ok`], with `-o json`: the answer.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["-o", "json"], args].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// Runs a command that must fail with this code, in one line and at most one hint that do not
    /// touch standard output. Returns the line.
    pub(crate) async fn fails(&self, args: &[&str], code: i32) -> String {
        self.fails_with(args, "", code).await
    }

    /// As [`Cli::fails`], of a command that reads `input`.
    pub(crate) async fn fails_with(&self, args: &[&str], input: &str, code: i32) -> String {
        let ended = self.run_with(args, input).await;
        assert_eq!(ended.code, code, "{args:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{args:?}: an error is talk, not data");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        let told = lines.first().unwrap_or_else(|| panic!("{args:?}: not a word"));
        assert!(told.starts_with("error: "), "{args:?}: {told}");
        let hinted = lines.get(1).is_none_or(|line| line.starts_with("hint: "));
        assert!(lines.len() <= 2 && hinted, "{args:?}: {}", ended.stderr);
        (*told).to_owned()
    }

    /// Starts a command that is read line by line.
    pub(crate) fn start(&self, args: &[&str]) -> Running {
        let mut child = self.command(args).spawn().expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        Running { child, stdout }
    }
}

/// A command that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// The next line of standard output; `None` at its end.
    pub(crate) async fn line(&mut self) -> Option<String> {
        let line = timeout(LIMIT, self.stdout.next_line()).await;
        line.expect("a line comes in time").expect("text")
    }

    /// Waits for its end; the exit code and what it said.
    pub(crate) async fn end(self) -> (i32, String) {
        let ended = timeout(LIMIT, self.child.wait_with_output()).await;
        let output = ended.expect("it ends").expect("its end is seen");
        (code(output.status), String::from_utf8(output.stderr).expect("text"))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().map(u32::cast_signed).and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("it runs"), signal).expect("it runs");
    }
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| panic!("it was killed: {status}"))
}
