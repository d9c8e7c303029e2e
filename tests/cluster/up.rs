//! `quorate up` as a person runs it: it starts, says what dies, and leaves nothing behind.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines},
    process::{Child, Command},
    time::timeout,
};

use quorate::client::Client;

use crate::{LIMIT, PROGRAM, eventually};

/// Tells the clusters of this file apart.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// A running `up` with its directory.
struct Up {
    child: Child,
    pid: Pid,
    out: Lines<BufReader<Box<dyn AsyncRead + Unpin>>>,
    err: Lines<BufReader<Box<dyn AsyncRead + Unpin>>>,
    dir: TempDir,
    base_port: u16,
}

impl Up {
    /// Starts three nodes and waits for the table.
    async fn start() -> Self {
        Self::start_over(tempfile::tempdir().expect("a directory")).await
    }

    /// The same over a directory that may hold a cluster, on ports of its own.
    async fn start_over(dir: TempDir) -> Self {
        Self::start_with(dir, &[]).await
    }

    /// The same with further flags.
    async fn start_with(dir: TempDir, more: &[&str]) -> Self {
        let base_port = free_base_port();
        let mut child = command(dir.path(), base_port, more).spawn().expect("it starts");
        let lines = |pipe: Box<dyn AsyncRead + Unpin>| BufReader::new(pipe).lines();
        let out = lines(Box::new(child.stdout.take().expect("piped")));
        let err = lines(Box::new(child.stderr.take().expect("piped")));
        let pid = Pid::from_raw(child.id().expect("it runs").cast_signed()).expect("an id");
        let mut up = Self { child, pid, out, err, dir, base_port };
        let table = up.say("leader").await;
        assert!(table.contains("127.0.0.1"), "{table}");
        up
    }

    /// The next line of standard output that contains `words`.
    async fn say(&mut self, words: &str) -> String {
        line_with(&mut self.out, words).await
    }

    /// The same of standard error.
    async fn talk(&mut self, words: &str) -> String {
        line_with(&mut self.err, words).await
    }

    /// The process ids of its nodes, from the locks on their directories.
    fn nodes(&self) -> Vec<Pid> {
        (1..=3).map(|id| node_pid(self.dir.path(), id)).collect()
    }

    /// Ends it, and returns its nodes and the directory, which goes when that is dropped.
    async fn end(mut self, signal: Signal) -> (Vec<Pid>, TempDir) {
        let nodes = self.nodes();
        kill_process(self.pid, signal).expect("it runs");
        timeout(LIMIT, self.child.wait()).await.expect("it ends").expect("its end is seen");
        (nodes, self.dir)
    }
}

async fn line_with(
    lines: &mut Lines<BufReader<Box<dyn AsyncRead + Unpin>>>,
    words: &str,
) -> String {
    let mut seen = Vec::new();
    loop {
        let line = timeout(LIMIT, lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("no line says {words:?}, only {seen:?}"));
        match line.expect("lines are text") {
            Some(line) if line.contains(words) => return line,
            Some(line) => seen.push(line),
            None => panic!("no line said {words:?}, only {seen:?}"),
        }
    }
}

fn command(dir: &Path, base_port: u16, more: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("up")
        .args(["--base-port", &base_port.to_string()])
        .args(more)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs an `up` that is to be refused, and returns what it wrote.
async fn refused(dir: &Path, base_port: u16, more: &[&str]) -> String {
    let output = timeout(LIMIT, command(dir, base_port, more).output()).await;
    let Output { status, stdout, stderr } = output.expect("it ends").expect("it starts");
    let words = String::from_utf8(stderr).expect("text");
    assert_eq!(status.code(), Some(1), "{words}");
    assert!(stdout.is_empty(), "a refusal is talk, not data");
    assert_eq!(words.lines().count(), 1, "one line names it and the way out: {words}");
    words
}

/// A base port whose ports are free and below those that the system hands out.
fn free_base_port() -> u16 {
    let process = u16::try_from(std::process::id() % 100).expect("below 100");
    for _ in 0..200 {
        let place = (process * 7 + NEXT.fetch_add(1, Ordering::Relaxed)) % 400;
        let base = 10_000 + place * 50;
        if (1..30).all(|offset| TcpListener::bind(("127.0.0.1", base + offset)).is_ok()) {
            return base;
        }
    }
    panic!("no ports are free");
}

fn node_pid(dir: &Path, id: u16) -> Pid {
    let lock = dir.join(format!("quorate-data/node-{id}/lock"));
    let text = fs::read_to_string(lock).expect("the node holds its directory");
    Pid::from_raw(text.trim().parse().expect("a process id")).expect("not zero")
}

async fn are_gone(nodes: &[Pid]) {
    eventually("the nodes to be gone", async || {
        nodes.iter().all(|node| test_kill_process(*node).is_err()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn other_ports_over_existing_data_are_fine() {
    let up = Up::start().await;
    let client = |base_port: u16, node: u16| {
        let endpoint = format!("127.0.0.1:{}", base_port + node);
        Client::builder().endpoints([endpoint]).build().expect("an endpoint")
    };
    client(up.base_port, 1).kv().set("a", "1").await.expect("written");
    let (nodes, dir) = up.end(Signal::INT).await;
    are_gone(&nodes).await;

    let up = Up::start_over(dir).await;
    for node in 1..=3 {
        let kv = client(up.base_port, node);
        let value = kv.kv().get("a").await.expect("read").map(|kv| kv.value);
        assert_eq!(value.as_deref(), Some(&b"1"[..]), "node {node}");
        kv.kv().set(format!("b{node}"), "2").await.expect("written at each node");
    }
    up.end(Signal::INT).await;
}

#[tokio::test]
async fn ctrl_c_stops_every_node() {
    let up = Up::start().await;
    let data = up.dir.path().join("quorate-data");
    let ports: Vec<_> = (1..=3).map(|id| format!("127.0.0.1:{}", up.base_port + id)).collect();
    let written =
        eventually("the endpoints", async || fs::read_to_string(data.join("endpoints")).ok()).await;
    assert_eq!(written.trim(), ports.join(","));
    let (nodes, _dir) = up.end(Signal::INT).await;
    are_gone(&nodes).await;
}

#[tokio::test]
async fn up_makes_certificates_that_the_command_line_finds() {
    let run = async |dir: &Path, args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        for variable in ["QUORATE_ENDPOINTS", "QUORATE_CONFIG", "QUORATE_TLS_CA"] {
            command.env_remove(variable);
        }
        command.args(args).current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(LIMIT, command.output()).await.expect("it ends").expect("it starts");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let flags = ["--tls", "--lab"];
    let mut up = Up::start_with(tempfile::tempdir().expect("a directory"), &flags).await;
    let grpcurl = up.say("grpcurl").await;
    let data = up.dir.path().join("quorate-data");
    let ca = fs::canonicalize(data.join("ca.pem")).expect("it lies beside the endpoints");
    assert!(grpcurl.contains(&format!("-cacert {}", ca.display())), "{grpcurl}");
    let put = run(up.dir.path(), &["kv", "put", "a", "1"]).await;
    assert_eq!(put.0, Some(0), "{put:?}");
    let healed = run(up.dir.path(), &["lab", "heal"]).await;
    assert_eq!((healed.0, healed.1.lines().count()), (Some(0), 3), "{healed:?}");
    let endpoint = format!("127.0.0.1:{}", up.base_port + 2);
    let blind = run(up.dir.path(), &["--endpoints", &endpoint, "kv", "get", "a"]).await;
    assert_eq!(blind.0, Some(78), "{blind:?}");
    assert!(blind.2.contains("the node demands TLS") && blind.2.contains("--tls-ca"), "{blind:?}");
    let made = fs::read(&ca).expect("it is there");
    let (nodes, dir) = up.end(Signal::INT).await;
    are_gone(&nodes).await;
    assert!(!ca.exists(), "nobody serves by it any more");

    let plain = Up::start_over(dir).await;
    let got = run(plain.dir.path(), &["kv", "get", "a"]).await;
    assert_eq!(got.1.trim_end(), "1", "the same data without TLS: {got:?}");
    let (nodes, dir) = plain.end(Signal::INT).await;
    are_gone(&nodes).await;

    let again = Up::start_with(dir, &["--tls"]).await;
    eventually("the CA to lie there again", async || ca.exists().then_some(())).await;
    assert_eq!(fs::read(&ca).expect("it is there"), made, "the certificates are used again");
    again.end(Signal::INT).await;
}

#[tokio::test]
async fn a_closed_terminal_stops_every_node() {
    let up = Up::start().await;
    let (nodes, _dir) = up.end(Signal::HUP).await;
    are_gone(&nodes).await;
}

#[tokio::test]
async fn kill_9_leaves_nothing_behind() {
    let up = Up::start().await;
    let (nodes, _dir) = up.end(Signal::KILL).await;
    are_gone(&nodes).await;
}

#[tokio::test]
async fn a_second_ctrl_c_kills() {
    let mut up = Up::start().await;
    let nodes = up.nodes();
    for node in &nodes {
        kill_process(*node, Signal::STOP).expect("it runs");
    }
    kill_process(up.pid, Signal::INT).expect("it runs");
    up.talk("once more kills").await;
    kill_process(up.pid, Signal::INT).expect("it runs");
    timeout(Duration::from_secs(10), up.child.wait()).await.expect("no drain").expect("ended");
    are_gone(&nodes).await;
}

#[tokio::test]
async fn a_dead_node_is_announced_with_the_command_that_restarts_it() {
    let mut up = Up::start().await;
    let dead = node_pid(up.dir.path(), 2);
    kill_process(dead, Signal::KILL).expect("it runs");
    let words = up.talk("node 2 died").await;
    assert!(words.contains("SIGKILL"), "{words}");
    let restart = up.talk(" node --id 2 ").await;
    let elsewhere = tempfile::tempdir().expect("a directory");
    let mut again = Command::new("sh")
        .args(["-c", &format!("exec {restart}")])
        .current_dir(&elsewhere)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("a shell");
    let admin = format!("127.0.0.1:{}", up.base_port + 22).parse().expect("an address");
    eventually("the node to be back", async || {
        crate::page(admin, "/readyz").filter(|(code, _)| *code == 200)
    })
    .await;
    let (nodes, _dir) = up.end(Signal::INT).await;
    let by_hand = again.id().map(u32::cast_signed).and_then(Pid::from_raw).expect("it runs on");
    are_gone(&[nodes[0], nodes[2]]).await;
    test_kill_process(by_hand).expect("what a person started is a person's to stop");
    again.kill().await.expect("it ran");
}

#[tokio::test]
async fn what_stands_in_the_way_is_named_and_nothing_starts() {
    let up = Up::start().await;
    let (dir, base) = (up.dir.path(), up.base_port);
    let other = tempfile::tempdir().expect("a directory");
    let taken = refused(other.path(), base, &[]).await;
    assert!(taken.contains(&format!("127.0.0.1:{}", base + 1)), "{taken}");
    assert!(taken.contains("--base-port"), "{taken}");
    assert!(!other.path().join("quorate-data").exists(), "nothing was made");

    let used = refused(dir, free_base_port(), &[]).await;
    assert!(used.contains("is in use by another `quorate up`"), "{used}");
    let (_, dir) = up.end(Signal::INT).await;
    let size = refused(dir.path(), free_base_port(), &["--nodes", "5"]).await;
    assert!(size.contains("was made with --nodes 3, not 5"), "{size}");
}
