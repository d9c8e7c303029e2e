//! What falls due at a log time: the ends of waits, the age of events, the sweep of streams.
//!
//! Each entry first lets happen what fell due by its time, then carries out its command
//! (raft-rules 30: apply knows one clock, the log's). The work of an entry is bounded: what is
//! left over falls due with the next one.

use crate::{
    machine::{
        lock::{self, Place},
        retention,
        store::StoreError,
        tables::Fields,
        tx::{self, Timer, Tx},
    },
    types::LogTime,
};

/// The end of a wait; the key is the place's number and the lock's name.
const WAIT: u8 = 1;

/// The age of a stream's oldest event; the key is the stream's name.
const AGE: u8 = 2;
/// The next sweep of events that were let go; there is no key.
const SWEEP: u8 = 3;

/// How many timers one entry lets fire.
const FIRED_PER_ENTRY_MAX: usize = 64;

/// Ends the wait of a place at `deadline`.
pub(crate) fn set_wait(tx: &mut Tx<'_>, deadline: LogTime, place: &Place) {
    tx.set_timer(deadline, WAIT, &wait_key(place));
}

/// Takes the end of a wait back.
pub(crate) fn clear_wait(tx: &mut Tx<'_>, deadline: LogTime, place: &Place) {
    tx.clear_timer(deadline, WAIT, &wait_key(place));
}

/// Looks at the age of a stream's events at `deadline`.
pub(crate) fn set_age(tx: &mut Tx<'_>, deadline: LogTime, stream: &str) {
    tx.set_timer(deadline, AGE, stream.as_bytes());
}

/// Takes the look back.
pub(crate) fn clear_age(tx: &mut Tx<'_>, deadline: LogTime, stream: &str) {
    tx.clear_timer(deadline, AGE, stream.as_bytes());
}

/// Sweeps events at `deadline`.
pub(crate) fn set_sweep(tx: &mut Tx<'_>, deadline: LogTime) {
    tx.set_timer(deadline, SWEEP, &[]);
}

/// Takes the sweep back.
pub(crate) fn clear_sweep(tx: &mut Tx<'_>, deadline: LogTime) {
    tx.clear_timer(deadline, SWEEP, &[]);
}

fn wait_key(place: &Place) -> Vec<u8> {
    [&place.number.to_be_bytes()[..], place.name.as_bytes()].concat()
}

fn read_place(key: &[u8]) -> Result<Place, StoreError> {
    let mut fields = Fields::of_value(key);
    Ok(Place { number: fields.u64()?, name: tx::text(fields.rest())? })
}

/// Lets happen what fell due by the entry's time, oldest first. Called before each entry, as a
/// unit of its own.
pub(crate) fn fire(tx: &mut Tx<'_>) -> Result<(), StoreError> {
    for _ in 0..FIRED_PER_ENTRY_MAX {
        let Some(Timer { deadline, kind, key }) = tx.due_timer()? else { break };
        match kind {
            WAIT => lock::time_out(tx, &read_place(&key)?)?,
            AGE => retention::grow_old(tx, &tx::text(&key)?, deadline)?,
            SWEEP => retention::sweep(tx, deadline)?,
            _ => {
                return Err(StoreError(format!(
                    "timer {deadline:?} is of the unknown kind {kind}"
                )));
            }
        }
    }
    Ok(())
}
