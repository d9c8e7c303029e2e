//! When a read goes elsewhere, and what comes back; the node and the others are played.

use std::sync::Mutex;

use tokio::time::timeout;
use tonic::Code;

use super::*;
use crate::{services::gate::Kind, wire::status::to_refusal};

/// The other nodes.
#[derive(Debug, Default)]
struct Others {
    needed: bool,
    answers: Mutex<Vec<Option<Result<Bytes, Status>>>>,
    asked: Mutex<Vec<(&'static str, Bytes)>>,
}

impl Others {
    fn new(needed: bool, mut answers: Vec<Option<Result<Bytes, Status>>>) -> Self {
        answers.reverse();
        Self { needed, answers: Mutex::new(answers), asked: Mutex::default() }
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Elsewhere for Others {
    fn is_needed(&self) -> bool {
        self.needed
    }

    fn ask(&self, method: &'static str, message: Bytes, _: Option<Instant>) -> Asking<'_> {
        self.asked.lock().unwrap().push((method, message));
        let answer = self.answers.lock().unwrap().pop().flatten();
        Box::pin(async move { answer })
    }
}

fn range() -> RangeRequest {
    RangeRequest { key: "a".into(), ..RangeRequest::default() }
}

fn answer() -> RangeResponse {
    RangeResponse { count: 1, revision: 9, ..RangeResponse::default() }
}

fn given() -> Option<Result<Bytes, Status>> {
    Some(Ok(answer().encode_to_vec().into()))
}

fn refused_here() -> Status {
    from_refusal(refusal(Reason::NoQuorum, "no leader in time"))
}

async fn find_with(
    others: &Others,
    call: &Call,
    here: impl Future<Output = Result<View, Status>>,
) -> Result<RangeResponse, Status> {
    match find(others, &range(), call, here).await? {
        Found::Here(_) => panic!("there is no state here"),
        Found::Elsewhere(answer) => Ok(answer),
    }
}

/// What `find` gives where this node itself never gets to answer; `None` where that is nothing.
async fn find_without_here(others: &Others, call: &Call) -> Option<Result<RangeResponse, Status>> {
    let found = find_with(others, call, std::future::pending());
    timeout(Duration::from_secs(60), found).await.ok()
}

#[tokio::test(start_paused = true)]
async fn a_read_that_could_only_wait_is_passed_on_at_once() {
    let (others, began) = (Others::new(true, vec![given()]), Instant::now());
    let found = find_without_here(&others, &Call::default()).await.expect("an answer");
    assert_eq!(found.expect("not a refusal"), answer());
    assert_eq!(Instant::now(), began);
    let asked = others.asked.lock().unwrap();
    assert_eq!(asked[..], [(RangeRequest::METHOD, range().encode_to_vec().into())]);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_waits_for_long_is_passed_on_although_nothing_seems_wrong() {
    for (left, patience) in [(None, PATIENCE), (Some(100), Duration::from_millis(50))] {
        let (others, began) = (Others::new(false, vec![given()]), Instant::now());
        let deadline = left.map(|left| began + Duration::from_millis(left));
        let call = Call { deadline, ..Call::default() };
        find_without_here(&others, &call).await.expect("an answer").expect("not a refusal");
        let waited = began.elapsed();
        assert!((patience..patience * 2).contains(&waited), "{left:?}: {waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_is_never_passed_on_twice() {
    let call = Call { passed_on: true, ..Call::default() };
    let needed = Others::new(true, vec![given()]);
    let refused = find_without_here(&needed, &call).await.expect("at once").expect_err("refused");
    let reason = to_refusal(&refused).map(|refusal| refusal.reason());
    assert_eq!(reason, Some(Reason::NotLeader), "{refused:?}");
    assert_eq!(needed.asked(), 0);
    let slow = Others::new(false, vec![given()]);
    assert!(find_without_here(&slow, &call).await.is_none(), "it waits here, and only here");
    assert_eq!(slow.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn where_nobody_else_can_say_this_node_refuses_as_ever() {
    let others = Others::new(true, Vec::new());
    let here = async {
        sleep_until(Instant::now() + Duration::from_secs(2)).await;
        Err(refused_here())
    };
    let refused = find_with(&others, &Call::default(), here).await.expect_err("refused");
    assert_eq!(refused.message(), refused_here().message());
    assert!(others.asked() > 1, "asked once only");
}

#[tokio::test(start_paused = true)]
async fn others_are_asked_again_until_one_can_say() {
    let damaged = Some(Ok(Bytes::from_static(b"\xff")));
    let others = Others::new(true, vec![None, damaged, given()]);
    let found = find_without_here(&others, &Call::default()).await.expect("an answer");
    assert_eq!(found.expect("not a refusal"), answer());
    assert_eq!(others.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_verdict_on_the_read_is_the_clients() {
    let compacted = from_refusal(refusal(Reason::Compacted, "revision 3 was compacted"));
    let others = Others::new(true, vec![Some(Err(compacted))]);
    let refused = find_without_here(&others, &Call::default()).await.expect("an answer");
    let refused = refused.expect_err("a refusal");
    assert_eq!(refused.code(), Code::OutOfRange);
    assert_eq!(to_refusal(&refused).map(|refusal| refusal.reason()), Some(Reason::Compacted));
}

#[test]
fn only_reads_go_elsewhere() {
    assert!(METHODS.iter().all(|method| Kind::of(method) == Kind::Read), "{METHODS:?}");
    assert_eq!(method(RangeRequest::METHOD), Some(RangeRequest::METHOD));
    for other in [
        "",
        "/quorate.kv.v1.KvService/Put",
        "/quorate.cluster.v1.ClusterService/Status",
        "/quorate.cluster.v1.ClusterService/StateHash",
        "/quorate.lab.v1.LabService/AddLinkFault",
    ] {
        assert_eq!(method(other), None, "{other}");
    }
}
