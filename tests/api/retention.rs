//! What streams let go, as programs and people meet it: limits, trims, deletions.

use quorate::pb::event::v1::{
    AppendRequest, DeleteStreamRequest, DescribeStreamRequest, Event, ExpectedState,
    ListStreamsRequest, ReadRequest, SetStreamLimitsRequest, Stream, StreamLimits,
    SubscribeRequest, TrimStreamRequest, append_request, delete_stream_request,
    trim_stream_request::Before,
};
use tonic::Code;
use uuid::Uuid;

use crate::{
    cli::Cli,
    eventually, settled,
    speech::{Node, drained, event, first, refused, span},
};

/// What is passed as an expected state and means nothing.
const NO_STATE: i32 = 77;

fn append(stream: &str, count: usize) -> AppendRequest {
    let events = vec![event("", "T"); count];
    AppendRequest { stream: stream.to_owned(), events, ..Default::default() }
}

fn trim(stream: &str, before: Before) -> TrimStreamRequest {
    TrimStreamRequest { stream: stream.to_owned(), before: Some(before), ..Default::default() }
}

fn limits(stream: &str, limits: StreamLimits) -> SetStreamLimitsRequest {
    SetStreamLimitsRequest { stream: stream.to_owned(), limits: Some(limits), ..Default::default() }
}

fn delete(stream: &str) -> DeleteStreamRequest {
    DeleteStreamRequest { stream: stream.to_owned(), ..Default::default() }
}

fn read(stream: &str, from: u64) -> ReadRequest {
    ReadRequest { stream: stream.to_owned(), from, ..Default::default() }
}

async fn versions(node: &mut Node, stream: &str) -> Vec<u64> {
    let answers = drained(node.event.read(read(stream, 0)).await).await.expect("read");
    answers.iter().flat_map(|answer| &answer.events).map(|event| event.version).collect()
}

async fn described(node: &mut Node, stream: &str) -> Stream {
    let request = DescribeStreamRequest { stream: stream.to_owned(), stale: false };
    let answer = node.event.describe_stream(request).await.expect("described");
    answer.into_inner().stream.expect("a stream")
}

#[tokio::test]
async fn what_was_trimmed_is_out_of_range_on_every_node() {
    let mut cluster = settled().await;
    let leader = cluster.wait_for_leader().await;
    let mut node = Node::of(&cluster, leader).await;
    node.event.append(append("a", 5)).await.expect("appended");
    node.event.append(append("b", 1)).await.expect("appended");
    let answer = node.event.trim_stream(trim("a", Before::BeforeVersion(4))).await;
    let answer = answer.expect("trimmed").into_inner();
    assert_eq!((answer.first_version, answer.trimmed_count), (4, 3));
    for id in cluster.ids() {
        let mut node = Node::of(&cluster, id).await;
        assert_eq!(versions(&mut node, "a").await, [4, 5]);
        for from in [1, 3] {
            let answer = drained(node.event.read(read("a", from)).await).await;
            let info = refused("read", answer, Code::OutOfRange, "TRIMMED");
            assert_eq!(info.metadata["first_version"], "4");
            let request = SubscribeRequest { stream: "a".to_owned(), from, from_end: false };
            let answer = first(node.event.subscribe(request).await).await;
            let info = refused("subscribe", answer, Code::OutOfRange, "TRIMMED");
            assert_eq!(info.metadata["first_version"], "4");
        }
        let request = SubscribeRequest { stream: "a".to_owned(), ..Default::default() };
        let update = first(node.event.subscribe(request).await).await.expect("open").expect("one");
        assert_eq!((update.events[0].version, update.version, update.caught_up), (4, 5, true));
        let all = drained(node.event.read(read("", 1)).await).await.expect("read");
        let positions: Vec<_> = all.iter().flat_map(|a| &a.events).map(|e| e.position).collect();
        assert_eq!(positions, [4, 5, 6], "the order of all has a gap and no refusal");
    }
}

#[tokio::test]
async fn wrong_requests_are_named_and_change_nothing() {
    let cluster = settled().await;
    let mut node = Node::of(&cluster, 2).await;
    node.event.append(append("a", 2)).await.expect("appended");
    let before = described(&mut node, "a").await;
    let wrong = Code::InvalidArgument;
    let why = "INVALID_ARGUMENT";
    let negative = StreamLimits { max_age: span(-1, 0), ..Default::default() };
    for (what, request) in [
        ("no limits", SetStreamLimitsRequest { stream: "a".to_owned(), ..Default::default() }),
        ("empty limits", limits("a", StreamLimits::default())),
        ("a negative age", limits("a", negative)),
        ("no name", limits("", StreamLimits { max_count: Some(1), ..Default::default() })),
        (
            "a reserved name",
            limits("$all", StreamLimits { max_count: Some(1), ..Default::default() }),
        ),
    ] {
        refused(what, node.event.set_stream_limits(request).await, wrong, why);
    }
    for (what, request) in [
        ("no place", TrimStreamRequest { stream: "a".to_owned(), ..Default::default() }),
        ("version 0", trim("a", Before::BeforeVersion(0))),
        ("position 0", trim("a", Before::BeforePosition(0))),
        ("all streams", trim("", Before::BeforePosition(1))),
    ] {
        refused(what, node.event.trim_stream(request).await, wrong, why);
    }
    let state = delete_stream_request::Expected::ExpectedState(NO_STATE);
    let request = DeleteStreamRequest { expected: Some(state), ..delete("a") };
    refused("a state", node.event.delete_stream(request).await, wrong, why);
    for before in [Before::BeforeVersion(u64::MAX), Before::BeforePosition(u64::MAX)] {
        let answer = node.event.trim_stream(trim("a", before)).await;
        refused("the future", answer, Code::OutOfRange, "FUTURE_REVISION");
    }
    let gone = (Code::NotFound, "STREAM_NOT_FOUND");
    let answer = node.event.trim_stream(trim("none", Before::BeforeVersion(1))).await;
    refused("trim", answer, gone.0, gone.1);
    refused("delete", node.event.delete_stream(delete("none")).await, gone.0, gone.1);
    let request = DescribeStreamRequest { stream: "none".to_owned(), stale: false };
    refused("describe", node.event.describe_stream(request).await, gone.0, gone.1);
    assert_eq!(described(&mut node, "a").await, before);

    let huge = StreamLimits {
        max_age: span(i64::MAX, 999_999_999),
        max_count: Some(u64::MAX),
        max_bytes: Some(u64::MAX),
    };
    node.event.set_stream_limits(limits("a", huge)).await.expect("huge limits keep everything");
    node.event.append(append("a", 1)).await.expect("appended");
    assert_eq!(versions(&mut node, "a").await, [1, 2, 3]);
}

#[tokio::test]
async fn a_retried_deletion_does_not_delete_what_came_after() {
    let cluster = settled().await;
    let mut node = Node::of(&cluster, 1).await;
    node.event.append(append("a", 3)).await.expect("appended");
    let request = DeleteStreamRequest { request_id: Uuid::new_v4().to_string(), ..delete("a") };
    let deleted = node.event.delete_stream(request.clone()).await.expect("deleted").into_inner();
    assert_eq!((deleted.last_version, deleted.deleted_count), (3, 3));
    let answer = drained(node.event.read(read("a", 0)).await).await;
    refused("read", answer, Code::NotFound, "STREAM_NOT_FOUND");
    let list = node.event.list_streams(ListStreamsRequest::default()).await.expect("listed");
    assert!(list.into_inner().streams.is_empty());
    assert!(described(&mut node, "a").await.deleted);

    let none = append_request::Expected::ExpectedState(ExpectedState::NoStream.into());
    let again = AppendRequest { expected: Some(none), ..append("a", 1) };
    let again = node.event.append(again).await.expect("appended anew").into_inner();
    assert_eq!(again.first_version, 4, "versions go on");
    let mut other = Node::of(&cluster, 3).await;
    let retried = other.event.delete_stream(request).await.expect("answered again").into_inner();
    assert_eq!(retried, deleted);
    assert_eq!(versions(&mut node, "a").await, [4]);
}

#[tokio::test]
async fn an_idle_stream_lets_old_events_go_by_itself() {
    let cluster = settled().await;
    let mut node = Node::of(&cluster, 1).await;
    let age = StreamLimits { max_age: span(1, 0), ..Default::default() };
    node.event.set_stream_limits(limits("a", age)).await.expect("set before the first event");
    node.event.append(append("a", 3)).await.expect("appended");
    for id in cluster.ids() {
        let node = Node::of(&cluster, id).await;
        eventually("the events to grow old", async || {
            versions(&mut node.clone(), "a").await.is_empty().then_some(())
        })
        .await;
    }
    let stream = described(&mut node, "a").await;
    assert_eq!((stream.version, stream.first_version, stream.bytes), (3, 4, 0));
}

#[tokio::test]
async fn a_subscription_that_is_too_slow_for_a_trim_is_told() {
    let cluster = settled().await;
    let mut node = Node::of(&cluster, 1).await;
    for _ in 0..32 {
        let heavy = Event { data: vec![1; 1 << 20].into(), ..event("", "T") };
        let request = AppendRequest { events: vec![heavy], ..append("a", 0) };
        node.event.append(request).await.expect("appended");
    }
    let request = SubscribeRequest { stream: "a".to_owned(), from: 1, from_end: false };
    let mut slow = node.event.subscribe(request).await.expect("open").into_inner();
    let update = slow.message().await.expect("open").expect("the first");
    assert_eq!(update.events[0].version, 1);
    node.event.trim_stream(trim("a", Before::BeforeVersion(33))).await.expect("trimmed");
    let mut next = update.events.len() as u64 + 1;
    let end = loop {
        match slow.message().await {
            Ok(Some(update)) => {
                for event in update.events {
                    assert_eq!(event.version, next, "nothing is passed over in silence");
                    next += 1;
                }
            }
            Ok(None) => panic!("ended without a word after version {next}"),
            Err(status) => break status,
        }
    };
    let info = refused("subscribe", Err::<(), _>(end), Code::OutOfRange, "TRIMMED");
    assert_eq!(
        (&*info.metadata["from"], &*info.metadata["first_version"]),
        (&*next.to_string(), "33")
    );
}

#[tokio::test]
async fn on_the_command_line() {
    let cluster = settled().await;
    let cli = Cli::of(&cluster);
    let lines = "{\"type\":\"T\"}\n".repeat(6);
    assert_eq!(cli.run_with(&["events", "append", "orders"], &lines).await.code, 0);
    let told = cli.ok(&["events", "trim", "orders", "--before", "3"]).await;
    assert_eq!(told, "orders: 2 events let go, begins with version 3\n");
    let refused = cli.fails(&["events", "read", "orders", "--from", "1"], 75).await;
    assert!(refused.contains("begins with version 3"), "{refused}");
    assert_eq!(cli.ok(&["events", "read", "orders"]).await.lines().count(), 4);

    let flags = ["events", "limits", "orders", "--max-count", "3", "--max-age", "30d"];
    let told = cli.ok(&flags).await;
    assert!(told.contains("count 3") && told.contains("age "), "{told}");
    let json = cli.json(&["events", "limits", "orders", "--max-bytes", "1MiB", "-o", "json"]).await;
    let stream = &json["stream"];
    assert_eq!((&stream["firstVersion"], &stream["version"]), (&"4".into(), &"6".into()), "{json}");
    assert_eq!(stream["limits"]["maxAge"], "2592000s");
    assert_eq!(stream["limits"]["maxBytes"], "1048576");
    let told = cli.ok(&["events", "limits", "orders", "--max-age", "none"]).await;
    assert!(told.contains("count 3") && !told.contains("age "), "{told}");
    let shown = cli.ok(&["events", "limits", "orders"]).await;
    assert_eq!(shown, told, "without a limit to set it shows them");
    assert!(cli.ok(&["events", "streams"]).await.contains("count 3"));

    let delete = ["events", "delete", "orders", "--expect", "5"];
    assert!(cli.fails(&delete, 74).await.contains('6'));
    let told = cli.ok(&["events", "delete", "orders", "--expect", "6"]).await;
    assert_eq!(told, "orders: deleted at version 6, 3 events let go\n");
    cli.fails(&["events", "delete", "orders"], 69).await;
    cli.fails(&["events", "limits", "nothing"], 69).await;
    for wrong in [
        &["events", "trim", "orders"][..],
        &["events", "trim", "orders", "--before", "-1"],
        &["events", "trim", "orders", "--before", "3", "--before-position", "3"],
        &["events", "limits", "orders", "--max-age", "-5s"],
        &["events", "limits", "orders", "--max-age", "5"],
        &["events", "limits", "orders", "--max-count", "many"],
        &["events", "limits", "orders", "--max-bytes", "5MB"],
    ] {
        cli.fails(wrong, 2).await;
    }
    let zero = cli.fails(&["events", "trim", "orders", "--before", "0"], 67).await;
    assert!(zero.contains("the first is 1"), "{zero}");
}
