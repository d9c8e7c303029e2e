//! Who tells a retry budget of a call, where several layers share it: the outermost.
//!
//! The layers further in tell it only of the failures that they keep to themselves. Nothing here
//! counts.

use std::sync::Arc;

use http::Extensions;

use crate::resilience::retry_budget::RetryBudget;

/// In the extensions of a request: this budget is told of the call already.
#[derive(Clone, Debug)]
struct Fed(Arc<RetryBudget>);

/// Whether it falls to the asking layer to tell the budget of a call; marks the request.
pub(super) fn feeds(budget: &Arc<RetryBudget>, extensions: &mut Extensions) -> bool {
    let fed = extensions.get::<Fed>().is_some_and(|fed| Arc::ptr_eq(&fed.0, budget));
    if !fed {
        extensions.insert(Fed(Arc::clone(budget)));
    }
    !fed
}
