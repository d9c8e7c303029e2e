//! The overlay: one order of rows, and units that are kept or taken back whole.

use bytes::Bytes;
use proptest::prelude::*;

use crate::{
    machine::{
        MachineConfig, Space,
        dedup::Requests,
        head::{Counters, Head},
        store::{Batch, Reader, Store as _},
        testing::MapStore,
        tx::{Tx, first_timer},
    },
    types::{LogTime, Revision, SessionId},
};

type Rows = Vec<(u8, Option<u8>)>;

fn key(key: u8) -> Bytes {
    vec![0x40, key].into()
}

fn rows() -> impl Strategy<Value = Rows> {
    prop::collection::vec((0..12_u8, prop::option::of(any::<u8>())), 0..12)
}

proptest! {
    #[test]
    fn a_run_reads_like_the_store_that_it_becomes(
        below in rows(), above in rows(), dropped in rows(), start in 0..13_u8, end in 0..13_u8,
    ) {
        let store = MapStore::default();
        let batch = |rows: &Rows| Batch {
            rows: rows.iter().map(|(k, v)| (key(*k), v.map(|v| vec![v].into()))).collect(),
        };
        store.commit(batch(&below)).unwrap();
        let config = MachineConfig::default();
        let mut tx = Tx::new(&store, &config, Head::default(), Counters::default(), Requests::default());
        let write = |tx: &mut Tx<'_>, rows: &Rows| {
            for (k, v) in rows {
                match v {
                    Some(v) => tx.put(key(*k), vec![*v]),
                    None => tx.delete(key(*k)),
                }
            }
        };
        tx.begin();
        write(&mut tx, &above);
        tx.begin();
        write(&mut tx, &dropped);
        tx.rollback();

        let after = MapStore::default();
        after.commit(batch(&below)).unwrap();
        after.commit(batch(&above)).unwrap();
        let (start, end) = (key(start), key(end));
        for end in [Some(end.as_ref()), None] {
            let collect = |rows: crate::machine::store::Rows<'_>| {
                rows.collect::<Result<Vec<_>, _>>().unwrap()
            };
            prop_assert_eq!(collect(tx.scan(&start, end)), collect(after.scan(&start, end)));
            prop_assert_eq!(
                collect(tx.scan_back(&start, end)),
                collect(after.scan_back(&start, end))
            );
        }
        for k in 0..12 {
            prop_assert_eq!(tx.get(&key(k)).unwrap(), after.get(&key(k)).unwrap());
        }
        let batch = tx.finish().batch;
        store.commit(Batch { rows: batch.rows.into_iter().filter(|(k, _)| k[0] == 0x40).collect() }).unwrap();
        prop_assert_eq!(store.rows(), after.rows());
    }
}

#[test]
fn a_unit_shares_a_revision_and_a_key_that_changes_twice_takes_another() {
    let store = MapStore::default();
    let config = MachineConfig::default();
    let mut tx =
        Tx::new(&store, &config, Head::default(), Counters::default(), Requests::default());
    let space = Space::Locks;
    tx.begin();
    assert_eq!(tx.next_revision(), Revision::new(1));
    tx.write_row(space, b"a", "1".into(), SessionId::ZERO).unwrap();
    tx.write_row(space, b"b", "1".into(), SessionId::ZERO).unwrap();
    assert_eq!(tx.head.revision, Revision::new(1));
    assert_eq!(tx.revision_for(space, b"c"), Revision::new(1));
    assert_eq!(tx.revision_for(space, b"a"), Revision::new(2));
    assert_eq!(tx.revision_for(Space::User, b"a"), Revision::new(1));
    tx.delete_row(space, b"a").unwrap();
    assert_eq!(tx.write_row(space, b"a", "2".into(), SessionId::ZERO).unwrap(), Revision::new(3));
    assert_eq!(tx.row(space, b"a").unwrap().unwrap().create_revision, 3);
    tx.begin();
    assert_eq!(tx.next_revision(), Revision::new(4));
    tx.write_row(space, b"a", "3".into(), SessionId::ZERO).unwrap();
    tx.rollback();
    assert_eq!(tx.head.revision, Revision::new(3));
    assert_eq!(tx.applied.changes.len(), 4);
}

#[test]
fn a_row_is_listed_under_the_session_that_it_is_bound_to_now() {
    use crate::machine::keyspace::{bound_rows, delete_session_keys};
    let store = MapStore::default();
    let config = MachineConfig::default();
    let mut tx =
        Tx::new(&store, &config, Head::default(), Counters::default(), Requests::default());
    let (one, two) = (SessionId::new(1), SessionId::new(2));
    tx.begin();
    for (key, session) in [("a", one), ("b", one), ("c", one), ("d", two)] {
        tx.write_row(Space::User, key.as_bytes(), Bytes::new(), session).unwrap();
    }
    tx.write_row(Space::Locks, b"a", Bytes::new(), one).unwrap();
    tx.begin();
    tx.write_row(Space::User, b"a", Bytes::new(), two).unwrap();
    tx.write_row(Space::User, b"b", Bytes::new(), SessionId::ZERO).unwrap();
    assert_eq!(bound_rows(&tx, one, Space::User).unwrap(), ["c"]);
    assert_eq!(bound_rows(&tx, two, Space::User).unwrap(), ["a", "d"]);
    delete_session_keys(&mut tx, two).unwrap();
    assert!(tx.row(Space::User, b"a").unwrap().is_none());
    assert!(tx.row(Space::User, b"b").unwrap().is_some());
    assert_eq!(bound_rows(&tx, one, Space::Locks).unwrap(), ["a"]);
    assert!(bound_rows(&tx, two, Space::User).unwrap().is_empty());
}

#[test]
fn timers_fall_due_in_the_order_of_their_deadlines() {
    let store = MapStore::default();
    let config = MachineConfig::default();
    let mut tx =
        Tx::new(&store, &config, Head::default(), Counters::default(), Requests::default());
    let at = LogTime::from_millis;
    tx.set_timer(at(20), 1, b"b");
    tx.set_timer(at(10), 2, b"a");
    tx.now = at(9);
    assert_eq!(tx.due_timer().unwrap(), None);
    tx.now = at(10);
    let timer = tx.due_timer().unwrap().unwrap();
    assert_eq!((timer.deadline, timer.kind, timer.key.as_ref()), (at(10), 2, &b"a"[..]));
    tx.clear_timer(at(10), 2, b"a");
    assert_eq!(tx.due_timer().unwrap(), None);
    assert_eq!(first_timer(&tx, LogTime::ZERO).unwrap().unwrap().deadline, at(20));
}
