//! Each limit: just inside it passes, just outside it does not.

use bytes::Bytes;

use crate::{
    machine::{
        testing::{Harness, delete, put, range},
        validate::{KEY_BYTES_MAX, VALUE_BYTES_MAX, validate, validate_range},
    },
    pb::{
        command::v1::{Reason, command::Op},
        kv::v1::{HeldLock, PutRequest, RangeRequest},
        session::v1::OpenSessionRequest,
    },
};

fn reason(op: &Op) -> Option<Reason> {
    validate(op).err().map(|refusal| refusal.reason())
}

#[test]
fn keys_and_values_have_their_sizes() {
    let longest = "k".repeat(KEY_BYTES_MAX);
    let largest = "v".repeat(VALUE_BYTES_MAX);
    assert_eq!(reason(&put(&longest, &largest)), None);
    assert_eq!(reason(&put(&format!("{longest}k"), "")), Some(Reason::InvalidArgument));
    assert_eq!(reason(&put("", "")), Some(Reason::InvalidArgument));
    assert_eq!(reason(&put("k", &format!("{largest}v"))), Some(Reason::TooLarge));
    assert_eq!(reason(&delete("", "")), Some(Reason::InvalidArgument));
    assert_eq!(reason(&delete("\0", "\0")), None);
    assert!(validate_range(&range("", "", 0)).is_err());
    let end = Bytes::from(vec![b'k'; KEY_BYTES_MAX + 1]);
    assert!(validate_range(&RangeRequest { range_end: end, ..range("a", "", 0) }).is_err());
}

#[test]
fn request_ids_have_their_forms() {
    let with = |id: &str| {
        let request = PutRequest { key: "a".into(), request_id: id.into(), ..Default::default() };
        reason(&Op::Put(request))
    };
    for id in ["", "67e55044-10b1-426f-9247-bb680e5fe0c8", "7:12:12", "7:1036:13", "1:0:0"] {
        assert_eq!(with(id), None, "{id}");
    }
    for id in ["x", "7:12", "7:12:12:1", "0:1:1", "7:11:12", "7:1037:13", "7:-1:0", "7:1:"] {
        assert_eq!(with(id), Some(Reason::InvalidArgument), "{id}");
    }
    let open = OpenSessionRequest { request_id: "7:1:1".into(), ..Default::default() };
    assert_eq!(reason(&Op::OpenSession(open)), Some(Reason::InvalidArgument));
}

#[test]
fn a_lock_that_is_required_has_a_name_and_a_token() {
    let with = |name: &str, fencing_token| {
        let lock = HeldLock { name: name.into(), fencing_token };
        let request =
            PutRequest { key: "a".into(), require_lock: Some(lock), ..Default::default() };
        reason(&Op::Put(request))
    };
    assert_eq!(with("l", 1), None);
    for (name, token) in [("", 1), ("l", 0), (&"l".repeat(513), 1)] {
        assert_eq!(with(name, token), Some(Reason::InvalidArgument));
    }
}

#[test]
fn applying_checks_again() {
    let mut harness = Harness::new();
    let before = harness.state();
    assert_eq!(harness.refused(put("", "x")).reason(), Reason::InvalidArgument);
    assert_eq!(harness.state(), before);
}
