//! The hashes: equal where the states are, and only there.

use crate::{
    machine::testing::{Harness, delete},
    pb::{
        cluster::v1::StateHashResponse,
        command::v1::{Reason, command::Op},
        kv::v1::CompactRequest,
    },
    raft::Payload,
    types::Revision,
};

fn hash(harness: &Harness, revision: u64) -> StateHashResponse {
    harness.view().state_hash(Revision::new(revision)).unwrap().unwrap()
}

fn filled(values: [&str; 3]) -> Harness {
    let mut harness = Harness::new();
    harness.put("a", values[0]);
    harness.put("b", values[1]);
    harness.outcome(delete("a", ""));
    harness.put("b", values[2]);
    harness
}

#[test]
fn equal_states_hash_alike_and_others_do_not() {
    let (one, same) = (filled(["1", "2", "3"]), filled(["1", "2", "3"]));
    assert_eq!(hash(&one, 0), hash(&same, 0));
    for values in [["x", "2", "3"], ["1", "x", "3"], ["1", "2", "x"]] {
        let other = hash(&filled(values), 0);
        assert_ne!(hash(&one, 0).hash, other.hash);
        assert_ne!(hash(&one, 0).full_hash, other.full_hash);
    }
    assert_eq!(hash(&one, 3).hash, hash(&filled(["1", "2", "x"]), 3).hash);
}

#[test]
fn a_past_revision_hashes_as_it_did_then() {
    let mut harness = filled(["1", "2", "3"]);
    let then = hash(&harness, 0);
    harness.put("c", "4");
    harness.outcome(delete("b", ""));
    assert_eq!(hash(&harness, then.revision).hash, then.hash);
    assert_ne!(hash(&harness, 0).hash, then.hash);
    let view = harness.view();
    let ahead = view.state_hash(Revision::new(99)).unwrap().unwrap_err();
    assert_eq!(ahead.reason(), Reason::FutureRevision);
}

#[test]
fn the_hash_does_not_see_how_far_the_sweep_is() {
    // The second time the newest change, a deletion in the middle of the keys, is compacted too.
    for kept in [5, 0] {
        let mut harness = Harness::new();
        for round in 0..50 {
            harness.put(["a", "b", "c"][round % 3], &round.to_string());
            harness.outcome(delete("b", ""));
        }
        let compacted = harness.machine.head().revision.value() - kept;
        let request = CompactRequest { revision: compacted, ..CompactRequest::default() };
        harness.outcome(Op::Compact(request));
        let before = [hash(&harness, 0).hash, hash(&harness, compacted).hash];
        let rows = harness.store.rows().len();
        for _ in 0..10 {
            harness.apply_payload(Payload::Noop);
            assert_eq!([hash(&harness, 0).hash, hash(&harness, compacted).hash], before);
        }
        assert!(harness.store.rows().len() < rows, "something was swept");
        let below = Revision::new(compacted - 1);
        let refused = harness.view().state_hash(below).unwrap().unwrap_err();
        assert_eq!(refused.reason(), Reason::Compacted);
    }
}
