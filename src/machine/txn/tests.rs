//! Transactions: what is compared, what is seen, and what is taken back.

use bytes::Bytes;

use crate::{
    machine::{
        testing::{Harness, delete, put, range},
        validate,
    },
    pb::{
        command::v1::{Reason, command::Op, outcome::Result::Txn},
        kv::v1::{
            Compare, DeleteRangeRequest, HeldLock, PutRequest, RangeRequest, RequestOp, TxnRequest,
            TxnResponse,
            compare::{Operator, Target},
            request_op::Request,
            response_op::Response,
        },
    },
};

fn op(op: Op) -> RequestOp {
    let request = match op {
        Op::Put(request) => Request::Put(request),
        Op::DeleteRange(request) => Request::DeleteRange(request),
        other => panic!("not an operation of a transaction: {other:?}"),
    };
    RequestOp { request: Some(request) }
}

fn reads(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Request::Range(request)) }
}

fn compare(key: &str, end: &str, operator: Operator, target: Target) -> Compare {
    Compare {
        key: Bytes::copy_from_slice(key.as_bytes()),
        range_end: Bytes::copy_from_slice(end.as_bytes()),
        operator: operator.into(),
        target: Some(target),
    }
}

fn run(harness: &mut Harness, request: TxnRequest) -> TxnResponse {
    match harness.outcome(Op::Txn(request)).result {
        Some(Txn(response)) => response,
        other => panic!("not a transaction's answer: {other:?}"),
    }
}

fn passes(harness: &mut Harness, compare: Compare) -> bool {
    run(harness, TxnRequest { compare: vec![compare], ..TxnRequest::default() }).succeeded
}

#[test]
fn it_writes_in_one_revision_and_reads_its_own_writes() {
    let mut harness = Harness::new();
    harness.put("a", "old");
    let success = vec![
        reads(range("a", "\0", 0)),
        op(put("b", "1")),
        op(put("c", "2")),
        op(delete("a", "")),
        reads(range("a", "\0", 0)),
        reads(range("a", "\0", 1)),
    ];
    let request = TxnRequest { success, ..TxnRequest::default() };
    let response = run(&mut harness, request);
    assert!(response.succeeded);
    assert_eq!(response.revision, 2);
    let kvs = |at: usize| match &response.responses[at].response {
        Some(Response::Range(range)) => {
            range.kvs.iter().map(|kv| (kv.key.clone(), kv.mod_revision)).collect::<Vec<_>>()
        }
        other => panic!("not a range: {other:?}"),
    };
    assert_eq!(kvs(0), [("a".into(), 1)]);
    assert_eq!(kvs(4), [("b".into(), 2), ("c".into(), 2)]);
    assert_eq!(kvs(5), [("a".into(), 1)]);
    assert_eq!(harness.put("d", "1"), 3);
}

#[test]
fn it_takes_no_revision_where_it_changes_nothing() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    let success = vec![op(delete("x", "")), reads(range("a", "", 0))];
    let response = run(&mut harness, TxnRequest { success, ..TxnRequest::default() });
    assert_eq!(response.revision, 1);
    assert_eq!(harness.machine.head().revision.value(), 1);
}

#[test]
fn a_refused_operation_takes_everything_back() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    let before = harness.state();
    let success = vec![op(put("a", "2")), op(put("b", "2")), reads(range("a", "", 77))];
    let refused = harness.refused(Op::Txn(TxnRequest { success, ..TxnRequest::default() }));
    assert_eq!(refused.reason(), Reason::FutureRevision);
    assert_eq!(harness.state(), before);
    assert_eq!(harness.put("b", "3"), 2);
}

#[test]
fn every_field_is_compared_by_every_operator() {
    let mut harness = Harness::new();
    harness.put("x", "0");
    harness.put("a", "m");
    harness.put("a", "m");
    let targets: [fn(u64) -> Target; 4] = [
        |by| Target::Version(2 + by - 1),
        |by| Target::CreateRevision(2 + by - 1),
        |by| Target::ModRevision(3 + by - 1),
        |by| Target::Value(Bytes::from(vec![b'm' + u8::try_from(by).unwrap() - 1])),
    ];
    for target in targets {
        use Operator::{Equal, Greater, Less, NotEqual};
        // Given one less than the field, the field itself, one more: which operators pass?
        for (by, expected) in [(0, [NotEqual, Greater]), (1, [Equal, Equal]), (2, [NotEqual, Less])]
        {
            for operator in [Equal, NotEqual, Greater, Less] {
                let passed = passes(&mut harness, compare("a", "", operator, target(by)));
                assert_eq!(passed, expected.contains(&operator), "{operator:?} {:?}", target(by));
            }
        }
    }
}

#[test]
fn a_missing_key_compares_as_zero_and_fails_by_value() {
    let mut harness = Harness::new();
    harness.put("b", "1");
    for end in ["", "a\0"] {
        for target in [
            Target::Version(0),
            Target::CreateRevision(0),
            Target::ModRevision(0),
            Target::SessionId(0),
        ] {
            assert!(passes(&mut harness, compare("a", end, Operator::Equal, target)));
        }
        for operator in [Operator::Equal, Operator::NotEqual, Operator::Less] {
            let value = Target::Value("x".into());
            assert!(!passes(&mut harness, compare("a", end, operator, value)));
        }
    }
}

#[test]
fn of_a_range_every_key_must_pass() {
    let mut harness = Harness::new();
    harness.put("a", "1");
    harness.put("b", "1");
    harness.put("b", "1");
    let all = |end: &str| compare("a", end, Operator::Equal, Target::Version(1));
    assert!(passes(&mut harness, all("b")));
    assert!(!passes(&mut harness, all("c")));
    assert!(!passes(&mut harness, all("\0")));
}

#[test]
fn the_other_list_runs_where_a_comparison_fails() {
    let mut harness = Harness::new();
    let absent = |key| compare(key, "", Operator::Equal, Target::Version(0));
    let request = TxnRequest {
        compare: vec![absent("a"), absent("b")],
        success: vec![op(put("a", "won"))],
        failure: vec![op(put("b", "lost"))],
        ..TxnRequest::default()
    };
    assert!(run(&mut harness, request.clone()).succeeded);
    assert!(!run(&mut harness, request).succeeded);
    let read = |key| harness.view().range(&range(key, "", 0)).unwrap().unwrap().kvs.pop();
    assert_eq!(read("a").unwrap().value, "won");
    assert_eq!(read("b").unwrap().value, "lost");
}

#[test]
fn a_lock_that_is_not_held_fails_the_comparison() {
    let mut harness = Harness::new();
    let held = HeldLock { name: "l".into(), fencing_token: 3 };
    let held = compare("", "", Operator::Unspecified, Target::HeldLock(held));
    assert!(!passes(&mut harness, held));
}

#[test]
fn a_key_is_not_written_twice() {
    let refused = |success: Vec<RequestOp>| {
        let request = TxnRequest { success, ..TxnRequest::default() };
        let other =
            TxnRequest { success: vec![], failure: request.success.clone(), ..request.clone() };
        let verdict = validate(&Op::Txn(request));
        assert_eq!(verdict, validate(&Op::Txn(other)), "both lists are checked alike");
        verdict.err().map(|refusal| refusal.reason())
    };
    let invalid = Some(Reason::InvalidArgument);
    assert_eq!(refused(vec![op(put("a", "1")), op(put("a", "2"))]), invalid);
    assert_eq!(refused(vec![op(put("b", "1")), op(delete("a", "c"))]), invalid);
    assert_eq!(refused(vec![op(delete("a", "\0")), op(put("b", "1"))]), invalid);
    assert_eq!(refused(vec![op(put("b", "1")), op(delete("a", "b"))]), None);
    assert_eq!(refused(vec![op(delete("a", "c")), op(delete("b", "d"))]), None);
}

#[test]
fn what_a_transaction_may_not_hold_is_refused() {
    let put_request = PutRequest { key: "a".into(), ..PutRequest::default() };
    let with = |request: Request| RequestOp { request: Some(request) };
    let lock = Some(HeldLock { name: "l".into(), fencing_token: 1 });
    let malformed = [
        RequestOp { request: None },
        with(Request::Put(PutRequest { request_id: "x".into(), ..put_request.clone() })),
        with(Request::Put(PutRequest { require_lock: lock, ..put_request })),
        with(Request::DeleteRange(DeleteRangeRequest::default())),
        with(Request::Range(RangeRequest { stale: true, ..range("a", "", 0) })),
    ];
    for request in malformed {
        let txn = TxnRequest { success: vec![request.clone()], ..TxnRequest::default() };
        assert!(validate(&Op::Txn(txn)).is_err(), "{request:?}");
    }
    let many: Vec<_> = (0..129).map(|at| op(put(&at.to_string(), ""))).collect();
    let txn = TxnRequest { failure: many[1..].to_vec(), ..TxnRequest::default() };
    assert_eq!(validate(&Op::Txn(txn)), Ok(()));
    let txn = TxnRequest { failure: many, ..TxnRequest::default() };
    assert!(validate(&Op::Txn(txn)).is_err());
    let unset = compare("a", "", Operator::Unspecified, Target::Version(0));
    let none = Compare { target: None, ..unset.clone() };
    for compare in [unset, none] {
        let txn = TxnRequest { compare: vec![compare], ..TxnRequest::default() };
        assert!(validate(&Op::Txn(txn)).is_err());
    }
}
