//! `--lab` and `quorate lab`: faults on purpose, where they were asked for and nowhere else.

use std::{process::Stdio, time::Duration};

use quorate::{
    pb::lab::v1::{Direction, LinkFault},
    testing::Cluster,
};
use tokio::{process::Command, time::timeout};
use tonic::Code;

use crate::{LIMIT, PROGRAM, cli::Cli, eventually, grpcurl};

async fn lab() -> Cluster {
    Cluster::builder(3).program(PROGRAM).lab().start().await
}

#[tokio::test]
async fn a_node_without_a_lab_has_none() {
    let cluster = Cluster::processes(PROGRAM, 3).await;
    let fault = LinkFault {
        peer_id: 2,
        direction: Direction::ToPeer.into(),
        drop: 1.0,
        ..Default::default()
    };
    let refused = cluster.break_link(1, fault, Duration::from_secs(1)).await;
    assert_eq!(refused.expect_err("there is no lab").code(), Code::Unimplemented);
    let cli = Cli::of(&cluster);
    let link = ["lab", "link", "--from", "1", "--to", "2", "--drop", "1.0", "--for", "1s"];
    assert!(cli.fails(&link, 1).await.contains("without --lab"));
    for command in ["links", "heal"] {
        assert!(cli.fails(&["lab", command], 1).await.contains("without --lab"));
    }
    if grpcurl::is_there().await {
        let listed = grpcurl::run(&["-plaintext", &cluster.endpoint(1), "list"]).await.stdout;
        assert!(listed.contains("quorate.kv.v1.KvService"), "{listed}");
        assert!(!listed.contains("LabService"), "{listed}");
    }
}

#[tokio::test]
async fn a_lab_is_found_by_reflection() {
    if !grpcurl::is_there().await {
        return;
    }
    let cluster = lab().await;
    let listed = grpcurl::run(&["-plaintext", &cluster.endpoint(1), "list"]).await.stdout;
    assert!(listed.contains("quorate.lab.v1.LabService"), "{listed}");
    let add =
        r#"{"lease":"30s","fault":{"peerId":"2","direction":"DIRECTION_TO_PEER","drop":0.5}}"#;
    let method = "quorate.lab.v1.LabService/AddLinkFault";
    let added = grpcurl::run(&["-plaintext", "-d", add, &cluster.endpoint(1), method]).await.stdout;
    assert!(added.contains("\"faultId\": \"1\""), "{added}");
}

#[tokio::test]
async fn links_are_broken_shown_and_healed_by_hand() {
    let mut cluster = lab().await;
    let leader = cluster.wait_for_leader().await;
    let cli = Cli::of(&cluster);
    let other = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let (from, to) = (leader.to_string(), other.to_string());
    let link = |more: &[&'static str]| {
        let base = ["lab", "link", "--from", &from, "--to", &to];
        base.into_iter().chain(more.iter().copied()).map(str::to_owned).collect::<Vec<_>>()
    };
    let run = async |more: &[&'static str]| {
        let args = link(more);
        cli.ok(&args.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let told = run(&["--kind", "heartbeat,append", "--delay", "20ms", "--for", "5m"]).await;
    assert_eq!(told, format!("node {from}, fault 1: {from} to {to}: delay 20ms\n"));
    let told = run(&["--both", "--drop", "0.1", "--for", "5m"]).await;
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.contains(&format!(": {to} to {from}: drop 0.1")), "{told}");

    let listed = eventually("a heartbeat to be late", async || {
        let listed = cli.ok(&["lab", "links"]).await;
        let counted = listed.split("DROPPED").nth(1).expect("the second table");
        counted.contains(" heartbeat ").then_some(listed)
    })
    .await;
    assert!(listed.contains("heartbeat, append"), "{listed}");
    let lines = cli.ok(&["-o", "jsonl", "lab", "links"]).await;
    assert_eq!(lines.lines().count(), 3, "{lines}");
    assert!(lines.contains("\"delay\":\"0.020s\""), "{lines}");

    let healed = cli.ok(&["lab", "heal"]).await;
    assert!(healed.contains(&format!("node {from}: 3 faults cleared")), "{healed}");
    let none = cli.ok(&["lab", "links"]).await;
    assert!(!none.contains("heartbeat, append"), "{none}");
}

#[tokio::test]
async fn what_cannot_be_broken_is_named() {
    let cluster = lab().await;
    let cli = Cli::of(&cluster);
    let link =
        async |more: &[&str], code| cli.fails(&[&["lab", "link"], more].concat(), code).await;
    let invalid = 64 + 3;
    for (more, code, named) in [
        (&["--from", "1", "--to", "1", "--drop", "1", "--for", "1s"][..], 2, "--to"),
        (&["--from", "1", "--to", "9", "--drop", "1", "--for", "1s"], 1, "no node 9"),
        (&["--from", "1", "--to", "2", "--for", "1s"], invalid, "does nothing"),
        (&["--from", "1", "--to", "2", "--drop", "2", "--for", "1s"], invalid, "drop"),
        (&["--from", "1", "--to", "2", "--drop", "1", "--for", "1h"], invalid, "lease"),
        (&["--from", "1", "--to", "2", "--drop", "1"], 2, "--for"),
        (&["--from", "1", "--to", "2", "--kind", "gossip", "--for", "1s"], 2, "gossip"),
        (&["--from", "1", "--to", "2", "--cut", "--drop", "1", "--for", "1s"], invalid, "cut"),
    ] {
        let told = link(more, code).await;
        assert!(told.contains(named), "{more:?}: {told}");
    }
}

/// A leader that nobody hears is replaced, and its cut ends by itself.
#[tokio::test]
async fn a_cut_that_nobody_heals_ends_with_its_lease() {
    let mut cluster = lab().await;
    let old = cluster.wait_for_leader().await;
    for peer_id in cluster.ids().into_iter().filter(|id| *id != old) {
        for direction in [Direction::ToPeer, Direction::FromPeer] {
            let direction = direction.into();
            let cut = LinkFault { peer_id, direction, cut: true, ..Default::default() };
            cluster.break_link(old, cut, Duration::from_secs(3)).await.expect("it has a lab");
        }
    }
    let new = eventually("another leader", async || {
        let new = cluster.wait_for_leader().await;
        (new != old).then_some(new)
    })
    .await;
    cluster.client_at(new).kv().set("key", "after").await.expect("a majority is there");
    let read = eventually("the old leader to be back", async || {
        cluster.client_at(old).kv().get("key").await.ok().flatten()
    })
    .await;
    assert_eq!(read.value, "after");
}

#[tokio::test]
async fn a_lab_that_others_could_reach_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    for (flag, listens) in
        [("--listen", "0.0.0.0:0"), ("--peer-listen", "0.0.0.0:0"), ("--admin-listen", "[::]:0")]
    {
        let mut args = vec!["node", "--id", "1", "--data-dir", "n1", "--insecure-listen", "--lab"];
        args.extend([flag, listens]);
        let output = Command::new(PROGRAM)
            .args(&args)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(LIMIT, output).await.expect("it ends").expect("it starts");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains("--lab") && told.contains(listens), "{told}");
        assert!(!dir.path().join("n1").exists(), "the data directory was touched");
    }
}
