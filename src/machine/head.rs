//! Where the state stands, and how that is kept in its one row.
//!
//! The row is written with each batch. It also holds the counters of the bookkeeping, so that a
//! command does not pay for rows of their own.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    machine::{
        store::{Reader, StoreError},
        tables::{Key, Table},
    },
    raft::Membership,
    types::{LogIndex, LogTime, NodeId, Position, Revision, Term},
};

/// The version of the state's format; a store with another is refused.
pub(crate) const FORMAT: u32 = 2;

/// Where the state stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last applied entry.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Its log time.
    pub time: LogTime,
    /// The newest revision.
    pub revision: Revision,
    /// The revision at or below which replaced versions are discarded.
    pub compact_revision: Revision,
    /// The last event's position.
    pub position: Position,
    /// The membership in force.
    pub membership: Membership,
}

/// Counters of the bookkeeping, replicated like everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// All changes up to and including this revision were swept.
    pub(crate) swept_revision: u64,
    /// How many changes of the next revision were swept as well.
    pub(crate) swept_changes: u32,
    /// The number of the oldest request that may be remembered.
    pub(crate) request_first: u64,
    /// The number that the next remembered request gets.
    pub(crate) request_next: u64,
    /// How many requests are remembered.
    pub(crate) request_count: u64,
    /// How many bytes their outcomes have.
    pub(crate) request_bytes: u64,
    /// Whether the state came out of a backup and no entry was applied since (`restore.rs`).
    pub(crate) restored: bool,
    /// What is added to an entry's index where an id is made of it; more than 0 after a restore.
    pub(crate) id_base: u64,
}

/// The row as it is encoded.
#[derive(Clone, PartialEq, prost::Message)]
struct HeadRow {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint64, tag = "2")]
    index: u64,
    #[prost(uint64, tag = "3")]
    term: u64,
    #[prost(uint64, tag = "4")]
    time_ms: u64,
    #[prost(uint64, tag = "5")]
    revision: u64,
    #[prost(uint64, tag = "6")]
    compact_revision: u64,
    #[prost(uint64, tag = "7")]
    position: u64,
    #[prost(uint64, repeated, tag = "8")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "9")]
    outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "10")]
    learners: Vec<u64>,
    #[prost(uint64, tag = "11")]
    swept_revision: u64,
    #[prost(uint64, tag = "12")]
    request_first: u64,
    #[prost(uint64, tag = "13")]
    request_next: u64,
    #[prost(uint64, tag = "14")]
    request_count: u64,
    #[prost(uint64, tag = "15")]
    request_bytes: u64,
    #[prost(bool, tag = "16")]
    restored: bool,
    #[prost(uint64, tag = "17")]
    id_base: u64,
    #[prost(uint32, tag = "18")]
    swept_changes: u32,
}

/// The row's key.
pub(crate) fn key() -> Bytes {
    Key::of(Table::Head).bytes()
}

/// Reads the row; a store without one is the state before the first entry.
pub(crate) fn load(reader: &dyn Reader) -> Result<(Head, Counters), StoreError> {
    reader.get(&key())?.map_or_else(|| Ok(Default::default()), |row| decode(&row))
}

/// Reads the row's value.
pub(crate) fn decode(row: &[u8]) -> Result<(Head, Counters), StoreError> {
    let row = HeadRow::decode(row)
        .map_err(|error| StoreError(format!("the head row is malformed: {error}")))?;
    if row.format != FORMAT {
        return Err(StoreError(format!(
            "the state has format {}, this program knows format {FORMAT}",
            row.format
        )));
    }
    let nodes = |ids: Vec<u64>| ids.into_iter().map(NodeId::new).collect();
    let head = Head {
        index: LogIndex::new(row.index),
        term: Term::new(row.term),
        time: LogTime::from_millis(row.time_ms),
        revision: Revision::new(row.revision),
        compact_revision: Revision::new(row.compact_revision),
        position: Position::new(row.position),
        membership: Membership {
            voters: nodes(row.voters),
            outgoing: nodes(row.outgoing),
            learners: nodes(row.learners),
        },
    };
    let counters = Counters {
        swept_revision: row.swept_revision,
        swept_changes: row.swept_changes,
        request_first: row.request_first,
        request_next: row.request_next,
        request_count: row.request_count,
        request_bytes: row.request_bytes,
        restored: row.restored,
        id_base: row.id_base,
    };
    Ok((head, counters))
}

/// Writes the row's value.
pub(crate) fn encode(head: &Head, counters: &Counters) -> Bytes {
    let nodes =
        |ids: &std::collections::BTreeSet<NodeId>| ids.iter().map(|id| id.value()).collect();
    let row = HeadRow {
        format: FORMAT,
        index: head.index.value(),
        term: head.term.value(),
        time_ms: head.time.as_millis(),
        revision: head.revision.value(),
        compact_revision: head.compact_revision.value(),
        position: head.position.value(),
        voters: nodes(&head.membership.voters),
        outgoing: nodes(&head.membership.outgoing),
        learners: nodes(&head.membership.learners),
        swept_revision: counters.swept_revision,
        swept_changes: counters.swept_changes,
        request_first: counters.request_first,
        request_next: counters.request_next,
        request_count: counters.request_count,
        request_bytes: counters.request_bytes,
        restored: counters.restored,
        id_base: counters.id_base,
    };
    row.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_comes_back_and_another_format_is_refused() {
        let head = Head {
            index: LogIndex::new(9),
            term: Term::new(2),
            time: LogTime::from_millis(77),
            revision: Revision::new(5),
            compact_revision: Revision::new(3),
            position: Position::new(4),
            membership: Membership {
                voters: [NodeId::new(1), NodeId::new(2)].into(),
                outgoing: [NodeId::new(1)].into(),
                learners: [NodeId::new(3)].into(),
            },
        };
        let counters = Counters {
            swept_revision: 2,
            swept_changes: 3,
            request_first: 7,
            request_next: 9,
            request_count: 2,
            request_bytes: 40,
            restored: true,
            id_base: 77,
        };
        assert_eq!(decode(&encode(&head, &counters)).unwrap(), (head, counters));
        let error = decode(&HeadRow { format: 3, ..HeadRow::default() }.encode_to_vec());
        assert!(error.unwrap_err().0.contains("format 3"));
    }
}
