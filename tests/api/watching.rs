//! Commands that last: streams, commands under a lock, readers that leave.

use std::process::Stdio;

use rustix::process::Signal;

use crate::{
    cli::{Cli, Running},
    eventually, settled,
};

/// What a shell does that says what it got and waits for its end.
const HOLD: &str = "trap 'echo terminated; exit 0' TERM; \
     echo \"$QUORATE_LOCK_NAME $QUORATE_FENCING_TOKEN\"; while :; do sleep 0.05; done";

/// Starts [`HOLD`] under a lock; its token.
async fn hold(cli: &Cli, name: &str, more: &[&str]) -> (Running, String) {
    let args = [&["lock", "acquire", name, "--ttl", "1s"], more, &["--", "sh", "-c", HOLD]];
    let mut holder = cli.start(&args.concat());
    let told = holder.line().await.expect("the command runs");
    let (of, token) = told.split_once(' ').expect("a name and a token");
    assert_eq!(of, name);
    (holder, token.to_owned())
}

#[tokio::test]
async fn a_command_runs_under_its_lock() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    let typed = ["lock", "acquire", "demo", "--ttl", "5s", "--", "sleep", "0.1"];
    assert_eq!(cli.ok(&typed).await, "");
    let script = "echo out; echo err >&2; exit 7";
    let ended = cli.run(&["lock", "acquire", "demo", "--", "sh", "-c", script]).await;
    let expected = (7, "out\n", "err\n");
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), expected);
    let missing = cli.run(&["lock", "acquire", "demo", "--", "no-such-command"]).await;
    assert_eq!((missing.code, missing.stdout.as_str()), (127, ""), "{missing:?}");
    let free = cli.ok(&["lock", "describe", "demo"]).await;
    assert_eq!(free, "demo is free\n", "each was released at its end");

    let grant = cli.json(&["lock", "acquire", "demo2", "--ttl", "5s"]).await;
    assert_eq!((&grant["name"], &grant["ttl"]), (&"demo2".into(), &"5s".into()));
    let token = grant["fencingToken"].as_str().expect("64-bit numbers are strings");
    let held = cli.fails(&["lock", "acquire", "demo2", "--wait", "0s"], 73).await;
    assert!(held.contains("demo2"), "{held}");
    let wrong = cli.fails(&["lock", "release", "demo2", "--fencing-token", "1"], 73).await;
    assert!(wrong.contains("demo2"), "{wrong}");
    let renewed = cli.ok(&["lock", "renew", "demo2", "--fencing-token", token]).await;
    assert_eq!(renewed, "renewed demo2 for 5s\n");
    let listed = cli.ok(&["lock", "list"]).await;
    assert!(listed.contains("demo2"), "{listed}");
    cli.ok(&["lock", "release", "demo2", "--fencing-token", token]).await;
}

#[tokio::test]
async fn a_lock_is_kept_for_as_long_as_its_command_runs_and_then_goes_to_the_next() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    let (holder, first) = hold(&cli, "demo", &[]).await;
    let next = cli.start(&["lock", "acquire", "demo", "--", "sh", "-c", "echo mine"]);
    eventually("a waiter in line, three TTLs long", async || {
        let described = cli.json(&["lock", "describe", "demo"]).await;
        (described["lock"]["waiterCount"] == "1").then_some(())
    })
    .await;
    // A command gets what its wrapper gets, and ends in its own way.
    holder.signal(Signal::TERM);
    let (code, said) = holder.end().await;
    assert!(code == 0 && !said.contains("error"), "{code}: {said}");
    let mut next = next;
    assert_eq!(next.line().await.as_deref(), Some("mine"));
    assert_eq!(next.end().await.0, 0);
    let (third, token) = hold(&cli, "demo", &[]).await;
    let numbers = [&first, &token].map(|token| token.parse::<u64>().expect("a number"));
    assert!(numbers[0] < numbers[1], "tokens grow: {numbers:?}");
    third.signal(Signal::TERM);
    third.end().await;
}

#[tokio::test]
async fn a_command_whose_lock_is_lost_is_stopped() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    let (mut holder, token) = hold(&cli, "demo", &[]).await;
    cli.ok(&["lock", "release", "demo", "--fencing-token", &token]).await;
    assert_eq!(holder.line().await.as_deref(), Some("terminated"), "SIGTERM comes first");
    assert_eq!(holder.line().await, None);
    let (code, said) = holder.end().await;
    assert_eq!(code, 74);
    let told = said.lines().any(|line| line.starts_with("error: ") && line.contains("\"demo\""));
    assert!(told, "{said}");
}

#[tokio::test]
async fn streams_print_what_happens() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    cli.ok(&["kv", "put", "jobs/0", "old"]).await;
    let mut keys = cli.start(&["kv", "watch", "--prefix", "jobs/", "--from", "1"]);
    let mut locks = cli.start(&["lock", "watch", "--prefix", ""]);
    let mut services = cli.start(&["service", "watch", "web"]);
    let mut events = cli.start(&["events", "subscribe", "orders", "--from", "start"]);
    assert!(keys.line().await.is_some_and(|line| line.ends_with("PUT     jobs/0 = old")));
    cli.ok(&["kv", "put", "jobs/1", "new"]).await;
    assert!(keys.line().await.is_some_and(|line| line.ends_with("PUT     jobs/1 = new")));
    cli.ok(&["kv", "delete", "jobs/1"]).await;
    assert!(keys.line().await.is_some_and(|line| line.ends_with("DELETE  jobs/1")));

    cli.ok(&["lock", "acquire", "demo", "--", "true"]).await;
    assert!(locks.line().await.is_some_and(|line| line.contains("GRANTED  demo")));
    assert!(locks.line().await.is_some_and(|line| line.ends_with("FREED    demo")));
    cli.ok(&["service", "register", "web", "--address", "h:1", "--", "true"]).await;
    assert!(services.line().await.is_some_and(|line| line.contains("REGISTERED  web")));
    assert!(services.line().await.is_some_and(|line| line.contains("REMOVED     web")));
    for number in 1..=3 {
        let line = format!("{{\"type\":\"T\",\"data\":{number}}}\n");
        cli.run_with(&["events", "append", "orders"], &line).await;
        let line = events.line().await.expect("an event");
        assert!(line.contains(&format!("\"data\":{number}")), "{line}");
    }
    for stream in [keys, locks, services, events] {
        stream.signal(Signal::INT);
    }
}

#[tokio::test]
async fn a_reader_that_leaves_ends_a_command_quietly() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    cli.ok(&["kv", "put", "a", "1"]).await;
    cli.run_with(&["events", "append", "orders"], "{\"type\":\"T\"}\n").await;
    let commands: [&[&str]; 9] = [
        &["--help"],
        &["--version"],
        &["completions", "bash"],
        &["status"],
        &["-o", "json", "status"],
        &["kv", "get", "a"],
        &["kv", "watch", "a", "--from", "1"],
        &["events", "read", "orders"],
        &["events", "subscribe", "orders", "--from", "start"],
    ];
    for args in commands {
        let mut command = cli.command(args);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let ended = tokio::time::timeout(crate::LIMIT, child.wait_with_output()).await;
        let ended = ended.unwrap_or_else(|_| panic!("{args:?} goes on")).expect("it is seen");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), said.as_ref()), (Some(0), ""), "{args:?}");
    }
}
