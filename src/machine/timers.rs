//! Stub: the typed helper's. Kinds of timers and what they do.

use crate::machine::{store::StoreError, tx::Tx};

/// Carries out what is due (`Tx::due_timer`), a bounded number an entry. Called before each entry,
/// as a unit of its own.
pub(crate) fn fire(_tx: &mut Tx<'_>) -> Result<(), StoreError> {
    Ok(())
}
