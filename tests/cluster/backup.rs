//! A backup is taken while the cluster works, and a new cluster is founded from it: everything is
//! there, nothing that was given out before is given out again, and nobody joins who begins with
//! something else.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use quorate::{
    client::Client,
    pb::{
        cluster::v1::StatusRequest,
        event::v1::{AppendRequest, Event},
        kv::v1::{PutRequest, WatchRequest},
        lock::v1::{AcquireRequest, DescribeRequest},
        session::v1::OpenSessionRequest,
    },
    testing::Cluster,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{
    LIMIT, PROGRAM,
    directories::{node, refused, wipe},
    eventually,
    failover::same_state,
    load::{Load, events, range},
};

const REQUEST_ID: &str = "0191d7a4-3c5e-7cc2-b1f0-6b8a5f1d2e3c";

/// Runs a command of the command line.
async fn quorate(endpoints: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    let command = command
        .args(arguments)
        .env("QUORATE_ENDPOINTS", endpoints)
        .env_remove("QUORATE_OUTPUT")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    timeout(LIMIT, command.output()).await.expect("it ends").expect("it starts")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Saves a backup at one node and returns what is said of it.
async fn save(cluster: &Cluster, id: u64, file: &Path) -> Value {
    let file = file.to_str().expect("text");
    let saved =
        quorate(&cluster.endpoint(id), &["-o", "json", "cluster", "snapshot", "save", file]).await;
    assert!(saved.status.success(), "{}", told(&saved));
    serde_json::from_slice(&saved.stdout).expect("JSON")
}

async fn verify(file: &Path) -> Output {
    let file = file.to_str().expect("text");
    quorate("127.0.0.1:1", &["-o", "json", "cluster", "snapshot", "verify", file]).await
}

async fn token(client: &Client, name: &str) -> u64 {
    let ttl = Some(prost_types::Duration { seconds: 600, nanos: 0 });
    let request = AcquireRequest { name: name.to_owned(), ttl, ..Default::default() };
    client.locks().acquire(request).await.expect("granted").fencing_token
}

async fn session(client: &Client) -> u64 {
    let opened = client.sessions().open(OpenSessionRequest::default()).await;
    opened.expect("opened").session_id
}

async fn append(client: &Client) -> u64 {
    let events = vec![Event { r#type: "T".to_owned(), ..Default::default() }];
    let request = AppendRequest { stream: "mine".to_owned(), events, ..Default::default() };
    client.events().append(request).await.expect("appended").last_position
}

async fn cluster_id(cluster: &Cluster) -> String {
    let status = cluster.client().cluster().status(StatusRequest::default()).await;
    status.expect("a status").cluster_id
}

/// A put that a client may send again after it lost the answer.
async fn put_again(client: &Client) -> u64 {
    let (key, value) = ("once".into(), "1".into());
    let request_id = REQUEST_ID.to_owned();
    let request = PutRequest { key, value, request_id, ..Default::default() };
    client.kv().put(request).await.expect("put").revision
}

/// Two backups of one cluster, which differ, and a cluster that was restored from the first.
async fn restored() -> (TempDir, [PathBuf; 2], Cluster) {
    let dir = tempfile::tempdir().expect("a directory");
    let files = ["first", "second"].map(|name| dir.path().join(name));
    let old = Cluster::processes(PROGRAM, 3).await;
    old.client().kv().set("a", "1").await.expect("written");
    save(&old, 1, &files[0]).await;
    old.client().kv().set("a", "2").await.expect("written");
    save(&old, 2, &files[1]).await;
    drop(old);
    let new = Cluster::builder(3).program(PROGRAM).restore(&files[0]).start().await;
    (dir, files, new)
}

fn flags(file: &Path) -> [&str; 3] {
    ["--bootstrap", "--restore", file.to_str().expect("text")]
}

#[tokio::test]
async fn a_backup_taken_under_load_founds_a_new_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("backup");
    let mut old = Cluster::processes(PROGRAM, 3).await;
    let leader = old.wait_for_leader().await;
    let follower = old.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let client = old.client();
    for key in 0..50 {
        client.kv().set(format!("before/{key}"), "x".repeat(20_000)).await.expect("written");
        append(&client).await;
    }
    let once = put_again(&client).await;
    let held = token(&client, "held").await;
    let old_id = cluster_id(&old).await;

    let mut load = Load::start(&old, 4);
    load.progress(20).await;
    let summary = save(&old, follower, &file).await;
    load.progress(20).await;
    load.stop().await;
    let verified = verify(&file).await;
    assert!(verified.status.success(), "{}", told(&verified));
    let verified: Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    assert_eq!(verified, summary, "saved and verified are one");
    assert_eq!(summary["header"]["clusterId"], old_id);

    // The old cluster goes on for a while before it is lost.
    let last_token = token(&client, "later").await;
    let last_session = session(&client).await;
    let last_revision = client.kv().set("after", "1").await.expect("written");
    drop(old);

    let new = Cluster::builder(3).program(PROGRAM).restore(&file).start().await;
    let client = new.client();
    assert_ne!(cluster_id(&new).await, old_id);
    assert_eq!(range(&client, b"before/").await.len(), 50);
    assert_eq!(events(&client, "mine").await.len(), 50);
    let keys: u64 = summary["keys"].as_str().expect("a number").parse().expect("a number");
    let under_load = range(&client, b"load/").await.len() as u64;
    assert!(under_load > 10, "written while it was saved or just before");
    assert_eq!(50 + 1 + under_load, keys, "as many as were counted");
    assert!(client.kv().get("after").await.expect("read").is_none(), "written after the backup");

    let position: u64 = summary["header"]["position"].as_str().expect("text").parse().expect("one");
    assert_eq!(append(&client).await, position + 1, "positions have no gap");
    let far = 1 << 40;
    assert!(token(&client, "later").await > last_token + far, "the old cluster granted it later");
    assert!(session(&client).await > last_session + far);
    assert!(client.kv().set("after", "2").await.expect("written") > last_revision + far);
    assert_eq!(put_again(&client).await, once, "a retry is answered as the first time");
    let describe = DescribeRequest { name: "held".to_owned(), ..Default::default() };
    let lock = client.locks().describe(describe).await.expect("described").lock.expect("a lock");
    assert_eq!(lock.holder.expect("held").fencing_token, held, "its holder may go on");

    for start_revision in [1, last_revision + 1, last_revision + 1_000] {
        let request = WatchRequest { key: "a".into(), start_revision, ..Default::default() };
        let refused = client.kv().watch(request).next().await.expect_err("history is gone");
        assert_eq!(refused.reason(), "COMPACTED", "from {start_revision}");
    }
    same_state(&new).await;
}

#[tokio::test]
async fn a_restored_cluster_lives_on_through_crashes_and_catches_up() {
    let (_dir, _files, mut new) = restored().await;
    let leader = new.wait_for_leader().await;
    new.kill(leader).await;
    let before = token(&new.client(), "l").await;
    for id in new.ids() {
        new.kill(id).await;
    }
    for id in new.ids() {
        new.restart(id).await;
    }
    new.wait_until_ready().await;
    let value = new.client().kv().get("a").await.expect("read").expect("there").value;
    assert_eq!(value, "1");
    assert!(token(&new.client(), "m").await > before);
    same_state(&new).await;
}

#[tokio::test]
async fn founding_nodes_with_different_files_refuse_each_other() {
    let (dir, [first, second], mut old) = restored().await;
    // The addresses are what is needed of it.
    for id in old.ids() {
        old.kill(id).await;
    }
    let data = |id: u64| dir.path().join(format!("node-{id}"));
    let mut nodes: Vec<Child> = Vec::new();
    for id in [1, 2] {
        nodes.push(node(&old, id, id, &data(id), &flags(&first)).spawn().expect("it starts"));
    }
    let words = refused(&old, 3, &data(3), &flags(&second)).await;
    assert!(words.contains("from another one"), "{words}");
    assert!(words.contains("the same --restore file"), "{words}");
    // Two of three found it; one that begins empty is as wrong.
    let client = Client::builder().endpoints([old.endpoint(1)]).build().expect("well formed");
    client.kv().set("b", "1").await.expect("two of three");
    let words = refused(&old, 3, &data(4), &["--bootstrap"]).await;
    assert!(words.contains("node 3 was not"), "{words}");
    nodes.push(node(&old, 3, 3, &data(5), &flags(&first)).spawn().expect("it starts"));
    eventually("the third to be there", async || {
        crate::page(old.admin_address(3), "/readyz").filter(|(code, _)| *code == 200)
    })
    .await;
}

#[tokio::test]
async fn a_used_directory_is_not_restored_over_and_a_restored_one_goes_on() {
    let (_dir, [first, second], mut new) = restored().await;
    let plain = Cluster::processes(PROGRAM, 1).await;
    let elsewhere = plain.data_dir(1).to_owned();
    let mut plain = plain;
    plain.kill(1).await;
    let words = refused(&plain, 1, &elsewhere, &flags(&first)).await;
    assert!(words.contains("was used before"), "{words}");
    assert!(words.contains("take --restore away"), "{words}");

    new.kill(2).await;
    let own = new.data_dir(2).to_owned();
    let words = refused(&new, 2, &own, &flags(&second)).await;
    assert!(words.contains("was restored from backup"), "{words}");
    // A service manager starts it with the same words again, whether the file is there or not.
    for gone in [false, true] {
        if gone {
            fs::remove_file(&first).expect("it was there");
        }
        let mut again = node(&new, 2, 2, &own, &flags(&first)).spawn().expect("it starts");
        eventually("the node to be back", async || {
            crate::page(new.admin_address(2), "/readyz").filter(|(code, _)| *code == 200)
        })
        .await;
        again.kill().await.expect("it ran");
    }
    // Its disk is known by now: a wiped one is no founder any more.
    wipe(&own);
    let words = refused(&new, 2, &own, &flags(&second)).await;
    assert!(words.contains("backup"), "{words}");
    new.client().kv().set("c", "1").await.expect("two of three go on");
}

#[tokio::test]
async fn what_cannot_be_restored_is_refused_in_one_line() {
    let (dir, [first, _], mut new) = restored().await;
    new.kill(1).await;
    let fresh = || dir.path().join("fresh");
    let bad = dir.path().join("bad");
    let mut bytes = fs::read(&first).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&bad, &bytes).expect("written");
    let words = refused(&new, 1, &fresh(), &flags(&bad)).await;
    assert!(words.contains("is no whole backup: at byte"), "{words}");
    let words = refused(&new, 1, &fresh(), &flags(&dir.path().join("nowhere"))).await;
    assert!(words.contains("nowhere: No such file"), "{words}");
    let file = first.to_str().expect("text");
    let lone = node(&new, 1, 1, &fresh(), &["--restore", file]).output();
    let lone = timeout(LIMIT, lone).await.expect("it ends").expect("it starts");
    assert_eq!(lone.status.code(), Some(2), "{}", told(&lone));
    assert!(told(&lone).contains("--restore: a backup founds a new cluster"), "{}", told(&lone));

    let damaged = verify(&bad).await;
    assert_eq!(damaged.status.code(), Some(1));
    assert!(told(&damaged).contains("at byte") && damaged.stdout.is_empty(), "{}", told(&damaged));
    assert_eq!(told(&damaged).lines().count(), 1, "{}", told(&damaged));
}

#[tokio::test]
async fn a_file_that_exists_is_left_alone_unless_it_is_meant() {
    let (dir, [first, _], new) = restored().await;
    let (file, endpoint) = (first.to_str().expect("text"), new.endpoint(1));
    let before = fs::read(&first).expect("it is there");
    let taken = quorate(&endpoint, &["cluster", "snapshot", "save", file]).await;
    assert_eq!(taken.status.code(), Some(1));
    assert!(told(&taken).contains("exists already") && told(&taken).contains("--force"));
    assert_eq!(fs::read(&first).expect("it is there"), before);
    let meant = quorate(&endpoint, &["cluster", "snapshot", "save", file, "--force"]).await;
    assert!(meant.status.success(), "{}", told(&meant));
    assert_ne!(fs::read(&first).expect("it is there"), before);
    let names = fs::read_dir(dir.path()).expect("a directory").count();
    assert_eq!(names, 2, "nothing is left beside the files");

    let nowhere = dir.path().join("x");
    let nowhere = nowhere.to_str().expect("text");
    let save = ["--timeout", "200ms", "cluster", "snapshot", "save", nowhere];
    let nobody = quorate("127.0.0.1:1", &save).await;
    assert!(matches!(nobody.status.code(), Some(78 | 68)), "{}", told(&nobody));
    assert!(!Path::new(nowhere).exists());
}

#[tokio::test]
async fn a_node_that_is_cut_off_can_still_be_saved() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("last");
    let file = file.to_str().expect("text");
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    cluster.client().kv().set("a", "1").await.expect("written");
    eventually("node 3 to have it", async || {
        let local = StatusRequest { local: true };
        let status = cluster.client_at(3).cluster().status(local).await.ok()?;
        (status.nodes[0].revision >= 1).then_some(())
    })
    .await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    let endpoint = cluster.endpoint(3);
    let save = ["--timeout", "2s", "cluster", "snapshot", "save", file];
    let refused = quorate(&endpoint, &save).await;
    assert!(!refused.status.success(), "nobody vouches that it is the newest");
    let saved = quorate(&endpoint, &[&save[..], &["--stale"]].concat()).await;
    assert!(saved.status.success(), "{}", told(&saved));
    let alone = Cluster::builder(1).program(PROGRAM).restore(file).start().await;
    assert!(alone.client().kv().get("a").await.expect("read").is_some());
}
