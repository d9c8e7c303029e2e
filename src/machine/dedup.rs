//! Request ids: what was done once is answered, not done again.
//!
//! A UUID is remembered for a window of log time and up to a number of requests; a session's
//! sequence until the client says that it needs it no more, or the session ends. Refusals are not
//! remembered: a refused command changed nothing, and its retry is judged anew.
//!
//! The rows of UUIDs stand in the order of forgetting. Where each is, [`Requests`] knows in memory,
//! so that a request which was never seen costs no search in the store.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    machine::{
        outcome::{invalid, refusal},
        session,
        store::{Reader, StoreError},
        tables::{Fields, Key, Table},
        tx::{Tx, decode},
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
    #[prost(message, optional, tag = "3")]
    outcome: Option<Outcome>,
    /// When it was remembered; of a UUID only.
    #[prost(uint64, tag = "4")]
    time_ms: u64,
    /// Its 16 bytes; of a UUID only.
    #[prost(bytes = "bytes", tag = "5")]
    uuid: Bytes,
}

impl RequestRow {
    fn uuid(&self) -> Result<u128, StoreError> {
        let bytes = self.uuid.as_ref().try_into();
        let malformed = |_| StoreError("a remembered request has no UUID".to_owned());
        Ok(u128::from_be_bytes(bytes.map_err(malformed)?))
    }

    /// What it counts for in `Counters::request_bytes`.
    fn bytes(&self) -> u64 {
        self.outcome.as_ref().map_or(0, prost::Message::encoded_len) as u64
    }
}

/// Where the remembered UUIDs are; read off the store when it is opened.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    numbers: BTreeMap<u128, u64>,
    /// The number that was looked at last as the oldest, and since when it is remembered.
    pub(crate) oldest: Option<(u64, LogTime)>,
}

impl Requests {
    /// Reads what a store holds.
    pub(crate) fn load(reader: &dyn Reader) -> Result<Self, StoreError> {
        let range = Key::of(Table::Request).prefix();
        let mut numbers = BTreeMap::new();
        for row in reader.scan(&range.start, range.end.as_deref()) {
            let (key, row) = row?;
            numbers.insert(decode::<RequestRow>(row)?.uuid()?, Fields::of_key(&key).u64()?);
        }
        Ok(Self { numbers, oldest: None })
    }

    /// Sets or forgets where a UUID is; gives what was known before.
    pub(crate) fn set(&mut self, uuid: u128, number: Option<u64>) -> Option<u64> {
        match number {
            Some(number) => self.numbers.insert(uuid, number),
            None => self.numbers.remove(&uuid),
        }
    }
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
        Op::SetInstanceState(request) => request.request_id.clear(),
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
    let Some(key) = row_key(tx, id) else { return Ok(Ok(None)) };
    let Some(row) = tx.load::<RequestRow>(&key)? else { return Ok(Ok(None)) };
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
    let mut row =
        RequestRow { fingerprint, outcome: Some(outcome.clone()), ..RequestRow::default() };
    match id {
        RequestId::Uuid(uuid) => {
            row.time_ms = tx.now.as_millis();
            row.uuid = Bytes::copy_from_slice(uuid.as_bytes());
            let number = tx.counters.request_next;
            tx.counters.request_next += 1;
            tx.counters.request_count += 1;
            tx.counters.request_bytes += row.bytes();
            tx.save(number_key(number), &row);
            tx.set_request(uuid.as_u128(), Some(number));
            forget_oldest(tx)
        }
        RequestId::Sequence { session, sequence, low_water } => {
            // With the session, nobody is left to ask.
            if !session::exists(tx, session)? {
                return Ok(());
            }
            tx.save(sequence_key(session, sequence), &row);
            raise_low_water(tx, session, low_water)
        }
    }
}

/// Forgets a request: what it did was taken back (a grant that nobody received).
pub(crate) fn forget(tx: &mut Tx<'_>, request_id: &str) -> Result<(), StoreError> {
    match RequestId::parse(request_id) {
        Err(_) => Ok(()),
        Ok(RequestId::Sequence { session, sequence, .. }) => {
            tx.delete(sequence_key(session, sequence));
            Ok(())
        }
        Ok(RequestId::Uuid(uuid)) => {
            let number = tx.requests.numbers.get(&uuid.as_u128()).copied();
            number.map_or(Ok(()), |number| forget_number(tx, number))
        }
    }
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
        if let Some(time) = remembered_at(tx, number)? {
            let counters = &tx.counters;
            let too_many = counters.request_count > REQUEST_COUNT_MAX
                || counters.request_bytes > REQUEST_BYTES_MAX;
            if !too_many && tx.now.since(time) <= REQUEST_WINDOW {
                return Ok(());
            }
            forget_number(tx, number)?;
        }
        tx.counters.request_first += 1;
    }
    Ok(())
}

/// When a request was remembered; `None` where it was forgotten since.
fn remembered_at(tx: &mut Tx<'_>, number: u64) -> Result<Option<LogTime>, StoreError> {
    if let Some((known, time)) = tx.requests.oldest
        && known == number
    {
        return Ok(Some(time));
    }
    let row = tx.load::<RequestRow>(&number_key(number))?;
    let time = row.map(|row| LogTime::from_millis(row.time_ms));
    tx.requests.oldest = time.map(|time| (number, time));
    Ok(time)
}

fn forget_number(tx: &mut Tx<'_>, number: u64) -> Result<(), StoreError> {
    let key = number_key(number);
    let Some(row) = tx.load::<RequestRow>(&key)? else { return Ok(()) };
    tx.counters.request_bytes = tx.counters.request_bytes.saturating_sub(row.bytes());
    tx.counters.request_count = tx.counters.request_count.saturating_sub(1);
    tx.delete(key);
    tx.set_request(row.uuid()?, None);
    tx.requests.oldest = None;
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

/// Where a request is kept; `None` for a UUID that is not remembered.
fn row_key(tx: &Tx<'_>, id: RequestId) -> Option<Bytes> {
    match id {
        RequestId::Uuid(uuid) => {
            tx.requests.numbers.get(&uuid.as_u128()).map(|&number| number_key(number))
        }
        RequestId::Sequence { session, sequence, .. } => Some(sequence_key(session, sequence)),
    }
}

fn number_key(number: u64) -> Bytes {
    Key::of(Table::Request).u64(number).bytes()
}

fn sequence_key(session: SessionId, sequence: u64) -> Bytes {
    Key::of(Table::Sequence).u64(session.value()).u64(sequence).bytes()
}

fn low_water_key(session: SessionId) -> Bytes {
    Key::of(Table::LowWater).u64(session.value()).bytes()
}

#[cfg(test)]
mod tests;
