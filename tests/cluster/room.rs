//! A disk that runs full: what grows is refused before, the rest goes on, and room ends it.

use std::{fs::File, path::PathBuf, process};

use quorate::{
    client::Client,
    pb::{
        cluster::v1::{Alarm, StatusRequest},
        discovery::v1::{DeregisterRequest, RegisterRequest},
        event::v1::{AppendRequest, Event, TrimStreamRequest, trim_stream_request::Before},
        kv::v1::{CompactRequest, DeleteRangeRequest, PutRequest, RangeRequest},
        lock::v1::{AcquireRequest, ReleaseRequest, RenewRequest},
        session::v1::OpenSessionRequest,
    },
    testing::Cluster,
};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tonic::Code;

use crate::{PROGRAM, eventually};

const GIB: u64 = 1 << 30;

/// What others on the machine may take or give back while the test runs.
const NOISE: u64 = 2 * GIB;

/// A file that fills the file system; it goes with the test.
struct Ballast(PathBuf);

impl Ballast {
    /// `None` where the file system has no room for it.
    fn lay() -> Option<Self> {
        let ballast = Self(std::env::temp_dir().join(format!("quorate-ballast-{}", process::id())));
        let file = File::create(&ballast.0).expect("the temporary directory can be written");
        fallocate(&file, FallocateFlags::empty(), 0, 2 * NOISE).is_ok().then_some(ballast)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn put(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() }
}

fn append(stream: &str) -> AppendRequest {
    let event = Event { r#type: "T".to_owned(), ..Default::default() };
    AppendRequest { stream: stream.to_owned(), events: vec![event; 3], ..Default::default() }
}

/// Puts a key that was never put; gives it where that is refused for want of room.
async fn refused(client: &Client) -> Option<String> {
    let key = uuid::Uuid::new_v4().to_string();
    let error = client.kv().put(put(&key)).await.err()?;
    assert_eq!((error.code(), error.reason()), (Code::ResourceExhausted, "NO_SPACE"), "{error}");
    assert!(!error.outcome_unknown());
    for fact in ["node_id", "free_bytes", "reusable_bytes", "needed_bytes"] {
        assert!(error.fact(fact).is_some_and(|value| value.parse::<u64>().is_ok()), "{fact}");
    }
    Some(key)
}

/// How many nodes say that they have no room.
async fn alarms(client: &Client) -> usize {
    let status = client.cluster().status(StatusRequest::default()).await.expect("a status");
    let short =
        |node: &&quorate::pb::cluster::v1::NodeStatus| node.alarms.contains(&Alarm::NoSpace.into());
    status.nodes.iter().filter(short).count()
}

#[tokio::test]
async fn a_cluster_that_never_has_room_starts_and_answers_and_takes_nothing() {
    let cluster = Cluster::builder(3)
        .program(PROGRAM)
        .settings("min_free_disk = \"1000000TiB\"")
        .start()
        .await;
    let client = cluster.client();
    eventually("the nodes to look at their disks", async || {
        (alarms(&client).await == 3).then_some(())
    })
    .await;
    let key = refused(&client).await.expect("a put is refused");
    let no_space =
        |error: quorate::client::Error| assert_eq!(error.reason(), "NO_SPACE", "{error}");
    no_space(client.events().append(append("a")).await.expect_err("an append"));
    let request = AcquireRequest { name: "l".to_owned(), ..Default::default() };
    no_space(client.locks().acquire(request).await.expect_err("an acquisition"));
    let request = RegisterRequest {
        service: "s".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        ..Default::default()
    };
    no_space(client.discovery().register(request).await.expect_err("a registration"));
    let request = RangeRequest { key: key.into(), ..Default::default() };
    assert_eq!(client.kv().range(request).await.expect("reads go on").count, 0);
    let request = DeleteRangeRequest { key: "none".into(), ..Default::default() };
    client.kv().delete_range(request).await.expect("deletions go on");
}

#[tokio::test]
async fn a_disk_that_fills_refuses_what_grows_until_there_is_room_again() {
    let free = statvfs(std::env::temp_dir()).expect("a file system");
    let free = free.f_bavail * free.f_frsize;
    if free < 4 * NOISE {
        eprintln!("skipped: {free} bytes are free, too few to fill");
        return;
    }
    let settings = format!("min_free_disk = {}", free - NOISE);
    let cluster = Cluster::builder(3).program(PROGRAM).settings(settings).start().await;
    let client = cluster.client();
    client.kv().put(put("kept")).await.expect("there is room");
    client.events().append(append("a")).await.expect("there is room");
    let acquire = AcquireRequest { name: "l".to_owned(), ..Default::default() };
    let grant = client.locks().acquire(acquire).await.expect("granted");
    let register = RegisterRequest {
        service: "s".to_owned(),
        address: "127.0.0.1:1".to_owned(),
        ..Default::default()
    };
    let instance = client.discovery().register(register).await.expect("registered");

    let Some(ballast) = Ballast::lay() else {
        eprintln!("skipped: the file system cannot be filled");
        return;
    };
    let key = eventually("writes to be refused", async || refused(&client).await).await;
    eventually("every node to say so", async || (alarms(&client).await == 3).then_some(())).await;

    let token = grant.fencing_token;
    let renew = RenewRequest { name: "l".to_owned(), fencing_token: token };
    client.locks().renew(renew).await.expect("renewals go on");
    let release =
        ReleaseRequest { name: "l".to_owned(), fencing_token: token, ..Default::default() };
    client.locks().release(release).await.expect("releases go on");
    let deregister = DeregisterRequest {
        service: "s".to_owned(),
        instance_id: instance.instance_id,
        ..Default::default()
    };
    client.discovery().deregister(deregister).await.expect("deregistrations go on");
    let trim = TrimStreamRequest {
        stream: "a".to_owned(),
        before: Some(Before::BeforeVersion(3)),
        ..Default::default()
    };
    assert_eq!(client.events().trim_stream(trim).await.expect("trims go on").first_version, 3);
    let delete = DeleteRangeRequest { key: "kept".into(), ..Default::default() };
    let deleted = client.kv().delete_range(delete).await.expect("deletions go on");
    let compact = CompactRequest { revision: deleted.revision, ..Default::default() };
    client.kv().compact(compact).await.expect("compaction goes on");

    drop(ballast);
    eventually("writes to be taken again", async || client.kv().put(put("after")).await.ok()).await;
    eventually("every node to be well", async || (alarms(&client).await == 0).then_some(())).await;
    let request = RangeRequest { key: key.into(), ..Default::default() };
    assert_eq!(
        client.kv().range(request).await.expect("read").count,
        0,
        "no refused put came later"
    );
    client.sessions().open(OpenSessionRequest::default()).await.expect("sessions open again");
}
