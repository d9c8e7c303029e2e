//! What the commands do to locks: acquire, release, cancel, and what ends of sessions and of
//! waits do.
//!
//! A lock changes hands in [`grant`] alone, and is freed in [`hand_over`] alone. Retries find
//! their place in line, or their grant, again; a cancel names the call it takes back, and ends a
//! grant only when none of the calls that were told of it may have taken it.

use prost::Message as _;

use super::line::{self, Caller, Hold, Place, Untold, Waiter};
use crate::{
    machine::{
        Space, dedup, discovery, keyspace,
        outcome::{Decision, refusal},
        session::{self, End, Kind, WAITING_TTL},
        span,
        store::StoreError,
        tx::{self, Tx},
        validate::LOCK_NAME_BYTES_MAX,
    },
    pb::{
        command::v1::{
            CancelAcquire, Done, Origin, Outcome, Reason, Refusal, command::Op, outcome,
        },
        lock::v1::{
            AcquireRequest, AcquireResponse, Holder, Lock, ReleaseRequest, ReleaseResponse,
        },
    },
    types::{Duration, Planted, SessionId, planted},
};

pub(crate) fn validate_acquire(request: &AcquireRequest) -> Result<(), Refusal> {
    Terms::read(request).map(|_| ())
}

pub(crate) fn validate_release(request: &ReleaseRequest) -> Result<(), Refusal> {
    validate_name(&request.name)
}

fn validate_name(name: &str) -> Result<(), Refusal> {
    discovery::validate_text("name", name, 1, LOCK_NAME_BYTES_MAX)
}

/// What an acquire asks for, read and checked.
struct Terms {
    ttl: Duration,
    wait: Option<Duration>,
}

impl Terms {
    fn read(request: &AcquireRequest) -> Result<Self, Refusal> {
        validate_name(&request.name)?;
        session::validate_owner(&request.owner)?;
        // The TTL of a given session counts, whatever the request says.
        let ttl = if request.session_id == 0 { request.ttl.as_ref() } else { None };
        Ok(Self {
            ttl: span::read_ttl(ttl)?,
            wait: request.wait.as_ref().map(|wait| span::read(wait, "wait")).transpose()?,
        })
    }
}

/// Grants a lock, refuses it, or puts the call in line: then there is no outcome yet. A retry of
/// a call that waits takes up its place; the call before it ends as cancelled.
///
/// A session holds a lock once and stands in its line once: waiting for itself would never end,
/// so a second request is refused, and told the token that the session holds.
pub(crate) fn acquire(
    tx: &mut Tx<'_>,
    call: &Origin,
    request: &AcquireRequest,
) -> Decision<Option<AcquireResponse>> {
    let terms = match Terms::read(request) {
        Ok(terms) => terms,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let fingerprint = match request.request_id.as_str() {
        "" => 0,
        _ => dedup::fingerprint(&Op::Acquire(request.clone())),
    };
    let caller =
        Caller { attachment: Some(*call), request_id: request.request_id.clone(), fingerprint };
    if let Some(place) = line::find_by_request(tx, &request.request_id)? {
        return attach_again(tx, &place, caller, terms.wait);
    }
    let given = SessionId::new(request.session_id);
    if !given.is_zero() && session::load_bindable(tx, given)?.is_none() {
        return Ok(Err(session::not_found(given)));
    }
    let Some(hold) = line::load_hold(tx, &request.name)? else {
        let (session, ttl) = if given.is_zero() {
            (session::start(tx, Kind::Holding, terms.ttl, &request.owner), terms.ttl)
        } else {
            (given, session_ttl(tx, given)?)
        };
        let claim = Claim {
            session,
            own_session: given.is_zero(),
            ttl,
            owner: request.owner.clone(),
            caller,
        };
        return Ok(Ok(Some(grant(tx, &request.name, claim)?)));
    };
    if let Some(refusal) = refuse_wait(tx, request, &terms, &hold)? {
        return Ok(Err(refusal));
    }
    enqueue(tx, request, &terms, caller)?;
    Ok(Ok(None))
}

/// Why a lock that is held cannot be waited for.
fn refuse_wait(
    tx: &Tx<'_>,
    request: &AcquireRequest,
    terms: &Terms,
    hold: &Hold,
) -> Result<Option<Refusal>, StoreError> {
    let name = &request.name;
    let given = SessionId::new(request.session_id);
    if !given.is_zero() && given == hold.session() {
        let sentence = format!(
            "session {given} holds lock \"{name}\" already, with token {}; waiting for itself \
             would never end",
            hold.fencing_token,
            given = given.value(),
        );
        return Ok(Some(held_with(name, hold, sentence)));
    }
    if terms.wait == Some(Duration::ZERO) {
        return Ok(Some(held(name, hold)));
    }
    if !given.is_zero() && line::waits(tx, given, name)? {
        let sentence = format!(
            "session {} waits for lock \"{name}\" already; a retry carries that call's request id",
            given.value()
        );
        return Ok(Some(held_with(name, hold, sentence)));
    }
    if line::count(tx, name)? >= line::WAITERS_MAX {
        let sentence =
            format!("{} wait for lock \"{name}\" already; try again later", line::WAITERS_MAX);
        return Ok(Some(refusal(Reason::Overloaded, sentence).with("lock", name)));
    }
    Ok(None)
}

fn enqueue(
    tx: &mut Tx<'_>,
    request: &AcquireRequest,
    terms: &Terms,
    caller: Caller,
) -> Result<(), StoreError> {
    let own_session = request.session_id == 0;
    let session = if own_session {
        session::start(tx, Kind::Waiting, WAITING_TTL, &request.owner)
    } else {
        SessionId::new(request.session_id)
    };
    let call = caller.attachment;
    let waiter = Waiter {
        session_id: session.value(),
        own_session,
        ttl_ms: span::millis(terms.ttl),
        owner: request.owner.clone(),
        caller,
        enqueue_time_ms: tx.now.as_millis(),
        deadline_ms: deadline_ms(tx, terms.wait),
    };
    line::push(tx, &request.name, &waiter)?;
    if let Some(call) = call {
        park(tx, &call, session);
    }
    Ok(())
}

/// When a wait that begins now ends; 0 is never.
fn deadline_ms(tx: &Tx<'_>, wait: Option<Duration>) -> u64 {
    wait.map_or(0, |wait| tx.now.after(wait).as_millis())
}

/// A retry of a request that waits: the new call waits in the old one's place, and for as long as
/// itself says.
fn attach_again(
    tx: &mut Tx<'_>,
    place: &Place,
    caller: Caller,
    wait: Option<Duration>,
) -> Decision<Option<AcquireResponse>> {
    let mut waiter =
        line::load(tx, place)?.expect("the way by request id is deleted with the place");
    if waiter.caller.fingerprint != caller.fingerprint {
        return Ok(Err(reused(&caller.request_id)));
    }
    let call = caller.attachment.expect("an acquire comes with its call");
    let before = waiter.caller.attachment;
    line::attach(tx, place, &mut waiter, call, deadline_ms(tx, wait));
    park(tx, &call, waiter.session());
    if let Some(before) = before.filter(|before| *before != call) {
        let sentence = "a retry of this request took its place in the line over";
        tx.complete(&before, refusal(Reason::WaitCancelled, sentence).with("lock", &place.name));
    }
    Ok(Ok(None))
}

/// Tells the call's node to keep the session alive while it waits.
fn park(tx: &mut Tx<'_>, call: &Origin, session: SessionId) {
    if call.sequence != 0 {
        tx.applied.parked.push((*call, session));
    }
}

/// A retry of a request that was granted gets the same answer. Where the lock is still held with
/// that token, the new call stands beside those before it: which of them the holder heard, and in
/// which order they were sent, nobody knows here.
pub(crate) fn deliver_again(
    tx: &mut Tx<'_>,
    call: &Origin,
    answer: &Outcome,
) -> Result<(), StoreError> {
    let Some(outcome::Result::Acquire(granted)) = &answer.result else { return Ok(()) };
    if let Some(mut hold) = line::load_hold(tx, &granted.name)?
        && hold.fencing_token == granted.fencing_token
        && hold.tell_again(call)
    {
        tx.save(line::hold_key(&granted.name), &hold);
    }
    Ok(())
}

/// Releases a lock that is held with this token; with another one nothing changes.
pub(crate) fn release(tx: &mut Tx<'_>, request: &ReleaseRequest) -> Decision<ReleaseResponse> {
    match line::load_hold(tx, &request.name)? {
        Some(hold)
            if hold.fencing_token == request.fencing_token
                || planted(Planted::WrongTokenReleases) =>
        {
            give_up(tx, &request.name, &hold)?;
            Ok(Ok(ReleaseResponse { revision: tx.head.revision.value() }))
        }
        hold => Ok(Err(wrong_token(request, hold.as_ref()))),
    }
}

/// Takes back the acquire of one call: its place in line, or its grant, where no other call was told
/// of it.
pub(crate) fn cancel(tx: &mut Tx<'_>, command: &CancelAcquire) -> Decision<Done> {
    let Some(call) = &command.attachment else { return Ok(Ok(Done {})) };
    if let Some(place) = line::find_by_call(tx, call)? {
        let sentence = "the call that waited gave up";
        let cancelled = refusal(Reason::WaitCancelled, sentence).with("lock", &place.name);
        quit(tx, &place, cancelled)?;
    } else if let Some(mut hold) = line::load_hold(tx, &command.name)? {
        match hold.untell(call) {
            Untold::Unchanged => {}
            Untold::ByOne => tx.save(line::hold_key(&command.name), &hold),
            Untold::ByAll => {
                // Nobody saw the grant. A retry that comes yet asks anew.
                dedup::forget(tx, &hold.caller.request_id)?;
                give_up(tx, &command.name, &hold)?;
            }
        }
    }
    Ok(Ok(Done {}))
}

/// Ends the wait of a place whose deadline has passed.
pub(crate) fn time_out(tx: &mut Tx<'_>, place: &Place) -> Result<(), StoreError> {
    let hold = line::load_hold(tx, &place.name)?.expect("a lock with a line is held");
    quit(tx, place, held(&place.name, &hold))
}

/// Takes a place out of its line and tells its call why; its own session ends with it.
fn quit(tx: &mut Tx<'_>, place: &Place, why: Refusal) -> Result<(), StoreError> {
    let waiter = line::load(tx, place)?.expect("every way to a place is deleted with it");
    line::remove(tx, place, &waiter)?;
    tell(tx, &waiter.caller, why);
    if waiter.own_session {
        session::end(tx, &[waiter.session()], End::Closed)?;
    }
    Ok(())
}

/// Takes a session that ends out of the lines it stands in.
pub(crate) fn leave_lines(tx: &mut Tx<'_>, session: SessionId, why: End) -> Result<(), StoreError> {
    let places: Vec<Place> = tx
        .scan_prefix(line::session_waits(session))
        .map(|row| tx::decode(row?.1))
        .collect::<Result<_, _>>()?;
    for place in places {
        let waiter = line::load(tx, &place)?.expect("a session's wait is deleted with the place");
        line::remove(tx, &place, &waiter)?;
        let ended = match why {
            End::Closed => "was closed",
            End::Expired => "expired",
        };
        let sentence = format!("session {} {ended} while it waited for the lock", session.value());
        let refusal = refusal(Reason::SessionNotFound, sentence)
            .with("lock", &place.name)
            .with("session_id", session.value());
        tell(tx, &waiter.caller, refusal);
    }
    Ok(())
}

/// Releases what a session that ends holds.
pub(crate) fn release_all(tx: &mut Tx<'_>, session: SessionId) -> Result<(), StoreError> {
    for name in keyspace::bound_rows(tx, session, Space::Locks)? {
        let name = tx::text(&name)?;
        let hold =
            line::load_hold(tx, &name)?.expect("a session's hold is deleted with the lock's");
        hand_over(tx, &name, &hold)?;
    }
    Ok(())
}

/// Releases a lock; a session of its own ends with it.
fn give_up(tx: &mut Tx<'_>, name: &str, hold: &Hold) -> Result<(), StoreError> {
    if hold.own_session {
        session::end(tx, &[hold.session()], End::Closed)
    } else {
        hand_over(tx, name, hold)
    }
}

/// Passes a held lock to the first in line and tells its call; frees it where nobody waits.
fn hand_over(tx: &mut Tx<'_>, name: &str, hold: &Hold) -> Result<(), StoreError> {
    let Some(waiter) = line::pop(tx, name)? else {
        tx.delete(line::hold_key(name));
        tx.delete_row(Space::Locks, name.as_bytes())?;
        return Ok(());
    };
    let session = waiter.session();
    let ttl = if waiter.own_session {
        session::start_holding(tx, session, waiter.ttl())?;
        waiter.ttl()
    } else {
        session_ttl(tx, session)?
    };
    let caller = waiter.caller.clone();
    let claim = Claim {
        session,
        own_session: waiter.own_session,
        ttl,
        owner: waiter.owner,
        caller: waiter.caller,
    };
    let granted = grant(tx, name, claim)?;
    assert!(granted.fencing_token > hold.fencing_token, "the token of \"{name}\" must grow");
    if !caller.request_id.is_empty() {
        let outcome = granted.clone().into();
        dedup::remember(tx, &caller.request_id, caller.fingerprint, &outcome)?;
    }
    if planted(Planted::WaiterWokenTwice) {
        tell(tx, &caller, granted.clone());
    }
    tell(tx, &caller, granted);
    Ok(())
}

/// Who gets a lock, and for how long.
struct Claim {
    session: SessionId,
    own_session: bool,
    ttl: Duration,
    owner: String,
    caller: Caller,
}

fn grant(tx: &mut Tx<'_>, name: &str, claim: Claim) -> Result<AcquireResponse, StoreError> {
    let token = tx.revision_for(Space::Locks, name.as_bytes());
    let holder = Holder {
        owner: claim.owner.clone(),
        fencing_token: token.value(),
        session_id: claim.session.value(),
        ttl: Some(span::to_wire(claim.ttl)),
        acquire_time: Some(tx.now.to_timestamp()),
    };
    let lock = Lock { name: name.to_owned(), holder: Some(holder), ..Lock::default() };
    let revision =
        tx.write_row(Space::Locks, name.as_bytes(), lock.encode_to_vec().into(), claim.session)?;
    assert_eq!(revision, token, "a fencing token is the revision of its grant");
    let hold = Hold {
        session_id: claim.session.value(),
        own_session: claim.own_session,
        fencing_token: token.value(),
        owner: claim.owner,
        caller: claim.caller,
        told_again: Vec::new(),
    };
    tx.save(line::hold_key(name), &hold);
    Ok(AcquireResponse {
        name: name.to_owned(),
        fencing_token: token.value(),
        session_id: claim.session.value(),
        ttl: Some(span::to_wire(claim.ttl)),
        revision: revision.value(),
    })
}

/// Completes a call that was parked.
fn tell(tx: &mut Tx<'_>, caller: &Caller, outcome: impl Into<Outcome>) {
    if let Some(call) = &caller.attachment {
        tx.complete(call, outcome);
    }
}

fn session_ttl(tx: &Tx<'_>, session: SessionId) -> Result<Duration, StoreError> {
    let row = session::load(tx, session)?;
    Ok(row.expect("a session that holds or waits is there").ttl())
}

/// Whether a lock is held with this token: the condition of fenced writes.
pub(crate) fn is_held(tx: &Tx<'_>, name: &str, fencing_token: u64) -> Result<bool, StoreError> {
    Ok(line::load_hold(tx, name)?.is_some_and(|hold| hold.fencing_token == fencing_token))
}

fn reused(request_id: &str) -> Refusal {
    let sentence = format!("request id {request_id} came before with another body: draw a new one");
    refusal(Reason::RequestIdReused, sentence).with("request_id", request_id)
}

fn held(name: &str, hold: &Hold) -> Refusal {
    let by = if hold.owner.is_empty() { String::new() } else { format!(" by \"{}\"", hold.owner) };
    held_with(name, hold, format!("lock \"{name}\" is held{by}"))
}

fn held_with(name: &str, hold: &Hold, sentence: String) -> Refusal {
    refusal(Reason::LockHeld, sentence)
        .with("lock", name)
        .with("owner", &hold.owner)
        .with("fencing_token", hold.fencing_token)
        .with("session_id", hold.session_id)
}

fn wrong_token(request: &ReleaseRequest, hold: Option<&Hold>) -> Refusal {
    let (name, token) = (&request.name, request.fencing_token);
    let Some(hold) = hold else {
        let sentence = format!("lock \"{name}\" is free: it is not held with token {token}");
        return refusal(Reason::WrongFencingToken, sentence).with("lock", name);
    };
    let sentence =
        format!("lock \"{name}\" is held with token {}, not {token}", hold.fencing_token);
    refusal(Reason::WrongFencingToken, sentence)
        .with("lock", name)
        .with("fencing_token", hold.fencing_token)
}
