//! Quorum arithmetic: what a majority, or both majorities of a joint membership, have reached.
//!
//! Pure functions of a [`Membership`] and of what each voter says. They know no roles, logs or
//! messages. Raft §5.3 and §5.4.2 for the commit index, §6 for joint majorities.

use std::collections::BTreeSet;

use crate::{raft::Membership, types::NodeId};

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// A quorum is in favour.
    Won,
    /// A quorum can no longer be reached.
    Lost,
    /// It hangs on those who have not answered.
    Pending,
}

/// The largest value that a quorum has reached; `None` without voters. In a joint membership both
/// majorities must have reached it.
pub fn reached<T: Ord + Copy>(membership: &Membership, value: impl Fn(NodeId) -> T) -> Option<T> {
    let new = majority_reached(&membership.voters, &value);
    let old = majority_reached(&membership.outgoing, &value);
    match (new, old) {
        (Some(new), Some(old)) => Some(new.min(old)),
        (one, None) | (None, one) => one,
    }
}

/// How a vote stands when each voter has said yes, no, or nothing yet. Without voters it is lost.
pub fn vote_result(membership: &Membership, vote: impl Fn(NodeId) -> Option<bool>) -> VoteResult {
    let new = majority_vote(&membership.voters, &vote);
    if membership.outgoing.is_empty() {
        return new;
    }
    match (new, majority_vote(&membership.outgoing, &vote)) {
        (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        _ => VoteResult::Pending,
    }
}

fn majority_reached<T: Ord + Copy>(
    voters: &BTreeSet<NodeId>,
    value: &impl Fn(NodeId) -> T,
) -> Option<T> {
    let mut values: Vec<T> = voters.iter().map(|&voter| value(voter)).collect();
    values.sort_unstable();
    // Of n sorted values the one at (n - 1) / 2 has n - (n - 1) / 2 at or above it: a majority.
    values.get(values.len().saturating_sub(1) / 2).copied()
}

fn majority_vote(voters: &BTreeSet<NodeId>, vote: &impl Fn(NodeId) -> Option<bool>) -> VoteResult {
    let majority = voters.len() / 2 + 1;
    let said = |what| voters.iter().filter(|&&voter| vote(voter) == what).count();
    let (yes, open) = (said(Some(true)), said(None));
    if yes >= majority {
        VoteResult::Won
    } else if yes + open >= majority {
        VoteResult::Pending
    } else {
        VoteResult::Lost
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    /// Counts, for every value that somebody has, who is at or above it.
    fn naive(voters: &BTreeSet<NodeId>, value: &impl Fn(NodeId) -> u64) -> Option<u64> {
        let enough =
            |at: u64| voters.iter().filter(|&&v| value(v) >= at).count() * 2 > voters.len();
        voters.iter().map(|&v| value(v)).filter(|&at| enough(at)).max()
    }

    fn voters() -> impl Strategy<Value = BTreeSet<NodeId>> {
        btree_set((1..=9_u64).prop_map(NodeId::new), 0..=9)
    }

    proptest! {
        #[test]
        fn rule_06_the_commit_index_equals_a_naive_sort(
            new in voters(),
            old in voters(),
            values in prop::array::uniform9(0..12_u64),
        ) {
            let value = |node: NodeId| values[usize::try_from(node.value() - 1).unwrap()];
            let membership = Membership { voters: new, outgoing: old, ..Membership::default() };
            let both = [&membership.voters, &membership.outgoing];
            let expected = both.iter().filter_map(|voters| naive(voters, &value)).min();
            prop_assert_eq!(reached(&membership, value), expected);
        }

        #[test]
        fn a_vote_is_decided_when_no_answer_can_change_it(
            new in voters(),
            old in voters(),
            votes in prop::array::uniform9(prop::option::of(any::<bool>())),
        ) {
            prop_assume!(!new.is_empty());
            let vote = |node: NodeId| votes[usize::try_from(node.value() - 1).unwrap()];
            let membership = Membership { voters: new, outgoing: old, ..Membership::default() };
            // A vote is won if it is when all that are silent say no, and so on.
            let wins = |silent: bool| {
                let yes = |node| u64::from(vote(node).unwrap_or(silent));
                let both = [&membership.voters, &membership.outgoing];
                both.iter().filter_map(|voters| naive(voters, &yes)).min() == Some(1)
            };
            let expected = match (wins(false), wins(true)) {
                (true, _) => VoteResult::Won,
                (false, true) => VoteResult::Pending,
                (false, false) => VoteResult::Lost,
            };
            prop_assert_eq!(vote_result(&membership, vote), expected);
        }
    }

    #[test]
    fn without_voters_nothing_is_reached_and_every_vote_is_lost() {
        let nobody = Membership::default();
        assert_eq!(reached(&nobody, |_| 7), None);
        assert_eq!(vote_result(&nobody, |_| Some(true)), VoteResult::Lost);
    }
}
