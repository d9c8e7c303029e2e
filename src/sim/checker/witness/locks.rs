//! Locks: tokens grow, one holder at each revision, and nothing by a token that does not hold.
//!
//! A hold ends with a release, with its session, or when its time has run out, of which the log
//! says nothing to clients; so an end is held against nobody from the moment on at which the time
//! may have run out. A grant of unknown outcome may be taken back at once.

use core::ops::Bound::{Excluded, Unbounded};
use std::collections::BTreeMap;

use crate::sim::{
    checker::{
        ops::{End, Op},
        witness::{
            judge::{Judge, stamp},
            sessions::{Sessions, says_gone},
        },
    },
    history::{Answer, Call, Held},
};

/// A grant.
#[derive(Clone, Copy, Debug)]
struct Grant<'a> {
    op: usize,
    owner: &'a str,
    session: Option<u64>,
    /// The line and the time by which it was known to have happened.
    line: usize,
    time: u64,
}

/// What is known of one lock.
#[derive(Debug, Default)]
struct Lock<'a> {
    grants: BTreeMap<u64, Grant<'a>>,
    /// All acquires.
    acquires: Vec<usize>,
    /// Acquires of unknown outcome that were not placed.
    open: Vec<usize>,
    /// Releases that happened or may have, by token.
    releases: BTreeMap<u64, Vec<usize>>,
    renewals: Vec<usize>,
    describes: Vec<usize>,
    /// Writes that demand the lock.
    required: Vec<usize>,
    /// Refusals that say that a token does not hold it.
    lost: Vec<(usize, u64)>,
}

/// Judges the locks.
pub(super) fn judge(judge: &mut Judge<'_>, sessions: &Sessions) {
    check_growth(judge);
    count_overlaps(judge);
    let locks = collect(judge);
    for (name, lock) in locks {
        let mut judging = Judging { judge, sessions, name, lock };
        judging.place_described();
        judging.check_grants();
        judging.check_releases();
        judging.check_held();
        judging.check_renewals();
        judging.check_lost();
    }
}

/// A later grant has a larger token; the same token is granted once.
fn check_growth(judge: &mut Judge<'_>) {
    // By lock: the tokens by the lines of their returns, with the largest up to each.
    let mut returned: BTreeMap<&str, Vec<(usize, u64, usize)>> = BTreeMap::new();
    let mut granted: BTreeMap<(&str, u64), usize> = BTreeMap::new();
    let mut twice = Vec::new();
    for (at, op) in judge.ops.iter().enumerate() {
        let Some((lock, token)) = grant(op) else { continue };
        returned.entry(lock).or_default().push((op.returned, token, at));
        if let Some(before) = granted.insert((lock, token), at) {
            twice.push((at, before, token));
        }
    }
    for tokens in returned.values_mut() {
        tokens.sort_unstable();
        let mut largest = (0, 0);
        for (_, token, at) in tokens {
            if *token > largest.0 {
                largest = (*token, *at);
            }
            (*token, *at) = largest;
        }
    }
    for (at, before, token) in twice {
        let why = format!("token {token} was granted by {}", judge.ops[before].words());
        judge.find("lock-token-unique", at, why, vec![format!("a token above {token}")]);
    }
    for at in 0..judge.ops.len() {
        let op = judge.ops[at];
        let Some((lock, token)) = grant(&op) else { continue };
        let tokens = &returned[lock];
        let before = tokens.partition_point(|(line, ..)| *line < op.called);
        let Some((_, largest, by)) = before.checked_sub(1).map(|last| tokens[last]) else {
            continue;
        };
        if token < largest {
            let why = format!("token {largest} was granted before, by {}", judge.ops[by].words());
            judge.find("lock-token-grows", at, why, vec![format!("a token above {largest}")]);
        }
    }
}

fn grant<'a>(op: &Op<'a>) -> Option<(&'a str, u64)> {
    match (op.call, op.end) {
        (Call::Acquire { lock, .. }, End::Ok(Answer::Acquired { fencing_token, .. })) => {
            Some((lock, *fencing_token))
        }
        _ => None,
    }
}

/// Counts the pairs of clients that believed to hold one lock at one time: from the answer of the
/// acquire to the call of the release, or to the news that it is lost.
fn count_overlaps(judge: &mut Judge<'_>) {
    let mut events: Vec<(usize, &str, u64, bool)> = Vec::new();
    for op in &judge.ops {
        if let Some((lock, token)) = grant(op) {
            events.push((op.returned, lock, token, true));
        }
        match op.call {
            Call::Release { lock, fencing_token } => {
                events.push((op.called, lock, *fencing_token, false));
            }
            Call::RenewLock { lock, fencing_token, .. } if says_gone(op) => {
                events.push((op.returned, lock, *fencing_token, false));
            }
            _ => {}
        }
    }
    events.sort_unstable();
    let mut holders: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut overlaps = 0;
    for (_, lock, token, begins) in events {
        let holders = holders.entry(lock).or_default();
        if begins {
            overlaps += holders.len() as u64;
            // Of holders that never say goodbye, the last few are all that matter.
            if holders.len() > 8 {
                holders.remove(0);
            }
            holders.push(token);
        } else {
            holders.retain(|held| *held != token);
        }
    }
    judge.counts.overlaps = overlaps;
}

fn collect<'a>(judge: &Judge<'a>) -> BTreeMap<&'a str, Lock<'a>> {
    let mut locks: BTreeMap<&'a str, Lock<'a>> = BTreeMap::new();
    for (at, op) in judge.ops.iter().enumerate() {
        let refused = matches!(op.end, End::Refused { .. });
        match op.call {
            Call::Acquire { lock, owner, session: given, .. } => {
                let lock = locks.entry(lock).or_default();
                lock.acquires.push(at);
                if let End::Ok(Answer::Acquired { fencing_token, session }) = op.end {
                    let session = given.unwrap_or(*session);
                    let grant = Grant {
                        op: at,
                        owner,
                        session: Some(session),
                        line: op.returned,
                        time: op.return_time,
                    };
                    lock.grants.entry(*fencing_token).or_insert(grant);
                } else if op.is_unknown() {
                    lock.open.push(at);
                }
            }
            Call::Release { lock, fencing_token } => {
                let lock = locks.entry(lock).or_default();
                if !refused {
                    lock.releases.entry(*fencing_token).or_default().push(at);
                } else if says_gone(op) {
                    lock.lost.push((at, *fencing_token));
                }
            }
            Call::RenewLock { lock, fencing_token, .. } => {
                let lock = locks.entry(lock).or_default();
                if matches!(op.end, End::Ok(_)) {
                    lock.renewals.push(at);
                } else if says_gone(op) {
                    lock.lost.push((at, *fencing_token));
                }
            }
            Call::Put { require_lock: Some((lock, token)), .. } => {
                let lock = locks.entry(lock).or_default();
                if matches!(op.end, End::Ok(_)) {
                    lock.required.push(at);
                } else if says_gone(op) {
                    lock.lost.push((at, *token));
                }
            }
            Call::Describe { lock } if matches!(op.end, End::Ok(_)) => {
                locks.entry(lock).or_default().describes.push(at);
            }
            _ => {}
        }
    }
    locks
}

struct Judging<'j, 'a> {
    judge: &'j mut Judge<'a>,
    sessions: &'j Sessions,
    name: &'a str,
    lock: Lock<'a>,
}

impl<'a> Judging<'_, 'a> {
    /// Places acquires of unknown outcome whose token somebody was told.
    fn place_described(&mut self) {
        for at in self.lock.describes.clone() {
            let op = self.judge.ops[at];
            let End::Ok(Answer::Described { holder: Some(held), .. }) = op.end else { continue };
            let Held { owner, fencing_token: token } = held;
            if self.lock.grants.contains_key(token) {
                continue;
            }
            let fits = |open: &usize| {
                let acquire = &self.judge.ops[*open];
                let own = matches!(acquire.call, Call::Acquire { owner: own, .. } if own == owner);
                own && acquire.called < op.returned && self.judge.floors[*open].revision < *token
            };
            let Some(place) = self.lock.open.iter().position(fits) else {
                if let Some(grant) = self.taken_back(owner, &op) {
                    self.lock.grants.insert(*token, grant);
                    continue;
                }
                let why = format!("nobody named {owner:?} can have been granted token {token}");
                self.judge.find("lock-token-phantom", at, why, Vec::new());
                continue;
            };
            let open = self.lock.open.remove(place);
            self.judge.note_placed(open);
            let Call::Acquire { owner, session, .. } = self.judge.ops[open].call else { continue };
            let grant = Grant {
                op: open,
                owner,
                session: *session,
                line: op.returned,
                time: op.return_time,
            };
            self.lock.grants.insert(*token, grant);
        }
    }

    /// A grant that nobody was answered and somebody saw: an acquire that was tried more than once
    /// may be granted, taken back because its caller had given that attempt up, and granted anew.
    fn taken_back(&self, owner: &str, seen: &Op<'a>) -> Option<Grant<'a>> {
        let asked = self.lock.acquires.iter().find_map(|at| {
            let op = &self.judge.ops[*at];
            match op.call {
                Call::Acquire { owner: own, .. } if own == owner && op.called < seen.returned => {
                    Some((*at, own))
                }
                _ => None,
            }
        });
        let (op, owner) = asked?;
        let (line, time) = (seen.returned, seen.return_time);
        Some(Grant { op, owner, session: None, line, time })
    }

    /// Whether a hold may have ended: at or below a revision where that is given, known at a line
    /// and a time.
    fn may_have_ended(&self, token: u64, revision: Option<u64>, line: usize, time: u64) -> bool {
        let Some(grant) = self.lock.grants.get(&token) else { return true };
        let (grant_op, ops) = (&self.judge.ops[grant.op], &self.judge.ops);
        let released = |release: &usize| {
            let release = &ops[*release];
            let in_time = match (stamp(release), revision) {
                (Some(stamp), Some(revision)) => stamp.revision <= revision,
                _ => true,
            };
            release.called < line && in_time
        };
        let closed = |close: &usize| ops[*close].called < line;
        let releases = self.lock.releases.get(&token);
        let session = grant.session.filter(|_| !grant_op.is_unknown());
        let Some(session) = session else { return true };
        releases.is_some_and(|releases| releases.iter().any(released))
            || self.sessions.closes(session).iter().any(closed)
            || self.sessions.expiry_min(session, time).is_none_or(|expiry| expiry <= time)
    }

    /// A grant follows the end of the one before.
    fn check_grants(&mut self) {
        let grants: Vec<(u64, Grant<'a>)> =
            self.lock.grants.iter().map(|(token, grant)| (*token, *grant)).collect();
        for pair in grants.windows(2) {
            let [(before, held), (token, grant)] = pair else { continue };
            if self.may_have_ended(*before, Some(*token), grant.line, grant.time) {
                continue;
            }
            let why = format!(
                "lock {} was held with token {before}, by {}, and its time cannot have run out",
                self.name,
                self.judge.ops[held.op].words()
            );
            let legal = vec!["a refusal".into(), "to wait".into()];
            self.judge.find("lock-exclusive", grant.op, why, legal);
        }
    }

    /// The grant that holds a token, where the token is known.
    fn check_known(&mut self, at: usize, token: u64) -> bool {
        if self.lock.grants.contains_key(&token) {
            return true;
        }
        let op = self.judge.ops[at];
        let open = self.lock.open.iter().any(|open| {
            self.judge.ops[*open].called < op.returned && self.judge.floors[*open].revision < token
        });
        if !open {
            let why = format!("token {token} of lock {} was granted to nobody", self.name);
            self.judge.find("lock-token-phantom", at, why, vec!["a refusal".into()]);
        }
        false
    }

    fn check_releases(&mut self) {
        for (token, releases) in self.lock.releases.clone() {
            let mut done = None;
            for at in releases {
                let op = self.judge.ops[at];
                if !matches!(op.end, End::Ok(_)) || !self.check_known(at, token) {
                    continue;
                }
                if let Some(first) = done.replace(at) {
                    let why = format!("it had been released: {}", self.judge.ops[first].words());
                    self.judge.find("lock-release", at, why, vec!["a refusal".into()]);
                    continue;
                }
                let Some(stamp) = stamp(&op) else { continue };
                let later = self
                    .lock
                    .grants
                    .range((Excluded(token), Unbounded))
                    .next()
                    .map(|(t, g)| (*t, g.op));
                if stamp.revision <= token {
                    let why = format!("revision {} is not after the grant", stamp.revision);
                    self.judge.find("lock-release", at, why, Vec::new());
                } else if let Some((later, by)) = later.filter(|(t, _)| *t < stamp.revision) {
                    let by = self.judge.ops[by].words();
                    let why = format!("token {later} had been granted, by {by}");
                    self.judge.find("lock-release", at, why, vec!["a refusal".into()]);
                }
            }
        }
    }

    /// Descriptions, and writes that demand the lock, are true at their revision.
    fn check_held(&mut self) {
        for at in self.lock.describes.clone() {
            let op = self.judge.ops[at];
            let End::Ok(Answer::Described { holder, revision: Some(revision) }) = op.end else {
                continue;
            };
            match holder {
                Some(held) => {
                    let grant = self.lock.grants.get(&held.fencing_token);
                    let owner = grant.map(|grant| grant.owner);
                    if owner.is_some_and(|owner| owner != held.owner) {
                        let by = self.judge.ops[grant.expect("it has an owner").op].words();
                        let why = format!("token {} was granted by {by}", held.fencing_token);
                        self.judge.find("lock-holder", at, why, Vec::new());
                    } else if owner.is_some() {
                        self.check_holds(at, held.fencing_token, *revision, "lock-holder");
                    }
                }
                None => {
                    let last = self.lock.grants.range(..=*revision).next_back();
                    let Some((token, grant)) = last.map(|(token, grant)| (*token, *grant)) else {
                        continue;
                    };
                    if !self.may_have_ended(token, Some(*revision), op.returned, op.return_time) {
                        let why = format!(
                            "it was held with token {token}, by {}, and its time cannot have run \
                             out",
                            self.judge.ops[grant.op].words()
                        );
                        let legal = vec![format!("held by {:?} with token {token}", grant.owner)];
                        self.judge.find("lock-holder", at, why, legal);
                    }
                }
            }
        }
        for at in self.lock.required.clone() {
            let op = self.judge.ops[at];
            let Call::Put { require_lock: Some((_, token)), .. } = op.call else { continue };
            if let Some(stamp) = stamp(&op)
                && self.check_known(at, *token)
            {
                self.check_holds(at, *token, stamp.revision, "lock-required");
            }
        }
    }

    /// A token holds the lock at a revision.
    fn check_holds(&mut self, at: usize, token: u64, revision: u64, rule: &'static str) {
        let why = if token > revision {
            Some(format!("token {token} was granted after revision {revision}"))
        } else if let Some((later, grant)) = self
            .lock
            .grants
            .range((Excluded(token), Unbounded))
            .next()
            .filter(|(later, _)| **later <= revision)
        {
            let by = self.judge.ops[grant.op].words();
            Some(format!("at revision {revision} token {later} held it, by {by}"))
        } else {
            let released = |release: &&usize| {
                stamp(&self.judge.ops[**release]).is_some_and(|s| s.revision <= revision)
            };
            let release = self.lock.releases.get(&token).and_then(|all| all.iter().find(released));
            release.map(|release| {
                format!("it had been released by {}", self.judge.ops[*release].words())
            })
        };
        if let Some(why) = why {
            self.judge.find(rule, at, why, Vec::new());
        }
    }

    /// What is renewed is held at some moment of the call.
    fn check_renewals(&mut self) {
        for at in self.lock.renewals.clone() {
            let op = self.judge.ops[at];
            let Call::RenewLock { fencing_token: token, .. } = op.call else { continue };
            if !self.check_known(at, *token) {
                continue;
            }
            let later = self
                .lock
                .grants
                .range((Excluded(token), Unbounded))
                .find_map(|(_, grant)| (grant.line < op.called).then_some(grant.op));
            let released = self.lock.releases.get(token).into_iter().flatten().find(|release| {
                let release = &self.judge.ops[**release];
                matches!(release.end, End::Ok(_)) && release.before(&op)
            });
            if let Some(by) = later.or(released.copied()) {
                let why = format!("its hold had ended: {}", self.judge.ops[by].words());
                self.judge.find("lock-renewal", at, why, vec!["a refusal".into()]);
            }
        }
    }

    /// Who is told that a hold is gone did not hold it any more, or may not have.
    fn check_lost(&mut self) {
        for (at, token) in self.lock.lost.clone() {
            let op = self.judge.ops[at];
            let Some(grant) = self.lock.grants.get(&token) else { continue };
            let granted = &self.judge.ops[grant.op];
            if !granted.before(&op) || self.may_have_ended(token, None, op.returned, op.return_time)
            {
                continue;
            }
            let why = format!(
                "token {token} held lock {}, by {}, and its time cannot have run out",
                self.name,
                granted.words()
            );
            self.judge.find("lock-lost", at, why, vec!["done".into()]);
        }
    }
}
