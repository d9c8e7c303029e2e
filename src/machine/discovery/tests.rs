//! What discovery promises: one live incarnation an instance id, and removal with a logged cause.

use super::*;
use crate::{
    machine::{Applied, ChangeKind, testing::Harness},
    pb::{
        command::v1::{ExpireSessions, ExpiredSession, command::Op, outcome},
        session::v1::{CloseSessionRequest, OpenSessionRequest},
    },
};

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn web(instance_id: &str) -> RegisterRequest {
    RegisterRequest {
        service: "web".into(),
        instance_id: instance_id.into(),
        address: "10.0.0.1:80".into(),
        ..RegisterRequest::default()
    }
}

fn register(h: &mut Harness, request: RegisterRequest) -> RegisterResponse {
    match h.outcome(Op::Register(request)).result {
        Some(outcome::Result::Register(response)) => response,
        other => panic!("not registered: {other:?}"),
    }
}

fn deregister(id: &str) -> Op {
    let (service, instance_id) = ("web".to_owned(), id.to_owned());
    Op::Deregister(DeregisterRequest { service, instance_id, ..DeregisterRequest::default() })
}

fn expire(h: &mut Harness, session_id: u64, epoch: u64) -> Applied {
    let sessions = vec![ExpiredSession { session_id, epoch }];
    h.apply(Op::ExpireSessions(ExpireSessions { term: h.term, sessions }))
}

fn ids(h: &Harness, service: &str, zone: &str) -> Vec<String> {
    let request =
        ResolveRequest { service: service.into(), zone: zone.into(), ..Default::default() };
    let found = h.view().resolve(&request).unwrap();
    found.instances.into_iter().map(|instance| instance.instance_id).collect()
}

fn sessions(h: &Harness) -> usize {
    h.view().sessions().unwrap().len()
}

#[test]
fn a_registered_instance_is_found_as_it_was_given() {
    let mut h = Harness::new();
    let request = RegisterRequest {
        zone: "eu".into(),
        metadata: [("v".to_owned(), "1".to_owned())].into(),
        ttl: seconds(10),
        ..web("one")
    };
    let response = register(&mut h, request.clone());
    assert_eq!(response.session_id, h.index().value());
    assert_eq!(response.ttl, seconds(10));
    let instance = h.view().instance("web", "one").unwrap().unwrap();
    let expected = Instance {
        service: "web".into(),
        instance_id: "one".into(),
        address: request.address,
        zone: request.zone,
        weight: 1,
        metadata: request.metadata,
        ttl: seconds(10),
        session_id: response.session_id,
        revision: response.revision,
        register_time: Some(crate::types::LogTime::from_millis(h.now_ms).to_timestamp()),
        state: InstanceState::Serving.into(),
    };
    assert_eq!(instance, expected);
    assert_eq!(h.view().instance("we", "b\0one").unwrap(), None);
}

#[test]
fn instances_are_found_by_service_and_zone_in_the_order_of_ids() {
    let mut h = Harness::new();
    for (id, zone) in [("b", "eu"), ("a", "us"), ("c", "eu")] {
        register(&mut h, RegisterRequest { zone: zone.into(), ..web(id) });
    }
    register(&mut h, RegisterRequest { service: "web2".into(), ..web("z") });
    assert_eq!(ids(&h, "web", ""), ["a", "b", "c"]);
    assert_eq!(ids(&h, "web", "eu"), ["b", "c"]);
    assert!(ids(&h, "we", "").is_empty());
    let services = h.view().services().unwrap().services;
    let counts: Vec<_> = services.iter().map(|s| (s.name.as_str(), s.instance_count)).collect();
    assert_eq!(counts, [("web", 3), ("web2", 1)]);
    assert_eq!(h.view().instances().unwrap().len(), 4);
}

#[test]
fn an_instance_goes_with_its_ttl() {
    let mut h = Harness::new();
    let response = register(&mut h, RegisterRequest { ttl: seconds(10), ..web("one") });
    let applied = expire(&mut h, response.session_id, 1);
    assert_eq!(applied.changes.len(), 1);
    assert_eq!(applied.changes[0].kind, ChangeKind::Delete);
    assert_eq!(applied.changes[0].kv.key, &row_key("web", "one")[..]);
    assert!(ids(&h, "web", "").is_empty());
    assert_eq!(h.refused(deregister("one")).reason(), Reason::InstanceNotFound);
}

#[test]
fn an_instance_goes_with_the_session_that_it_names_and_leaves_it_alive() {
    let mut h = Harness::new();
    h.outcome(Op::OpenSession(OpenSessionRequest { ttl: seconds(60), ..Default::default() }));
    let session_id = h.index().value();
    let bound = |id| RegisterRequest { session_id, ..web(id) };
    assert_eq!(register(&mut h, bound("one")).ttl, seconds(60));
    register(&mut h, bound("two"));
    h.outcome(deregister("one"));
    assert_eq!((ids(&h, "web", ""), sessions(&h)), (vec!["two".to_owned()], 1));
    h.outcome(Op::CloseSession(CloseSessionRequest { session_id, ..Default::default() }));
    assert!(ids(&h, "web", "").is_empty());
    assert_eq!(h.refused(Op::Register(bound("one"))).reason(), Reason::SessionNotFound);
}

#[test]
fn an_instance_without_ttl_stays_until_it_is_deregistered() {
    let mut h = Harness::new();
    let response = register(&mut h, RegisterRequest { ttl: seconds(0), ..web("one") });
    assert_eq!((response.session_id, response.ttl, sessions(&h)), (0, None, 0));
    h.outcome(deregister("one"));
    assert!(ids(&h, "web", "").is_empty());
}

#[test]
fn a_deregistered_instance_closes_its_own_session() {
    let mut h = Harness::new();
    register(&mut h, RegisterRequest { ttl: seconds(10), ..web("one") });
    h.outcome(deregister("one"));
    assert_eq!(sessions(&h), 0);
}

#[test]
fn one_incarnation_lives_and_the_old_one_expires_without_effect() {
    let mut h = Harness::new();
    let old = register(&mut h, RegisterRequest { ttl: seconds(10), ..web("one") });
    let new = register(&mut h, RegisterRequest { ttl: seconds(20), ..web("one") });
    assert!(new.revision > old.revision && new.session_id > old.session_id);
    assert_eq!(sessions(&h), 1, "the old incarnation's session is closed");
    expire(&mut h, old.session_id, 1);
    let instance = h.view().instance("web", "one").unwrap().unwrap();
    assert_eq!((instance.session_id, instance.revision), (new.session_id, new.revision));
    register(&mut h, web("one"));
    assert_eq!((ids(&h, "web", "").len(), sessions(&h)), (1, 0));
}

#[test]
fn an_instance_may_be_registered_again_under_its_own_session() {
    let mut h = Harness::new();
    let first = register(&mut h, RegisterRequest { ttl: seconds(10), ..web("one") });
    let again = RegisterRequest { session_id: first.session_id, weight: 7, ..web("one") };
    assert_eq!(register(&mut h, again).session_id, first.session_id);
    assert_eq!(h.view().instance("web", "one").unwrap().unwrap().weight, 7);
    expire(&mut h, first.session_id, 1);
    assert!(ids(&h, "web", "").is_empty());
}

#[test]
fn chosen_ids_never_meet_an_id_that_is_there() {
    let mut h = Harness::new();
    register(&mut h, web("i-2"));
    let chosen = register(&mut h, web("")).instance_id;
    assert_eq!(chosen, "i-2-2");
    assert_eq!(register(&mut h, web("")).instance_id, "i-3");
    assert_eq!(ids(&h, "web", "").len(), 3);
}

#[test]
fn malformed_requests_are_refused_and_change_nothing() {
    let mut h = Harness::new();
    let many = (0..65).map(|n| (n.to_string(), String::new())).collect();
    let large = [("k".to_owned(), "x".repeat(16 * 1024))].into();
    let address = |address: &str| RegisterRequest { address: address.into(), ..web("a") };
    let bad = [
        RegisterRequest { service: String::new(), ..web("a") },
        RegisterRequest { service: "x".repeat(257), ..web("a") },
        RegisterRequest { service: "a\0b".into(), ..web("a") },
        RegisterRequest { weight: 65_536, ..web("a") },
        RegisterRequest { ttl: seconds(86_401), ..web("a") },
        RegisterRequest { ttl: seconds(5), session_id: 1, ..web("a") },
        address(""),
        address("host"),
        address(":80"),
        address("host:0"),
        address("host:65536"),
        address("::1:80"),
        address("a b:80"),
    ];
    for request in bad {
        let refusal = h.refused(Op::Register(request));
        assert_eq!(refusal.reason(), Reason::InvalidArgument, "{}", refusal.message);
    }
    for metadata in [many, large] {
        let request = RegisterRequest { metadata, ..web("a") };
        assert_eq!(h.refused(Op::Register(request)).reason(), Reason::TooLarge);
    }
    assert!(h.state().is_empty());
    register(&mut h, address("[::1]:80"));
}

fn set_state(id: &str, state: InstanceState) -> Op {
    let (service, instance_id) = ("web".to_owned(), id.to_owned());
    Op::SetInstanceState(SetInstanceStateRequest {
        service,
        instance_id,
        state: state.into(),
        request_id: String::new(),
    })
}

fn state_set(h: &mut Harness, id: &str, state: InstanceState) -> u64 {
    match h.outcome(set_state(id, state)).result {
        Some(outcome::Result::SetInstanceState(response)) => response.revision,
        other => panic!("not set: {other:?}"),
    }
}

fn instance(h: &Harness, id: &str) -> Instance {
    h.view().instance("web", id).expect("the store works").expect("it is registered")
}

fn revision_of(h: &Harness) -> u64 {
    h.machine.head().revision.value()
}

#[test]
fn a_state_is_set_and_nothing_else_of_the_instance_changes() {
    let mut h = Harness::new();
    let registered = register(&mut h, RegisterRequest { ttl: seconds(10), ..web("one") });
    let before = instance(&h, "one");
    let applied = h.apply(set_state("one", InstanceState::Draining));
    assert_eq!(applied.changes.len(), 1);
    assert_eq!(applied.changes[0].kind, ChangeKind::Put);
    let revision = revision_of(&h);
    assert_eq!(revision, registered.revision + 1);
    let state = InstanceState::Draining.into();
    assert_eq!(instance(&h, "one"), Instance { state, revision, ..before.clone() });

    assert_eq!(state_set(&mut h, "one", InstanceState::Serving), revision + 1);
    assert_eq!(instance(&h, "one"), Instance { revision: revision + 1, ..before });
    expire(&mut h, registered.session_id, 1);
    assert!(ids(&h, "web", "").is_empty(), "it still lives with its session");
}

#[test]
fn the_state_that_an_instance_has_already_takes_no_revision() {
    let mut h = Harness::new();
    let registered = register(&mut h, web("one"));
    assert_eq!(state_set(&mut h, "one", InstanceState::Serving), registered.revision);
    let drained = state_set(&mut h, "one", InstanceState::Draining);
    h.put("a", "1");
    assert_eq!(state_set(&mut h, "one", InstanceState::Draining), drained);
    assert_eq!(revision_of(&h), drained + 1, "only the put took one");
}

#[test]
fn a_registration_sets_the_state_and_unsaid_is_serving() {
    let mut h = Harness::new();
    let draining = RegisterRequest { state: InstanceState::Draining.into(), ..web("one") };
    register(&mut h, draining);
    assert_eq!(instance(&h, "one").state(), InstanceState::Draining);
    register(&mut h, web("one"));
    assert_eq!(instance(&h, "one").state(), InstanceState::Serving);
    let found = h.view().resolve(&ResolveRequest { service: "web".into(), ..Default::default() });
    assert_eq!(found.expect("the store works").instances[0].state(), InstanceState::Serving);
}

#[test]
fn an_instance_that_was_written_before_there_were_states_is_serving() {
    let row_of = |state: InstanceState| {
        let mut h = Harness::new();
        register(&mut h, RegisterRequest { state: state.into(), ..web("one") });
        h.state()
    };
    assert!(row_of(InstanceState::Serving) == row_of(InstanceState::Unspecified));
    assert!(row_of(InstanceState::Draining) != row_of(InstanceState::Unspecified));
    let old = Instance { service: "web".into(), ..Instance::default() };
    let read = decode_instance(old.encode_to_vec().into()).expect("it is an instance");
    assert_eq!(read.state(), InstanceState::Serving);
}

#[test]
fn a_state_that_is_none_is_refused_and_so_is_one_of_nobody() {
    let mut h = Harness::new();
    register(&mut h, web("one"));
    let revision = revision_of(&h);
    let wrong = |state, service: &str, instance_id: &str| {
        let (service, instance_id) = (service.to_owned(), instance_id.to_owned());
        let request_id = String::new();
        Op::SetInstanceState(SetInstanceStateRequest { service, instance_id, state, request_id })
    };
    for op in [
        wrong(0, "web", "one"),
        wrong(3, "web", "one"),
        wrong(-1, "web", "one"),
        wrong(2, "", "one"),
        wrong(2, "web", ""),
        wrong(2, "web", "o\0ne"),
        Op::Register(RegisterRequest { state: 3, ..web("two") }),
    ] {
        assert_eq!(h.refused(op.clone()).reason(), Reason::InvalidArgument, "{op:?}");
    }
    let gone = h.refused(wrong(2, "web", "two"));
    assert_eq!(gone.reason(), Reason::InstanceNotFound);
    assert_eq!(gone.metadata["instance_id"], "two");
    assert_eq!(revision_of(&h), revision);
}
