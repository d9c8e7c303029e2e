//! Where the attempts of one call went, so that the next one goes elsewhere.
//!
//! Whoever sends a call more than once puts it into the extensions of each attempt; whoever chooses
//! among endpoints notes its choice, and avoids the earlier ones. Nothing here chooses.

use std::sync::{Arc, Mutex, PoisonError};

/// The addresses that the attempts of one call were sent to. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tried(Arc<Mutex<Vec<Arc<str>>>>);

impl Tried {
    /// Takes note of an attempt.
    pub fn note(&self, address: Arc<str>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(address);
    }

    /// Where the attempts went so far.
    #[must_use]
    pub fn addresses(&self) -> Vec<Arc<str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
