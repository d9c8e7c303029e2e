//! Event streams while leaders die: each event once and in order, for writers and readers.

use std::time::Duration;

use quorate::{
    pb::event::v1::{
        AppendRequest, AppendResponse, RecordedEvent, SubscribeRequest,
        event_service_client::EventServiceClient,
    },
    testing::Cluster,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::{
    LIMIT, PROGRAM,
    failover::same_state,
    load::{Load, events, request},
};

/// How many writers append meanwhile.
const WRITERS: usize = 4;

/// The stream that all of them, counted from 0, append to.
const STREAM: &str = "load-0";

#[tokio::test]
async fn subscribers_see_every_event_once_and_in_order_across_two_failovers() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let mut load = Load::start(&cluster, WRITERS);
    let subscribers = [
        Subscriber::resuming(&cluster, STREAM),
        Subscriber::resuming(&cluster, ""),
        Subscriber::raw(&cluster, STREAM),
        Subscriber::raw(&cluster, ""),
    ];
    for _ in 0..2 {
        load.progress(60).await;
        let leader = cluster.wait_for_leader().await;
        cluster.kill(leader).await;
        cluster.wait_for_leader().await;
        load.progress(60).await;
        cluster.restart(leader).await;
        cluster.wait_until_ready().await;
    }
    let written = load.stop().await;
    written.check(&cluster.client()).await;
    let client = cluster.client();
    for subscriber in subscribers {
        let expected = events(&client, subscriber.stream()).await;
        assert!(!expected.is_empty());
        assert_eq!(subscriber.first(expected.len()).await, expected);
    }
}

/// Takes in a stream until it is asked what it saw.
pub(crate) struct Subscriber {
    stream: &'static str,
    seen: watch::Receiver<Vec<RecordedEvent>>,
    task: JoinHandle<()>,
}

impl Subscriber {
    /// With the client's own stream, which goes on by itself.
    pub(crate) fn resuming(cluster: &Cluster, stream: &'static str) -> Self {
        let client = cluster.client();
        Self::spawn(stream, async move |seen| {
            let request = SubscribeRequest { stream: stream.to_owned(), ..Default::default() };
            let mut subscription = client.events().subscribe(request).await.expect("no call yet");
            loop {
                let batch = subscription.next().await.expect("it resumes").expect("has no end");
                seen.send_modify(|seen| seen.extend(batch.events));
            }
        })
    }

    /// With bare calls, each break followed by one at the next node, from where the last ended.
    fn raw(cluster: &Cluster, stream: &'static str) -> Self {
        Self::raw_at(cluster.endpoints(), stream)
    }

    /// The same at these nodes only.
    pub(crate) fn raw_at(endpoints: Vec<String>, stream: &'static str) -> Self {
        Self::spawn(stream, async move |seen| {
            let mut from = 1;
            for endpoint in endpoints.iter().cycle() {
                // What cannot be reached or breaks is tried elsewhere.
                let _broken = follow(endpoint, stream, &mut from, &seen).await;
                tokio::task::yield_now().await;
            }
        })
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        stream: &'static str,
        run: impl FnOnce(watch::Sender<Vec<RecordedEvent>>) -> F,
    ) -> Self {
        let (sender, seen) = watch::channel(Vec::new());
        Self { stream, seen, task: tokio::spawn(run(sender)) }
    }

    /// What it takes in.
    pub(crate) const fn stream(&self) -> &'static str {
        self.stream
    }

    /// Waits until it has seen so many, and returns all that it saw.
    pub(crate) async fn first(mut self, count: usize) -> Vec<RecordedEvent> {
        let enough = self.seen.wait_for(|seen| seen.len() >= count);
        let seen = timeout(LIMIT, enough).await.map(|seen| seen.expect("it runs").clone());
        self.task.abort();
        seen.unwrap_or_else(|_| {
            panic!("waited {LIMIT:?} for {count} events: {}", self.seen.borrow().len())
        })
    }
}

/// Subscribes at one node until it ends.
async fn follow(
    endpoint: &str,
    stream: &str,
    from: &mut u64,
    seen: &watch::Sender<Vec<RecordedEvent>>,
) -> Result<(), Status> {
    let connected = EventServiceClient::connect(format!("http://{endpoint}"));
    let connected = timeout(Duration::from_secs(1), connected).await;
    let Ok(Ok(client)) = connected else { return Err(Status::unavailable("nobody is there")) };
    let mut client = client.max_decoding_message_size(64 << 20);
    let request = SubscribeRequest { stream: stream.to_owned(), from: *from, ..Default::default() };
    let mut batches = client.subscribe(request).await?.into_inner();
    while let Some(batch) = batches.message().await? {
        if let Some(last) = batch.events.last() {
            *from = 1 + if stream.is_empty() { last.position } else { last.version };
            seen.send_modify(|seen| seen.extend(batch.events));
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_append_retried_with_its_event_ids_lands_once() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let ids: Vec<_> = (0..3).map(|_| Uuid::new_v4().to_string()).collect();
    let leader = cluster.wait_for_leader().await;
    let first = append(&cluster, leader, request("orders", &ids)).await.expect("appended");
    assert!(!first.duplicate);
    assert_eq!((first.first_version, first.last_version), (1, 3));
    let again = AppendResponse { duplicate: true, ..first.clone() };
    for id in cluster.ids() {
        let answer = append(&cluster, id, request("orders", &ids)).await.expect("known");
        assert_eq!(answer, again, "at node {id}");
    }

    cluster.kill(leader).await;
    let next = cluster.wait_for_leader().await;
    let answer = append(&cluster, next, request("orders", &ids)).await.expect("known");
    assert_eq!(answer, again, "after a failover");
    cluster.restart(leader).await;
    cluster.wait_until_ready().await;
    let answer = append(&cluster, leader, request("orders", &ids)).await.expect("known");
    assert_eq!(answer, again, "at a node that was restarted");

    let other = append(&cluster, next, request("returns", &ids)).await.expect("another stream");
    assert!(!other.duplicate, "ids are a stream's own");
    assert_eq!(other.first_version, 1);

    let fresh = Uuid::new_v4().to_string();
    let partial = [&ids[1..], &[fresh]].concat();
    for id in cluster.ids() {
        let refused = append(&cluster, id, request("orders", &partial)).await;
        let refused = refused.expect_err("some are there and some are not");
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused:?}");
    }
    let found = events(&cluster.client(), "orders").await;
    let found: Vec<_> = found.into_iter().map(|event| event.id).collect();
    assert_eq!(found, ids, "each once, in order, and nothing of the refused ones");
    same_state(&cluster).await;
}

#[tokio::test]
async fn an_append_with_a_stale_version_is_refused_also_when_it_is_retried_elsewhere() {
    use quorate::pb::event::v1::append_request::Expected;
    let cluster = Cluster::processes(PROGRAM, 3).await;
    let expecting = |version| {
        let id = Uuid::new_v4().to_string();
        AppendRequest {
            expected: Some(Expected::ExpectedVersion(version)),
            ..request("orders", &[id])
        }
    };
    append(&cluster, 1, expecting(0)).await.expect("it is the first");
    for id in cluster.ids() {
        let refused = append(&cluster, id, expecting(0)).await.expect_err("there is one already");
        assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
    }
    append(&cluster, 2, expecting(1)).await.expect("it is the second");
}

/// One append at one node, without a request id: only the event ids tell that it is a retry.
async fn append(
    cluster: &Cluster,
    id: u64,
    request: AppendRequest,
) -> Result<AppendResponse, Status> {
    let connected = EventServiceClient::connect(format!("http://{}", cluster.endpoint(id)));
    let mut client = connected.await.expect("it listens");
    Ok(client.append(request).await?.into_inner())
}
