//! Floor 4: streams of what was applied, for those who watch.
//!
//! A [`Cursor`] follows a [`Source`]: first history out of the state, then the live end out of the
//! node's feed. It remembers a place and nothing else, so a slow reader costs a few bounded
//! responses and is sent back to history; it never slows the one who writes. What it does next is
//! decided in [`CursorCore`], which the simulator steps over the same sources.

mod changes;
mod cursor;
mod events;
mod steps;
mod updates;

pub use changes::{Changes, gather};
pub use cursor::Cursor;
pub use events::{EventPlace, Events};
pub use steps::{CursorCore, Local, Piece, Source, Step, Update};
pub use updates::{Terms, Updates, follow, updates};
