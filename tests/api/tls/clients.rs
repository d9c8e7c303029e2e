//! Clients: each command over TLS, strangers turned away and told why, certificates that change.

use std::{fs, process::Stdio};

use quorate::testing::Cluster;
use rcgen::{CertificateParams, SanType};
use tokio::{process::Command, time::timeout};

use super::{
    SecureCli, counted, logged,
    pki::{Authority, Pair, Pki, expired},
};
use crate::{
    LIMIT, PROGRAM,
    cli::{Cli, Ended},
    eventually, settle,
};

/// One node that shows clients a certificate of `server`, and demands theirs of `client_ca`; with
/// the files of its certificate.
async fn one_node(
    server: &Authority,
    change: impl FnOnce(&mut CertificateParams),
    client_ca: Option<&str>,
) -> (Cluster, Pair) {
    // Its address is known only once it runs.
    let pair = server.sign("node");
    let mut text = format!("tls_cert = {:?}\ntls_key = {:?}\n", pair.cert(), pair.key());
    if let Some(ca) = client_ca {
        text += &format!("tls_client_ca = {ca:?}\n");
    }
    let mut cluster = Cluster::builder(1).program(PROGRAM).settings(text).start().await;
    let address = cluster.admin_address(1).ip();
    server.sign_with("node", |params| {
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        change(params);
    });
    cluster.restart(1).await;
    cluster.wait_until_ready().await;
    (cluster, pair)
}

#[tokio::test]
async fn every_command_works_over_tls() {
    let cluster = settle(Cluster::builder(3).program(PROGRAM).tls().start().await).await;
    let cli = SecureCli::of(&cluster, cluster.ca_file().display().to_string());
    let status = cli.ok(&["status"]).await;
    assert_eq!(status.matches("follower").count(), 2, "peers answer each other: {status}");
    cli.ok(&["kv", "put", "a", "1"]).await;
    assert_eq!(cli.ok(&["kv", "get", "a"]).await.trim_end(), "1");
    let ran = cli.ok(&["lock", "acquire", "demo", "--", "sh", "-c", "echo $QUORATE_LOCK_NAME"]);
    assert_eq!(ran.await, "demo\n");
    cli.ok(&["service", "register", "web", "--address", "h:1", "--ttl", "30s"]).await;
    assert!(cli.ok(&["service", "resolve", "web"]).await.contains("h:1"));

    let mut events = cli.cli.start(&cli.args(&["events", "subscribe", "orders"]));
    eventually("the event to arrive", async || {
        let line = "{\"type\":\"Created\",\"data\":{}}\n";
        cli.cli.run_with(&cli.args(&["events", "append", "orders"]), line).await;
        timeout(std::time::Duration::from_secs(1), events.line()).await.ok().flatten()
    })
    .await;
    let transferred = cli.ok(&["cluster", "transfer"]).await;
    assert!(!transferred.is_empty());
    let hashes = cli.ok(&["cluster", "hash"]).await;
    assert_eq!(hashes.lines().count(), 4, "a line a node: {hashes}");
    let folder = tempfile::tempdir().expect("a folder");
    let backup = folder.path().join("backup.qrb").display().to_string();
    // It says on standard error where it saved.
    let saved = cli.cli.run(&cli.args(&["cluster", "snapshot", "save", &backup])).await;
    assert_eq!(saved.code, 0, "{saved:?}");
    for bench in ["put", "put-stream", "get", "lock", "append", "subscribe"] {
        let short = ["--clients", "2", "--duration", "200ms"];
        let report = cli.ok(&[&["bench", bench], &short[..]].concat()).await;
        assert!(report.contains("errors         0"), "{report}");
    }
}

#[tokio::test]
async fn nodes_in_a_tests_own_process_speak_tls_too() {
    let cluster = Cluster::builder(1).tls().start().await;
    cluster.client().kv().set("a", "1").await.expect("written by TLS");
}

#[tokio::test]
async fn grpcurl_is_let_in_with_the_ca_and_not_with_another() {
    if !crate::grpcurl::is_there().await {
        return;
    }
    let cluster = Cluster::builder(1).program(PROGRAM).tls().start().await;
    let ca = cluster.ca_file().display().to_string();
    let list = |ca: String| {
        let address = cluster.endpoint(1);
        async move { crate::grpcurl::run(&["-cacert", &ca, &address, "list"]).await }
    };
    let good = list(ca).await;
    assert!(good.stdout.contains("quorate.kv.v1.KvService"), "{good:?}");
    let pki = Pki::new();
    let bad = list(pki.authority("another").ca()).await;
    assert_ne!(bad.code, 0, "{bad:?}");
    assert!(bad.stderr.contains("unknown authority"), "{bad:?}");
}

#[tokio::test]
async fn what_does_not_fit_is_told_on_both_sides() {
    let pki = Pki::new();
    let (server, clients, other) =
        (pki.authority("server"), pki.authority("clients"), pki.authority("other"));
    let (cluster, _) = one_node(&server, |_| (), Some(&clients.ca())).await;
    let cli = SecureCli::of(&cluster, server.ca());
    let good = cli.clone().showing(&clients.sign("alice"));
    good.ok(&["kv", "put", "a", "1"]).await;

    let told = cli.fails(&["kv", "get", "a"], 78).await;
    assert!(told.contains("demands a client certificate"), "{told}");
    let line = logged(&cluster, 1, "client", "no_certificate").await;
    assert!(line.contains("from=127.0.0.1:"), "{line}");

    let stranger = cli.clone().showing(&other.sign("mallory"));
    let told = stranger.fails(&["kv", "put", "a", "2"], 78).await;
    assert!(told.contains("does not trust the certificate"), "{told}");
    logged(&cluster, 1, "client", "unknown_ca").await;

    let late = cli.clone().showing(&clients.sign_expired("bob"));
    let told = late.fails(&["kv", "put", "a", "2"], 78).await;
    assert!(told.contains("expired"), "{told}");
    logged(&cluster, 1, "client", "expired").await;

    let told = Cli::of(&cluster).fails(&["kv", "put", "a", "2"], 78).await;
    assert!(told.contains("the node demands TLS"), "{told}");
    logged(&cluster, 1, "client", "plaintext").await;

    let deceived = SecureCli::of(&cluster, other.ca());
    let told = deceived.fails(&["kv", "get", "a"], 78).await;
    assert!(told.contains("not signed by a CA that is trusted here"), "{told}");
    let failures = "quorate_tls_handshake_failures_total{listener=\"client\",reason=";
    for reason in ["no_certificate", "unknown_ca", "expired", "plaintext"] {
        counted(&cluster, 1, &format!("{failures}\"{reason}\"}}")).await;
    }
    assert_eq!(good.ok(&["kv", "get", "a"]).await.trim_end(), "1", "no stranger wrote");
}

#[tokio::test]
async fn an_expired_node_and_one_by_another_name_are_not_talked_to() {
    let pki = Pki::new();
    let server = pki.authority("server");
    let (expired, _) = one_node(&server, expired, None).await;
    let told = SecureCli::of(&expired, server.ca()).fails(&["status"], 78).await;
    assert!(told.contains("its certificate has expired"), "{told}");

    let named = |params: &mut CertificateParams| {
        let name = "elsewhere".to_owned().try_into().expect("a name");
        params.subject_alt_names = vec![SanType::DnsName(name)];
    };
    let (elsewhere, _) = one_node(&server, named, None).await;
    let told = SecureCli::of(&elsewhere, server.ca()).fails(&["status"], 78).await;
    assert!(told.contains("for another name"), "{told}");

    let plain = Cluster::processes(PROGRAM, 1).await;
    let told = SecureCli::of(&plain, server.ca()).fails(&["status"], 78).await;
    assert!(told.contains("the node does not speak TLS"), "{told}");
    logged(&plain, 1, "client", "tls").await;
}

#[tokio::test]
async fn new_files_are_shown_to_new_connections_and_old_ones_live_on() {
    let pki = Pki::new();
    let (first, second) = (pki.authority("first"), pki.authority("second"));
    let (cluster, files) = one_node(&first, |_| (), None).await;
    let before = SecureCli::of(&cluster, first.ca());
    let mut watch = before.cli.start(&before.args(&["kv", "watch", "a", "--from", "1"]));
    before.ok(&["kv", "put", "a", "1"]).await;
    let seen = watch.line().await.expect("the stream is open");
    assert!(seen.ends_with("a = 1"), "{seen}");

    // Half of a pair, and what is no certificate at all, change nothing.
    fs::write(&files.key, "spoilt").expect("written");
    eventually("the node to refuse the files", async || {
        cluster.log(1).contains("new certificates do not fit").then_some(())
    })
    .await;
    before.ok(&["kv", "put", "a", "2"]).await;

    let address = cluster.admin_address(1).ip();
    let renewed = second.sign_with("node", |params| {
        params.subject_alt_names = vec![SanType::IpAddress(address)];
    });
    renewed.replace(&files);
    let after = SecureCli::of(&cluster, second.ca());
    eventually("the new certificate", async || {
        (after.cli.run(&after.args(&["kv", "put", "a", "3"])).await.code == 0).then_some(())
    })
    .await;
    let told = before.fails(&["kv", "get", "a"], 78).await;
    assert!(told.contains("not signed by a CA"), "{told}");
    for expected in ["a = 2", "a = 3"] {
        let seen = watch.line().await.expect("the old connection lives on");
        assert!(seen.ends_with(expected), "{seen}");
    }
    counted(&cluster, 1, "quorate_tls_reloads_total{listener=\"client\",result=\"ok\"}").await;
}

#[tokio::test]
async fn settings_that_would_leave_a_door_open_are_refused() {
    let pki = Pki::new();
    let (server, clients) = (pki.authority("server"), pki.authority("clients"));
    let (node, peer) = (server.sign("node"), clients.sign("peer"));
    let dir = pki.path().join("data");
    let mut base = vec!["node", "--id", "1", "--data-dir", dir.to_str().expect("text")];
    base.extend(["--peer-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    let run = async |more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.args(&base).args(more).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(LIMIT, command.output()).await.expect("it ends").expect("it starts");
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).expect("text"),
            stderr: String::from_utf8(output.stderr).expect("text"),
        }
    };
    let open = run(&["--listen", "0.0.0.0:0"]).await;
    assert_eq!(open.code, 2, "{open:?}");
    assert!(open.stderr.contains("--tls-cert") && open.stderr.contains("--insecure-listen"));
    let half = run(&["--listen", "127.0.0.1:0", "--tls-cert", "a.pem"]).await;
    assert_eq!(half.code, 2, "{half:?}");
    let mistaken = run(&["--listen", "127.0.0.1:0", "--tls-ca", "a.pem"]).await;
    assert_eq!(mistaken.code, 2, "{mistaken:?}");
    assert!(mistaken.stderr.contains("--tls-client-ca"), "{mistaken:?}");
    let mistaken = run(&["--listen", "127.0.0.1:0", "--tls-client-cert", "a.pem"]).await;
    assert_eq!(mistaken.code, 2, "{mistaken:?}");
    assert!(mistaken.stderr.contains("--tls-cert"), "{mistaken:?}");

    let (cert, key, ca) = (node.cert(), node.key(), clients.ca());
    let (peer_cert, peer_key) = (peer.cert(), peer.key());
    let mut one_ca = vec!["--listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
    one_ca.extend(["--tls-client-ca", &ca, "--peer-tls-cert", &peer_cert]);
    one_ca.extend(["--peer-tls-key", &peer_key, "--peer-tls-ca", &ca]);
    let shared = run(&one_ca).await;
    assert_eq!(shared.code, 1, "{shared:?}");
    assert!(shared.stderr.contains("a client could pass for a peer"), "{shared:?}");

    let mut unsigned = vec!["--listen", "127.0.0.1:0", "--peer-tls-cert", &cert];
    unsigned.extend(["--peer-tls-key", &key, "--peer-tls-ca", &ca]);
    let unsigned = run(&unsigned).await;
    assert_eq!(unsigned.code, 1, "{unsigned:?}");
    assert!(unsigned.stderr.contains("not signed by the peer CA"), "{unsigned:?}");
}
