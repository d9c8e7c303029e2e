//! Request ids: what was done once is answered, not done again.
//!
//! A UUID is remembered for a window of log time and up to a number of requests; a session's
//! sequence until the client says that it needs it no more, or the session ends. Refusals are not
//! remembered: a refused command changed nothing, and its retry is judged anew.

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    machine::{
        outcome::{invalid, refusal},
        session,
        store::StoreError,
        tables::{Fields, Key, Table},
        tx::Tx,
    },
    pb::command::v1::{Command, Outcome, Reason, Refusal, command},
    types::{Duration, LogTime, SessionId},
};

/// How long a UUID is remembered at least, while not too many others come, in log time.
pub(crate) const REQUEST_WINDOW: Duration = Duration::from_secs(600);

/// How many UUIDs are remembered at most.
const REQUEST_COUNT_MAX: u64 = 100_000;

/// How many bytes the remembered outcomes of UUIDs have at most.
const REQUEST_BYTES_MAX: u64 = 256 << 20;

/// How many places in the order an entry looks at to forget the oldest.
const FORGET_STEPS: usize = 4;

/// How far a session's sequence may run ahead of its low-water mark.
const SEQUENCES_MAX: u64 = 1_024;

/// A request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestId {
    /// A bare UUID.
    Uuid(Uuid),
    /// A place in a session's sequence.
    Sequence {
        /// The session.
        session: SessionId,
        /// The request's number in it.
        sequence: u64,
        /// The client has the answers to all lower numbers.
        low_water: u64,
    },
}

impl RequestId {
    /// Reads a UUID, or `SESSION:SEQUENCE:LOW_WATER_MARK`.
    ///
    /// # Errors
    /// A refusal that says what is wrong with the id.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        if let Ok(uuid) = Uuid::try_parse(text) {
            return Ok(Self::Uuid(uuid));
        }
        let numbers: Option<Vec<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
        let Some([session, sequence, low_water]) = numbers.as_deref() else {
            return Err(invalid(
                "request_id is neither a UUID nor of the form SESSION:SEQUENCE:LOW_WATER_MARK",
            ));
        };
        let (session, sequence, low_water) = (SessionId::new(*session), *sequence, *low_water);
        if session.is_zero() || sequence < low_water {
            return Err(invalid(
                "request_id needs a session, and a sequence not below its low-water mark",
            ));
        }
        if sequence - low_water >= SEQUENCES_MAX {
            return Err(invalid(format!(
                "request_id runs {SEQUENCES_MAX} or more ahead of its low-water mark: \
                 raise the mark as answers arrive"
            )));
        }
        Ok(Self::Sequence { session, sequence, low_water })
    }
}

/// A hash of a command without its origin and request id.
pub(crate) type Fingerprint = u64;

/// A remembered request.
#[derive(Clone, PartialEq, prost::Message)]
struct RequestRow {
    #[prost(fixed64, tag = "1")]
    fingerprint: u64,
    /// The place in the order of forgetting; of a UUID only.
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(message, optional, tag = "3")]
    outcome: Option<Outcome>,
}

/// The fingerprint of a command; a retry's is the same. A retried acquire may have less time left
/// to wait, so its `wait` does not count.
pub(crate) fn fingerprint(op: &command::Op) -> Fingerprint {
    use command::Op;
    let mut op = op.clone();
    match &mut op {
        Op::Put(request) => request.request_id.clear(),
        Op::DeleteRange(request) => request.request_id.clear(),
        Op::Txn(request) => request.request_id.clear(),
        Op::Compact(request) => request.request_id.clear(),
        Op::OpenSession(request) => request.request_id.clear(),
        Op::CloseSession(request) => request.request_id.clear(),
        Op::Acquire(request) => {
            request.request_id.clear();
            request.wait = None;
        }
        Op::Release(request) => request.request_id.clear(),
        Op::Register(request) => request.request_id.clear(),
        Op::Deregister(request) => request.request_id.clear(),
        Op::Append(request) => request.request_id.clear(),
        Op::SetStreamLimits(request) => request.request_id.clear(),
        Op::TrimStream(request) => request.request_id.clear(),
        Op::DeleteStream(request) => request.request_id.clear(),
        Op::PutBatch(_)
        | Op::CancelAcquire(_)
        | Op::ExpireSessions(_)
        | Op::CheckpointSessions(_)
        | Op::AdvanceTime(_)
        | Op::FoundCluster(_)
        | Op::RegisterMember(_) => {}
    }
    xxh3_64(&Command { op: Some(op), ..Command::default() }.encode_to_vec())
}

/// What is known of a request: the outcome to repeat, or `None` to carry it out.
pub(crate) fn recall(
    tx: &Tx<'_>,
    request_id: &str,
    fingerprint: Fingerprint,
) -> Result<Result<Option<Outcome>, Refusal>, StoreError> {
    let id = match RequestId::parse(request_id) {
        Ok(id) => id,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if let RequestId::Sequence { session, sequence, .. } = id {
        if !session::exists(tx, session)? {
            let message = format!(
                "session {session} expired or never was: whether an earlier try took effect is \
                 not known; read before trying again under another session"
            );
            return Ok(Err(refusal(Reason::SessionExpired, message).with("session_id", session)));
        }
        let low_water = low_water(tx, session)?;
        if sequence < low_water {
            let message = format!(
                "sequence {sequence} of session {session} lies below its low-water mark {low_water}"
            );
            return Ok(Err(
                refusal(Reason::SequenceForgotten, message).with("low_water_mark", low_water)
            ));
        }
    }
    let Some(row) = tx.load::<RequestRow>(&row_key(id))? else { return Ok(Ok(None)) };
    if row.fingerprint != fingerprint {
        let message = "request_id was used before with another body: draw a new one";
        return Ok(Err(refusal(Reason::RequestIdReused, message).with("request_id", request_id)));
    }
    Ok(Ok(row.outcome))
}

/// Remembers what came of a request. Whoever grants a parked acquire calls this with its request
/// id; an empty or malformed one is passed over.
pub(crate) fn remember(
    tx: &mut Tx<'_>,
    request_id: &str,
    fingerprint: Fingerprint,
    outcome: &Outcome,
) -> Result<(), StoreError> {
    let Ok(id) = RequestId::parse(request_id) else { return Ok(()) };
    forget(tx, request_id)?;
    let mut row = RequestRow { fingerprint, number: 0, outcome: Some(outcome.clone()) };
    match id {
        RequestId::Uuid(uuid) => {
            row.number = tx.counters.request_next;
            let size = outcome.encoded_len() as u64;
            tx.counters.request_next += 1;
            tx.counters.request_count += 1;
            tx.counters.request_bytes += size;
            let mut order = Vec::with_capacity(32);
            order.extend_from_slice(&tx.now.as_millis().to_be_bytes());
            order.extend_from_slice(&size.to_be_bytes());
            order.extend_from_slice(uuid.as_bytes());
            tx.put(order_key(row.number), order);
            tx.save(row_key(id), &row);
            forget_oldest(tx)
        }
        RequestId::Sequence { session, low_water, .. } => {
            // With the session, nobody is left to ask.
            if !session::exists(tx, session)? {
                return Ok(());
            }
            tx.save(row_key(id), &row);
            raise_low_water(tx, session, low_water)
        }
    }
}

/// Forgets a request: what it did was taken back (a grant that nobody received).
pub(crate) fn forget(tx: &mut Tx<'_>, request_id: &str) -> Result<(), StoreError> {
    let Ok(id) = RequestId::parse(request_id) else { return Ok(()) };
    let Some(row) = tx.load::<RequestRow>(&row_key(id))? else { return Ok(()) };
    tx.delete(row_key(id));
    if let RequestId::Uuid(_) = id
        && let Some(order) = tx.get(&order_key(row.number))?
    {
        remove_order(tx, row.number, &order)?;
    }
    Ok(())
}

/// Forgets what a session's sequences came to; called when it ends.
pub(crate) fn forget_session(tx: &mut Tx<'_>, session: SessionId) -> Result<(), StoreError> {
    raise_low_water(tx, session, u64::MAX)?;
    tx.delete(low_water_key(session));
    Ok(())
}

/// Forgets the oldest UUIDs that are out of the window or too many, a few at a time.
fn forget_oldest(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    for _ in 0..FORGET_STEPS {
        if tx.counters.request_count == 0 {
            return Ok(());
        }
        let number = tx.counters.request_first;
        if let Some(order) = tx.get(&order_key(number))? {
            let mut fields = Fields::of_value(&order);
            let time = LogTime::from_millis(fields.u64()?);
            let counters = &tx.counters;
            let too_many = counters.request_count > REQUEST_COUNT_MAX
                || counters.request_bytes > REQUEST_BYTES_MAX;
            if !too_many && tx.now.since(time) <= REQUEST_WINDOW {
                return Ok(());
            }
            fields.u64()?;
            tx.delete(Key::of(Table::Request).raw(fields.rest()).bytes());
            remove_order(tx, number, &order)?;
        }
        tx.counters.request_first += 1;
    }
    Ok(())
}

fn remove_order(tx: &mut Tx<'_>, number: u64, order: &[u8]) -> Result<(), StoreError> {
    let mut fields = Fields::of_value(order);
    fields.u64()?;
    tx.counters.request_bytes = tx.counters.request_bytes.saturating_sub(fields.u64()?);
    tx.counters.request_count = tx.counters.request_count.saturating_sub(1);
    tx.delete(order_key(number));
    Ok(())
}

fn low_water(tx: &Tx<'_>, session: SessionId) -> Result<u64, StoreError> {
    let row = tx.get(&low_water_key(session))?;
    row.map_or(Ok(0), |row| Fields::of_value(&row).u64())
}

/// Forgets the sequences below a mark. The ids that a session has open are at most
/// [`SEQUENCES_MAX`], so this is bounded.
fn raise_low_water(tx: &mut Tx<'_>, session: SessionId, mark: u64) -> Result<(), StoreError> {
    if mark <= low_water(tx, session)? {
        return Ok(());
    }
    let prefix = Key::of(Table::Sequence).u64(session.value());
    let end = prefix.clone().u64(mark);
    let keys: Vec<Bytes> = tx
        .scan(&prefix, Some(&end))
        .map(|row| row.map(|(key, _)| key))
        .collect::<Result<_, _>>()?;
    for key in keys {
        tx.delete(key);
    }
    tx.put(low_water_key(session), mark.to_be_bytes().to_vec());
    Ok(())
}

fn row_key(id: RequestId) -> Bytes {
    match id {
        RequestId::Uuid(uuid) => Key::of(Table::Request).raw(uuid.as_bytes()).bytes(),
        RequestId::Sequence { session, sequence, .. } => {
            Key::of(Table::Sequence).u64(session.value()).u64(sequence).bytes()
        }
    }
}

fn order_key(number: u64) -> Bytes {
    Key::of(Table::RequestOrder).u64(number).bytes()
}

fn low_water_key(session: SessionId) -> Bytes {
    Key::of(Table::LowWater).u64(session.value()).bytes()
}

#[cfg(test)]
mod tests;
