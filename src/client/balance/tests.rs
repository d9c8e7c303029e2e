//! The balancer in virtual time, over backends without sockets: what is counted is calls, never
//! time.

mod fleet;
mod scenarios;
mod shares;
mod spans;

use std::{convert::Infallible, sync::Arc};

use tokio_stream::StreamExt as _;
use tonic::Code;
use tower::{Layer as _, Service as _, discover::Change};

use self::fleet::{Fleet, Nature};
use super::{
    Avoid, Balance, Connectivity, Endpoint, HashKey, LeastRequests, NotSent, PickFirst, Prefer,
    RingHash, RoundRobin, Static, WaitForReady,
};
use crate::{
    layers::{HedgeLayer, Repeatable, Tried, hedge::Copy},
    resilience::{hedge, outlier},
    types::Duration,
};

const MS: Duration = Duration::from_millis(1);

fn round_robin(fleet: &Fleet) -> Balance {
    Balance::builder()
        .policy(RoundRobin::new())
        .connect(fleet.clone())
        .seed(1)
        .resolve(fleet.list())
}

#[tokio::test(start_paused = true)]
async fn calls_wait_while_connections_are_made_and_are_then_shared() {
    let fleet = Fleet::of(3);
    fleet.each(|nature| nature.connects_in = 50 * MS);
    let balance = round_robin(&fleet);
    assert_eq!(balance.connectivity(), Connectivity::Connecting);
    balance.ready().await.expect("it comes up");
    for _ in 0..30 {
        fleet.call(&balance).await.expect("all answer");
    }
    assert_eq!(fleet.served(), [10, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_can_be_called_a_call_fails_fast_and_names_each_endpoint() {
    let fleet = Fleet::of(2);
    fleet.each(|nature| nature.refuses = true);
    let balance = round_robin(&fleet);
    let refused = fleet.call(&balance).await.expect_err("nobody is there");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(std::error::Error::source(&refused).is_some_and(|cause| cause.is::<NotSent>()));
    for word in ["n0:1: refused", "n1:1: refused"] {
        assert!(refused.message().contains(word), "{refused}");
    }
    assert_eq!(balance.connectivity(), Connectivity::TransientFailure);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_ready_is_sent_when_something_comes_up() {
    let fleet = Fleet::of(2);
    fleet.each(|nature| nature.refuses = true);
    let balance = round_robin(&fleet);
    fleet.call(&balance).await.expect_err("nobody is there");
    let waiting = fleet.start_with(&balance, |hints| {
        hints.insert(WaitForReady(true));
    });
    fleet.change(1, |nature| nature.refuses = false);
    waiting.await.expect("it does not panic").expect("it was sent");
    assert_eq!(fleet.served(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn when_one_is_killed_only_what_it_had_in_flight_fails() {
    let fleet = Fleet::of(3);
    fleet.each(|nature| nature.answers_in = 5 * MS);
    let balance = round_robin(&fleet);
    balance.ready().await.expect("it comes up");
    let calls: Vec<_> = (0..30).map(|_| fleet.start(&balance)).collect();
    fleet.until_in_flight(30).await;
    let in_flight = fleet.in_flight(0);
    fleet.kill(0);
    let mut failed = 0;
    for call in calls {
        failed += u32::from(call.await.expect("no panic").is_err());
    }
    for _ in 0..300 {
        fleet.call(&balance).await.expect("the others answer");
    }
    assert_eq!(failed, in_flight);
    assert_eq!(fleet.in_flight(0), 0);
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_back_is_called_again() {
    let fleet = Fleet::of(2);
    let balance = round_robin(&fleet);
    balance.ready().await.expect("it comes up");
    fleet.kill(0);
    fleet.call(&balance).await.expect("the other answers");
    let before = fleet.served()[0];
    fleet.revive(0);
    fleet.until("it is called again", &balance, |served| served[0] > before).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_left_goes_to_another() {
    let fleet = Fleet::of(2);
    let balance = round_robin(&fleet);
    balance.ready().await.expect("it comes up");
    fleet.call(&balance).await.expect("all answer");
    // Its connection takes nothing any more, and nobody was told.
    fleet.change(0, |nature| nature.takes_nothing = true);
    for _ in 0..20 {
        fleet.call(&balance).await.expect("it goes to the other");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_drains_finishes_what_it_has_and_gets_nothing_new() {
    let fleet = Fleet::of(2);
    fleet.each(|nature| nature.answers_in = 100 * MS);
    let balance = round_robin(&fleet);
    balance.ready().await.expect("it comes up");
    let calls: Vec<_> = (0..10).map(|_| fleet.start(&balance)).collect();
    fleet.until_in_flight(10).await;
    let had = fleet.taken()[0];
    fleet.tell(|endpoints| endpoints[0] = endpoints[0].clone().draining(true));
    fleet.until_view(&balance, |view| view.endpoints[0].draining).await;
    for _ in 0..20 {
        fleet.call(&balance).await.expect("the other answers");
    }
    for call in calls {
        call.await.expect("no panic").expect("it finishes what it has");
    }
    assert_eq!(fleet.taken()[0], had);
    fleet.tell(|endpoints| endpoints[1] = endpoints[1].clone().draining(true));
    fleet.until_view(&balance, |view| view.endpoints[1].draining).await;
    let refused = fleet.call(&balance).await.expect_err("both drain");
    assert!(refused.message().contains("draining"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_gone_from_the_list_finishes_what_it_has() {
    let fleet = Fleet::of(2);
    fleet.each(|nature| nature.answers_in = 100 * MS);
    let balance = round_robin(&fleet);
    balance.ready().await.expect("it comes up");
    let calls: Vec<_> = (0..10).map(|_| fleet.start(&balance)).collect();
    fleet.until_in_flight(10).await;
    fleet.tell(|endpoints| drop(endpoints.remove(0)));
    fleet.until_view(&balance, |view| view.endpoints.len() == 1).await;
    for call in calls {
        call.await.expect("no panic").expect("it finishes what it has");
    }
    fleet.until_disconnected(0).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_is_ejected_and_returns() {
    let fleet = Fleet::of(3);
    let balance = round_robin(&fleet);
    balance.ready().await.expect("it comes up");
    fleet.change(2, |nature| nature.code = Code::Unavailable);
    fleet.until_view_calling(&balance, |view| view.endpoints[2].ejected).await;
    let taken = fleet.taken()[2];
    assert_eq!(u64::from(taken), 5, "five failures in a row");
    for _ in 0..100 {
        fleet.call(&balance).await.expect("the others answer");
    }
    assert_eq!(fleet.taken()[2], taken, "it gets nothing while it is out");
    fleet.change(2, |nature| nature.code = Code::Ok);
    fleet.until("it returns", &balance, |served| served[2] > 0).await;
}

#[tokio::test(start_paused = true)]
async fn refusals_of_what_was_asked_do_not_eject() {
    let fleet = Fleet::of(2);
    fleet.change(0, |nature| nature.code = Code::NotFound);
    let balance = round_robin(&fleet);
    for _ in 0..100 {
        let _ = fleet.call(&balance).await;
    }
    assert_eq!(fleet.taken(), [50, 50]);
    assert_eq!(balance.view().endpoints[0].failures, 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_ends_before_its_status_is_a_failure_that_may_have_been_carried_out() {
    let fleet = Fleet::of(1);
    fleet.change(0, |nature| nature.truncates = true);
    let balance = round_robin(&fleet);
    let cut = fleet.call(&balance).await.expect_err("it has no status");
    assert_eq!(cut.code(), Code::Unavailable);
    assert!(crate::client::Error::from(cut).outcome_unknown(), "it was sent");
    assert_eq!(balance.view().endpoints[0].failures, 1);
}

#[tokio::test(start_paused = true)]
async fn of_however_many_that_are_told_at_once_none_is_missed() {
    const MANY: usize = 2_500;
    let fleet = Fleet::of(MANY);
    let told: Vec<_> = fleet.endpoints();
    let insert = |endpoint: Endpoint| {
        Ok::<_, Infallible>(Change::Insert(endpoint.id().to_owned(), endpoint))
    };
    let told = tokio_stream::iter(told.into_iter().map(insert)).chain(tokio_stream::pending());
    let balance = Balance::builder().policy(PickFirst).connect(fleet.clone()).discover(told);
    balance.ready().await.expect("it comes up");
    fleet.until_view(&balance, |view| view.endpoints.len() == MANY).await;
}

#[tokio::test(start_paused = true)]
async fn where_too_many_are_out_all_are_called() {
    let fleet = Fleet::of(4);
    let all = outlier::Config { max_ejection_percent: 100, ..Default::default() };
    let balance = Balance::builder()
        .policy(RoundRobin::new())
        .connect(fleet.clone())
        .outlier(all.validate().expect("it works"))
        .resolve(fleet.list());
    balance.ready().await.expect("it comes up");
    fleet.each(|nature| nature.code = Code::Internal);
    fleet.until_view_calling(&balance, |view| view.panics).await;
    let before = fleet.taken();
    for _ in 0..40 {
        let _ = fleet.call(&balance).await;
    }
    let more: Vec<_> = fleet.taken().iter().zip(before).map(|(now, then)| now - then).collect();
    assert!(more.iter().all(|more| *more > 0), "{more:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline_with_the_code_for_it() {
    let fleet = Fleet::of(1);
    fleet.each(|nature| nature.answers_in = Duration::from_secs(60));
    let balance = round_robin(&fleet);
    let ended = fleet.call_within(&balance, 20 * MS).await.expect_err("it is late");
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    fleet.until_in_flight(0).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_may_prefer_an_address_or_avoid_some() {
    let fleet = Fleet::of(3);
    let balance = round_robin(&fleet);
    balance.ready().await.expect("it comes up");
    fleet.until_view(&balance, |view| view.endpoints.iter().all(|e| e.state == "READY")).await;
    for _ in 0..10 {
        fleet
            .call_with(&balance, |hints| drop(hints.insert(Prefer("n2:1".into()))))
            .await
            .expect("it answers");
    }
    assert_eq!(fleet.served(), [0, 0, 10]);
    let avoid: Vec<Arc<str>> = vec!["n2:1".into(), "n0:1".into()];
    for _ in 0..10 {
        fleet
            .call_with(&balance, |hints| drop(hints.insert(Avoid(avoid.clone()))))
            .await
            .expect("it answers");
    }
    assert_eq!(fleet.served(), [0, 10, 10]);
}

#[tokio::test(start_paused = true)]
async fn another_attempt_of_a_call_goes_to_another_endpoint() {
    let fleet = Fleet::of(2);
    let builder = Balance::builder().policy(RingHash::new()).connect(fleet.clone());
    let balance = builder.resolve(fleet.list());
    balance.ready().await.expect("it comes up");
    fleet.until_view(&balance, |view| view.endpoints.iter().all(|e| e.state == "READY")).await;
    for _ in 0..10 {
        let tried = Tried::default();
        for _ in 0..2 {
            let hint = |hints: &mut http::Extensions| {
                hints.insert(HashKey(7));
                hints.insert(tried.clone());
            };
            fleet.call_with(&balance, hint).await.expect("it answers");
        }
        assert_eq!(tried.addresses().len(), 2);
    }
    assert_eq!(fleet.served(), [10, 10], "one key, and yet not one endpoint");
}

#[tokio::test(start_paused = true)]
async fn a_hedged_call_gets_past_a_silent_endpoint() {
    let fleet = Fleet::of(2);
    let builder = Balance::builder().policy(RingHash::new()).connect(fleet.clone());
    let balance = builder.resolve(fleet.list());
    balance.ready().await.expect("it comes up");
    fleet.until_view(&balance, |view| view.endpoints.iter().all(|e| e.state == "READY")).await;
    let config = hedge::Config { copies_max: 2, delay: hedge::Delay::Fixed(20 * MS) };
    let layer = HedgeLayer::new(config.validate().expect("it works"));
    let with_key = |hints: &mut http::Extensions| {
        hints.insert(HashKey(7));
    };
    fleet.call_with(&balance, with_key).await.expect("it answers");
    let silent = fleet.served().iter().position(|served| *served == 1).expect("one did");
    fleet.change(silent, |nature| nature.answers_in = 3_600_000 * MS);
    for _ in 0..10 {
        let mut request = http::Request::new(tonic::body::Body::empty());
        request.extensions_mut().insert(HashKey(7));
        request.extensions_mut().insert(Repeatable(true));
        let answer = layer.layer(balance.clone()).call(request).await.expect("it is answered");
        assert_eq!(answer.extensions().get(), Some(&Copy(2)));
    }
    assert_eq!((layer.stats().won, layer.stats().dropped), (10, 10));
    fleet.until_view(&balance, |view| view.endpoints[silent].in_flight == 0).await;
}

#[tokio::test(start_paused = true)]
async fn pick_first_has_one_connection_and_moves_on_when_it_is_lost() {
    let fleet = Fleet::of(3);
    let balance = Balance::builder().policy(PickFirst).connect(fleet.clone()).resolve(fleet.list());
    for _ in 0..10 {
        fleet.call(&balance).await.expect("it answers");
    }
    assert_eq!((fleet.served(), fleet.connections()), (vec![10, 0, 0], vec![1, 0, 0]));
    fleet.kill(0);
    for _ in 0..10 {
        fleet.call(&balance).await.expect("the next answers");
    }
    assert_eq!(fleet.served(), [10, 10, 0]);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_closes_the_connections() {
    let fleet = Fleet::of(2);
    let balance = Balance::builder()
        .policy(LeastRequests)
        .connect(fleet.clone())
        .resolve(Static::new(fleet.endpoints()));
    fleet.until_view(&balance, |view| view.endpoints.iter().all(|e| e.state == "READY")).await;
    drop(balance.clone());
    fleet.call(&balance).await.expect("a clone was dropped, not all");
    drop(balance);
    fleet.until_disconnected(0).await;
    fleet.until_disconnected(1).await;
}

#[tokio::test(start_paused = true)]
async fn the_metrics_tell_each_endpoint() {
    let fleet = Fleet::of(2);
    let balance = round_robin(&fleet);
    fleet.until_view(&balance, |view| view.endpoints.iter().all(|e| e.state == "READY")).await;
    fleet.change(1, |nature| nature.code = Code::Internal);
    for _ in 0..4 {
        let _ = fleet.call(&balance).await;
    }
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(balance.metrics("it")));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes it");
    for row in [
        "quorate_client_picks_total{target=\"it\",endpoint=\"n0:1\"} 2",
        "quorate_client_calls_total{target=\"it\",endpoint=\"n1:1\",result=\"failed\"} 2",
        "quorate_client_endpoint_state{target=\"it\",endpoint=\"n1:1\",state=\"READY\"} 1",
        "quorate_client_latency_seconds_count{target=\"it\",endpoint=\"n0:1\"} 2",
        "quorate_client_ejected{target=\"it\",endpoint=\"n0:1\"} 0",
    ] {
        assert!(text.contains(row), "{row} is not in\n{text}");
    }
}

#[test]
fn a_nature_is_healthy_unless_said_otherwise() {
    assert_eq!(Nature::default().code, Code::Ok);
}
