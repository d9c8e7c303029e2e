//! Who holds a lock and who waits for it, when clients and leaders die.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quorate::{
    client::{Client, Error},
    pb::{
        kv::v1::{HeldLock, PutRequest},
        lock::v1::{
            AcquireRequest, AcquireResponse, DescribeRequest, Lock, ReleaseRequest,
            lock_service_client::LockServiceClient,
        },
    },
    testing::Cluster,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::{Child, Command},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};

use crate::{LIMIT, PROGRAM, eventually, proto};

/// How long a lock outlives its holder.
const TTL: Duration = Duration::from_secs(2);

/// A TTL that no test lives to see: what goes meanwhile went for another reason.
const LONG_TTL: Duration = Duration::from_secs(600);

/// How soon a waiter that left must be out of the line; ten times what it takes.
const PROMPT: Duration = Duration::from_secs(5);

#[tokio::test]
async fn the_lock_of_a_killed_holder_passes_on_with_a_larger_token() {
    let cluster = Cluster::processes(PROGRAM, 3).await;
    let (holder, token) = hold(&cluster, &cluster.endpoints()).await;
    let waiter = wait_in_line(&cluster.client(), LONG_TTL);
    line(&cluster.client(), 1).await;

    let killed = Instant::now();
    holder.kill();
    let grant = granted(waiter).await;
    assert!(grant.fencing_token > token, "{} came after {token}", grant.fencing_token);
    // The last renewal may be a third of the TTL old when the holder dies, and not much older.
    assert!(killed.elapsed() >= TTL / 3, "granted after {:?}, too early", killed.elapsed());
    let lock = describe(&cluster.client()).await;
    let holder = lock.holder.expect("the waiter");
    assert_eq!((holder.fencing_token, holder.session_id), (grant.fencing_token, grant.session_id));
    assert_eq!(lock.waiter_count, 0);
}

#[tokio::test]
async fn the_lock_of_a_killed_holder_passes_on_when_the_leader_dies_as_well() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let (holder, token) = hold(&cluster, &cluster.endpoints()).await;
    let leader = cluster.wait_for_leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    // The first waits at the node that dies and has to come back to its place; the second, behind
    // it, at one that stays. The first lives for its TTL only, so the second gets it thereafter.
    let first = wait_in_line(&starting_at(&cluster, leader), TTL);
    line(&cluster.client(), 1).await;
    let second = wait_in_line(&starting_at(&cluster, follower), LONG_TTL);
    line(&cluster.client(), 2).await;

    holder.kill();
    cluster.kill(leader).await;
    let grant = granted(first).await;
    assert!(grant.fencing_token > token, "{} came after {token}", grant.fencing_token);
    let next = granted(second).await;
    assert!(next.fencing_token > grant.fencing_token);
    let lock = describe(&cluster.client()).await;
    assert_eq!(lock.holder.expect("the second").fencing_token, next.fencing_token);
    assert_eq!(lock.waiter_count, 0);
}

#[tokio::test]
async fn a_holder_that_renews_keeps_the_lock_when_the_leader_dies() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let (mut holder, token) = hold(&cluster, &cluster.endpoints()).await;
    let leader = cluster.wait_for_leader().await;
    cluster.kill(leader).await;
    assert_ne!(cluster.wait_for_leader().await, leader);
    // Another lock, which nobody renews, tells when a TTL has passed.
    let client = cluster.client();
    let other =
        AcquireRequest { name: "other".into(), ttl: Some(proto(TTL)), ..Default::default() };
    client.locks().acquire(other.clone()).await.expect("it is free");
    client.locks().acquire(other).await.expect("it runs out");
    let lock = describe(&client).await;
    assert_eq!(lock.holder.expect("still held").fencing_token, token);
    assert!(holder.child.try_wait().expect("it is a child").is_none(), "the holder gave up");
    holder.kill();
}

#[tokio::test]
async fn a_holder_that_stood_still_past_its_ttl_stops_its_command_when_it_goes_on() {
    let cluster = Cluster::processes(PROGRAM, 3).await;
    let (mut holder, token) = hold(&cluster, &cluster.endpoints()).await;
    let holder_id = Pid::from_raw(holder.child.id().expect("it runs").cast_signed());
    let holder_id = holder_id.expect("a process has an id");
    // The process that renews stands still; the command that it runs does not.
    kill_process(holder_id, Signal::STOP).expect("it runs");
    let client = cluster.client();
    let next = client.locks().lock("lock").ttl(LONG_TTL).await.expect("the TTL runs out");
    assert!(next.fencing_token() > token);
    kill_process(holder_id, Signal::CONT).expect("it stands still");
    let ended = timeout(LIMIT, holder.child.wait()).await.expect("it gives up");
    assert_eq!(ended.expect("it is a child").code(), Some(74), "a lost lock");
    assert!(next.is_held(), "{next:?}");
}

#[tokio::test]
async fn a_waiter_that_disconnects_leaves_the_line_at_once() {
    let cluster = Cluster::processes(PROGRAM, 3).await;
    let client = cluster.client();
    let request =
        AcquireRequest { name: "lock".into(), ttl: Some(proto(LONG_TTL)), ..Default::default() };
    let grant = client.locks().acquire(request.clone()).await.expect("it is free");
    for id in cluster.ids() {
        let connected = LockServiceClient::connect(format!("http://{}", cluster.endpoint(id)));
        let mut locks = connected.await.expect("it listens");
        let request = request.clone();
        let waiter = tokio::spawn(async move { locks.acquire(request).await });
        line(&client, 1).await;
        waiter.abort();
        timeout(PROMPT, line(&client, 0)).await.expect("the waiter is still in line");
    }
    // A process that is gone says nothing; its connection does.
    let waiter = acquire_process(&cluster.endpoints(), LONG_TTL);
    line(&client, 1).await;
    waiter.kill();
    timeout(PROMPT, line(&client, 0)).await.expect("the waiter is still in line");

    let holder = describe(&client).await.holder.expect("nothing else changed");
    assert_eq!(holder.fencing_token, grant.fencing_token);
}

#[tokio::test]
async fn waiters_of_a_killed_node_do_not_stay_in_line() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let leader = cluster.wait_for_leader().await;
    let follower = cluster.ids().into_iter().find(|id| *id != leader).expect("three nodes");
    let client = cluster.client_at(leader);
    let hold =
        AcquireRequest { name: "lock".into(), ttl: Some(proto(LONG_TTL)), ..Default::default() };
    client.locks().acquire(hold).await.expect("it is free");
    let gone = wait_in_line(&cluster.client_at(follower), TTL);
    line(&client, 1).await;
    // Node and waiter go together: nobody is left who could take it out of the line.
    cluster.kill(follower).await;
    gone.abort();
    line(&client, 0).await;
}

#[tokio::test]
async fn contenders_never_hold_the_lock_together_while_leaders_die() {
    let mut cluster = Cluster::processes(PROGRAM, 3).await;
    let (grants, mut granted) = watch::channel(Vec::new());
    let (grants, holding) = (Arc::new(grants), Arc::new(AtomicBool::new(false)));
    let mut contenders = JoinSet::new();
    for number in 0..6 {
        let client = starting_at(&cluster, 1 + number % 3);
        contenders.spawn(contend(client, Arc::clone(&grants), Arc::clone(&holding)));
    }
    let mut grants_so_far = async |more: usize| {
        let before = granted.borrow().len();
        let enough = granted.wait_for(|tokens| tokens.len() >= before + more);
        let done = timeout(LIMIT, enough).await.expect("the lock goes round");
        drop(done.expect("the contenders run"));
    };
    for _ in 0..2 {
        grants_so_far(20).await;
        let leader = cluster.wait_for_leader().await;
        cluster.kill(leader).await;
        grants_so_far(20).await;
        cluster.restart(leader).await;
        cluster.wait_until_ready().await;
    }
    while let Some(ended) = contenders.try_join_next() {
        ended.expect("no contender fails");
    }
    contenders.shutdown().await;
    let tokens = grants.borrow().clone();
    assert!(tokens.is_sorted_by(|one, next| one < next), "tokens only grow: {tokens:?}");
}

/// Acquires, does what only a holder may do, releases, and again.
async fn contend(client: Client, grants: Arc<watch::Sender<Vec<u64>>>, holding: Arc<AtomicBool>) {
    let client = client.with_timeout(LIMIT);
    loop {
        let name = "lock".to_owned();
        let ttl = Some(proto(LONG_TTL));
        let request = AcquireRequest { name: name.clone(), ttl, ..Default::default() };
        let token = client.locks().acquire(request).await.expect("its turn comes").fencing_token;
        assert!(!holding.swap(true, Ordering::SeqCst), "two hold the lock, one with {token}");
        grants.send_modify(|tokens| tokens.push(token));
        let held = HeldLock { name: name.clone(), fencing_token: token };
        let guarded = PutRequest {
            key: "guarded".into(),
            value: token.to_string().into(),
            require_lock: Some(held),
            ..Default::default()
        };
        client.kv().put(guarded).await.expect("the lock is held");
        assert!(holding.swap(false, Ordering::SeqCst));
        let release = ReleaseRequest { name, fencing_token: token, ..Default::default() };
        client.locks().release(release).await.expect("the lock is held");
    }
}

/// A process of the command line that holds or waits for the lock.
struct Process {
    child: Child,
    group: Pid,
}

impl Process {
    /// Kills it and what it runs.
    fn kill(&self) {
        kill_process_group(self.group, Signal::KILL).expect("it runs");
    }
}

/// Starts a process that holds the lock for as long as it lives. Returns it with its token.
async fn hold(cluster: &Cluster, endpoints: &[String]) -> (Process, u64) {
    let process = acquire_process(endpoints, TTL);
    let client = cluster.client();
    let token = eventually("the lock to be held", async || {
        Some(describe(&client).await.holder?.fencing_token)
    });
    let token = token.await;
    (process, token)
}

fn acquire_process(endpoints: &[String], ttl: Duration) -> Process {
    let child = Command::new(PROGRAM)
        .args(["--endpoints", &endpoints.join(",")])
        .args(["lock", "acquire", "lock", "--ttl", &format!("{}s", ttl.as_secs())])
        .args(["--", "sleep", "3600"])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("it runs");
    Process { child, group }
}

/// A client that asks this node first.
fn starting_at(cluster: &Cluster, id: u64) -> Client {
    let others = cluster.ids().into_iter().filter(|other| *other != id);
    let endpoints = std::iter::once(id).chain(others).map(|id| cluster.endpoint(id));
    Client::builder().endpoints(endpoints).build().expect("well formed")
}

fn wait_in_line(client: &Client, ttl: Duration) -> JoinHandle<Result<AcquireResponse, Error>> {
    let client = client.clone();
    tokio::spawn(async move {
        let ttl = Some(proto(ttl));
        let request = AcquireRequest { name: "lock".into(), ttl, ..Default::default() };
        client.locks().acquire(request).await
    })
}

async fn granted(waiter: JoinHandle<Result<AcquireResponse, Error>>) -> AcquireResponse {
    let grant = timeout(LIMIT, waiter).await.expect("the lock passes on");
    grant.expect("no panic").expect("a grant")
}

/// Waits until so many wait in line.
async fn line(client: &Client, waiters: u64) {
    eventually("the line", async || (describe(client).await.waiter_count == waiters).then_some(()))
        .await;
}

async fn describe(client: &Client) -> Lock {
    let request = DescribeRequest { name: "lock".into(), ..Default::default() };
    client.locks().describe(request).await.expect("read").lock.expect("a lock is told of")
}
