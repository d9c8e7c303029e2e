//! Put streams: many puts in order, each with a revision of its own, and none twice.
//!
//! A stream's puts are numbered. The state keeps the last number that was applied, so what comes
//! again is passed over and what comes too early is refused: whatever becomes of the entries that
//! carry a stream, its puts take effect in order. The streams used last are remembered, by count;
//! nothing here looks at the time.

use bytes::Bytes;

use crate::{
    machine::{
        effect::Space,
        outcome::{Decision, invalid, refusal},
        session,
        store::StoreError,
        tables::{Key, Table},
        tx::Tx,
        validate::{WRITES_MAX, validate_streamed_put},
    },
    pb::command::v1::{PutBatch, PutBatchDone, Reason, Refusal},
    types::SessionId,
};

/// How many streams are remembered.
const STREAMS_MAX: u64 = 10_000;

/// How many places in the order an entry looks at to forget the oldest.
const FORGET_STEPS: usize = 4;

/// The bytes of a stream's id.
const ID_BYTES: usize = 16;

/// How far a stream is.
#[derive(Clone, PartialEq, prost::Message)]
struct StreamRow {
    /// The number of the last put that was applied.
    #[prost(uint64, tag = "1")]
    last_sequence: u64,
    /// Its revision.
    #[prost(uint64, tag = "2")]
    last_revision: u64,
    /// The place in the order of forgetting.
    #[prost(uint64, tag = "3")]
    number: u64,
}

/// The order of forgetting.
#[derive(Clone, PartialEq, prost::Message)]
struct OrderRow {
    /// The place of the stream that was used longest ago; what lies before is gone.
    #[prost(uint64, tag = "1")]
    first: u64,
    /// The place that is given next.
    #[prost(uint64, tag = "2")]
    next: u64,
    /// How many streams are remembered.
    #[prost(uint64, tag = "3")]
    count: u64,
}

/// Checks puts of a stream against the limits that the protos state.
pub(crate) fn validate_batch(batch: &PutBatch) -> Result<(), Refusal> {
    if batch.stream_id.len() != ID_BYTES {
        return Err(invalid("a put stream's id has 16 bytes"));
    }
    if batch.puts.is_empty() || batch.puts.len() > WRITES_MAX {
        return Err(invalid(format!("a batch of a put stream has 1 to {WRITES_MAX} puts")));
    }
    let count = batch.puts.len() as u64;
    if batch.first_sequence == 0 || batch.first_sequence.checked_add(count).is_none() {
        return Err(invalid("the puts of a stream are numbered from 1"));
    }
    batch.puts.iter().try_for_each(validate_streamed_put)
}

/// Carries out the puts of a batch that were not applied before.
pub(crate) fn put_batch(tx: &mut Tx<'_>, batch: &PutBatch) -> Decision<PutBatchDone> {
    let mut row: StreamRow = tx.load(&row_key(&batch.stream_id))?.unwrap_or_default();
    let known = row.last_sequence > 0;
    let expected = row.last_sequence + 1;
    if batch.first_sequence > expected {
        return Ok(Err(gap(batch, expected)));
    }
    let repeated = usize::try_from(expected - batch.first_sequence).unwrap_or(usize::MAX);
    let puts = batch.puts.get(repeated..).unwrap_or_default();
    let mut done = PutBatchDone {
        first_sequence: expected,
        last_sequence: row.last_sequence,
        first_revision: 0,
        last_revision: row.last_revision,
    };
    for put in puts {
        let session = SessionId::new(put.session_id);
        if !session.is_zero() && !session::exists(tx, session)? {
            return Ok(Err(unbound(session, done.last_sequence + 1)));
        }
        tx.end_revision();
        let revision = tx.write_row(Space::User, &put.key, put.value.clone(), session)?.value();
        if done.first_revision == 0 {
            done.first_revision = revision;
        }
        done.last_sequence += 1;
        done.last_revision = revision;
    }
    row.last_sequence = done.last_sequence;
    row.last_revision = done.last_revision;
    remember(tx, &batch.stream_id, row, known)?;
    Ok(Ok(done))
}

fn gap(batch: &PutBatch, expected: u64) -> Refusal {
    let id = id_text(&batch.stream_id);
    let first = batch.first_sequence;
    let message = if expected == 1 {
        format!("put stream {id} is not known, or forgotten: it cannot go on with put {first}")
    } else {
        format!("put stream {id} goes on with put {expected}, not with put {first}")
    };
    refusal(Reason::PutStreamGap, message).with("stream_id", id).with("expected_sequence", expected)
}

fn unbound(session: SessionId, sequence: u64) -> Refusal {
    let message =
        format!("put {sequence}: session {session} does not exist: open another and go on");
    refusal(Reason::SessionNotFound, message).with("session_id", session).with("sequence", sequence)
}

/// Keeps how far a stream is, as the one used last, and forgets the oldest, a few at a time.
fn remember(
    tx: &mut Tx<'_>,
    id: &Bytes,
    mut row: StreamRow,
    known: bool,
) -> Result<(), StoreError> {
    let mut order: OrderRow = tx.load(&meta_key())?.unwrap_or_default();
    // The one used last stays where it is: a busy stream moves nothing.
    let newest = known && row.number + 1 == order.next;
    if !newest {
        if known {
            tx.delete(order_key(row.number));
        } else {
            order.count += 1;
        }
        row.number = order.next;
        order.next += 1;
        tx.put(order_key(row.number), id.clone());
        forget_oldest(tx, &mut order)?;
        tx.save(meta_key(), &order);
    }
    tx.save(row_key(id), &row);
    Ok(())
}

fn forget_oldest(tx: &mut Tx<'_>, order: &mut OrderRow) -> Result<(), StoreError> {
    for _ in 0..FORGET_STEPS {
        // A place whose stream was used again is empty.
        if let Some(id) = tx.get(&order_key(order.first))? {
            if order.count <= STREAMS_MAX {
                return Ok(());
            }
            tx.delete(row_key(&id));
            tx.delete(order_key(order.first));
            order.count -= 1;
        }
        order.first += 1;
    }
    Ok(())
}

fn id_text(id: &[u8]) -> String {
    uuid::Uuid::from_slice(id).map_or_else(|_| String::new(), |id| id.to_string())
}

fn meta_key() -> Bytes {
    Key::of(Table::PutStream).u8(0).bytes()
}

fn row_key(id: &[u8]) -> Bytes {
    Key::of(Table::PutStream).u8(1).raw(id).bytes()
}

fn order_key(number: u64) -> Bytes {
    Key::of(Table::PutStream).u8(2).u64(number).bytes()
}

#[cfg(test)]
mod tests;
