//! TLS as people and strangers meet it: every way in, with the right certificates and the wrong.

mod clients;
mod limits;
mod peers;
mod pki;

use std::net::SocketAddr;

use quorate::testing::Cluster;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{cli::Cli, eventually};

/// The command line over TLS; `flags` come before every command.
#[derive(Clone, Debug)]
struct SecureCli {
    cli: Cli,
    flags: Vec<String>,
}

impl SecureCli {
    fn of(cluster: &Cluster, ca: impl Into<String>) -> Self {
        Self { cli: Cli::of(cluster), flags: vec!["--tls-ca".to_owned(), ca.into()] }
    }

    /// Shows this certificate.
    fn showing(mut self, pair: &pki::Pair) -> Self {
        self.flags.extend(["--tls-client-cert".to_owned(), pair.cert()]);
        self.flags.extend(["--tls-client-key".to_owned(), pair.key()]);
        self
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        self.flags.iter().map(String::as_str).chain(args.iter().copied()).collect()
    }

    async fn ok(&self, args: &[&str]) -> String {
        self.cli.ok(&self.args(args)).await
    }

    async fn fails(&self, args: &[&str], code: i32) -> String {
        self.cli.fails(&self.args(args), code).await
    }
}

/// Waits until a node has logged a refusal for this reason at this listener, in one line.
async fn logged(cluster: &Cluster, node: u64, listener: &str, reason: &str) -> String {
    let (listener, reason) = (format!("listener=\"{listener}\""), format!("reason=\"{reason}\""));
    eventually(&format!("node {node} to log {listener} {reason}"), async || {
        let log = cluster.log(node);
        let told = |line: &&str| {
            line.contains("WARN") && line.contains(&listener) && line.contains(&reason)
        };
        log.lines().find(told).map(str::to_owned)
    })
    .await
}

/// The metrics of a node.
async fn metrics(admin: SocketAddr) -> String {
    let mut stream = TcpStream::connect(admin).await.expect("it listens");
    let request = b"GET /metrics HTTP/1.1\r\nHost: quorate\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

/// Waits until a node counts at least one of `name`.
async fn counted(cluster: &Cluster, node: u64, name: &str) {
    eventually(&format!("node {node} to count {name}"), async || {
        let metrics = metrics(cluster.admin_address(node)).await;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.filter(|count: &u64| *count > 0).map(drop)
    })
    .await;
}
