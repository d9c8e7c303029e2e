//! Exclusive locks: granted in the order of asking, with a fencing token that only grows.
//!
//! A lock has a row in the revisioned keyspace while it is held, and nothing else that users see;
//! the line of its waiters, and who is to be told of a grant, are bookkeeping outside the history.
//! A free lock has no line: the entry that frees a lock grants it to the first in line. The
//! fencing token is the revision of the grant's entry, and an entry grants a name once at most,
//! so a name's token grows strictly, whatever becomes of the lock in between.

mod grant;
mod line;
mod read;

pub(crate) use grant::{
    acquire, cancel, deliver_again, is_held, leave_lines, release, release_all, time_out,
    validate_acquire, validate_release,
};
pub(crate) use line::Place;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
