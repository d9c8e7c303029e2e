//! Any of them.

use std::sync::Arc;

use super::{Asked, Backend, Candidates, Picker, Policy};

/// Draws an endpoint, each with the same chance. It knows nothing of load: mostly of use to compare
/// others with, and where many callers that share nothing each make few calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Random;

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn picker(&self, _: &Candidates<'_>) -> Box<dyn Picker> {
        Box::new(Any)
    }
}

#[derive(Debug)]
struct Any;

impl Picker for Any {
    fn pick(&self, ready: &[Arc<Backend>], call: &Asked) -> usize {
        call.below(ready.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::balance::policy::testing::{backends, picked};

    #[test]
    fn each_comes_up_about_as_often() {
        for (place, count) in picked(&Random, &backends(10), 100_000, 1).into_iter().enumerate() {
            // The deviation is 95.
            assert!(count.abs_diff(10_000) < 500, "{place}: {count}");
        }
    }
}
