//! The rows behind a lock: who holds it on whose behalf, and the line.
//!
//! A place in a line is found by its lock and number, by the call that waits, by the request id,
//! and by its session. Every function here keeps those ways in step. Taking the first place costs
//! the same however long the line is: the line's row says where to look for it. Nothing here
//! grants, tells or closes.

use crate::{
    machine::{
        RequestId,
        store::StoreError,
        tables::{Fields, Key, Table},
        timers,
        tx::{self, Tx},
    },
    pb::command::v1::Origin,
    types::{Duration, KeyRange, LogTime, SessionId},
};

/// The most that wait for one lock.
pub(super) const WAITERS_MAX: u64 = 10_000;

/// The most calls that a hold keeps in mind; once there were as many, no cancel ends it.
pub(super) const TOLD_MAX: usize = 8;

/// The call that is to be told, and the request it carries out.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Caller {
    /// The call that waits for the outcome; a retry attaches another one.
    #[prost(message, optional, tag = "1")]
    pub(crate) attachment: Option<Origin>,
    /// The request's id; empty where it has none.
    #[prost(string, tag = "2")]
    pub(crate) request_id: String,
    /// The request's fingerprint, by which a reuse of the id is told from a retry; 0 without id.
    #[prost(uint64, tag = "3")]
    pub(crate) fingerprint: u64,
}

/// A lock that is held.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Hold {
    /// The session that holds it.
    #[prost(uint64, tag = "1")]
    pub(crate) session_id: u64,
    /// Whether the session was opened for this grant alone and ends with it.
    #[prost(bool, tag = "2")]
    pub(crate) own_session: bool,
    /// The token of the grant.
    #[prost(uint64, tag = "3")]
    pub(crate) fencing_token: u64,
    /// The holder's label.
    #[prost(string, tag = "4")]
    pub(crate) owner: String,
    /// Who was told of the grant first.
    #[prost(message, required, tag = "5")]
    pub(crate) caller: Caller,
    /// The retries that were told of it since.
    #[prost(message, repeated, tag = "6")]
    pub(crate) told_again: Vec<Origin>,
}

impl Hold {
    pub(super) fn session(&self) -> SessionId {
        SessionId::new(self.session_id)
    }

    fn told(&self) -> impl Iterator<Item = &Origin> {
        self.caller.attachment.iter().chain(&self.told_again)
    }

    /// One more call is told of the grant. Says whether the hold changed.
    pub(super) fn tell_again(&mut self, call: &Origin) -> bool {
        let new = self.told().count() < TOLD_MAX && self.told().all(|told| told != call);
        if new {
            self.told_again.push(*call);
        }
        new
    }

    /// One of the calls never took the grant.
    pub(super) fn untell(&mut self, call: &Origin) -> Untold {
        if self.told().count() >= TOLD_MAX || self.told().all(|told| told != call) {
            return Untold::Unchanged;
        }
        self.told_again.retain(|told| told != call);
        self.caller.attachment.take_if(|told| told == call);
        if self.told().next().is_none() { Untold::ByAll } else { Untold::ByOne }
    }
}

/// What it means for a hold that a call never took the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untold {
    /// The call was not told, or too many were to keep each in mind.
    Unchanged,
    /// Another call was told as well, and may have taken it.
    ByOne,
    /// Nobody took it.
    ByAll,
}

/// A place in a line.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Waiter {
    /// The session that is to hold the lock.
    #[prost(uint64, tag = "1")]
    pub(crate) session_id: u64,
    /// Whether the session was opened for this place and ends with it.
    #[prost(bool, tag = "2")]
    pub(crate) own_session: bool,
    /// The TTL that its own session gets at the grant, in milliseconds.
    #[prost(uint64, tag = "3")]
    pub(crate) ttl_ms: u64,
    /// The waiter's label.
    #[prost(string, tag = "4")]
    pub(crate) owner: String,
    /// Who is told of the grant.
    #[prost(message, required, tag = "5")]
    pub(crate) caller: Caller,
    /// When it entered the line, in milliseconds of log time.
    #[prost(uint64, tag = "6")]
    pub(crate) enqueue_time_ms: u64,
    /// When it gives up, in milliseconds of log time; 0 is never.
    #[prost(uint64, tag = "7")]
    pub(crate) deadline_ms: u64,
}

impl Waiter {
    pub(super) fn session(&self) -> SessionId {
        SessionId::new(self.session_id)
    }

    pub(super) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms)
    }

    fn deadline(&self) -> Option<LogTime> {
        (self.deadline_ms > 0).then(|| LogTime::from_millis(self.deadline_ms))
    }
}

/// The line as a whole; absent where nobody waits.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Line {
    /// How many wait.
    #[prost(uint64, tag = "1")]
    pub(crate) count: u64,
    /// No place lies below this number: deleted ones need not be looked through.
    #[prost(uint64, tag = "2")]
    pub(crate) first: u64,
}

/// Where a place is: in the line of which lock, under which number (the index of the entry that
/// made it).
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Place {
    /// The lock's name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The place's number.
    #[prost(uint64, tag = "2")]
    pub(crate) number: u64,
}

/// The row of a hold.
pub(super) fn hold_key(name: &str) -> Key {
    Key::of(Table::Lock).raw(name.as_bytes())
}

/// The row of a line.
pub(super) fn line_key(name: &str) -> Key {
    Key::of(Table::LockDetail).raw(name.as_bytes())
}

/// The rows of a line's waiters.
pub(super) fn waiters_key(name: &str) -> Key {
    Key::of(Table::Waiter).name(name.as_bytes())
}

/// The rows of the places in which a session waits.
pub(super) fn session_waits(session: SessionId) -> Key {
    Key::of(Table::SessionDetail).u64(session.value())
}

fn session_wait(session: SessionId, name: &str) -> Key {
    session_waits(session).raw(name.as_bytes())
}

fn waiter_key(place: &Place) -> Key {
    waiters_key(&place.name).u64(place.number)
}

/// The row of a request; none for one without an id. A retry may have raised the low-water mark.
fn request_key(id: &str) -> Option<Key> {
    let key = Key::of(Table::WaiterRequest);
    match RequestId::parse(id).ok()? {
        RequestId::Uuid(uuid) => Some(key.u8(0).raw(uuid.as_bytes())),
        RequestId::Sequence { session, sequence, .. } => {
            Some(key.u8(1).u64(session.value()).u64(sequence))
        }
    }
}

fn call_key(call: &Origin) -> Key {
    Key::of(Table::WaiterOrigin).u64(call.node_id).u64(call.boot).u64(call.sequence)
}

pub(super) fn load_hold(tx: &Tx<'_>, name: &str) -> Result<Option<Hold>, StoreError> {
    tx.load(&hold_key(name))
}

pub(super) fn count(tx: &Tx<'_>, name: &str) -> Result<u64, StoreError> {
    Ok(tx.load::<Line>(&line_key(name))?.map_or(0, |line| line.count))
}

pub(super) fn load(tx: &Tx<'_>, place: &Place) -> Result<Option<Waiter>, StoreError> {
    tx.load(&waiter_key(place))
}

/// The place of a call.
pub(super) fn find_by_call(tx: &Tx<'_>, call: &Origin) -> Result<Option<Place>, StoreError> {
    if call.sequence == 0 { Ok(None) } else { tx.load(&call_key(call)) }
}

/// The place of a request that has an id.
pub(super) fn find_by_request(tx: &Tx<'_>, id: &str) -> Result<Option<Place>, StoreError> {
    request_key(id).map_or(Ok(None), |key| tx.load(&key))
}

/// Whether a session waits for a lock.
pub(super) fn waits(tx: &Tx<'_>, session: SessionId, name: &str) -> Result<bool, StoreError> {
    Ok(tx.get(&session_wait(session, name))?.is_some())
}

/// Puts a waiter at the end of the line.
pub(super) fn push(tx: &mut Tx<'_>, name: &str, waiter: &Waiter) -> Result<(), StoreError> {
    let place = Place { name: name.to_owned(), number: tx.index.value() };
    let mut line =
        tx.load::<Line>(&line_key(name))?.unwrap_or(Line { count: 0, first: place.number });
    line.count += 1;
    tx.save(line_key(name), &line);
    tx.save(session_wait(waiter.session(), name), &place);
    if let Some(key) = request_key(&waiter.caller.request_id) {
        tx.save(key, &place);
    }
    save(tx, &place, waiter);
    Ok(())
}

/// Lets another call wait in a place, until another deadline.
pub(super) fn attach(
    tx: &mut Tx<'_>,
    place: &Place,
    waiter: &mut Waiter,
    call: Origin,
    deadline_ms: u64,
) {
    if let Some(deadline) = waiter.deadline() {
        timers::clear_wait(tx, deadline, place);
    }
    waiter.deadline_ms = deadline_ms;
    if let Some(old) = &waiter.caller.attachment {
        tx.delete(call_key(old));
    }
    waiter.caller.attachment = Some(call);
    save(tx, place, waiter);
}

fn save(tx: &mut Tx<'_>, place: &Place, waiter: &Waiter) {
    if let Some(deadline) = waiter.deadline() {
        timers::set_wait(tx, deadline, place);
    }
    if let Some(call) = waiter.caller.attachment.as_ref().filter(|call| call.sequence != 0) {
        tx.save(call_key(call), place);
    }
    tx.save(waiter_key(place), waiter);
}

/// Takes a waiter out of the line, wherever it stands.
pub(super) fn remove(tx: &mut Tx<'_>, place: &Place, waiter: &Waiter) -> Result<(), StoreError> {
    let key = line_key(&place.name);
    let mut line: Line = tx.load(&key)?.expect("a line has a row while somebody waits");
    line.count -= 1;
    if line.count == 0 {
        tx.delete(key);
    } else {
        if line.first == place.number {
            line.first += 1;
        }
        tx.save(key, &line);
    }
    tx.delete(waiter_key(place));
    tx.delete(session_wait(waiter.session(), &place.name));
    if let Some(key) = request_key(&waiter.caller.request_id) {
        tx.delete(key);
    }
    if let Some(call) = &waiter.caller.attachment {
        tx.delete(call_key(call));
    }
    if let Some(deadline) = waiter.deadline() {
        timers::clear_wait(tx, deadline, place);
    }
    Ok(())
}

/// Takes the first waiter out of the line.
pub(super) fn pop(tx: &mut Tx<'_>, name: &str) -> Result<Option<Waiter>, StoreError> {
    let key = line_key(name);
    let Some(line) = tx.load::<Line>(&key)? else { return Ok(None) };
    let KeyRange { end, .. } = waiters_key(name).prefix();
    let start = waiters_key(name).u64(line.first);
    let first = tx.scan(&start, end.as_deref()).next();
    let (row, value) = first.expect("a line that has a row is not empty")?;
    let place = Place { name: name.to_owned(), number: number(&row)? };
    let waiter: Waiter = tx::decode(value)?;
    // The places that are left lie behind this one: the next look starts there.
    tx.save(key, &Line { first: place.number, ..line });
    remove(tx, &place, &waiter)?;
    Ok(Some(waiter))
}

/// The number in a waiter's key.
fn number(key: &[u8]) -> Result<u64, StoreError> {
    let mut fields = Fields::of_key(key);
    fields.name()?;
    fields.u64()
}
