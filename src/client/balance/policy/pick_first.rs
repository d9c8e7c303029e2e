//! The first that works, and only that.

use std::sync::Arc;

use super::{Asked, Backend, Candidates, Connects, Picker, Policy};

/// Stays with the first endpoint that a connection can be made to, until it is lost. The order is
/// the one in which the endpoints were told.
#[derive(Clone, Copy, Debug, Default)]
pub struct PickFirst;

impl Policy for PickFirst {
    fn name(&self) -> &'static str {
        "pick_first"
    }

    fn connects(&self) -> Connects {
        Connects::One
    }

    fn warms_up(&self) -> bool {
        false
    }

    fn picker(&self, _: &Candidates<'_>) -> Box<dyn Picker> {
        Box::new(First)
    }
}

#[derive(Debug)]
struct First;

impl Picker for First {
    fn pick(&self, _: &[Arc<Backend>], _: &Asked) -> usize {
        0
    }
}
