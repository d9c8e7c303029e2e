//! A data directory that is not what it should be: the node says so and what to do, and ends.

use std::{fs, path::Path, process::Stdio};

use quorate::testing::Cluster;
use tokio::{process::Command, time::timeout};

use crate::{LIMIT, PROGRAM};

#[tokio::test]
async fn an_emptied_directory_is_refused() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    cluster.client().kv().set("a", "1").await.expect("written");
    cluster.kill(2).await;
    wipe(cluster.data_dir(2));
    let words = refused(&cluster, 2, cluster.data_dir(2), &[]).await;
    assert!(words.contains("is empty"), "{words}");
    assert!(words.contains("must not vote under its old id"), "{words}");
}

#[tokio::test]
async fn an_emptied_directory_is_refused_also_with_bootstrap() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    cluster.client().kv().set("a", "1").await.expect("written");
    cluster.kill(2).await;
    wipe(cluster.data_dir(2));
    let words = refused(&cluster, 2, cluster.data_dir(2), &["--bootstrap"]).await;
    assert!(words.contains("disk"), "{words}");
    assert!(words.contains("node 2"), "{words}");
    // The others never took it for the node that it was.
    cluster.client().kv().set("a", "2").await.expect("two of three go on");
}

#[tokio::test]
async fn a_partly_emptied_directory_is_refused() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    fs::remove_file(cluster.data_dir(1).join("identity")).expect("it was there");
    let words = refused(&cluster, 1, cluster.data_dir(1), &["--bootstrap"]).await;
    assert!(words.contains("no identity file") && words.contains("restore it whole"), "{words}");

    fs::remove_dir_all(cluster.data_dir(2).join("wal")).expect("it was there");
    let words = refused(&cluster, 2, cluster.data_dir(2), &[]).await;
    assert!(words.contains("missing: the log") && words.contains("restore it"), "{words}");
}

#[tokio::test]
async fn a_second_process_on_one_directory_is_refused() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    // Node 1's addresses are free, and nothing is sent from them before the directory is held.
    cluster.kill(1).await;
    let words = refused_at(&cluster, 1, 2, cluster.data_dir(2), &[]).await;
    cluster.restart(1).await;
    assert!(words.contains("in use by another process"), "{words}");
    assert!(words.contains("stop that one"), "{words}");
    cluster.wait_until_ready().await;
    cluster.client_at(2).kv().set("a", "1").await.expect("the first one goes on");
}

#[tokio::test]
async fn another_nodes_directory_is_refused() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    cluster.kill(1).await;
    cluster.kill(2).await;
    let words = refused(&cluster, 2, cluster.data_dir(1), &[]).await;
    assert!(words.contains("belongs to node 1, not to node 2"), "{words}");
    assert!(words.contains("--id 1"), "{words}");
}

#[tokio::test]
async fn another_clusters_directory_is_refused() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut other = Cluster::processes(PROGRAM, 3).await;
    other.client().kv().set("a", "1").await.expect("written");
    cluster.kill(2).await;
    other.kill(2).await;
    let words = refused(&cluster, 2, other.data_dir(2), &[]).await;
    assert!(words.contains("one of the two has a foreign data directory"), "{words}");
    assert!(words.contains("--data-dir"), "{words}");
    cluster.client().kv().set("a", "2").await.expect("two of three go on");
}

/// Starts a node of the cluster over a directory, and returns what it says when it gives up.
pub(crate) async fn refused(cluster: &Cluster, id: u64, data_dir: &Path, flags: &[&str]) -> String {
    refused_at(cluster, id, id, data_dir, flags).await
}

/// The same with the addresses of another node.
async fn refused_at(
    cluster: &Cluster,
    address: u64,
    id: u64,
    data_dir: &Path,
    flags: &[&str],
) -> String {
    let node = node(cluster, address, id, data_dir, flags).output();
    let output = timeout(LIMIT, node).await.expect("it gives up").expect("it was started");
    let words = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!output.status.success(), "it ended well: {words}");
    assert!(output.status.code().is_some(), "it was killed: {words}");
    words
}

/// The command that starts a node of the cluster over a directory, with the addresses of `address`.
pub(crate) fn node(
    cluster: &Cluster,
    address: u64,
    id: u64,
    data_dir: &Path,
    flags: &[&str],
) -> Command {
    let members: Vec<_> =
        cluster.ids().into_iter().map(|id| format!("{id}={}", cluster.peer_address(id))).collect();
    let mut node = Command::new(PROGRAM);
    node.args(["node", "--id", &id.to_string()])
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--listen", &cluster.endpoint(address)])
        .args(["--peer-listen", &cluster.peer_address(address).to_string()])
        .args(["--admin-listen", &cluster.admin_address(address).to_string()])
        .args(["--initial-cluster", &members.join(",")])
        .args(flags)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    node
}

pub(crate) fn wipe(data_dir: &Path) {
    fs::remove_dir_all(data_dir).expect("it was there");
    fs::create_dir(data_dir).expect("it can be made");
}
