//! Who may be a member.

use super::*;
use crate::{machine::testing::Harness, pb::command::v1::command::Op};

const FIRST: &str = "6f1d7b1e-0000-4000-8000-000000000001";
const SECOND: &str = "6f1d7b1e-0000-4000-8000-000000000002";

fn member(node_id: u64, incarnation: &str) -> RegisterMember {
    RegisterMember {
        node_id,
        incarnation: incarnation.to_owned(),
        peer_address: format!("10.0.0.{node_id}:7201"),
        client_address: String::new(),
    }
}

fn found(h: &mut Harness, cluster_id: &str) -> Option<Refusal> {
    let members = vec![member(1, FIRST), member(2, "")];
    let command = FoundCluster { cluster_id: cluster_id.to_owned(), members };
    match h.outcome(Op::FoundCluster(command)).result {
        Some(crate::pb::command::v1::outcome::Result::Refusal(refusal)) => Some(refusal),
        _ => None,
    }
}

#[test]
fn the_first_founding_wins() {
    let mut h = Harness::new();
    assert_eq!(h.view().cluster_id().unwrap(), None);
    assert_eq!(found(&mut h, FIRST), None);
    assert_eq!(found(&mut h, FIRST), None, "the same again changes nothing");
    assert_eq!(found(&mut h, SECOND).unwrap().reason(), Reason::WrongIdentity);
    assert_eq!(h.view().cluster_id().unwrap(), ClusterId::parse(FIRST));
    assert_eq!(h.view().members().unwrap(), [member(1, FIRST), member(2, "")]);
    assert_eq!(found(&mut h, "x").unwrap().reason(), Reason::InvalidArgument);
}

#[test]
fn rule_20_a_wiped_disk_is_refused_under_its_old_name() {
    let mut h = Harness::new();
    found(&mut h, FIRST);
    let refusal = h.refused(Op::RegisterMember(member(1, SECOND)));
    assert_eq!(refusal.reason(), Reason::WrongIdentity);
    h.outcome(Op::RegisterMember(member(2, SECOND)));
    assert_eq!(h.view().members().unwrap()[1], member(2, SECOND));
    assert_eq!(h.refused(Op::RegisterMember(member(2, FIRST))).reason(), Reason::WrongIdentity);
}

#[test]
fn a_member_may_move_and_a_repetition_takes_no_revision() {
    let mut h = Harness::new();
    found(&mut h, FIRST);
    let moved = RegisterMember { peer_address: "10.9.9.9:1".into(), ..member(1, FIRST) };
    h.outcome(Op::RegisterMember(moved.clone()));
    assert_eq!(h.view().members().unwrap()[0], moved);
    let revision = h.machine.head().revision;
    h.outcome(Op::RegisterMember(moved));
    assert_eq!(h.machine.head().revision, revision);
    h.outcome(Op::RegisterMember(member(3, SECOND)));
    assert_eq!(h.view().members().unwrap().len(), 3);
}

#[test]
fn a_member_needs_an_id_and_an_incarnation() {
    let mut h = Harness::new();
    for bad in [member(0, FIRST), member(1, ""), member(1, "x")] {
        assert_eq!(h.refused(Op::RegisterMember(bad)).reason(), Reason::InvalidArgument);
    }
}
