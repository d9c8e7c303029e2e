//! Receiving with a moment's patience: a thread that has just worked looks out for more before it
//! sleeps.
//!
//! To sleep and to be woken costs tens of microseconds, more than most of the work between, and an
//! operation wakes a dozen threads. Between two looks the thread gives its processor away, so where
//! much is to do others go first, and what they send is found in one batch.

use std::sync::mpsc::Receiver;

use crate::{node::clock::Clock, types::Duration};

/// The next input, if it comes soon.
pub(crate) fn linger<T>(clock: &Clock, inputs: &Receiver<T>, span: Duration) -> Option<T> {
    let end = clock.now().after(span);
    loop {
        if let Ok(input) = inputs.try_recv() {
            return Some(input);
        }
        if clock.now() >= end {
            return None;
        }
        std::thread::yield_now();
    }
}
