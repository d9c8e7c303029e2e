//! What callers see: which endpoints can be called now, and the picker that chooses among them.
//!
//! Immutable. A new one takes its place when anything changes.

use std::{fmt, sync::Arc};

use crate::{
    client::balance::{
        BoxError, Connection, Connectivity, Endpoint, Load,
        policy::{Asked, Backend, Picker},
    },
    types::Rng,
};

/// How often a choice that does not suit is made anew before the next best is looked for.
const CHOICES_MAX: u32 = 4;

pub(super) struct Snapshot {
    /// Where new calls may go, with the connection of each at the same place.
    pub(super) ready: Vec<Arc<Backend>>,
    pub(super) connections: Vec<Arc<dyn Connection>>,
    /// There where anything is ready.
    pub(super) picker: Option<Arc<dyn Picker>>,
    /// Of all endpoints together.
    pub(super) state: Connectivity,
    /// Why nothing is ready, in words and as the last cause.
    pub(super) failure: Option<(Arc<str>, Option<Arc<BoxError>>)>,
    /// What was told of resolving, where that failed last.
    pub(super) resolver_error: Option<Arc<str>>,
    /// Whether too many are out, so that those are called as well.
    pub(super) panics: bool,
    pub(super) members: Vec<Known>,
}

/// One endpoint, for whoever asks how things stand.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) endpoint: Endpoint,
    pub(super) load: Arc<Load>,
    pub(super) state: Connectivity,
    pub(super) healthy: bool,
    pub(super) ejected: bool,
    pub(super) ejections: u64,
    pub(super) error: Option<Arc<str>>,
}

impl Snapshot {
    /// Before anything was told.
    pub(super) const fn empty() -> Self {
        Self {
            ready: Vec::new(),
            connections: Vec::new(),
            picker: None,
            state: Connectivity::Connecting,
            failure: None,
            resolver_error: None,
            panics: false,
            members: Vec::new(),
        }
    }

    /// Chooses for a call. `suits` may turn a choice down, told whether it is the first; where
    /// each one is, the first choice stands.
    pub(super) fn pick(
        &self,
        mut asked: Asked,
        suits: impl Fn(&Backend, bool) -> bool,
    ) -> Option<usize> {
        let picker = self.picker.as_ref()?;
        let first = picker.pick(&self.ready, &asked);
        if suits(&self.ready[first], true) {
            return Some(first);
        }
        for _ in 1..CHOICES_MAX {
            asked.chance = mix(asked.chance);
            let again = picker.pick(&self.ready, &asked);
            if suits(&self.ready[again], false) {
                return Some(again);
            }
        }
        let other = (1..self.ready.len())
            .map(|step| (first + step) % self.ready.len())
            .find(|&other| suits(&self.ready[other], false));
        Some(other.unwrap_or(first))
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("state", &self.state)
            .field("picker", &self.picker)
            .field("members", &self.members)
            .finish_non_exhaustive()
    }
}

/// Even bits from a counter.
pub(super) const fn mix(number: u64) -> u64 {
    Rng::new(number).next_u64()
}
