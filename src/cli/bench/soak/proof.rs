//! What must be there at the end, from what the clients were told.
//!
//! A write whose outcome is unknown may be there or not, once; everything else is exact.

use std::collections::{BTreeMap, BTreeSet};

use crate::client;

/// What became of the writes to one key, by one client that writes one at a time. A value is its
/// sequence number.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyHistory {
    acknowledged: u64,
    last: Option<u64>,
    unknown: BTreeSet<u64>,
}

impl KeyHistory {
    /// Takes note of a write's outcome.
    pub(super) fn note<T>(&mut self, sequence: u64, outcome: &Result<T, client::Error>) {
        match outcome {
            Ok(_) => {
                self.acknowledged += 1;
                self.last = Some(sequence);
            }
            Err(error) if error.outcome_unknown() => {
                self.unknown.insert(sequence);
            }
            Err(_) => {}
        }
    }

    pub(super) const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// What is wrong with what was found: the value's sequence and the key's version.
    pub(super) fn check(&self, found: Option<(u64, u64)>) -> Option<&'static str> {
        let Some((sequence, version)) = found else {
            return self.last.map(|_| "missing");
        };
        let unknown = u64::try_from(self.unknown.len()).unwrap_or(u64::MAX);
        if version < self.acknowledged {
            return Some("missing");
        }
        if version > self.acknowledged + unknown {
            return Some("twice");
        }
        let expected = self.last == Some(sequence) || self.unknown.contains(&sequence);
        (!expected).then_some("overtaken")
    }
}

/// What became of the appends to one stream, by one client that appends one event at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct StreamHistory {
    acknowledged: Vec<u64>,
    unknown: BTreeSet<u64>,
}

impl StreamHistory {
    /// Takes note of an append's outcome.
    pub(super) fn note<T>(&mut self, sequence: u64, outcome: &Result<T, client::Error>) {
        match outcome {
            Ok(_) => self.acknowledged.push(sequence),
            Err(error) if error.outcome_unknown() => {
                self.unknown.insert(sequence);
            }
            Err(_) => {}
        }
    }

    pub(super) const fn acknowledged(&self) -> &Vec<u64> {
        &self.acknowledged
    }

    /// How many acknowledged events are missing from what was found, in the stream's order, and
    /// how many are there that should not be: twice, out of order, or never sent.
    pub(super) fn check(&self, found: impl IntoIterator<Item = u64>) -> (u64, u64) {
        let mut expected = self.acknowledged.iter().peekable();
        let mut unknown = self.unknown.clone();
        let (mut missing, mut wrong) = (0, 0);
        for sequence in found {
            if unknown.remove(&sequence) {
                continue;
            }
            // What is passed over here was acknowledged before and does not come any more.
            while expected.next_if(|next| **next < sequence).is_some() {
                missing += 1;
            }
            wrong += u64::from(expected.next_if_eq(&&sequence).is_none());
        }
        (missing + u64::try_from(expected.count()).unwrap_or(u64::MAX), wrong)
    }
}

/// What was found wrong, by name. Empty is good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wrongs(pub(super) BTreeMap<String, u64>);

impl Wrongs {
    pub(super) fn add(&mut self, what: &str, count: u64) {
        if count > 0 {
            *self.0.entry(what.to_owned()).or_default() += count;
        }
    }

    pub(super) fn join(&mut self, other: Self) {
        for (what, count) in other.0 {
            self.add(&what, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    fn key(outcomes: &[Result<(), client::Error>]) -> KeyHistory {
        let mut history = KeyHistory::default();
        for (sequence, outcome) in (0..).zip(outcomes) {
            history.note(sequence, outcome);
        }
        history
    }

    fn unknown() -> Result<(), client::Error> {
        Err(client::Error::from(Status::unavailable("a proxy")))
    }

    fn refused() -> Result<(), client::Error> {
        Err(client::Error::from(Status::invalid_argument("no")))
    }

    #[test]
    fn a_key_holds_the_last_acknowledged_value_or_one_of_unknown_outcome() {
        let history = key(&[Ok(()), unknown(), Ok(()), refused()]);
        assert_eq!(history.check(Some((2, 2))), None);
        assert_eq!(history.check(Some((2, 3))), None, "the unknown one was carried out before");
        assert_eq!(history.check(Some((1, 3))), None, "or after");
        assert_eq!(history.check(None), Some("missing"));
        assert_eq!(history.check(Some((2, 1))), Some("missing"));
        assert_eq!(history.check(Some((2, 4))), Some("twice"));
        assert_eq!(history.check(Some((0, 2))), Some("overtaken"));
        assert_eq!(history.check(Some((3, 3))), Some("overtaken"), "a refused one is there");
        assert_eq!(key(&[unknown()]).check(None), None);
    }

    #[test]
    fn a_stream_holds_every_acknowledged_event_once_in_order() {
        let mut history = StreamHistory::default();
        for (sequence, outcome) in (0..).zip([Ok(()), unknown(), Ok(()), refused(), Ok(())]) {
            history.note(sequence, &outcome);
        }
        assert_eq!(history.check([0, 2, 4]), (0, 0));
        assert_eq!(history.check([0, 2, 1, 4]), (0, 0));
        assert_eq!(history.check([0, 4]), (1, 0));
        assert_eq!(history.check([0, 2]), (1, 0));
        assert_eq!(history.check([0, 2, 2, 4]), (0, 1));
        assert_eq!(history.check([0, 1, 2, 1, 4]), (0, 1), "an unknown one twice");
        assert_eq!(history.check([0, 2, 3, 4]), (0, 1), "a refused one");
        assert_eq!(history.check([2, 0, 4]), (1, 1));
    }
}
