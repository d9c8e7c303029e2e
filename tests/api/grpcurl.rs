//! Every service through the real grpcurl: found by reflection, and its JSON is that of `-o json`.
//!
//! Without grpcurl the test says that it skipped; with `QUORATE_REQUIRE_GRPCURL=1` it fails.

use std::{env, fs, process::Stdio};

use quorate::testing::Cluster;
use serde_json::{Value, json};
use tokio::{process::Command, time::timeout};
use uuid::Uuid;

use crate::{
    LIMIT,
    cli::{Cli, Ended},
    eventually, settled,
};

/// What clients find on a node.
const CLIENT_SERVICES: [&str; 6] = [
    "quorate.cluster.v1.ClusterService",
    "quorate.discovery.v1.DiscoveryService",
    "quorate.event.v1.EventService",
    "quorate.kv.v1.KvService",
    "quorate.lock.v1.LockService",
    "quorate.session.v1.SessionService",
];

/// grpcurl, where it is to be had: on the search path, and where `go install` puts it.
fn program() -> Command {
    let path = env::var("PATH").unwrap_or_default();
    let home = env::var("HOME").unwrap_or_default();
    let mut command = Command::new("grpcurl");
    command.env("PATH", format!("{path}:{home}/go/bin")).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Whether it is there. Without it a test says that it skipped; with `QUORATE_REQUIRE_GRPCURL=1` it
/// fails.
pub(crate) async fn is_there() -> bool {
    if program().arg("-version").output().await.is_ok_and(|output| output.status.success()) {
        return true;
    }
    let required = env::var("QUORATE_REQUIRE_GRPCURL").is_ok_and(|value| value == "1");
    assert!(!required, "QUORATE_REQUIRE_GRPCURL=1, and there is no grpcurl");
    println!("skipped: there is no grpcurl on the search path; .ci/run installs it");
    false
}

/// Runs it to its end.
pub(crate) async fn run(args: &[&str]) -> Ended {
    let output = timeout(LIMIT, program().args(args).output()).await.expect("grpcurl ends");
    let output = output.expect("grpcurl starts");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// grpcurl against one address.
struct Grpcurl {
    address: String,
}

impl Grpcurl {
    async fn command(&self, before: &[&str], after: &[&str]) -> Ended {
        run(&[&["-plaintext"], before, &[&self.address], after].concat()).await
    }

    async fn list(&self) -> String {
        let ended = self.command(&[], &["list"]).await;
        assert_eq!(ended.code, 0, "list: {ended:?}");
        ended.stdout
    }

    /// Calls a method; the messages of the answer.
    async fn messages(&self, flags: &[&str], method: &str, request: Value) -> (i32, Vec<Value>) {
        self.stream(flags, method, &[request]).await
    }

    /// Calls a method with several messages; the messages of the answer.
    async fn stream(&self, flags: &[&str], method: &str, requests: &[Value]) -> (i32, Vec<Value>) {
        let requests: Vec<String> = requests.iter().map(Value::to_string).collect();
        let requests = requests.join("\n");
        let flags = [flags, &["-d", &requests]].concat();
        let ended = self.command(&flags, &[method]).await;
        let messages = serde_json::Deserializer::from_str(&ended.stdout).into_iter();
        let messages: Result<Vec<Value>, _> = messages.collect();
        (ended.code, messages.unwrap_or_else(|error| panic!("{method}: {error}: {ended:?}")))
    }

    /// Calls a method that must succeed; its one answer.
    async fn call(&self, method: &str, request: Value) -> Value {
        let (code, mut messages) = self.messages(&[], method, request).await;
        assert_eq!((code, messages.len()), (0, 1), "{method}: {messages:?}");
        messages.remove(0)
    }
}

/// A JSON value with what differs from call to call blanked out: field names and forms stay.
fn form(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), form(value))).collect()
        }
        Value::Array(values) => values.iter().map(form).collect(),
        Value::String(text) if text.parse::<u64>().is_ok() => "a number as text".into(),
        Value::String(text) if Uuid::try_parse(text).is_ok() => "a UUID".into(),
        Value::String(text) if text.len() > 19 && text.contains('T') && text.ends_with('Z') => {
            "a time".into()
        }
        Value::Number(_) => "a number".into(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn every_service_speaks_to_grpcurl_as_the_command_line_prints() {
    if !is_there().await {
        return;
    }
    let mut cluster = settled().await;
    let leader = cluster.wait_for_leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let grpcurl = Grpcurl { address: cluster.endpoint(follower) };
    let cli = Cli::at(cluster.endpoint(follower));
    found_by_reflection(&cluster, &grpcurl).await;
    votes(&mut cluster, leader, follower).await;
    locks(&grpcurl, &cli).await;
    instances(&grpcurl, &cli).await;
    events(&grpcurl, &cli).await;
    keys(&grpcurl, &cli).await;
    put_stream(&grpcurl, &cli).await;
    sessions(&grpcurl).await;
    operation(&grpcurl, &cli, follower).await;
    refusals(&grpcurl).await;
}

async fn found_by_reflection(cluster: &Cluster, grpcurl: &Grpcurl) {
    let peer = Grpcurl { address: cluster.peer_address(1).to_string() };
    let raft = "quorate.raft.v1.RaftService";
    let listed = grpcurl.list().await;
    for service in CLIENT_SERVICES.into_iter().chain(["grpc.health.v1.Health"]) {
        assert!(listed.lines().any(|line| line == service), "{service}: {listed}");
    }
    assert!(peer.list().await.lines().any(|line| line == raft));
    // Which version grpcurl used it does not say; each is asked for by its own name.
    for version in ["v1", "v1alpha"] {
        let method = format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        for at in [grpcurl, &peer] {
            let answer = at.call(&method, json!({"listServices": ""})).await;
            let services = &answer["listServicesResponse"]["service"];
            assert!(services.as_array().is_some_and(|all| all.len() > 1), "{answer}");
        }
    }
    for service in CLIENT_SERVICES {
        let described = grpcurl.command(&[], &["describe", service]).await;
        assert!(described.stdout.starts_with(&format!("{service} is a service:")), "{described:?}");
        let health = json!({"service": service});
        let health = grpcurl.call("grpc.health.v1.Health/Check", health).await;
        assert_eq!(health, json!({"status": "SERVING"}), "{service}");
    }
    let described = grpcurl.command(&[], &["describe", "quorate.lock.v1.AcquireRequest"]).await;
    assert!(described.stdout.contains("google.protobuf.Duration ttl = 2;"), "{described:?}");
    let health = peer.call("grpc.health.v1.Health/Check", json!({"service": raft})).await;
    assert_eq!(health, json!({"status": "SERVING"}));
}

/// A vote asked for by hand: answered truthfully, and nothing moves.
async fn votes(cluster: &mut Cluster, leader: u64, voter: u64) {
    let peer = Grpcurl { address: cluster.peer_address(voter).to_string() };
    let node = Cli::at(cluster.endpoint(voter));
    let candidate = cluster.ids().into_iter().find(|id| *id != leader && *id != voter);
    let candidate = candidate.expect("three nodes");
    let identity = fs::read_to_string(cluster.data_dir(candidate).join("identity"));
    let identity = identity.expect("every node has one");
    let field = |name: &str| {
        let line = identity.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
        line.expect("the field is there").trim_matches('"').to_owned()
    };
    let status = node.json(&["status"]).await;
    let term: u64 = status["term"].as_str().and_then(|term| term.parse().ok()).expect("a term");
    let member = json!({
        "clusterId": field("cluster_id"), "fromNode": candidate, "toNode": voter,
        "incarnation": field("incarnation"),
    });
    let stranger = json!({
        "clusterId": field("cluster_id"), "fromNode": 9, "toNode": voter,
        "incarnation": Uuid::new_v4().to_string(),
    });
    let ask = |identity: &Value, candidate: u64, term: u64| {
        json!({
            "identity": identity, "groupId": 1, "term": term, "candidateId": candidate,
            "lastLogIndex": 1_000_000, "lastLogTerm": term,
        })
    };
    let asked = [
        ("nothing but a term", json!({"term": term + 100})),
        ("a stale term", ask(&member, candidate, term - 1)),
        ("a stranger", ask(&stranger, 9, term + 100)),
        ("a candidate that is not the sender", ask(&member, 9, term + 100)),
    ];
    for (who, request) in asked {
        let method = "quorate.raft.v1.RaftService/RequestVote";
        let (code, answers) = peer.messages(&["-emit-defaults"], method, request).await;
        assert_eq!((code, answers.len()), (0, 1), "{who}: {answers:?}");
        assert_eq!(answers[0]["voteGranted"], false, "{who}: {answers:?}");
        assert_eq!(answers[0]["term"], term.to_string(), "{who}: {answers:?}");
        assert!(answers[0]["reason"].as_str().is_some_and(|why| !why.is_empty()), "{answers:?}");
    }
    let after = node.json(&["status"]).await;
    assert_eq!((&after["term"], &after["leaderId"]), (&status["term"], &status["leaderId"]));
}

async fn locks(grpcurl: &Grpcurl, cli: &Cli) {
    let service = "quorate.lock.v1.LockService";
    let request = json!({"name": "demo", "ttl": "5s"});
    let granted = grpcurl.call(&format!("{service}/Acquire"), request).await;
    let token = granted["fencingToken"].as_str().expect("64-bit numbers are text").to_owned();
    let grant = json!({"name": "demo", "fencingToken": token});
    let described = grpcurl.call(&format!("{service}/Describe"), json!({"name": "demo"})).await;
    assert_eq!(described, cli.json(&["lock", "describe", "demo"]).await);
    let listed = grpcurl.call(&format!("{service}/List"), json!({})).await;
    assert_eq!(listed, cli.json(&["lock", "list"]).await);
    let renewed = grpcurl.call(&format!("{service}/Renew"), grant.clone()).await;
    let flag = ["lock", "renew", "demo", "--fencing-token", token.as_str()];
    assert_eq!(renewed, cli.json(&flag).await);
    let released = grpcurl.call(&format!("{service}/Release"), grant).await;

    let by_cli = cli.json(&["lock", "acquire", "demo", "--ttl", "5s"]).await;
    assert_eq!(form(&granted), form(&by_cli));
    let token = by_cli["fencingToken"].as_str().expect("text");
    let flag = ["lock", "release", "demo", "--fencing-token", token];
    assert_eq!(form(&released), form(&cli.json(&flag).await));

    let watch = format!("{service}/Watch");
    let limit = ["-max-time", "1"];
    let (_, seen) = grpcurl.messages(&limit, &watch, json!({"prefix": true})).await;
    assert_eq!(seen.first().map(|first| &first["caughtUp"]), Some(&json!(true)), "{seen:?}");
}

async fn instances(grpcurl: &Grpcurl, cli: &Cli) {
    let service = "quorate.discovery.v1.DiscoveryService";
    let request = json!({
        "service": "web", "instanceId": "one", "address": "127.0.0.1:9000", "ttl": "30s",
        "metadata": {"version": "7"},
    });
    let registered = grpcurl.call(&format!("{service}/Register"), request).await;
    let resolved = grpcurl.call(&format!("{service}/Resolve"), json!({"service": "web"})).await;
    assert_eq!(resolved, cli.json(&["service", "resolve", "web"]).await);
    assert_eq!(resolved["instances"][0]["weight"], 1, "32-bit numbers are numbers");
    let listed = grpcurl.call(&format!("{service}/ListServices"), json!({})).await;
    assert_eq!(listed, cli.json(&["service", "list"]).await);
    let named = json!({"service": "web", "instanceId": "one"});
    let renewed = grpcurl.call(&format!("{service}/Renew"), named.clone()).await;
    assert_eq!(renewed, json!({"ttl": "30s"}));
    assert_eq!(resolved["instances"][0]["state"], "INSTANCE_STATE_SERVING");
    let draining = json!({
        "service": "web", "instanceId": "one", "state": "INSTANCE_STATE_DRAINING",
    });
    let set = grpcurl.call(&format!("{service}/SetInstanceState"), draining).await;
    assert_eq!(set, cli.json(&["service", "drain", "web", "one"]).await, "it was draining already");
    let resolved = grpcurl.call(&format!("{service}/Resolve"), json!({"service": "web"})).await;
    assert_eq!(resolved["instances"][0]["state"], "INSTANCE_STATE_DRAINING");
    assert_eq!(resolved["instances"][0]["revision"], set["revision"]);
    let removed = grpcurl.call(&format!("{service}/Deregister"), named).await;

    let typed =
        ["service", "register", "web", "--instance-id", "one", "--address", "h:1", "--ttl", "30s"];
    assert_eq!(form(&registered), form(&cli.json(&typed).await));
    let typed = ["service", "deregister", "web", "one"];
    assert_eq!(form(&removed), form(&cli.json(&typed).await));
}

async fn events(grpcurl: &Grpcurl, cli: &Cli) {
    let service = "quorate.event.v1.EventService";
    let event = json!({"type": "Created", "data": "eyJuIjoxfQ==", "tags": ["t"]});
    let request = json!({"stream": "orders", "events": [event], "expectedState":
        "EXPECTED_STATE_NO_STREAM"});
    let appended = grpcurl.call(&format!("{service}/Append"), request).await;
    let line = "{\"type\":\"Created\",\"data\":{\"n\":1}}\n";
    let typed = cli.run_with(&["-o", "json", "events", "append", "orders"], line).await;
    assert_eq!(form(&appended), form(&one(&typed.stdout)));

    let read = grpcurl.call(&format!("{service}/Read"), json!({"stream": "orders"})).await;
    assert_eq!(read, cli.json(&["events", "read", "orders"]).await);
    assert_eq!(read["events"][0]["data"], "eyJuIjoxfQ==", "bytes are base64");
    let streams = grpcurl.call(&format!("{service}/ListStreams"), json!({})).await;
    assert_eq!(streams, cli.json(&["events", "streams"]).await);

    let subscribe = format!("{service}/Subscribe");
    let limit = ["-max-time", "1"];
    let (code, seen) = grpcurl.messages(&limit, &subscribe, json!({"stream": "orders"})).await;
    assert_eq!(code, 64 + 4, "the deadline ends it");
    let mut typed = cli.start(&["-o", "json", "events", "subscribe", "orders", "--from", "start"]);
    assert_eq!(Some(&seen[0]), typed.line().await.map(|line| one(&line)).as_ref());
    assert!(seen.iter().any(|message| message["caughtUp"] == true), "{seen:?}");
}

async fn keys(grpcurl: &Grpcurl, cli: &Cli) {
    let service = "quorate.kv.v1.KvService";
    let request = json!({"key": "YQ==", "value": "MQ=="});
    let put = grpcurl.call(&format!("{service}/Put"), request).await;
    assert_eq!(form(&put), form(&cli.json(&["kv", "put", "a", "1"]).await));
    let range = grpcurl.call(&format!("{service}/Range"), json!({"key": "YQ=="})).await;
    assert_eq!(range, cli.json(&["kv", "get", "a"]).await);
    let txn = json!({"success": [{"range": {"key": "YQ=="}}]});
    let ran = grpcurl.call(&format!("{service}/Txn"), txn.clone()).await;
    let typed = cli.run_with(&["-o", "json", "kv", "txn"], &txn.to_string()).await;
    assert_eq!(ran, one(&typed.stdout));
    let revision = put["revision"].as_str().and_then(|text| text.parse::<u64>().ok());
    let revision = revision.expect("a number as text");
    let watch = json!({"key": "YQ==", "startRevision": revision});
    let limit = ["-max-time", "1"];
    let (_, seen) = grpcurl.messages(&limit, &format!("{service}/Watch"), watch).await;
    let from = revision.to_string();
    let mut typed = cli.start(&["-o", "json", "kv", "watch", "a", "--from", &from]);
    assert_eq!(Some(&seen[0]), typed.line().await.map(|line| one(&line)).as_ref());
    let compact = json!({"revision": revision});
    let compacted = grpcurl.call(&format!("{service}/Compact"), compact).await;
    let next = (revision + 1).to_string();
    assert_eq!(form(&compacted), form(&cli.json(&["kv", "compact", &next]).await));
    let deleted = grpcurl.call(&format!("{service}/DeleteRange"), json!({"key": "YQ=="})).await;
    cli.ok(&["kv", "put", "a", "1"]).await;
    assert_eq!(form(&deleted), form(&cli.json(&["kv", "delete", "a"]).await));
}

async fn put_stream(grpcurl: &Grpcurl, cli: &Cli) {
    let method = "quorate.kv.v1.KvService/PutStream";
    let put = |key: &str, value: &str| json!({"key": key, "value": value});
    let requests = [
        json!({"puts": [put("czE=", "MQ=="), put("czI=", "Mg==")]}),
        json!({"puts": [put("czM=", "Mw==")]}),
    ];
    let (code, answers) = grpcurl.stream(&[], method, &requests).await;
    let last = answers.last().expect("acknowledged");
    assert_eq!((code, &last["lastSequence"]), (0, &json!("3")), "{answers:?}");
    let id = answers[0]["streamId"].as_str().expect("the server drew an id").to_owned();
    let read = cli.json(&["kv", "get", "s3"]).await;
    assert_eq!(read["kvs"][0]["modRevision"], last["lastRevision"]);

    let again = json!({"streamId": id, "firstSequence": 3, "puts": [put("czM=", "Mw==")]});
    let (code, answers) = grpcurl.stream(&[], method, &[again]).await;
    assert_eq!((code, answers.len()), (0, 1), "{answers:?}");
    assert_eq!(answers[0]["lastRevision"], last["lastRevision"], "it was done before");
    assert_eq!(answers[0].get("firstRevision"), None, "and not again");

    let bad = json!({"puts": [put("eA==", ""), put("eQ==", ""), put("", "")]});
    let (code, _) = grpcurl.stream(&[], method, &[bad]).await;
    assert_eq!(code, 64 + 3, "INVALID_ARGUMENT");
    assert_eq!(cli.run(&["kv", "get", "x"]).await.code, 69, "nothing of the message was applied");
}

async fn sessions(grpcurl: &Grpcurl) {
    let service = "quorate.session.v1.SessionService";
    let opened = grpcurl.call(&format!("{service}/OpenSession"), json!({"ttl": "5s"})).await;
    assert_eq!(opened["ttl"], "5s");
    let named = json!({"sessionId": opened["sessionId"]});
    let kept = grpcurl.call(&format!("{service}/KeepAlive"), named.clone()).await;
    assert_eq!(kept, json!({"sessionId": opened["sessionId"], "ttl": "5s"}));
    let closed = grpcurl.call(&format!("{service}/CloseSession"), named).await;
    assert!(closed["revision"].is_string(), "{closed}");
}

async fn operation(grpcurl: &Grpcurl, cli: &Cli, target: u64) {
    let service = "quorate.cluster.v1.ClusterService";
    // Indexes move on by themselves: equal only when both ask between two entries.
    eventually("two equal statuses", async || {
        let status = grpcurl.call(&format!("{service}/Status"), json!({})).await;
        (status == cli.json(&["status"]).await).then_some(())
    })
    .await;
    let hash = grpcurl.call(&format!("{service}/StateHash"), json!({})).await;
    assert!(hash["hash"].is_string() && hash["fullHash"].is_string(), "{hash}");
    let request = json!({"targetId": target});
    let moved = grpcurl.call(&format!("{service}/TransferLeadership"), request).await;
    assert_eq!(moved["leaderId"], target.to_string());
    let typed = cli.json(&["cluster", "transfer"]).await;
    assert_eq!(form(&moved), form(&typed));
}

async fn refusals(grpcurl: &Grpcurl) {
    let request = json!({"name": "demo", "fencingToken": 1}).to_string();
    let method = "quorate.lock.v1.LockService/Release";
    let ended = grpcurl.command(&["-d", &request], &[method]).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (64 + 9, ""), "{ended:?}");
    for words in ["FailedPrecondition", "WRONG_FENCING_TOKEN", "google.rpc.ErrorInfo"] {
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
}

/// The one JSON value that a text holds.
fn one(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}
