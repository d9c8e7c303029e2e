//! Watches that begin with a snapshot: what a second snapshot says against what is known.
//!
//! After a break the watch starts anew with everything that is there. Told as it comes, that would
//! repeat what the reader knows and hide what went away. So the first snapshot passes; of a later
//! one only the differences do, and what is missing in it is told as gone.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::client::resume::Outlook;

/// One thing that is watched, as an event tells of it.
pub trait Entry: Clone {
    /// What it is called.
    fn name(&self) -> Bytes;
    /// Differs between two things of the same name.
    fn identity(&self) -> u64;
    /// Whether the event tells that it went away.
    fn is_gone(&self) -> bool;
    /// The event that it went away.
    #[must_use]
    fn gone(self, revision: u64) -> Self;
}

/// A watch request together with what its reader knows.
#[derive(Clone, Debug)]
pub struct Reconciling<Q: Watched> {
    pub(super) request: Q,
    known: BTreeMap<Bytes, Q::Event>,
    /// What of `known` the new snapshot has not named yet; absent outside of one.
    missing: Option<BTreeMap<Bytes, Q::Event>>,
}

/// A request for a watch that begins with a snapshot.
pub trait Watched {
    /// What it streams.
    type Event: Entry + Clone + std::fmt::Debug;
}

impl Watched for crate::pb::lock::v1::WatchRequest {
    type Event = crate::pb::lock::v1::LockEvent;
}

impl Watched for crate::pb::discovery::v1::WatchRequest {
    type Event = crate::pb::discovery::v1::InstanceEvent;
}

impl<Q: Watched> Reconciling<Q> {
    pub(super) const fn new(request: Q) -> Self {
        Self { request, known: BTreeMap::new(), missing: None }
    }

    /// A snapshot follows, not the first one.
    pub(super) fn begin(&mut self) {
        self.missing = Some(self.known.clone());
    }

    /// Takes one response and leaves in it what is news.
    pub(super) fn reconcile(
        &mut self,
        events: &mut Vec<Q::Event>,
        caught_up: bool,
        revision: u64,
    ) -> Outlook {
        let in_snapshot = self.missing.is_some();
        events.retain(|event| self.is_news(event));
        if caught_up && let Some(missing) = self.missing.take() {
            for (name, event) in missing {
                self.known.remove(&name);
                events.push(event.gone(revision));
            }
        }
        if in_snapshot && events.is_empty() && !caught_up {
            return Outlook::Skip;
        }
        Outlook::Deliver
    }

    fn is_news(&mut self, event: &Q::Event) -> bool {
        let name = event.name();
        if let Some(missing) = &mut self.missing {
            missing.remove(&name);
        }
        if event.is_gone() {
            // A removal of what was never told is still told outside of a snapshot.
            return self.known.remove(&name).is_some() || self.missing.is_none();
        }
        let before = self.known.insert(name, event.clone());
        self.missing.is_none() || before.is_none_or(|old| old.identity() != event.identity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::lock::v1::{Holder, Lock, LockEvent, WatchRequest, lock_event::Kind};

    fn granted(name: &str, token: u64) -> LockEvent {
        let holder = Some(Holder { fencing_token: token, ..Default::default() });
        let lock = Some(Lock { name: name.to_owned(), holder, ..Default::default() });
        LockEvent { kind: Kind::Granted.into(), lock, revision: token }
    }

    fn told(
        watch: &mut Reconciling<WatchRequest>,
        mut events: Vec<LockEvent>,
        end: bool,
    ) -> Vec<(String, Kind)> {
        watch.reconcile(&mut events, end, 99);
        let name = |event: &LockEvent| event.lock.as_ref().expect("always there").name.clone();
        events.iter().map(|event| (name(event), event.kind())).collect()
    }

    #[test]
    fn a_second_snapshot_tells_only_what_changed_and_what_is_gone() {
        let mut watch = Reconciling::new(WatchRequest::default());
        let first = told(&mut watch, vec![granted("a", 1), granted("b", 2), granted("c", 3)], true);
        assert_eq!(first.len(), 3);

        watch.begin();
        assert_eq!(told(&mut watch, vec![granted("a", 1)], false), []);
        let rest = told(&mut watch, vec![granted("c", 7), granted("d", 8)], true);
        assert_eq!(
            rest,
            [
                ("c".to_owned(), Kind::Granted),
                ("d".to_owned(), Kind::Granted),
                ("b".to_owned(), Kind::Freed),
            ]
        );

        let live = told(&mut watch, vec![granted("a", 1).gone(100)], false);
        assert_eq!(live, [("a".to_owned(), Kind::Freed)]);
    }
}
