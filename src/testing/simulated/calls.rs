//! Calls: answered, retried, given up in time, taken back.

use std::cell::Cell;

use tonic::Code;

use super::*;
use crate::{
    client::Error,
    host::tcp,
    pb::{
        command::v1::Reason,
        kv::v1::{PutRequest, kv_service_client::KvServiceClient},
        lock::v1::{AcquireRequest, DescribeRequest},
    },
    wire::status,
};

/// Deadlines that are no multiples of anything.
const DEADLINES: [u64; 6] = [37, 101, 250, 499, 1_013, 1_777];

#[test]
fn a_cluster_serves_through_the_crash_of_its_leader() {
    simulate(Setup::new(1, 3), async |world: World| {
        let client = world.client();
        let first = soon("the first put", client.kv().set("k", "1")).await.expect("put");
        let leader = world.leader(&[]).await;
        world.crash(leader).await;
        let second = client.kv().set("k", "2").await.expect("the others go on");
        assert!(second > first);
        let kv = client.kv().get("k").await.expect("read").expect("it is there");
        assert_eq!((kv.version, kv.mod_revision), (2, second));
        world.restart(leader).await;
        world.converge().await;
    });
}

/// What a call with this timeout came to, and when.
async fn timed(client: &Client, timeout: Duration) -> (Error, Duration) {
    let (client, began) = (client.with_timeout(timeout), Instant::now());
    let error = client.kv().set("k", "v").await.expect_err("nobody can serve this");
    (error, began.elapsed())
}

#[test]
fn a_client_that_is_cut_off_gets_its_answer_at_its_deadline() {
    for held in [false, true] {
        simulate(Setup::new(2, 3), async move |world: World| {
            let client = world.client();
            soon("the first put", client.kv().set("k", "1")).await.expect("put");
            for id in world.ids() {
                if held {
                    turmoil::hold("client", name(id));
                } else {
                    world.cut("client", &name(id));
                }
            }
            for timeout in DEADLINES.map(Duration::from_millis) {
                let (error, took) = timed(&client, timeout).await;
                assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
                assert!(error.outcome_unknown(), "it may have arrived");
                let late = took.saturating_sub(timeout);
                assert!(took >= timeout && late <= Duration::from_millis(1), "{took:?}");
            }
        });
    }
}

#[test]
fn without_a_quorum_the_node_answers_by_the_deadline_and_never_with_cancelled() {
    let setup = Setup { latency_max: LATENCY_MIN, ..Setup::new(3, 3) };
    simulate(setup, async |world: World| {
        let leader = world.leader(&[]).await;
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{}", endpoint(leader)));
        let channel = tcp::connect(&endpoint.expect("an address")).await.expect("it is up");
        let mut stub = KvServiceClient::new(channel);
        world.isolate(leader);
        for timeout in DEADLINES.map(Duration::from_millis) {
            let mut put = tonic::Request::new(PutRequest { key: "k".into(), ..Default::default() });
            put.set_timeout(timeout);
            let began = Instant::now();
            let status = stub.put(put).await.expect_err("there is no quorum");
            assert!(began.elapsed() <= timeout, "after {:?} of {timeout:?}", began.elapsed());
            // The leader steps down in between; from then on it knows that it cannot.
            match status::reason(&status) {
                Some(Reason::DeadlineExceeded) => assert_eq!(status.code(), Code::DeadlineExceeded),
                Some(Reason::NoQuorum | Reason::NotLeader) => {
                    assert_eq!(status.code(), Code::Unavailable);
                }
                other => panic!("{other:?} of {status}"),
            }
        }
    });
}

fn waiting(owner: &str, wait: Option<u64>) -> AcquireRequest {
    let seconds = |seconds: u64| prost_types::Duration { seconds: seconds.cast_signed(), nanos: 0 };
    AcquireRequest {
        name: "jobs".to_owned(),
        ttl: Some(seconds(60)),
        wait: wait.map(seconds),
        owner: owner.to_owned(),
        ..Default::default()
    }
}

/// Waits until the line is this long; returns how long that took.
async fn line_of(client: &Client, waiters: u64) -> Duration {
    let began = Instant::now();
    let describe = || DescribeRequest { name: "jobs".to_owned(), stale: false };
    let looking = async {
        loop {
            let lock = client.locks().describe(describe()).await.expect("read").lock;
            if lock.map_or(0, |lock| lock.waiter_count) == waiters {
                return;
            }
            pause(Duration::from_millis(10)).await;
        }
    };
    soon("the line", looking).await;
    began.elapsed()
}

#[test]
fn whoever_stops_waiting_for_a_lock_leaves_the_line_at_once() {
    simulate(Setup::new(4, 3), async |world: World| {
        let leader = world.leader(&[]).await;
        let client = world.client();
        client.locks().acquire(waiting("holder", Some(0))).await.expect("free");
        // At the leader and at a node that passes the call on.
        for at in world.ids() {
            let waiter = world.client_of([at]);
            let call =
                tokio::spawn(async move { waiter.locks().acquire(waiting("w", None)).await });
            line_of(&client, 1).await;
            call.abort();
            let took = line_of(&client, 0).await;
            world.note(format!("node {at} of leader {leader}: left after {took:?}"));
            assert!(took < Duration::from_millis(200), "at node {at}: {took:?}");
        }
    });
}

#[test]
fn a_waiter_whose_client_vanished_is_taken_out_when_its_connection_is_given_up() {
    let settings = |config: &mut Config| {
        config.keepalive_interval = Duration::from_secs(5);
        config.keepalive_timeout = Duration::from_secs(2);
    };
    let setup = Setup { settings: &settings, ..Setup::new(5, 3) };
    simulate(setup, async |world: World| {
        let leader = world.leader(&[]).await;
        let at = world.ids().find(|id| *id != leader).expect("there are three");
        let client = world.client_of(world.ids().filter(|id| *id != at));
        client.locks().acquire(waiting("holder", Some(0))).await.expect("free");
        let waiter = world.client_of([at]);
        let call = tokio::spawn(async move { waiter.locks().acquire(waiting("w", None)).await });
        line_of(&client, 1).await;
        world.cut("client", &name(at));
        let took = line_of(&client, 0).await;
        assert!(took <= Duration::from_secs(8), "{took:?}");
        assert!(!call.is_finished(), "the caller still tries to come back");
    });
}

#[test]
fn an_answer_that_was_lost_is_asked_for_again_and_the_change_is_made_once() {
    simulate(Setup::new(6, 3), async |world: World| {
        let leader = world.leader(&[]).await;
        let others = world.ids().filter(|id| *id != leader);
        let client = world.client_of(core::iter::once(leader).chain(others));
        let client = client.with_timeout(Duration::from_secs(20));
        client.kv().set("warm", "").await.expect("put");
        turmoil::partition_oneway(name(leader), "client");
        let began = Instant::now();
        let revision = client.kv().set("k", "v").await.expect("another node knows the answer");
        assert!(began.elapsed() > Duration::from_secs(1), "the answer was not lost");
        let kv = client.kv().get("k").await.expect("read").expect("it is there");
        assert_eq!((kv.version, kv.mod_revision), (1, revision));
    });
}

#[test]
fn a_client_waits_for_nodes_that_come_back_and_knocks_at_a_measured_pace() {
    simulate(Setup::new(7, 3), async |world: World| {
        let client = world.client().with_timeout(Duration::from_secs(60));
        client.kv().set("k", "1").await.expect("put");
        for id in world.ids() {
            world.crash(id).await;
        }
        let call = tokio::spawn(async move { client.kv().set("k", "2").await });
        pause(Duration::from_secs(10)).await;
        for id in world.ids() {
            world.restart(id).await;
        }
        let back = Instant::now();
        call.await.expect("no panic").expect("they are back");
        assert!(back.elapsed() < Duration::from_secs(5), "after {:?}", back.elapsed());

        // Somebody who hangs up at once.
        let knocks = Rc::new(Cell::new(0_u32));
        let listener = turmoil::net::TcpListener::bind("0.0.0.0:9").await.expect("free");
        let counted = Rc::clone(&knocks);
        tokio::task::spawn_local(async move {
            while listener.accept().await.is_ok() {
                counted.set(counted.get() + 1);
            }
        });
        let client =
            Client::builder().endpoints(["client:9"]).discover(false).build().expect("complete");
        let (error, took) = timed(&client, Duration::from_secs(5)).await;
        assert!(!error.outcome_unknown(), "nobody said a word, so nothing was sent: {error}");
        assert!(took <= Duration::from_secs(5), "{took:?}");
        assert!((12..=60).contains(&knocks.get()), "{} in {took:?}", knocks.get());
    });
}
