//! Named points of the installation of a snapshot, at which tests let the process die.
//!
//! Outside of tests a point is nothing at all: no setting and no variable can make a node die.

/// A point of an installation, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// The store beside the state is there and empty.
    Begun,
    /// Some of the snapshot is in it.
    Loading,
    /// All of it is in it and was checked; not made durable.
    Loaded,
    /// It is durable.
    Durable,
    /// It has the state's name; the directory is not synced.
    Renamed,
    /// It is the state.
    Switched,
    /// The node reads it.
    Opened,
    /// The log was told to begin anew behind it; not synced.
    LogWritten,
    /// The log begins behind it.
    LogSynced,
}

/// A point was reached.
#[cfg(not(test))]
pub(crate) const fn reached(_: Step) {}

#[cfg(test)]
pub(crate) use dying::{DIES_AT, reached};

#[cfg(test)]
mod dying {
    use std::sync::OnceLock;

    use super::Step;

    /// Where this process dies; only a test's child process sets it.
    pub(crate) static DIES_AT: OnceLock<Step> = OnceLock::new();

    /// Ends the process at once if it is to die here: nothing is flushed, dropped or told.
    pub(crate) fn reached(step: Step) {
        if DIES_AT.get() == Some(&step) {
            std::process::abort();
        }
    }
}
