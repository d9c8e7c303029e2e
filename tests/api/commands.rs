//! The commands as a person types them: what they print, and how they fail.

use std::collections::VecDeque;

use crate::{cli::Cli, settled};

/// The columns of the line that begins with `first`.
fn row<'a>(table: &'a str, first: &str) -> Vec<&'a str> {
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = lines.into_iter().find(|row| row.first() == Some(&first));
    found.unwrap_or_else(|| panic!("no row {first:?} in:\n{table}"))
}

#[tokio::test]
async fn keys() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    assert!(cli.ok(&["kv", "put", "a", "1"]).await.starts_with("revision "));
    assert_eq!(cli.ok(&["kv", "get", "a"]).await, "1", "the raw value and nothing else");
    let ended = cli.run_with(&["kv", "put", "b", "-"], "two\nlines\n").await;
    assert_eq!(ended.code, 0, "{ended:?}");
    assert_eq!(cli.ok(&["kv", "get", "b"]).await, "two\nlines\n");
    cli.ok(&["kv", "put", "c", "-7"]).await;
    assert_eq!(cli.ok(&["kv", "get", "c", "--stale"]).await, "-7");

    let table = cli.ok(&["kv", "list"]).await;
    assert!(table.starts_with("KEY"), "{table}");
    assert_eq!(row(&table, "b").last(), Some(&"two\\nlines\\n"));
    assert_eq!(table.lines().count(), 4, "{table}");
    let listed = cli.json(&["kv", "list", "--prefix", "a"]).await;
    assert_eq!(listed["kvs"][0]["value"], "MQ==");

    let txn = r#"{"compare":[{"key":"YQ==","operator":"OPERATOR_EQUAL","version":"1"}],
        "success":[{"put":{"key":"YQ==","value":"Mg=="}}]}"#;
    let first = cli.run_with(&["kv", "txn"], txn).await;
    assert!(first.code == 0 && first.stdout.starts_with("ran success, "), "{first:?}");
    let second = cli.run_with(&["kv", "txn"], txn).await;
    assert!(second.code == 0 && second.stdout.starts_with("ran failure, "), "{second:?}");

    let revision = cli.json(&["kv", "put", "a", "3"]).await["revision"].clone();
    let revision = revision.as_str().expect("64-bit numbers are strings").to_owned();
    let told = cli.ok(&["kv", "compact", &revision]).await;
    assert!(told.starts_with(&format!("compacted at {revision}; ")), "{told}");
    let gone = cli.fails(&["kv", "get", "a", "--revision", "1"], 64 + 11).await;
    assert!(gone.contains("compacted"), "{gone}");
    let future = cli.fails(&["kv", "get", "a", "--revision", "999999"], 64 + 11).await;
    assert!(future.contains("999999"), "{future}");

    assert!(cli.ok(&["kv", "delete", "a"]).await.starts_with("deleted 1 key, "));
    assert!(cli.ok(&["kv", "delete", "--prefix", ""]).await.starts_with("deleted 2 keys, "));
    let absent = cli.fails(&["kv", "get", "a"], 69).await;
    assert_eq!(absent, "error: key \"a\" not found");
    let empty = cli.fails(&["kv", "put", "", "1"], 64 + 3).await;
    assert!(empty.contains("empty"), "{empty}");
    let wrong = cli.fails_with(&["kv", "txn"], "{\"sucess\":[]}", 1).await;
    assert!(wrong.contains("sucess"), "{wrong}");
}

#[tokio::test]
async fn status_and_leadership() {
    let mut cluster = settled().await;
    let leader = cluster.wait_for_leader().await;
    let cli = Cli::of(&cluster);
    let table = cli.ok(&["status"]).await;
    for id in cluster.ids() {
        let row = row(&table, &id.to_string());
        assert_eq!(row[1], if id == leader { "leader" } else { "follower" });
        assert_eq!(row[3], cluster.endpoint(id));
    }
    let status = cli.json(&["status"]).await;
    assert_eq!(status["leaderId"], leader.to_string());
    assert_eq!(status["nodes"].as_array().map(Vec::len), Some(3));

    let target = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let told = cli.ok(&["cluster", "transfer", "--to", &target.to_string()]).await;
    assert!(told.starts_with(&format!("node {target} leads in term ")), "{told}");
    assert_eq!(cluster.wait_for_leader().await, target);
    let stranger = cli.fails(&["cluster", "transfer", "--to", "9"], 64 + 9).await;
    assert!(stranger.contains('9'), "{stranger}");
    let hashes = cli.ok(&["cluster", "hash"]).await;
    assert_eq!(hashes.lines().count(), 4, "{hashes}");

    let (last, hash) = (target.to_string(), "HASH");
    assert!(hashes.contains(hash) && !row(&hashes, &last).is_empty());
    let down = cluster.ids().into_iter().find(|id| *id != target).expect("three nodes");
    cluster.kill(down).await;
    let table = cli.ok(&["status"]).await;
    assert_eq!(row(&table, &down.to_string())[1], "unreachable", "{table}");
}

#[tokio::test]
async fn services() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    let register = ["service", "register", "web", "--address", "127.0.0.1:9000", "--ttl", "30s"];
    let id = cli.ok(&register).await;
    let id = id.trim_end();
    assert!(!id.is_empty() && !id.contains(char::is_whitespace), "the instance id alone: {id:?}");
    let table = cli.ok(&["service", "resolve", "web"]).await;
    assert_eq!(row(&table, id)[1..6], ["127.0.0.1:9000", "serving", "-", "1", "30s"]);
    let named = cli
        .json(&[
            "discovery",
            "register",
            "web",
            "--address",
            "h:1",
            "--instance-id",
            "two",
            "--zone",
            "z",
            "--weight",
            "7",
            "--meta",
            "version=7",
        ])
        .await;
    assert_eq!(named["instanceId"], "two");
    let table = cli.ok(&["service", "resolve", "web", "--zone", "z"]).await;
    assert_eq!(row(&table, "two"), ["two", "h:1", "serving", "z", "7", "-", "version=7"]);
    let drained = cli.ok(&["service", "drain", "web", "two"]).await;
    assert!(drained.starts_with("two is draining, revision "), "{drained}");
    assert_eq!(cli.ok(&["service", "drain", "web", "two"]).await, drained, "nothing changed");
    assert_eq!(row(&cli.ok(&["service", "resolve", "web"]).await, "two")[2], "draining");
    let mut watch = cli.start(&["service", "watch", "web"]);
    while let Some(line) = watch.line().await {
        if line.contains("two") {
            assert!(line.ends_with("two  h:1  draining"), "{line}");
            break;
        }
    }
    let resumed = cli.ok(&["service", "resume", "web", "two"]).await;
    assert!(resumed.starts_with("two is serving, revision "), "{resumed}");
    let told = watch.line().await.expect("the watch tells it");
    assert!(told.contains("REGISTERED") && told.ends_with("two  h:1"), "{told}");
    let gone = cli.fails(&["service", "drain", "web", "three"], 69).await;
    assert!(gone.contains("three"), "{gone}");
    let first = ["service", "register", "web", "--address", "h:1", "--instance-id", "four"];
    cli.ok(&[first.as_slice(), &["--state", "draining"]].concat()).await;
    assert_eq!(row(&cli.ok(&["service", "resolve", "web"]).await, "four")[2], "draining");
    cli.ok(&["service", "deregister", "web", "four"]).await;
    assert_eq!(row(&cli.ok(&["service", "list"]).await, "web"), ["web", "2"]);
    assert_eq!(row(&cli.ok(&["service", "list"]).await, "quorate"), ["quorate", "3"]);
    assert!(cli.ok(&["service", "deregister", "web", id]).await.starts_with("deregistered "));
    let gone = cli.fails(&["service", "deregister", "web", id], 69).await;
    assert!(gone.contains(id), "{gone}");
    let address = cli.fails(&["service", "register", "web", "--address", "9000"], 67).await;
    assert!(address.contains("9000"), "{address}");

    let script = "printf '%s %s' \"$QUORATE_SERVICE_NAME\" \"$QUORATE_INSTANCE_ID\"; exit 3";
    let while_runs = ["service", "register", "job", "--address", "h:1", "--", "sh", "-c", script];
    let ended = cli.run(&while_runs).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (3, ""), "{ended:?}");
    assert!(ended.stdout.starts_with("job "), "{ended:?}");
    let left = cli.ok(&["service", "resolve", "job"]).await;
    assert_eq!(left.lines().count(), 1, "it is deregistered at its end: {left}");
}

#[tokio::test]
async fn events() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    let line = "{\"type\":\"Created\",\"data\":{\"n\":1}}\n";
    let told = cli.run_with(&["events", "append", "orders"], line).await;
    assert_eq!((told.code, told.stderr.as_str()), (0, ""), "{told:?}");
    assert!(told.stdout.starts_with("orders: version 1, position "), "{told:?}");
    let read = cli.ok(&["events", "read", "orders"]).await;
    let event: serde_json::Value = serde_json::from_str(&read).expect("a line of JSON");
    assert_eq!((&event["type"], &event["data"]["n"]), (&"Created".into(), &1.into()));
    assert_eq!(event["version"], 1);

    let again = cli.run_with(&["events", "append", "orders"], &read).await;
    assert!(again.stdout.contains("they were there already"), "{again:?}");
    let lines = line.repeat(3);
    let told = cli.run_with(&["events", "append", "orders", "--expect", "1"], &lines).await;
    assert!(told.stdout.starts_with("orders: versions 2 to 4, "), "{told:?}");
    let late = cli.fails_with(&["events", "append", "orders", "--expect", "1"], line, 74).await;
    assert!(late.contains('4'), "the actual version is told: {late}");
    let exists = ["events", "append", "orders", "--expect", "no-stream"];
    cli.fails_with(&exists, line, 74).await;
    let none = cli.fails(&["events", "read", "none"], 69).await;
    assert!(none.contains("none"), "{none}");
    let wrong = cli.fails_with(&["events", "append", "orders"], "{\"typ\":1}\n", 1).await;
    assert!(wrong.contains("line 1") && wrong.contains("typ"), "{wrong}");

    let from = cli.ok(&["events", "read", "orders", "--from", "2", "--limit", "2"]).await;
    assert_eq!(from.lines().count(), 2);
    let raw = cli.ok(&["events", "read", "orders", "--raw"]).await;
    let raw: serde_json::Value = serde_json::from_str(&raw).expect("one message, one line");
    assert_eq!(raw["events"][0]["data"], "eyJuIjoxfQ==");
    let all = cli.ok(&["events", "read"]).await;
    assert_eq!(all.lines().count(), 4);
    let streams = cli.ok(&["events", "streams"]).await;
    assert_eq!(row(&streams, "orders")[1], "4");
    let subscribed = ["events", "subscribe", "orders", "--from", "start", "--limit", "4"];
    let subscribed = cli.run(&subscribed).await;
    assert_eq!((subscribed.code, subscribed.stdout.lines().count()), (0, 4), "{subscribed:?}");
}

#[tokio::test]
async fn benchmarks() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    let short = ["--clients", "4", "--duration", "300ms"];
    for bench in ["put", "put-stream", "get", "lock", "contend", "append", "subscribe"] {
        let report = cli.json(&[&["bench", bench], &short[..]].concat()).await;
        assert_eq!((&report["bench"], &report["errors"]), (&bench.into(), &0.into()), "{report}");
        assert!(report["operations"].as_u64() > Some(0), "{report}");
        assert!(report["latencyMicros"]["p99"].as_u64() > Some(0), "{report}");
    }
    let report = cli.ok(&[&["bench", "put", "--verify"], &short[..]].concat()).await;
    let checked = report.lines().find(|line| line.starts_with("checked")).expect("a verdict");
    assert!(checked.contains(" 0 "), "{report}");
}

#[tokio::test]
async fn a_soak_kills_its_own_leader_and_proves_what_was_acknowledged() {
    let cli = Cli::at("127.0.0.1:1");
    let short = ["--clients", "6", "--duration", "4s", "--kill-every", "3s", "--down-for", "500ms"];
    let report = cli.json(&[&["bench", "soak"], &short[..]].concat()).await;
    assert_eq!(
        (&report["bench"], &report["wrong"]),
        (&"soak".into(), &serde_json::json!({})),
        "{report}"
    );
    assert_eq!(report["minutes"][0]["kills"], 1, "{report}");
    assert!(report["acknowledged"].as_u64() > Some(0), "{report}");
    assert_eq!(report["memory"]["verdict"], "not judged", "{report}");
    let refused = cli.run(&["bench", "soak", "--kill-every", "5s", "--down-for", "5s"]).await;
    assert_eq!(refused.code, 2, "{refused:?}");
}

#[tokio::test]
async fn every_command_explains_itself() {
    let cli = Cli::at("127.0.0.1:1");
    let version = cli.ok(&["--version"]).await;
    let expected = format!("quorate {} (commit ", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&expected), "{version}");

    let mut commands = VecDeque::from([Vec::new()]);
    let mut leaves = 0;
    while let Some(command) = commands.pop_front() {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("--help");
        let help = cli.ok(&args).await;
        let inner = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        let inner = inner.take_while(|line| line.starts_with("  "));
        let names = inner.filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next());
        let names: Vec<_> = names.filter(|name| *name != "help").collect();
        if names.is_empty() || command.is_empty() {
            leaves += 1;
            let shown = help.contains("\n  quorate ") || help.contains("| quorate ");
            assert!(shown, "{args:?} has no example:\n{help}");
        }
        let below = names.into_iter().map(|name| [command.clone(), vec![name.into()]].concat());
        commands.extend(below);
    }
    assert!(leaves > 25, "only {leaves} commands were found");

    for shell in ["bash", "zsh", "fish"] {
        let script = cli.ok(&["completions", shell]).await;
        assert!(script.contains("quorate"), "{shell}");
    }
}

#[tokio::test]
async fn what_is_typed_wrong_is_named_in_one_line() {
    let cli = Cli::at("127.0.0.1:1");
    let wrong: [(&[&str], &str); 9] = [
        (&["kv", "put", "a"], "VALUE"),
        (&["kv", "gett", "a"], "gett"),
        (&["frobnicate"], "frobnicate"),
        (&["--no-such-flag", "status"], "--no-such-flag"),
        (&["lock", "acquire", "a", "--ttl", "5parsecs"], "5parsecs"),
        (&["lock", "acquire", "a", "--wait", "never"], "never"),
        (&["events", "append", "s", "--expect", "some"], "some"),
        (&["service", "register", "web"], "--address"),
        (&["--endpoints", "nowhere", "status"], "nowhere"),
    ];
    for (args, named) in wrong {
        let told = cli.fails(args, 2).await;
        assert!(told.contains(named), "{args:?}: {told}");
    }
    let nobody = cli.fails(&["--timeout", "500ms", "kv", "get", "a"], 64 + 14).await;
    assert!(nobody.contains("127.0.0.1:1"), "it says who was asked: {nobody}");
}
