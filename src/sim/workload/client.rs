//! A client's memory: values seen, tokens and sessions held, versions known.
//!
//! Deterministic, and without any connection: it makes calls and learns from answers.

use std::collections::BTreeMap;

use crate::sim::{
    history::{Answer, Call, Change, Compare, Outcome},
    workload::{Expect, Intent},
};

/// How many versions back a read of a stream begins.
const READ_BACK: u64 = 5;
/// A version that no stream of a workload reaches.
const VERSION_WRONG: u64 = 1_000_000;

/// The TTL of a session that is opened because there is none to renew, in milliseconds.
pub const RENEWED_TTL_MS: u64 = 1_000;

/// What a client knows.
#[derive(Clone, Debug, Default)]
pub struct Client {
    id: u64,
    serial: u64,
    values: BTreeMap<String, Option<String>>,
    session: Option<u64>,
    /// Token and session of the last grant of each lock.
    grants: BTreeMap<String, (u64, u64)>,
    /// The last known version of each stream, and under the empty name the last position.
    versions: BTreeMap<String, u64>,
    revision: u64,
}

impl Client {
    /// A client that knows nothing.
    #[must_use]
    pub fn new(id: u64) -> Self {
        Self { id, ..Self::default() }
    }

    /// Its number.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// The call that carries an intent out; `None` where there is nothing to do it with, as a
    /// release without a grant.
    pub fn call(&mut self, intent: &Intent) -> Option<Call> {
        Some(match intent.clone() {
            Intent::Get { key, stale } => Call::Get { key, stale },
            Intent::Put { key } => Call::Put { key, value: self.fresh(), require_lock: None },
            Intent::PutLocked { key, lock } => {
                let (token, _) = *self.grants.get(&lock)?;
                Call::Put { key, value: self.fresh(), require_lock: Some((lock, token)) }
            }
            Intent::Delete { key } => Call::Delete { key },
            Intent::Cas { key } => {
                let expected = self.values.get(&key).cloned().flatten();
                Call::Cas { key, expected, value: self.fresh() }
            }
            Intent::Txn { keys } => self.txn(&keys)?,
            Intent::OpenSession { ttl_ms } => Call::OpenSession { ttl_ms },
            Intent::RenewSession => match self.session {
                Some(session) => Call::RenewSession { session },
                None => Call::OpenSession { ttl_ms: RENEWED_TTL_MS },
            },
            Intent::CloseSession => Call::CloseSession { session: self.session.take()? },
            Intent::Acquire { lock, ttl_ms, wait_ms, in_session } => {
                let session = self.session.filter(|_| in_session);
                Call::Acquire { lock, owner: self.name(), ttl_ms, wait_ms, session }
            }
            Intent::GuardedWrite { lock } => {
                let (fencing_token, _) = *self.grants.get(&lock)?;
                Call::GuardedWrite { lock, fencing_token, value: self.fresh() }
            }
            Intent::RenewLock { lock } => {
                let (fencing_token, session) = *self.grants.get(&lock)?;
                Call::RenewLock { lock, fencing_token, session }
            }
            Intent::Release { lock } => {
                let (fencing_token, _) = *self.grants.get(&lock)?;
                Call::Release { lock, fencing_token }
            }
            Intent::ReleaseWrongly { lock } => {
                let known = self.grants.get(&lock).map_or(1, |(token, _)| *token);
                Call::Release { lock, fencing_token: known + 1_000_000 }
            }
            Intent::Describe { lock } => Call::Describe { lock },
            Intent::Register { service, ttl_ms } => {
                Call::Register { service, instance: self.name(), ttl_ms }
            }
            Intent::Deregister { service } => Call::Deregister { service, instance: self.name() },
            Intent::Resolve { service } => Call::Resolve { service },
            Intent::Append { stream, count, expect } => {
                let expected_version = match expect {
                    Expect::Anything => None,
                    Expect::Known => Some(self.versions.get(&stream).copied().unwrap_or(0)),
                    Expect::Wrong => Some(VERSION_WRONG),
                };
                let data = (0..count.max(1)).map(|_| self.fresh()).collect();
                Call::Append { stream, data, expected_version }
            }
            Intent::ReadStream { stream } => {
                let known = self.versions.get(&stream).copied().unwrap_or(0);
                Call::ReadStream { stream, from: known.saturating_sub(READ_BACK).max(1) }
            }
            Intent::Compact { keep } => {
                let revision = self.revision.checked_sub(keep).filter(|left| *left > 0)?;
                Call::Compact { revision }
            }
        })
    }

    /// Learns what became of a call.
    pub fn learn(&mut self, call: &Call, outcome: &Outcome) {
        let Outcome::Ok(answer) = outcome else {
            return self.learn_failure(call, outcome);
        };
        match (call, answer) {
            (Call::Get { key, .. }, Answer::Got { value, revision }) => {
                let value = value.as_ref().map(|versioned| versioned.value.clone());
                self.values.insert(key.clone(), value);
                self.saw(*revision);
            }
            (Call::Put { key, value, .. }, Answer::Done { revision }) => {
                self.values.insert(key.clone(), Some(value.clone()));
                self.saw(*revision);
            }
            (Call::Delete { key }, Answer::Deleted { revision, .. }) => {
                self.values.insert(key.clone(), None);
                self.saw(*revision);
            }
            (Call::Cas { key, value, .. }, Answer::Swapped { swapped, revision }) => {
                if *swapped {
                    self.values.insert(key.clone(), Some(value.clone()));
                } else {
                    self.values.remove(key);
                }
                self.saw(*revision);
            }
            (Call::Txn { reads, .. }, Answer::Txn { reads: read, revision, .. }) => {
                for (key, versioned) in reads.iter().zip(read) {
                    let value = versioned.as_ref().map(|versioned| versioned.value.clone());
                    self.values.insert(key.clone(), value);
                }
                self.saw(*revision);
            }
            (Call::OpenSession { .. }, Answer::Opened { session, revision }) => {
                self.session = Some(*session);
                self.saw(*revision);
            }
            (Call::Acquire { lock, .. }, Answer::Acquired { fencing_token, session }) => {
                self.grants.insert(lock.clone(), (*fencing_token, *session));
                self.saw(Some(*fencing_token));
            }
            (Call::Append { stream, data, .. }, Answer::Appended { first_version, .. }) => {
                let last = first_version + data.len() as u64 - 1;
                self.versions.insert(stream.clone(), last);
            }
            (Call::ReadStream { stream, .. }, Answer::Events { events }) => {
                if let Some(last) = events.last() {
                    let place = if stream.is_empty() { last.position } else { last.version };
                    self.versions.insert(stream.clone(), place);
                }
            }
            _ => {}
        }
    }

    fn learn_failure(&mut self, call: &Call, outcome: &Outcome) {
        match (call, outcome) {
            (Call::Append { stream, .. }, Outcome::Refused { actual: Some(actual), .. }) => {
                self.versions.insert(stream.clone(), *actual);
            }
            (Call::RenewSession { session }, Outcome::Refused { .. }) => {
                self.session.take_if(|own| own == session);
            }
            _ => {}
        }
    }

    fn txn(&mut self, keys: &[String]) -> Option<Call> {
        let first = keys.first()?;
        let compares = match self.values.get(first) {
            Some(value) => vec![Compare { key: first.clone(), value: value.clone() }],
            None => Vec::new(),
        };
        let changes = keys.iter().map(|key| {
            let value = self.fresh();
            // Now and then a key goes.
            let value = (!self.serial.is_multiple_of(5)).then_some(value);
            Change { key: key.clone(), value }
        });
        Some(Call::Txn { compares, changes: changes.collect(), reads: keys.to_vec() })
    }

    fn saw(&mut self, revision: Option<u64>) {
        self.revision = self.revision.max(revision.unwrap_or(0));
    }

    /// A value that nobody else writes, and this client only once.
    fn fresh(&mut self) -> String {
        self.serial += 1;
        format!("c{}.{}", self.id, self.serial)
    }

    fn name(&self) -> String {
        format!("c{}", self.id)
    }
}
