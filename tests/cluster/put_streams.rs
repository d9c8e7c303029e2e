//! Streams of puts: in order, once, across failovers, and bounded where nobody reads.

use std::time::Duration;

use quorate::{
    pb::kv::v1::{
        KvEvent, PutStreamRequest, PutStreamResponse, RangeRequest, StreamedPut, WatchRequest,
        kv_service_client::KvServiceClient,
    },
    testing::Cluster,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};
use uuid::Uuid;

use crate::{LIMIT, PROGRAM, failover::same_state};

fn put(key: impl Into<String>, value: impl Into<String>) -> StreamedPut {
    StreamedPut { key: key.into().into(), value: value.into().into(), session_id: 0 }
}

async fn channel(cluster: &Cluster, id: u64) -> Channel {
    let endpoint = format!("http://{}", cluster.endpoint(id));
    Channel::from_shared(endpoint).expect("an address").connect().await.expect("it listens")
}

/// A stream spoken by hand.
struct Stream {
    requests: mpsc::Sender<PutStreamRequest>,
    responses: Streaming<PutStreamResponse>,
}

impl Stream {
    async fn open(channel: Channel) -> Self {
        let (requests, queue) = mpsc::channel(64);
        let answer = KvServiceClient::new(channel).put_stream(ReceiverStream::new(queue)).await;
        Self { requests, responses: answer.expect("the stream opens").into_inner() }
    }

    async fn send(&self, id: &str, first_sequence: u64, puts: Vec<StreamedPut>) {
        let request = PutStreamRequest { stream_id: id.to_owned(), first_sequence, puts };
        self.requests.send(request).await.expect("the stream is open");
    }

    async fn next(&mut self) -> Result<Option<PutStreamResponse>, Status> {
        timeout(LIMIT, self.responses.message()).await.expect("an answer in time")
    }

    /// Reads until every put up to `sequence` is acknowledged; the last response.
    async fn until(&mut self, sequence: u64) -> PutStreamResponse {
        loop {
            let response = self.next().await.expect("no refusal").expect("not the end");
            if response.last_sequence >= sequence {
                return response;
            }
        }
    }
}

#[tokio::test]
async fn puts_take_effect_in_order_each_with_a_revision_of_its_own() {
    let mut cluster = Cluster::start(3).await;
    cluster.wait_for_leader().await;
    for id in cluster.ids() {
        let client = cluster.client_at(id);
        let prefix = format!("in-order/{id}/");
        let puts = client.kv().put_stream();
        let mut acks = puts.acks();
        for number in 0..2_000_u64 {
            let key = format!("{prefix}{:03}", number % 500);
            assert_eq!(puts.send(key, number.to_string()).await.expect("taken"), number + 1);
        }
        let last = timeout(LIMIT, puts.finish()).await.expect("in time").expect("acknowledged");
        assert_eq!(last.sequence, 2_000);
        let mut seen = 0;
        while let Some(ack) = acks.next().await.expect("no failure") {
            assert!(ack.sequence > seen);
            seen = ack.sequence;
        }
        assert_eq!(seen, 2_000);
        let changes = history(&cluster, id, &prefix, 2_000).await;
        for (number, event) in changes.iter().enumerate() {
            let kv = event.kv.as_ref().expect("a put");
            assert_eq!(kv.value, number.to_string(), "in the order in which they were sent");
        }
        let revisions: Vec<u64> =
            changes.iter().map(|event| event.kv.as_ref().expect("a put").mod_revision).collect();
        assert!(revisions.is_sorted_by(|one, next| one < next), "one revision each");
        assert_eq!(revisions.last(), Some(&last.revision));
    }
    same_state(&cluster).await;
}

/// So many changes below a prefix, from the beginning.
async fn history(cluster: &Cluster, id: u64, prefix: &str, count: usize) -> Vec<KvEvent> {
    let mut watch = cluster.client_at(id).kv().watch(WatchRequest {
        key: prefix.as_bytes().to_vec().into(),
        range_end: quorate::client::prefix_end(prefix.as_bytes()),
        start_revision: 1,
        ..Default::default()
    });
    let mut events = Vec::new();
    while events.len() < count {
        let response = timeout(LIMIT, watch.next()).await.expect("in time").expect("no failure");
        events.extend(response.expect("it does not end").events);
    }
    events
}

#[tokio::test]
async fn a_response_tells_the_revision_of_each_put() {
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.wait_for_leader().await;
    let mut stream = Stream::open(channel(&cluster, leader).await).await;
    stream.send("", 0, vec![put("a", "1"), put("b", "2"), put("a", "3")]).await;
    let response = stream.until(3).await;
    assert!(Uuid::try_parse(&response.stream_id).is_ok(), "the server drew an id");
    assert_eq!(response.first_sequence, 1);
    assert_eq!(response.last_revision, response.first_revision + 2);
    let read = |key: &'static str| {
        let client = cluster.client();
        async move { client.kv().get(key).await.expect("read").expect("there") }
    };
    assert_eq!(read("b").await.mod_revision, response.first_revision + 1);
    assert_eq!(read("a").await.mod_revision, response.first_revision + 2);
    stream.send("", 4, vec![put("c", "4")]).await;
    let second = stream.until(4).await;
    assert!(second.stream_id.is_empty(), "told once");
    drop(stream.requests);
    let end = timeout(LIMIT, stream.responses.message()).await.expect("in time");
    assert_eq!(end.expect("no error"), None, "the stream ends when the client has said all");
}

#[tokio::test]
async fn a_message_with_a_malformed_put_is_refused_whole_and_what_came_before_is_carried_out() {
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.wait_for_leader().await;
    let mut stream = Stream::open(channel(&cluster, leader).await).await;
    stream.send("", 0, vec![put("good", "1")]).await;
    stream.send("", 0, vec![put("x", "2"), put("y", "3"), put("", "4")]).await;
    assert_eq!(stream.until(1).await.last_sequence, 1);
    let status = stream.next().await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("puts[2]: the key is empty"), "{status}");
    let error = quorate::client::Error::from(status);
    assert_eq!((error.fact("index"), error.fact("sequence")), (Some("2"), Some("4")));
    let kv = cluster.client().kv();
    assert!(kv.get("good").await.expect("read").is_some());
    for key in ["x", "y"] {
        assert!(kv.get(key).await.expect("read").is_none(), "{key} was refused too");
    }
}

#[tokio::test]
async fn a_message_of_too_many_puts_is_refused_and_empty_ones_keep_no_put_waiting() {
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.wait_for_leader().await;
    let mut stream = Stream::open(channel(&cluster, leader).await).await;
    stream.send("", 0, vec![put("few", "1")]).await;
    for _ in 0..1_000 {
        stream.send("", 0, Vec::new()).await;
    }
    assert_eq!(stream.until(1).await.last_sequence, 1);
    let puts = (0..10_000).map(|number| put(format!("many/{}", number % 10), "2")).collect();
    stream.send("", 0, puts).await;
    assert_eq!(stream.until(10_001).await.last_sequence, 10_001, "so many are taken");
    stream.send("", 0, vec![put("many", "3"); 10_001]).await;
    let status = stream.next().await.expect_err("refused");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("at most 10000 puts"), "{status}");
    let kv = cluster.client().kv();
    assert!(kv.get("many").await.expect("read").is_none(), "it was refused whole");
}

#[tokio::test]
async fn misnumbered_and_misnamed_messages_are_refused() {
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.wait_for_leader().await;
    let channel = channel(&cluster, leader).await;
    let id = Uuid::new_v4().to_string();
    let other = Uuid::new_v4().to_string();
    let cases: [(&[(&str, u64)], &str); 6] = [
        (&[("x", 1)], "not a UUID"),
        (&[(&id, 0)], "first_sequence is required"),
        (&[("", 7)], "under its stream_id only"),
        (&[(&id, 7)], "is not known, or forgotten"),
        (&[("", 0), (&other, 0)], "differs"),
        (&[("", 0), ("", 9)], "2 comes next"),
    ];
    for (messages, words) in cases {
        let mut stream = Stream::open(channel.clone()).await;
        for (id, first) in messages {
            stream.send(id, *first, vec![put("k", "v")]).await;
        }
        let status = loop {
            match stream.next().await {
                Ok(response) => assert!(response.is_some(), "{words}: it ended well"),
                Err(status) => break status,
            }
        };
        assert!(status.message().contains(words), "{words}: {status}");
    }
    let gap = {
        let mut stream = Stream::open(channel).await;
        stream.send(&id, 7, vec![put("k", "v")]).await;
        quorate::client::Error::from(stream.next().await.expect_err("refused"))
    };
    assert_eq!((gap.code(), gap.reason()), (Code::FailedPrecondition, "PUT_STREAM_GAP"));
    assert_eq!(gap.fact("expected_sequence"), Some("1"));
    assert!(!gap.outcome_unknown());
}

#[tokio::test]
async fn a_stream_goes_on_elsewhere_and_what_comes_twice_is_done_once() {
    let mut cluster = Cluster::start(3).await;
    cluster.wait_for_leader().await;
    let id = Uuid::new_v4().to_string();
    let puts = |range: std::ops::RangeInclusive<u64>| -> Vec<StreamedPut> {
        range.map(|number| put(format!("twice/{number:03}"), "v")).collect()
    };
    let mut first = Stream::open(channel(&cluster, 1).await).await;
    first.send(&id, 1, puts(1..=10)).await;
    let told = first.until(10).await;
    assert!(told.stream_id.is_empty(), "the client chose it");
    drop(first);
    let mut second = Stream::open(channel(&cluster, 2).await).await;
    second.send(&id, 6, puts(6..=20)).await;
    let response = second.until(20).await;
    assert_eq!((response.first_sequence, response.last_sequence), (11, 20));
    drop(second);
    let mut third = Stream::open(channel(&cluster, 3).await).await;
    third.send(&id, 1, puts(1..=20)).await;
    let again = third.until(20).await;
    assert_eq!((again.first_sequence, again.first_revision), (21, 0), "nothing took effect");
    assert_eq!(again.last_revision, response.last_revision);
    let request = RangeRequest {
        key: "twice/".into(),
        range_end: quorate::client::prefix_end(b"twice/"),
        ..Default::default()
    };
    let kvs = cluster.client().kv().range(request).await.expect("read").kvs;
    assert_eq!(kvs.len(), 20);
    assert!(kvs.iter().all(|kv| kv.version == 1), "each was written once");
}

#[tokio::test]
async fn streams_survive_killed_leaders_in_order_and_once() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut tasks = tokio::task::JoinSet::new();
    let stop = tokio_util::sync::CancellationToken::new();
    let (count, mut acknowledged) = tokio::sync::watch::channel(0_u64);
    let count = std::sync::Arc::new(count);
    for (number, id) in cluster.ids().into_iter().enumerate() {
        let mut endpoints = cluster.endpoints();
        endpoints.rotate_left(number);
        let client = quorate::client::Client::builder().endpoints(endpoints).build().expect("good");
        let (stop, count) = (stop.clone(), count.clone());
        tasks.spawn(async move {
            // Small messages, so that many are under way when the leader falls.
            let puts = client.kv().put_stream_of(8);
            let mut acks = puts.acks();
            let counting = async {
                let mut seen = 0;
                while let Some(ack) = acks.next().await.expect("the stream survives") {
                    count.send_modify(|count| *count += ack.sequence - seen);
                    seen = ack.sequence;
                }
            };
            let writing = async {
                let mut number = 0_u64;
                while !stop.is_cancelled() {
                    let key = format!("kills/{id}/{:03}", number % 100);
                    puts.send(key, number.to_string()).await.expect("the stream survives");
                    number += 1;
                }
                puts.finish().await.expect("the stream survives")
            };
            let ((), last) = tokio::join!(counting, writing);
            (id, last)
        });
    }
    for _ in 0..3 {
        progress(&mut acknowledged, 2_000).await;
        let leader = cluster.wait_for_leader().await;
        cluster.kill(leader).await;
        progress(&mut acknowledged, 2_000).await;
        cluster.restart(leader).await;
        cluster.wait_until_ready().await;
    }
    stop.cancel();
    while let Some(ended) = timeout(LIMIT, tasks.join_next()).await.expect("in time") {
        let (id, last) = ended.expect("a writer does not panic");
        check(&cluster, id, last.sequence).await;
    }
    same_state(&cluster).await;
}

/// Waits until so many further puts are acknowledged.
async fn progress(acknowledged: &mut tokio::sync::watch::Receiver<u64>, puts: u64) {
    let before = *acknowledged.borrow();
    let there = acknowledged.wait_for(|count| *count >= before + puts);
    let done = timeout(LIMIT, there).await;
    drop(done.unwrap_or_else(|_| panic!("waited {LIMIT:?} for {puts} puts")).expect("they run"));
}

/// Each key holds the last value that was put, and was written as often as it was put.
async fn check(cluster: &Cluster, id: u64, count: u64) {
    let prefix = format!("kills/{id}/");
    let request = RangeRequest {
        key: prefix.clone().into(),
        range_end: quorate::client::prefix_end(prefix.as_bytes()),
        ..Default::default()
    };
    let kvs = cluster.client().kv().range(request).await.expect("read").kvs;
    assert_eq!(kvs.len(), 100);
    for (number, kv) in kvs.iter().enumerate() {
        let number = number as u64;
        let times = (count - number).div_ceil(100);
        assert_eq!(kv.version, times, "{kv:?} of {count} puts");
        assert_eq!(kv.value, (number + (times - 1) * 100).to_string(), "{kv:?} of {count} puts");
    }
}

#[tokio::test]
async fn who_does_not_read_the_acknowledgements_is_not_read_either() {
    const TAKEN_MAX: u64 = 2_000;
    let mut cluster = Cluster::start(1).await;
    let leader = cluster.wait_for_leader().await;
    // A window of few acknowledgements, so that it is soon full.
    let endpoint = Channel::from_shared(format!("http://{}", cluster.endpoint(leader)));
    let endpoint = endpoint.expect("an address").initial_stream_window_size(1_024);
    let mut stream = Stream::open(endpoint.connect().await.expect("it listens")).await;
    let value = "v".repeat(64 << 10);
    let mut sent = 0_u64;
    loop {
        let puts = vec![put(format!("flood/{}", sent % 4), value.clone())];
        let request = PutStreamRequest { puts, ..Default::default() };
        // A slow machine stands still sooner, which is no failure.
        match timeout(Duration::from_secs(2), stream.requests.send(request)).await {
            Ok(taken) => taken.expect("the stream is open"),
            Err(_) => break,
        }
        sent += 1;
        assert!(sent < TAKEN_MAX, "{sent} puts were taken and no acknowledgement was");
    }
    assert_eq!(stream.until(sent).await.last_sequence, sent, "reading sets it going again");
}
