//! The command line as a person or a script uses it, against a real cluster.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use quorate::{
    client::prefix_end,
    pb::{
        kv::v1::RangeRequest,
        lock::v1::{DescribeRequest, Lock, ReleaseRequest},
    },
    testing::Cluster,
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time::timeout,
};

use crate::{LIMIT, PROGRAM, eventually};

/// A command with its arguments, not yet started.
fn command(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .env("QUORATE_ENDPOINTS", cluster.endpoints().join(","))
        .env_remove("QUORATE_OUTPUT")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(cluster: &Cluster, arguments: &[&str]) -> Output {
    let output = command(cluster, arguments).output();
    timeout(LIMIT, output).await.expect("it ends").expect("it starts")
}

/// Runs a command with this standard input.
async fn run_with(cluster: &Cluster, arguments: &[&str], input: &str) -> Output {
    let mut child = command(cluster, arguments).stdin(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("it reads");
    drop(stdin);
    timeout(LIMIT, child.wait_with_output()).await.expect("it ends").expect("its end is seen")
}

/// What a command that succeeds prints.
async fn printed(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = run(cluster, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

async fn printed_json(cluster: &Cluster, arguments: &[&str]) -> Value {
    serde_json::from_str(&printed(cluster, arguments).await).expect("JSON")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

async fn described(cluster: &Cluster, name: &str) -> Lock {
    let request = DescribeRequest { name: name.to_owned(), ..Default::default() };
    let answer = cluster.client().locks().describe(request).await.expect("an answer");
    answer.lock.expect("a lock, held or free")
}

#[tokio::test]
async fn a_key_is_printed_raw_and_an_absent_one_is_an_exit_code() {
    let cluster = Cluster::start(3).await;
    printed(&cluster, &["kv", "put", "a", "1"]).await;
    assert_eq!(printed(&cluster, &["kv", "get", "a"]).await, "1", "not a byte more");
    let json = printed_json(&cluster, &["-o", "json", "kv", "get", "a"]).await;
    assert_eq!(
        (&json["kvs"][0]["key"], &json["kvs"][0]["value"]),
        (&json!("YQ=="), &json!("MQ=="))
    );

    let absent = run(&cluster, &["kv", "get", "x"]).await;
    assert_eq!(absent.status.code(), Some(69));
    assert!(absent.stdout.is_empty());
    assert!(text(&absent.stderr).contains("key \"x\" not found"), "{absent:?}");

    let put = run_with(&cluster, &["kv", "put", "b", "-"], "two\nlines\n").await;
    assert!(put.status.success());
    assert_eq!(printed(&cluster, &["kv", "get", "b"]).await, "two\nlines\n");
    let list = printed(&cluster, &["kv", "list"]).await;
    assert_eq!(list.lines().count(), 3, "{list}");
}

#[tokio::test]
async fn a_lock_is_held_while_its_command_runs() {
    let cluster = Cluster::start(3).await;
    let script = "echo $QUORATE_LOCK_NAME $QUORATE_FENCING_TOKEN; exit 7";
    let arguments = ["lock", "acquire", "demo", "--ttl", "5s", "--", "sh", "-c", script];
    let ran = run(&cluster, &arguments).await;
    assert_eq!(ran.status.code(), Some(7));
    let out = text(&ran.stdout);
    let token: u64 = out.trim().strip_prefix("demo ").expect("the name").parse().expect("a token");
    assert!(described(&cluster, "demo").await.holder.is_none(), "it is released at the end");

    let grant = printed_json(&cluster, &["-o", "json", "lock", "acquire", "demo"]).await;
    let next: u64 = grant["fencingToken"].as_str().expect("a string").parse().expect("a token");
    assert!(next > token);
    assert_eq!((&grant["name"], &grant["ttl"]), (&json!("demo"), &json!("30s")));

    let held = run(&cluster, &["lock", "acquire", "demo", "--wait", "0s"]).await;
    assert_eq!(held.status.code(), Some(73), "64 + FAILED_PRECONDITION");
    assert_eq!(text(&held.stderr).lines().count(), 2, "what is wrong, and what to do: {held:?}");
}

#[tokio::test]
async fn a_command_is_stopped_when_its_lock_is_lost() {
    let cluster = Cluster::start(3).await;
    let script = "trap 'echo stopped; exit 0' TERM; echo started; while :; do sleep 0.05; done";
    let arguments = ["lock", "acquire", "demo", "--ttl", "1s", "--", "sh", "-c", script];
    let running = command(&cluster, &arguments).spawn().expect("it starts");
    let token = eventually("a holder", async || {
        Some(described(&cluster, "demo").await.holder?.fencing_token)
    });
    let token = token.await;
    // It outlives its TTL: it is renewed.
    let held = eventually("two TTLs to pass", {
        let started = tokio::time::Instant::now();
        async move || (started.elapsed() > Duration::from_secs(2)).then_some(())
    });
    held.await;
    let holder = described(&cluster, "demo").await.holder.expect("it is still held");
    assert_eq!(holder.fencing_token, token);

    let name = "demo".to_owned();
    let taken = ReleaseRequest { name, fencing_token: token, ..Default::default() };
    cluster.client().locks().release(taken).await.expect("released behind its back");
    let ended = ended(running).await;
    assert_eq!(ended.status.code(), Some(74), "{ended:?}");
    assert_eq!(text(&ended.stdout), "started\nstopped\n");
    assert!(text(&ended.stderr).contains("lock \"demo\" was lost"), "{ended:?}");
}

async fn ended(child: Child) -> Output {
    timeout(LIMIT, child.wait_with_output()).await.expect("it ends").expect("its end is seen")
}

#[tokio::test]
async fn a_service_is_registered_and_found() {
    let cluster = Cluster::start(3).await;
    let register = ["service", "register", "web", "--address", "127.0.0.1:9000", "--ttl", "30s"];
    let id = printed(&cluster, &register).await;
    let found = printed_json(&cluster, &["-o", "jsonl", "discovery", "resolve", "web"]).await;
    assert_eq!(found["instances"][0]["instanceId"], json!(id.trim()));
    assert_eq!(found["instances"][0]["address"], json!("127.0.0.1:9000"));
    printed(&cluster, &["service", "deregister", "web", id.trim()]).await;

    // With a command it is there for as long as that runs.
    let inner = format!("{PROGRAM} -o jsonl service resolve api");
    let register = ["service", "register", "api", "--address", "a:1", "--", "sh", "-c", &inner];
    let during = printed_json(&cluster, &register).await;
    assert_eq!(during["instances"][0]["address"], json!("a:1"));
    assert_eq!(
        printed_json(&cluster, &["-o", "json", "service", "resolve", "api"]).await["instances"],
        Value::Null
    );
}

#[tokio::test]
async fn events_go_in_and_come_out_as_lines() {
    let cluster = Cluster::start(3).await;
    let lines = "{\"type\":\"Created\",\"data\":{\"z\":1.10,\"a\":[]}}\n{\"type\":\"Paid\",\"tags\":[\"x\"]}\n";
    let appended = run_with(&cluster, &["events", "append", "orders"], lines).await;
    assert!(appended.status.success(), "{appended:?}");
    let read = printed(&cluster, &["events", "read", "orders"]).await;
    assert!(
        read.lines().next().expect("a line").ends_with(r#""data":{"z":1.10,"a":[]}}"#),
        "{read}"
    );
    let second: Value = serde_json::from_str(read.lines().nth(1).expect("a line")).expect("JSON");
    assert_eq!((&second["version"], &second["type"]), (&json!(2), &json!("Paid")));

    let subscribe = ["events", "subscribe", "orders", "--from", "start", "--limit", "2"];
    assert_eq!(printed(&cluster, &subscribe).await, read);

    // What was read can be appended elsewhere, once: the ids are kept.
    for _ in 0..2 {
        let copied = run_with(&cluster, &["events", "append", "copy"], &read).await;
        assert!(copied.status.success(), "{copied:?}");
    }
    assert_eq!(printed(&cluster, &["events", "read", "copy"]).await.lines().count(), 2);

    let wrong = ["events", "append", "orders", "--expect", "no-stream"];
    let refused = run_with(&cluster, &wrong, "{\"type\":\"T\"}\n").await;
    assert_eq!(refused.status.code(), Some(74), "64 + ABORTED");
}

#[tokio::test]
async fn a_reader_that_leaves_ends_a_command_quietly() {
    let cluster = Cluster::start(1).await;
    let line = format!("{{\"type\":\"T\",\"data\":\"{}\"}}\n", "x".repeat(10_000));
    let appended = run_with(&cluster, &["events", "append", "big"], &line.repeat(100)).await;
    assert!(appended.status.success(), "{appended:?}");
    let mut reading = command(&cluster, &["events", "read", "big"]).spawn().expect("it starts");
    drop(reading.stdout.take());
    let ended = ended(reading).await;
    assert_eq!((ended.status.code(), text(&ended.stderr).as_str()), (Some(0), ""));
}

#[tokio::test]
async fn status_is_one_answer_for_the_whole_cluster() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.wait_for_leader().await;
    let status = printed_json(&cluster, &["status", "-o", "json"]).await;
    assert_eq!(status["leaderId"], json!(leader.to_string()));
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3));
    let table = printed(&cluster, &["status"]).await;
    assert_eq!(table.matches("leader").count(), 1, "{table}");
    let moved = printed_json(&cluster, &["-o", "json", "cluster", "transfer"]).await;
    assert_ne!(moved["leaderId"], status["leaderId"]);
}

#[tokio::test]
async fn a_benchmark_rides_over_a_killed_leader_and_finds_every_acknowledged_write() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let leader = cluster.wait_for_leader().await;
    let arguments = ["-o", "json", "bench", "put", "--verify", "--duration", "4s"];
    let bench = command(&cluster, &arguments).spawn().expect("it starts");
    let kv = cluster.client().kv();
    eventually("the first writes", async || {
        let request = RangeRequest {
            key: "bench/".into(),
            range_end: prefix_end(b"bench/"),
            count_only: true,
            ..Default::default()
        };
        let written = kv.range(request).await.expect("an answer").count;
        (written > 100).then_some(())
    })
    .await;
    cluster.kill(leader).await;
    let ended = ended(bench).await;
    assert!(ended.status.success(), "{ended:?}");
    let report: Value = serde_json::from_str(&text(&ended.stdout)).expect("JSON");
    assert_eq!((&report["checks"]["missing"], &report["checks"]["twice"]), (&json!(0), &json!(0)));
    assert_eq!(report["checks"]["acknowledged"], report["operations"]);
    assert_eq!(report["errors"], json!(0), "{report}");
    // Half a second is expected; a slow machine gets ten times as much.
    let pause = report["longestPauseMillis"].as_u64().expect("a number");
    assert!(pause < 5_000, "{report}");
}
