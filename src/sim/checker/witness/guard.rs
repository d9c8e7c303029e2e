//! What a lock guards: no token below the largest seen is taken, and none is turned away without
//! a larger one.

use std::collections::BTreeMap;

use crate::sim::{
    checker::{ops::End, witness::judge::Judge},
    history::{Answer, Call},
};

/// Judges the guarded resources.
pub(super) fn judge(judge: &mut Judge<'_>) {
    // By lock, writes that were taken or may have been: by call and by return.
    let mut called: BTreeMap<&str, Vec<(usize, u64, usize)>> = BTreeMap::new();
    let mut taken: BTreeMap<&str, Vec<(usize, u64, usize)>> = BTreeMap::new();
    let mut writes = Vec::new();
    for (at, op) in judge.ops.iter().enumerate() {
        let Call::GuardedWrite { lock, fencing_token: token, .. } = op.call else { continue };
        let accepted = match op.end {
            End::Ok(Answer::Guarded { accepted }) => Some(*accepted),
            End::Unknown => None,
            _ => continue,
        };
        if accepted == Some(true) {
            taken.entry(lock).or_default().push((op.returned, *token, at));
        }
        if accepted != Some(false) {
            called.entry(lock).or_default().push((op.called, *token, at));
        }
        if let Some(accepted) = accepted {
            writes.push((at, lock.as_str(), *token, accepted));
        }
    }
    for all in called.values_mut().chain(taken.values_mut()) {
        keep_largest(all);
    }
    for (at, lock, token, accepted) in writes {
        let op = judge.ops[at];
        if accepted {
            if let Some((largest, by)) = largest_before(&taken, lock, op.called)
                && largest > token
            {
                let why = format!("token {largest} had been taken: {}", judge.ops[by].words());
                judge.find("guard-stale-token", at, why, vec!["turned away".into()]);
            }
        } else if largest_before(&called, lock, op.returned).is_none_or(|(most, _)| most <= token) {
            let why = "no larger token can have been seen";
            judge.find("guard-wrong-refusal", at, why, vec!["accepted".into()]);
        }
    }
}

/// Sorts by line, and keeps the largest token up to each.
fn keep_largest(all: &mut [(usize, u64, usize)]) {
    all.sort_unstable();
    let mut largest = (0, 0);
    for (_, token, at) in all {
        if *token > largest.0 {
            largest = (*token, *at);
        }
        (*token, *at) = largest;
    }
}

fn largest_before(
    all: &BTreeMap<&str, Vec<(usize, u64, usize)>>,
    lock: &str,
    line: usize,
) -> Option<(u64, usize)> {
    let all = all.get(lock)?;
    let before = all.partition_point(|(at, ..)| *at < line);
    before.checked_sub(1).map(|last| (all[last].1, all[last].2))
}
