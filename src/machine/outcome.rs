//! Refusals: outcomes, not errors. The services floor maps them to statuses in one place.

use std::collections::BTreeMap;

use crate::pb::command::v1::{Outcome, Reason, Refusal, outcome};

/// A refusal with a sentence for people.
#[must_use]
pub fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), message: message.into(), metadata: BTreeMap::new() }
}

impl Refusal {
    /// Adds a fact for programs.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.metadata.insert(key.to_owned(), value.to_string());
        self
    }
}

impl From<Refusal> for Outcome {
    fn from(refusal: Refusal) -> Self {
        Self { result: Some(outcome::Result::Refusal(refusal)) }
    }
}
